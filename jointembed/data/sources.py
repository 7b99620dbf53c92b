"""Where the published caption data sets are, and the sums that their files are known by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One published file: where it is, what it must be, and the folder its archive is unpacked in."""

    part: str
    url: str
    file: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    folder: str = ""


def _coco(part: str, path: str, size: int, sha256: str) -> Source:
    return Source(part, f"http://images.cocodataset.org/{path}", path.rpartition("/")[-1], size, sha256)


_KARPATHY = Source(
    part="karpathy",
    url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    file="caption_datasets.zip",
    size=36745453,
    sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
)
_FLICKR8K = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"

# Nobody who made these data sets publishes sums. Those of COCO and of Karpathy's file are in tensorflow/datasets,
# url_checksums/coco_captions.txt; those of Flickr in mlverse/torchvision, R/dataset-flickr.R.
SOURCES: dict[str, tuple[Source, ...]] = {
    "coco2014": (
        _coco(
            "annotations",
            "annotations/annotations_trainval2014.zip",
            252872794,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
        ),
        _KARPATHY,
        _coco(
            "val", "zips/val2014.zip", 6645013297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
        ),
        _coco(
            "train",
            "zips/train2014.zip",
            13510573713,
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        ),
    ),
    "coco2017": (
        _coco(
            "annotations",
            "annotations/annotations_trainval2017.zip",
            252907541,
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
        _coco("val", "zips/val2017.zip", 815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
        _coco(
            "train",
            "zips/train2017.zip",
            19336861798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
    ),
    "karpathy": (_KARPATHY,),
    "flickr8k": (
        Source(
            part="text",
            url=f"{_FLICKR8K}/Flickr8k_text.zip",
            file="Flickr8k_text.zip",
            md5="bf6c1abcb8e4a833b7f922104de18627",
            folder="Flickr8k_text",
        ),
        _KARPATHY,
        Source(
            part="images",
            url=f"{_FLICKR8K}/Flickr8k_Dataset.zip",
            file="Flickr8k_Dataset.zip",
            md5="f18a1e2920de5bd84dae7cf08ec78978",
        ),
    ),
    "flickr30k": (
        _KARPATHY,
        Source(
            part="images",
            url="https://uofi.app.box.com/shared/static/1cpolrtkckn4hxr1zhmfg0ln9veo6jpl.gz",
            file="flickr30k-images.tar.gz",
            md5="985ac761bbb52ca49e0c474ae806c07c",
        ),
    ),
}

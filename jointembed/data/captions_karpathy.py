"""Karpathy's splits: `dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`.

Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from jointembed.data.captions import Record, clean_caption, from_records, stem
from jointembed.data.json_file import field, read_json
from jointembed.data.records import CaptionData
from jointembed.errors import DataError

SPLITS = ("train", "restval", "val", "test")


def karpathy(
    *,
    images: str,
    annotations: str,
    split: Literal["train", "restval", "train+restval", "val", "test"],
    captions_per_picture: int | None = None,
) -> CaptionData:
    """Pictures of one split in the order of the file, which the 1K folds of the COCO 5K test depend on.

    COCO's file has four splits: `restval` is what val and test (5,000 each) leave of COCO's val2014, and the
    literature trains on `train+restval`. The Flickr files have no `restval`.

    Args:
        images: folder above `train2014` and `val2014` for COCO; the folder of the files themselves for Flickr.
        annotations: the JSON file.
        split: which pictures.
        captions_per_picture: keep at most so many, the first ones; 5 gives the 25,000 captions of the COCO 5K test.

    Raises:
        DataError: naming the file and the record: broken JSON, a missing or ill-typed key, an unknown split, a
            sentence id that is there twice, an empty caption, a picture without captions or without file.
    """
    wanted = split.split("+")
    # "tokens" doubles the memory that the file takes, and the captions are tokenised anew
    document = read_json(Path(annotations), drop=("tokens", "sentids"))
    found: Counter[str] = Counter()
    seen: set[int] = set()
    records = []
    for number, image in enumerate(field(document, "images", list, annotations)):
        where = f"{annotations}: images[{number}]"
        own = field(image, "split", str, where)
        if own not in SPLITS:
            raise DataError(f"{where}: split {own!r}; expected one of {', '.join(SPLITS)}")
        found[own] += 1
        if own in wanted:
            records.append(_record(image, where, seen))
    for name in wanted:
        if not found[name]:
            counts = ", ".join(f"{key} {count}" for key, count in found.items()) or "none"
            raise DataError(f"{annotations}: no picture of the split {name!r}; pictures by split: {counts}")
    return from_records(f"{stem(annotations)} {split}", images, records, captions_per_picture=captions_per_picture)


def _record(image: dict[str, object], where: str, seen: set[int]) -> Record:
    filename = field(image, "filename", str, where)
    where = f"{where} ({filename!r})"
    folder = field(image, "filepath", str, where) if "filepath" in image else ""
    picture_id = str(field(image, "cocoid", int, where)) if "cocoid" in image else filename
    record = Record(picture_id, f"{folder.rstrip('/')}/{filename}" if folder else filename)
    sentences = field(image, "sentences", list, where)
    if not sentences:
        raise DataError(f"{where}: has no caption")
    for place, sentence in enumerate(sentences):
        here = f"{where}: sentences[{place}]"
        sentence_id = field(sentence, "sentid", int, here)
        if sentence_id in seen:
            raise DataError(f"{here}: the sentid {sentence_id} is there twice")
        seen.add(sentence_id)
        raw = field(sentence, "raw", object, here)
        record.captions.append(clean_caption(raw, f"{here} (sentid {sentence_id})"))
        record.caption_ids.append(sentence_id)
    return record

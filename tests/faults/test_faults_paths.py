import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import crafted_pictures as crafted
import datasets
import pyarrow.parquet
import pytest

from jointembed.data.audio import esc50
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_flickr import flickr8k_tokens
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.detection_coco import coco_detection
from jointembed.data.detection_voc import voc_folder
from jointembed.data.hub import caption_dataset
from jointembed.data.image_shards import image_shards
from jointembed.errors import DataError

Read = Callable[[Path, str], object]


def written(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def coco(root: Path, name: str) -> object:
    document = {"images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
    return coco_captions(images=str(root / "in"), annotations=written(root / "c.json", json.dumps(document)))


def of_karpathy(root: Path, name: str) -> object:
    image = {"split": "test", "filename": name, "sentences": [{"raw": "a", "sentid": 1}]}
    path = written(root / "k.json", json.dumps({"images": [image]}))
    return karpathy(images=str(root / "in"), annotations=path, split="test")


def of_karpathy_folder(root: Path, name: str) -> object:
    folder, _, file = name.rpartition("/")
    image = {"split": "test", "filepath": folder, "filename": file, "sentences": [{"raw": "a", "sentid": 1}]}
    path = written(root / "k.json", json.dumps({"images": [image]}))
    return karpathy(images=str(root / "in"), annotations=path, split="test")


def flickr(root: Path, name: str) -> object:
    tokens, split = written(root / "t.txt", f"{name}#0\ta dog\n"), written(root / "s.txt", name)
    return flickr8k_tokens(images=str(root / "in"), tokens=tokens, split_file=split)


def of_table(root: Path, name: str) -> object:
    return caption_table(images=str(root / "in"), table=written(root / "t.csv", f"image,caption\n{name},a dog\n"))


def of_json_lines(root: Path, name: str) -> object:
    line = json.dumps({"image": name, "caption": "a dog"})
    return caption_table(images=str(root / "in"), table=written(root / "t.jsonl", line))


def boxes(root: Path, name: str) -> object:
    image = {"id": 1, "file_name": name, "width": 32, "height": 32}
    document = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    return coco_detection(images=str(root / "in"), annotations=written(root / "i.json", json.dumps(document)))


def xml(root: Path, name: str) -> object:
    written(
        root / "xml" / "a.xml",
        f"<annotation><filename>{name}</filename><size><width>32</width><height>32</height></size>"
        "<object><name>x</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object></annotation>",
    )
    return voc_folder(images=str(root / "in"), annotations=str(root / "xml"))


def sounds(root: Path, name: str) -> object:
    written(root / "meta" / "esc50.csv", f"filename,fold,target,category\n{name},1,0,dog\n")
    (root / "audio").symlink_to(root / "in")
    return esc50(path=str(root))


def rows(root: Path, name: str) -> object:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    row = {"image": [{"bytes": None, "path": name}], "caption": ["a"]}
    table = datasets.Dataset.from_dict(row, features=features).data.table
    pyarrow.parquet.write_table(table, root / "in" / "t.parquet")
    return caption_dataset(path=str(root / "in" / "t.parquet"), split="t")


READERS: dict[str, Read] = {
    one.__name__: one
    for one in (
        coco, of_karpathy, of_karpathy_folder, flickr, of_table, of_json_lines, boxes, xml, sounds, rows,
    )
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`in/`, the pictures; outside it a picture, and links of the inside to it and to its folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))
    crafted.write(tmp_path / "secret", {"out.jpg": crafted.good()["rgb.jpg"]})
    crafted.write(tmp_path / "in", {"a.jpg": crafted.good()["rgb.jpg"]})
    os.symlink(tmp_path / "secret" / "out.jpg", tmp_path / "in" / "link.jpg")
    os.symlink(tmp_path / "secret", tmp_path / "in" / "folder")
    return tmp_path


@pytest.mark.fault(11, "`../`, absolute, links out of the root: every reader of annotations")
@pytest.mark.parametrize("name", ["../secret/out.jpg", "ABSOLUTE", "link.jpg", "folder/out.jpg"])
@pytest.mark.parametrize("reader", list(READERS))
def test_no_reader_leaves_its_folder(reader: str, name: str, root: Path) -> None:
    name = str(root / "secret" / "out.jpg") if name == "ABSOLUTE" else name
    with pytest.raises(DataError, match="must stay inside|leads out of .* through a symbolic link") as found:
        READERS[reader](root, name)
    assert "\n" not in str(found.value)


@pytest.mark.fault(11, "control: the same readers take a name inside")
@pytest.mark.parametrize("reader", [name for name in READERS if name != "sounds"])
def test_a_name_inside_is_taken(reader: str, root: Path) -> None:
    assert READERS[reader](root, "a.jpg") is not None


@pytest.mark.fault(11, "tar shards with links, devices, pipes, `../`, absolute names")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("name", ["x.jpg", "../x.jpg", "/x.jpg"])
def test_shards_hold_plain_files_alone(kind: bytes, name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    readers: tuple[Callable[[str], object], ...] = (
        lambda path: caption_shards(shards=path),
        lambda path: image_shards(path=path, labels=None),
    )
    for read in readers:
        with pytest.raises(DataError, match="a.tar: .*(expected plain files|leads out of the archive)"):
            read(str(tmp_path / "a.tar"))

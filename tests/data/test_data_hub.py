import csv
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from jointembed.data.hub import caption_dataset, image_dataset
from jointembed.data.records import CaptionData
from jointembed.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache_and_no_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))
    datasets.disable_progress_bars()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def shade(data: CaptionData, number: int) -> int:
    return int(np.asarray(data.pictures.open(number))[0, 0, 0])


PICTURES = [png(value) for value in (10, 20, 30)]


def rows(as_image: bool = True, **columns: list[Any]) -> datasets.Dataset:
    data = datasets.Dataset.from_dict({"image": PICTURES, "caption": ["a", " b ", "c"], **columns})
    if not as_image:
        return data
    return data.map(lambda row: {"image": {"bytes": row["image"], "path": None}}).cast_column("image", datasets.Image())


@pytest.mark.parametrize("as_image", [True, False])
def test_parquet_file(tmp_path: Path, as_image: bool) -> None:
    rows(as_image).to_parquet(tmp_path / "val.parquet")
    data = caption_dataset(path=str(tmp_path / "val.parquet"), split="val")
    assert data.captions == (("a",), ("b",), ("c",)) and data.item.tolist() == [0, 1, 2]
    assert data.picture_ids == ("0", "1", "2") and data.pictures.names == ("val[0]", "val[1]", "val[2]")
    assert list(data.pictures.sizes()) == [len(content) for content in PICTURES]
    assert [shade(data, number) for number in range(3)] == [10, 20, 30]


def test_parquet_folder_slice_and_worker(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows().to_parquet(tmp_path / "set" / "train-00000.parquet")
    data = caption_dataset(path=str(tmp_path / "set"), split="train[1:]")
    assert data.name == f"{tmp_path / 'set'} train[1:]" and data.captions == (("b",), ("c",))
    sent = pickle.loads(pickle.dumps(data))
    assert np.array_equal(np.asarray(sent.pictures.open(1)), np.asarray(data.pictures.open(1)))
    assert sent.fingerprint == data.fingerprint


def test_lists_of_captions_and_several_columns(tmp_path: Path) -> None:
    several = rows(caption=[["a", "b"], ["c"], ["d", "e", "f"]], other=["x", "y", "z"])
    several.to_parquet(tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    assert caption_dataset(path=path, split="t").captions == (("a", "b"), ("c",), ("d", "e", "f"))
    both = caption_dataset(path=path, split="t", caption_column=["other", "caption"])
    assert both.captions == (("x", "a", "b"), ("y", "c"), ("z", "d", "e", "f"))


def test_rows_of_one_picture(tmp_path: Path) -> None:
    rows(which=[7, 7, 8]).to_parquet(tmp_path / "t.parquet")
    data = caption_dataset(path=str(tmp_path / "t.parquet"), split="t", id_column="which")
    assert data.picture_ids == ("7", "8") and data.captions == (("a", "b"), ("c",))
    assert [shade(data, number) for number in range(2)] == [10, 30]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_image_folder(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    records = [{"file_name": f"{number}.png", "text": f"caption {number}"} for number in range(3)]
    for record, content in zip(records, PICTURES, strict=True):
        (folder / record["file_name"]).write_bytes(content)
    with open(folder / f"metadata.{suffix}", "w", newline="") as file:
        if suffix == "csv":
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(records)
        else:
            file.writelines(json.dumps(record) + "\n" for record in records)
    data = caption_dataset(path=str(tmp_path / "set"), split="train", caption_column="text")
    assert sorted(data.captions) == [(f"caption {number}",) for number in range(3)]
    for number, name in enumerate(data.pictures.names):
        which = int(data.captions[number][0][-1])
        assert name == f"train[{number}] {which}.png"
        assert data.pictures.sizes()[number] == len(PICTURES[which])
        assert shade(data, number) == 10 * which + 10


def test_saved_to_disk(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"val": rows().shuffle(seed=0)}).save_to_disk(tmp_path / "many")
    assert caption_dataset(path=str(tmp_path / "one"), split="train").captions == (("a",), ("b",), ("c",))
    many = caption_dataset(path=str(tmp_path / "many"), split="val")
    captions = {10: ("a",), 20: ("b",), 30: ("c",)}
    assert [captions[shade(many, number)] for number in range(3)] == list(many.captions)
    with pytest.raises(DataError, match="many test: cannot be loaded"):
        caption_dataset(path=str(tmp_path / "many"), split="test")


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    rows(as_image=False, image=[PICTURES[0], b"no picture", b""]).to_parquet(tmp_path / "t.parquet")
    data = caption_dataset(path=str(tmp_path / "t.parquet"), split="t")
    with pytest.raises(DataError, match=r"t\[1\]: not a picture"):
        data.pictures.open(1)
    with pytest.raises(DataError, match=r"t\[2\]: the file is empty"):
        data.pictures.open(2)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"image_column": "photo"}, "no column 'photo'; the columns are 'image', 'caption'"),
        ({}, {"caption_column": "text"}, "no column 'text'"),
        ({}, {"caption_column": ["caption", "text"]}, "no column 'text'"),
        ({}, {"id_column": "id"}, "no column 'id'"),
        ({"id": [1, None, 2]}, {"id_column": "id"}, r"t\[1\]: 'id' is None; expected an id"),
        ({"caption": ["a", None, "c"]}, {}, r"t\[1\]: the caption is NoneType"),
        ({"caption": ["a", "b", " "]}, {}, r"t\[2\]: the caption is empty"),
        ({"caption": [["a"], [], ["c"]]}, {}, r"t\[1\]: has no caption"),
        ({"caption": [["a"], None, ["c"]]}, {}, r"t\[1\]: the caption is NoneType"),
        ({"caption": [1, 2, 3]}, {}, r"t\[0\]: the caption is int 1"),
        ({"image": [PICTURES[0], None, PICTURES[1]]}, {}, r"t\[1\]: the row holds no picture"),
        ({"image": ["a.png", "b.png", "c.png"]}, {}, "'image' holds Value.*; expected pictures, or their bytes"),
    ],
)
def test_faults_in_rows(tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str) -> None:
    rows(as_image=False, **columns).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        caption_dataset(path=str(tmp_path / "t.parquet"), split="t", **options)


def test_faults_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("junk")
    with pytest.raises(DataError, match="broken.parquet t: cannot be loaded"):
        caption_dataset(path=str(tmp_path / "broken.parquet"), split="t")
    (tmp_path / "a.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match="a.csv: expected a .parquet file, a folder or an id"):
        caption_dataset(path=str(tmp_path / "a.csv"), split="t")
    with pytest.raises(DataError, match="none: no such file or folder"):
        caption_dataset(path=str(tmp_path / "none"), split="t")
    rows().to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="on this disk, where there is no revision 'main'"):
        caption_dataset(path=str(tmp_path / "t.parquet"), split="t", revision="main")
    (tmp_path / "set").mkdir()
    rows().to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(DataError, match="set test: cannot be loaded .*test"):
        caption_dataset(path=str(tmp_path / "set"), split="test")


def test_hub_id_and_revision_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load(path: str, **options: object) -> datasets.Dataset:
        asked.update(options, path=path)
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = caption_dataset(path="someone/something", split="test", revision="abc123")
    assert asked == {"path": "someone/something", "split": "test", "revision": "abc123"}
    assert len(data.pictures) == 3


@pytest.mark.parametrize("read", [caption_dataset, image_dataset])
@pytest.mark.parametrize("path", ["pq/none.parquet", "./none", "../none", "/none/there"])
def test_a_path_that_is_not_there_is_no_id_on_the_hub(read: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(DataError, match=f"^{path}: no such file or folder$"):
        read(path=path, split="val")


def paths_alone(folder: Path, *paths: str) -> str:
    """A parquet file whose rows hold the paths of their pictures alone."""
    data = {"image": [{"bytes": None, "path": path} for path in paths], "caption": ["a"] * len(paths)}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_dict(data, features=features)
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(table.data.table, folder / "val.parquet")
    return str(folder / "val.parquet")


def test_rows_that_hold_a_path_alone_take_it_from_the_folder_of_the_data_set(tmp_path: Path) -> None:
    path = paths_alone(tmp_path / "set", "a.png", str(tmp_path / "set" / "b.png"))
    for name, content in zip(("a.png", "b.png"), PICTURES, strict=False):
        (tmp_path / "set" / name).write_bytes(content)
    data = caption_dataset(path=path, split="val")
    assert [shade(data, number) for number in range(2)] == [10, 20]
    assert list(data.pictures.sizes()) == [len(content) for content in PICTURES[:2]]


@pytest.mark.parametrize("read", [caption_dataset, image_dataset])
def test_rows_that_name_a_file_elsewhere_are_refused(read: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURES[0])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(PICTURES[0])
    for name in (str(tmp_path / "x.png"), "../x.png"):
        path = paths_alone(tmp_path / "set", "a.png", name)
        with pytest.raises(DataError, match=rf"^val\[1\] x.png: '{name}': .* must stay inside {tmp_path}/set$"):
            read(path=path, split="val")
    with pytest.raises(DataError, match=r"^val\[0\] n.png: no such picture as 'n.png'$"):
        read(path=paths_alone(tmp_path / "set", "n.png"), split="val")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    with pytest.raises(DataError, match=r"^val\[0\] pipe.png: 'pipe.png' is no file$"):
        read(path=paths_alone(tmp_path / "set", "pipe.png"), split="val")


def test_a_row_of_the_hub_names_no_file_of_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(PICTURES[0])
    (tmp_path / "hf_cache").mkdir()
    (tmp_path / "hf_cache" / "unpacked.png").write_bytes(PICTURES[1])
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, **_: datasets.Dataset.from_dict(
            {"image": [{"bytes": None, "path": one} for one in found], "caption": ["a"]}, features=features
        ),
    )
    for name in (str(tmp_path / "x.png"), "x.png"):
        found[:] = [name]
        with pytest.raises(DataError, match=r"^test\[0\] x.png: .* must stay inside the files of the data set$"):
            caption_dataset(path="someone/something", split="test")
    found[:] = [str(tmp_path / "hf_cache" / "unpacked.png")]
    assert shade(caption_dataset(path="someone/something", split="test"), 0) == 20


# images and labels


def test_images_with_class_labels(tmp_path: Path) -> None:
    data = rows(label=[1, 0, 1]).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    data.to_parquet(tmp_path / "val.parquet")
    found = image_dataset(path=str(tmp_path / "val.parquet"), split="val", label_column="label")
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1] and found.classes == ("cat", "dog")
    assert found.picture_ids == ("0", "1", "2") and found.pictures.names == ("val[0]", "val[1]", "val[2]")
    assert [int(np.asarray(found.pictures.open(number))[0, 0, 0]) for number in range(3)] == [10, 20, 30]
    alone = image_dataset(path=str(tmp_path / "val.parquet"), split="val")
    assert alone.labels is None and alone.fingerprint == found.fingerprint
    part = image_dataset(path=str(tmp_path / "val.parquet"), split="val", label_column="label", fraction=0.5)
    assert part.labels is not None and part.labels.tolist() == sorted(part.labels.tolist(), reverse=True) == [1, 0]


def test_images_in_class_folders(tmp_path: Path) -> None:
    for label in ("b", "a"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        (tmp_path / "set" / "train" / label / "1.png").write_bytes(PICTURES[0 if label == "a" else 1])
    found = image_dataset(path=str(tmp_path / "set"), split="train", label_column="label")
    assert found.labels is not None and found.labels.tolist() == [0, 1] and found.classes == ("a", "b")
    assert found.pictures.names == ("train[0] 1.png", "train[1] 1.png")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, None, 1], r"val\[1\]: 'label' is None; expected a whole number or a name"),
        ([0, 1, -1], r"'val\[2\]' has label -1, which is none of 2 classes"),
        ([0, 2, 2], r"class '1' has no picture \(1 of 3 have none\)"),
        ([0.5, 1.0, 1.0], r"val\[0\]: 'label' is 0\.5"),
        ([0, 1, 10**9], r"column 'label': 'val\[2\]' has label 1000000000, which is none of 3 classes; without names"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    rows(label=labels).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(DataError, match=message):
        image_dataset(path=str(tmp_path / "val.parquet"), split="val", label_column="label")
    with pytest.raises(DataError, match="no column 'klass'; the columns are"):
        image_dataset(path=str(tmp_path / "val.parquet"), split="val", label_column="klass")


def test_labels_may_be_names(tmp_path: Path) -> None:
    rows(label=["x", "a", "x"]).to_parquet(tmp_path / "val.parquet")
    found = image_dataset(path=str(tmp_path / "val.parquet"), split="val", label_column="label")
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1] and found.classes == ("a", "x")

import io
import logging
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointembed.data.folder import image_folder
from jointembed.errors import DataError

Store = Callable[[dict[str, bytes]], str]


def jpeg(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "JPEG", quality=95)
    return out.getvalue()


TREE = {
    "train/b-c/2.jpg": jpeg(50),
    "train/b/10.jpg": jpeg(40),
    "train/a/images/1.JPEG": jpeg(10),
    "train/a/0.jpg": jpeg(0),
    "val/a/9.jpg": jpeg(90),
}


@pytest.fixture(params=["folder", "zip", "tar"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    def write(members: dict[str, bytes]) -> str:
        path = tmp_path / ("set" if request.param == "folder" else f"set.{request.param}")
        if request.param == "folder":
            for name, content in members.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        elif request.param == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        else:
            with tarfile.open(path, "w") as tar:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return str(path)

    return write


def test_classes_are_the_first_folders_in_the_order_of_names(store: Store) -> None:
    data = image_folder(path=store(TREE), split="train")
    assert data.name == "set-train"
    assert data.classes == ("a", "b", "b-c") and data.labels is not None
    assert data.picture_ids == ("a/0.jpg", "a/images/1.JPEG", "b/10.jpg", "b-c/2.jpg")
    assert data.labels.tolist() == [0, 0, 1, 2] and data.labels.dtype == np.int64
    assert [round(float(np.asarray(data.pictures.open(n)).mean())) for n in range(4)] == [0, 10, 40, 50]
    assert list(data.pictures.sizes()) == [len(TREE[f"train/{one}"]) for one in data.picture_ids]


def test_a_directory_and_its_archives_have_one_fingerprint_and_survive_a_worker(store: Store, tmp_path: Path) -> None:
    data = image_folder(path=store(TREE), split="train")
    sent = pickle.loads(pickle.dumps(data))
    assert np.array_equal(np.asarray(sent.pictures.open(3)), np.asarray(data.pictures.open(3)))
    assert sent.fingerprint == data.fingerprint
    # of the names below and the sizes of these files, the same for all three kinds
    assert list(data.pictures.names) == ["train/a/0.jpg", "train/a/images/1.JPEG", "train/b/10.jpg", "train/b-c/2.jpg"]
    unlabelled = image_folder(path=store(TREE), split="train", labels=False)
    assert unlabelled.fingerprint == data.fingerprint
    assert unlabelled.labels is None and unlabelled.classes is None and unlabelled.label_fingerprint is None


def test_a_folder_around_an_archive_is_stepped_into(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in TREE.items():
            archive.writestr(f"deep/down/{name}", content)
        archive.writestr("deep/down/readme.txt", "x")
        archive.writestr("__MACOSX/deep/._0.jpg", "x")
    assert image_folder(path=str(path), split="val").picture_ids == ("a/9.jpg",)
    assert image_folder(path=str(path), split="val").pictures.names == ("deep/down/val/a/9.jpg",)
    with pytest.raises(DataError, match="set.zip: holds train, val, which are splits; say which one with split"):
        image_folder(path=str(path))


def test_without_labels_any_depth_will_do(store: Store) -> None:
    data = image_folder(path=store({"b.jpg": jpeg(1), "a.png": jpeg(2), "c/d/e.jpg": jpeg(3)}), labels=False)
    assert data.picture_ids == ("a.png", "b.jpg", "c/d/e.jpg") and data.labels is None


def test_one_class_stays_one_class(store: Store) -> None:
    data = image_folder(path=store({"a/1.jpg": jpeg(1), "a/2.jpg": jpeg(2)}))
    assert data.classes == ("a",) and data.picture_ids == ("a/1.jpg", "a/2.jpg")


def test_other_files_are_counted_and_hidden_ones_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = store(TREE | {"train/a/boxes.txt": b"", "train/a/.hidden.jpg": b"", "notes.txt": b""})
    with caplog.at_level(logging.WARNING):
        assert len(image_folder(path=path, split="train").pictures) == 4
    assert "left out 1 files that are no pictures, the first is 'train/a/boxes.txt'" in caplog.text


def test_what_is_no_class_folder_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match=r"train/x\.jpg: lies in no class folder; labels: false reads"):
        image_folder(path=store(TREE | {"train/x.jpg": jpeg(1)}), split="train")


def test_a_class_without_a_picture_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match=r"train/c: a class without a picture \(1 of 4 such folders\)"):
        image_folder(path=store(TREE | {"train/c/list.txt": b"x"}), split="train")


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "a" / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(DataError, match="set/b: a class without a picture"):
        image_folder(path=str(tmp_path / "set"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.mkdir("b")
        archive.writestr("a/1.jpg", jpeg(1))
        archive.writestr("a/2.jpg", jpeg(1))
    with pytest.raises(DataError, match="b: a class without a picture"):
        image_folder(path=str(tmp_path / "set.zip"))
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", ".")
    with pytest.raises(DataError, match="b: a class without a picture"):
        image_folder(path=str(tmp_path / "set.tar"))


def test_an_unknown_split_is_named_with_what_is_there(store: Store) -> None:
    with pytest.raises(DataError, match="no such folder|no folder 'test' with pictures in it; found 'train', 'val'"):
        image_folder(path=store(TREE), split="test")
    with pytest.raises(DataError):
        image_folder(path=store(TREE), split="../set/train")


def test_places_that_hold_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such folder; expected a folder, a .zip or an uncompressed .tar"):
        image_folder(path=str(tmp_path / "gone"))
    (tmp_path / "file.rar").write_bytes(b"x")
    with pytest.raises(DataError, match="file.rar: not a folder; expected"):
        image_folder(path=str(tmp_path / "file.rar"))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="set: no picture in it"):
        image_folder(path=str(tmp_path / "set"))


@pytest.mark.fault(10, "HTML by the name of a picture, in a folder, zip and tar")
def test_a_bad_picture_is_named(store: Store) -> None:
    data = image_folder(path=store(TREE | {"train/b/11.jpg": b"<html>"}), split="train")
    with pytest.raises(DataError, match=r"set.*train/b/11\.jpg: not a picture but a web page"):
        data.pictures.open(3)


@pytest.mark.fault(11, "links and `../` in folders of pictures")
def test_links_and_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    for name in ("set/a", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "b")
    with pytest.raises(DataError, match="set/b: a link to a folder; expected plain folders"):
        image_folder(path=str(tmp_path / "set"))
    (tmp_path / "set" / "b").unlink()
    os.symlink(tmp_path / "elsewhere" / "1.jpg", tmp_path / "set" / "a" / "2.jpg")
    with pytest.raises(DataError, match=r"'a/2\.jpg': leads out of .*set through a symbolic link"):
        image_folder(path=str(tmp_path / "set"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/../../1.jpg", jpeg(1))
    with pytest.raises(DataError, match=r"'a/\.\./\.\./1\.jpg' is a name that leads out of the archive"):
        image_folder(path=str(tmp_path / "set.zip"))


@pytest.mark.data
def test_local_data_sets(data_folder: Path) -> None:
    cifar = str(data_folder / "cifar10_subset" / "cifar10_subset.zip")
    train, test = (image_folder(path=cifar, split=split) for split in ("train", "test"))
    assert train.classes == test.classes and train.classes is not None and len(train.classes) == 10
    assert train.labels is not None and np.bincount(train.labels).tolist() == [1000] * 10
    assert test.labels is not None and np.bincount(test.labels).tolist() == [200] * 10
    assert train.fingerprint != test.fingerprint
    assert train.pictures.open(5000).size == (32, 32)
    tiny = image_folder(path=str(data_folder / "tiny_imagenet20" / "tiny_imagenet20.zip"), split="val", fraction=0.1)
    assert tiny.labels is not None and np.bincount(tiny.labels).tolist() == [5] * 20

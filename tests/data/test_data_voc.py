from pathlib import Path

import pytest
from PIL import Image

from jointembed.data.voc import voc_presence
from jointembed.errors import DataError

FILES = {"cat": "000005 -1\n000007  1\n000009  0\n", "aeroplane": "000005  1\n000007 -1\n000009 -1\n"}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    main = root / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for name, text in FILES.items():
        (main / f"{name}_train.txt").write_text(text)
        (main / f"{name}_trainval.txt").write_text(text + "000011 -1\n")
    (main / "train.txt").write_text("000005\n000007\n000009\n")
    for one in ("000005", "000007", "000009"):
        Image.new("RGB", (2, 2)).save(root / "JPEGImages" / f"{one}.jpg")
    return root


def test_presence_is_by_picture_and_class(devkit: Path) -> None:
    found = voc_presence(path=str(devkit), split="train")
    assert found.classes == ("aeroplane", "cat") and found.data.name == "VOC2007-train"
    assert found.data.picture_ids == ("000005", "000007", "000009") and found.data.labels is None
    assert found.presence.tolist() == [[1, -1], [-1, 1], [-1, 0]]
    assert found.data.pictures.open(1).size == (2, 2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("000005 2\n", r"cat_train\.txt: line 1 is '000005 2'; expected an id and one of 1, 0, -1"),
        ("000005 1\n000007\n", r"cat_train\.txt: line 2 is '000007'"),
        ("000005 1\n000005 1\n", r"cat_train\.txt: line 2: '000005' is listed already"),
        ("\n", r"cat_train\.txt: no picture in it"),
        ("000005 1\n", r"does not list the pictures of aeroplane_train\.txt \('000007' is listed in one"),
        ("000007 1\n000005 1\n000009 1\n", r"cat_train\.txt: .*\(in another order\)"),
    ],
)
def test_what_does_not_fit_is_named(devkit: Path, text: str, message: str) -> None:
    (devkit / "ImageSets" / "Main" / "cat_train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        voc_presence(path=str(devkit), split="train")


def test_what_is_missing_is_named(devkit: Path) -> None:
    with pytest.raises(DataError, match="Main: no file of a class such as aeroplane_test.txt"):
        voc_presence(path=str(devkit), split="test")
    with pytest.raises(DataError, match=r"000011\.jpg: no such picture"):
        voc_presence(path=str(devkit), split="trainval")

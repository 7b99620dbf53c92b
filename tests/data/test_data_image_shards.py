import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointembed.data.image_shards import image_shards
from jointembed.errors import DataError


def jpeg(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "JPEG", quality=95)
    return out.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


ONE = {"x/000.jpg": jpeg(0), "x/000.cls": b"1\n", "x/001.cls": b"0", "x/001.jpg": jpeg(10)}
TWO = {"x/002.v2.jpg": jpeg(20), "x/002.cls": b"2"}


def test_labels_lie_beside_the_pictures(tmp_path: Path) -> None:
    write(tmp_path / "set" / "b.tar", TWO)
    write(tmp_path / "set" / "a.tar", ONE)
    data = image_shards(path=str(tmp_path / "set"))
    assert data.picture_ids == ("x/000.jpg", "x/001.jpg", "x/002.v2.jpg") and data.classes == ("0", "1", "2")
    assert data.labels is not None and data.labels.tolist() == [1, 0, 2]
    sent = pickle.loads(pickle.dumps(data))
    assert round(float(np.asarray(sent.pictures.open(2)).mean())) == 20
    part = image_shards(path=[str(tmp_path / "set" / "b.tar"), str(tmp_path / "set" / "a.tar")], fraction=0.9)
    assert part.picture_ids == ("x/002.v2.jpg", "x/000.jpg", "x/001.jpg") and part.subset
    alone = image_shards(path=str(tmp_path / "set"), labels=None)
    assert alone.labels is None and alone.fingerprint == data.fingerprint


def test_names_of_classes(tmp_path: Path) -> None:
    members = {"0.jpg": jpeg(0), "0.json": json.dumps({"kind": "cat"}).encode()}
    members |= {"1.jpg": jpeg(1), "1.json": json.dumps({"kind": "ant"}).encode()}
    path = str(write(tmp_path / "a.tar", members))
    data = image_shards(path=path, labels="json", json_key="kind")
    assert data.labels is not None and data.labels.tolist() == [1, 0] and data.classes == ("ant", "cat")
    (tmp_path / "classes.txt").write_text("cat\nbee\nant\n")
    data = image_shards(path=path, labels="json", json_key="kind", classes=str(tmp_path / "classes.txt"))
    assert data.labels is not None and data.labels.tolist() == [0, 2] and data.classes == ("cat", "bee", "ant")
    numbered = image_shards(path=str(write(tmp_path / "b.tar", ONE | TWO)), classes=str(tmp_path / "classes.txt"))
    assert numbered.labels is not None and numbered.labels.tolist() == [1, 0, 2]
    assert numbered.classes == ("cat", "bee", "ant")


@pytest.mark.parametrize(
    "members, message",
    [
        ({"0.jpg": jpeg(0)}, r"'0\.jpg' has no '0\.cls' beside it; labels: null does without"),
        ({"0.jpg": jpeg(0), "0.png": jpeg(0), "0.cls": b"0"}, r"'0\.png' and '0\.jpg' are pictures of one key, '0'"),
        ({"0.jpg": jpeg(0), "0.cls": b" \n"}, r"0\.cls: no label in it"),
        ({"0.jpg": jpeg(0), "0.cls": b"\xff"}, r"0\.cls: not UTF-8 text"),
        ({"0.jpg": jpeg(0), "0.cls": b"-1"}, r"'0\.jpg' has label '-1', which is none of 0 classes"),
        ({"0.jpg": jpeg(0), "0.cls": b"1", "1.jpg": jpeg(0), "1.cls": b"1"}, r"class '0' has no picture \(1 of 2 have"),
        ({"0.jpg": jpeg(0), "0.cls": b"9" * 20}, r"'0\.jpg' has label '9{20}', which is none of 1 classes; without"),
        ({"0.cls": b"1"}, "no picture in it"),
    ],
)
def test_what_is_missing_or_ill_formed_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_shards(path=str(write(tmp_path / "a.tar", members)))


def test_json_labels_are_checked(tmp_path: Path) -> None:
    for content, message in (
        (b'{"label": 1.5}', "the label under 'label' is 1.5; expected a whole number or a name"),
        (b'{"other": 1}', "the label under 'label' is None"),
        (b"{", "broken JSON"),
    ):
        path = write(tmp_path / "a.tar", {"0.jpg": jpeg(0), "0.json": content})
        with pytest.raises(DataError, match=rf"0\.json.*{message}"):
            image_shards(path=str(path), labels="json")


def test_names_of_classes_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\nbee\nant\n")
    path = str(write(tmp_path / "a.tar", ONE | TWO))
    with pytest.raises(DataError, match="classes.txt: names of classes for pictures without labels"):
        image_shards(path=path, labels=None, classes=str(tmp_path / "classes.txt"))


def test_folders_and_lists_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no .tar in it"):
        image_shards(path=str(tmp_path))
    with pytest.raises(DataError, match="no .tar in it"):
        image_shards(path=[])
    with pytest.raises(DataError, match="gone.tar: no such file"):
        image_shards(path=str(tmp_path / "gone.tar"))

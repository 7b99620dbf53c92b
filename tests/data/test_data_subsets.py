from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointembed.data.folder import image_folder
from jointembed.data.records import ImageData
from jointembed.data.subsets import choose
from jointembed.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    """40 pictures of class a, 10 of b, one of c."""
    for label, count in (("a", 40), ("b", 10), ("c", 1)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "set" / label / f"{label}_{number:02d}.png")
    return image_folder(path=str(tmp_path / "set"))


PINNED = ("a/a_05.png", "a/a_09.png", "a/a_22.png", "a/a_35.png", "b/b_01.png", "c/c_00.png")


def part(data: ImageData, fraction: float, seed: int = 0) -> ImageData:
    return choose(data, subset=None, fraction=fraction, subset_seed=seed)


def test_a_fraction_is_of_each_class_fixed_and_nested(data: ImageData) -> None:
    small, large = part(data, 0.1), part(data, 0.5)
    assert small.labels is not None and large.labels is not None
    assert np.bincount(small.labels).tolist() == [4, 1, 1] and np.bincount(large.labels).tolist() == [20, 5, 1]
    assert set(small.picture_ids) <= set(large.picture_ids)
    assert small.picture_ids == part(data, 0.1).picture_ids != part(data, 0.1, seed=1).picture_ids
    assert small.classes == data.classes and list(small.picture_ids) == sorted(small.picture_ids)
    assert part(data, 1.0).picture_ids == data.picture_ids
    # what SHA-256 ranks first must never change: a published 1% would become another one
    assert small.picture_ids == PINNED
    for number, one in enumerate(small.picture_ids):
        assert small.pictures.names[number] == one
        assert np.asarray(small.pictures.open(number))[0, 0, 0] == int(one[-6:-4])


def test_the_hash_is_kept_named_and_part_of_the_fingerprint(data: ImageData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        small = part(data, 0.1)
    assert small.subset is not None and len(small.subset) == 64
    assert small.name == f"set (10% seed 0, {small.subset[:8]})"
    assert f"10% seed 0 is 6 of 51 pictures, subset {small.subset}" in caplog.text
    assert len({data.fingerprint, small.fingerprint, part(data, 0.1, 1).fingerprint}) == 3
    assert len({data.subset, small.subset, part(data, 0.1, 1).subset}) == 3
    assert choose(data, subset=None, fraction=None, subset_seed=0) is data


def test_without_labels_a_fraction_is_of_all(data: ImageData) -> None:
    assert len(part(replace(data, labels=None, classes=None), 0.1).pictures) == 5


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(data: ImageData, fraction: float) -> None:
    with pytest.raises(DataError, match=f"fraction is {fraction}; expected a number above 0"):
        part(data, fraction)


def test_a_list_names_files_or_ids(data: ImageData, tmp_path: Path) -> None:
    listed = tmp_path / "1percent.txt"
    listed.write_text("b_03.png\n\na/a_07.png\na_01.png\n")
    found = choose(data, subset=str(listed), fraction=None, subset_seed=0)
    assert found.picture_ids == ("a/a_01.png", "a/a_07.png", "b/b_03.png")
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1] and found.classes == ("a", "b", "c")
    assert found.name.startswith("set (1percent.txt, ") and found.subset is not None


@pytest.mark.parametrize(
    "text, message",
    [
        ("a_01.png\na_99.png", r"1percent\.txt: line 2: no picture of set has the name 'a_99\.png'"),
        ("c/a_01.png", "line 1: no picture of set has the name 'c/a_01.png'"),
        ("a_01.png\na/a_01.png", "line 2: 'a/a_01.png' stands in line 1 already"),
        ("\n", "no file name in it"),
    ],
)
def test_every_line_must_name_one_picture(data: ImageData, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "1percent.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        choose(data, subset=str(tmp_path / "1percent.txt"), fraction=None, subset_seed=0)


def test_an_ambiguous_name_and_a_missing_list_are_refused(data: ImageData, tmp_path: Path) -> None:
    doubled = replace(data, picture_ids=("b/a_01.png", *data.picture_ids[1:]))
    (tmp_path / "list.txt").write_text("a_01.png")
    with pytest.raises(DataError, match="line 1: 2 pictures, such as 'b/a_01.png', of set has the name"):
        choose(doubled, subset=str(tmp_path / "list.txt"), fraction=None, subset_seed=0)
    with pytest.raises(DataError, match="gone.txt: no such file"):
        choose(data, subset=str(tmp_path / "gone.txt"), fraction=None, subset_seed=0)
    with pytest.raises(DataError, match="a list of files or a fraction, not both"):
        choose(data, subset="x", fraction=0.1, subset_seed=0)

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointembed.data.folder import image_folder
from jointembed.data.order import Layout, layout_of
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.subsets import choose, share_of
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


def captioned(pictures: int = 10, captions: int = 4) -> CaptionData:
    names = tuple(f"p{number}" for number in range(pictures))
    item = np.arange(pictures) // 2  # two pictures an item
    texts = tuple(tuple(f"caption {k} of {one}" for k in range(captions)) for one in range(pictures // 2))
    ids = tuple(tuple(100 * one + k for k in range(captions)) for one in range(pictures // 2))
    return CaptionData("some", Named(names), item, texts, names, ids)


class Named:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> str:
        return self.names[number]

    def sizes(self) -> list[int]:
        return [len(name) for name in self.names]


def test_a_smaller_share_of_captioned_data_is_part_of_a_larger_one() -> None:
    whole = captioned()
    kept = [share_of(whole, pictures=share, seed=1) for share in (0.01, 0.4, 0.8, 1.0)]
    assert [len(one.captions) for one in kept] == [1, 2, 4, 5]
    for smaller, larger in pairwise(kept):
        assert set(smaller.texts) < set(larger.texts) and set(smaller.picture_ids) < set(larger.picture_ids)
    for one in kept:  # both pictures of an item, and what belongs together still does
        assert len(one.pictures) == 2 * len(one.captions) and one.fingerprint
        for picture, text in one.positives:
            number = int(one.pictures.names[picture].removeprefix("p"))
            assert one.texts[text].endswith(f"of {number // 2}")
            assert one.pictures.open(picture) == one.picture_ids[picture] == f"p{number}"
    assert kept[-1].texts == whole.texts and kept[-1].fingerprint == whole.fingerprint
    assert {share_of(whole, pictures=0.4, seed=seed).texts for seed in range(8)} != {kept[1].texts}


def test_a_share_of_each_items_captions_keeps_at_least_one_and_its_number() -> None:
    whole = captioned()
    for share, count in ((0.01, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        part = share_of(whole, captions=share)
        assert {len(texts) for texts in part.captions} == {count} and len(part.captions) == 5
        assert part.caption_ids is not None
        for texts, ids in zip(part.captions, part.caption_ids, strict=True):
            assert [f"caption {one % 100} of {one // 100}" for one in ids] == list(texts) and list(ids) == sorted(ids)
    half, most = (share_of(whole, captions=share) for share in (0.5, 0.75))
    assert set(half.texts) < set(most.texts)


def test_a_share_of_shards_lies_where_it_lay() -> None:
    whole = captioned()
    assert layout_of(share_of(whole, pictures=0.4).pictures) is None
    whole.pictures.layout = Layout((3, 7), 4, 2)  # type: ignore[attr-defined]
    part = share_of(whole, pictures=0.4)
    first = sum(int(name.removeprefix("p")) < 3 for name in part.picture_ids)
    assert layout_of(part.pictures) == Layout((first, 4 - first), 4, 2)
    assert layout_of(share_of(whole, captions=0.5).pictures) == Layout((3, 7), 4, 2)

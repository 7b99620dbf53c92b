from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tones import write_tones

from jointembed.data.audio import esc50
from jointembed.data.captions_coco import coco_captions
from jointembed.data.check import ODD, check
from jointembed.data.folder import image_folder
from jointembed.data.pictures import PictureFolder
from jointembed.data.records import CaptionData


def toy(root: Path, captions: Sequence[tuple[str, ...]], broken: Sequence[int] = ()) -> CaptionData:
    for number in range(len(captions)):
        path = root / f"{number}.png"
        Image.new("RGB", (4 + number % 3, 5), (number % 3, 0, 0)).save(path, compress_level=number % 9)
        if number in broken:
            path.write_bytes(path.read_bytes()[:40])
    return CaptionData(
        name="toy",
        pictures=PictureFolder(root, [f"{number}.png" for number in range(len(captions))]),
        item=np.arange(len(captions)),
        captions=tuple(captions),
        picture_ids=tuple(map(str, range(len(captions)))),
    )


def test_counts(tmp_path: Path) -> None:
    data = toy(tmp_path, [("one two three", "one two"), ("a b c d",), ("one two",), ("five words are in this",)])
    report = check(data)
    assert report.ok and (report.n_pictures, report.n_items, report.n_captions) == (4, 4, 5)
    assert report.captions_per_item == {1: 3, 2: 1}
    assert report.words is not None
    assert (report.words.least, report.words.median, report.words.greatest) == (2, 3, 5)
    assert report.total_bytes == sum((tmp_path / f"{number}.png").stat().st_size for number in range(4))
    assert report.widths is not None and (report.widths.least, report.widths.greatest) == (4, 6)
    assert report.heights is not None and report.heights.mean == 5
    assert report.duplicates == (("0.png", "3.png"),)  # other bytes, the same pixels
    assert report.repeated == 2 and report.odd == () and report.undecodable == ()
    assert report.fingerprint == data.fingerprint
    text = "\n".join(report.lines())
    for part in (
        "4 pictures, 4 items, 5 captions",
        "3 with 1, 1 with 2",
        "same pixels: 0.png, 3.png",
        "more than once: 2",
    ):
        assert part in text
    assert report.lines()[-1] == "ok"


def test_undecodable_pictures_are_listed_by_name(tmp_path: Path) -> None:
    report = check(toy(tmp_path, [("a b",)] * 7, broken=(1, 5)))
    assert not report.ok and report.n_decoded == 5
    assert [Path(message.split(":")[0]).name for message in report.undecodable] == ["1.png", "5.png"]
    lines = report.lines()
    assert lines[-1] == "NOT OK" and sum(line.startswith("CANNOT BE DECODED") for line in lines) == 2


def test_without_decoding(tmp_path: Path) -> None:
    data = toy(tmp_path, [("a b",)] * 8, broken=(1,))
    unseen = check(data, decode=False)
    assert unseen.ok and unseen.n_decoded == 0 and unseen.widths is None and unseen.duplicates == ()
    assert "decoded: 0 of 8 pictures" in "\n".join(unseen.lines())


@pytest.mark.parametrize(
    ("what", "caption"),
    [
        ("without a letter or digit", "... !"),
        ("of one word", "dog"),
        ("of more than 60 words", "w " * 61),
        ("with a line break or control character", "two\nlines here"),
        ("with U+FFFD, left by a wrong decoding", "caf\ufffd table"),
        ("with an HTML tag or entity", "a <b>dog</b> runs"),
        ("with an HTML tag or entity", "cats &amp; dogs"),
        ("with a web address", "see https://example.org for more"),
    ],
)
def test_odd_captions(tmp_path: Path, what: str, caption: str) -> None:
    assert what in ODD
    plain = "A man with 2 dogs, one at 5 < 6 o'clock; résumé & more 日本."
    report = check(toy(tmp_path, [(plain,), (caption, plain)]))
    assert report.ok
    assert [(odd.what, odd.count) for odd in report.odd] == [(what, 1)]
    assert f"captions {what}: 1, such as" in "\n".join(report.lines())


def test_many_duplicates_are_summed_up(tmp_path: Path) -> None:
    for number in range(50):
        Image.new("RGB", (2, 2), (number // 2, 0, 0)).save(tmp_path / f"{number}.png")
    data = CaptionData(
        name="pairs",
        pictures=PictureFolder(tmp_path, [f"{number}.png" for number in range(50)]),
        item=np.arange(50),
        captions=tuple((f"caption number {number}",) for number in range(50)),
        picture_ids=tuple(map(str, range(50))),
    )
    report = check(data)
    assert len(report.duplicates) == 25 and "same pixels: 5 groups more" in report.lines()


@pytest.mark.data
def test_the_known_pair_of_flickr8k(data_folder: Path) -> None:
    flickr = data_folder / "flickr8k"
    report = check(coco_captions(images=str(flickr / "images"), annotations=str(flickr / "captions_train.json")))
    assert report.ok and report.captions_per_item == {5: 6000} and report.n_decoded == 6000
    assert report.duplicates == (("2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"),)


def test_pictures_without_captions(tmp_path: Path) -> None:
    for name, count in (("cat", 3), ("dog", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4 + number, 5), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dog" / "9.png").write_bytes(b"not a picture")
    report = check(image_folder(path=str(tmp_path)))
    assert not report.ok and report.per_class == {"cat": 3, "dog": 3} and report.words is None
    assert len(report.undecodable) == 1 and "dog/9.png" in report.undecodable[0]
    lines = report.lines()
    assert lines[0].endswith(": 6 pictures") and any(line.startswith("pictures a class: ") for line in lines)


def test_sounds_are_compared_and_have_no_width(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "ESC-50", clips=2)
    sounds = sorted((root / "audio").iterdir())
    sounds[2].write_bytes(sounds[0].read_bytes())
    report = check(esc50(path=str(root), rate=4000))
    assert report.ok and report.n_decoded == 4 and report.widths is None and report.heights is None
    assert report.duplicates == ((sounds[0].name, sounds[2].name),)
    said = report.lines()
    assert f"{report.n_pictures} sounds" in said[0] and any(line.startswith("same samples: ") for line in said)
    assert not [line for line in said if "picture" in line or "pixel" in line]
    assert said[-1] == "ok" and len(check(esc50(path=str(root))).undecodable) == 4

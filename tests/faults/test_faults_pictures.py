import io
import json
from collections.abc import Callable
from pathlib import Path

import crafted_pictures as crafted
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tones import write_tones
from torch import equal
from typer.testing import CliRunner

from jointembed import runs
from jointembed.build import dataset
from jointembed.data.audio import esc50
from jointembed.data.pictures import PictureFolder, open_picture
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.unreadable import readable
from jointembed.errors import DataError, RecipeError
from jointembed.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
skips = pytest.mark.fault(10, "unreadable pictures counted and skipped up to `data.skip_unreadable`")


@pytest.mark.fault(10, "P, LA, RGBA, CMYK, 16 bits, 1x1, animated GIF, EXIF rotation: right")
@pytest.mark.parametrize("name", list(crafted.good()))
def test_every_mode_comes_out_as_rgb(name: str) -> None:
    picture = open_picture(crafted.good()[name], name=name)
    plain = np.asarray(Image.open(io.BytesIO(crafted.good()["rgb.jpg"])) if "rotated" in name else crafted.noise())
    found = np.asarray(picture, dtype=np.int64)
    assert picture.mode == "RGB"
    if name in ("1x1.png", "animated.gif"):
        assert np.abs(found - crafted.RED).max() <= 8
    elif name == "16bit.png":
        assert (found.reshape(-1, 3)[0] == 0).all() and (found.reshape(-1, 3)[-1] == 255).all()
    elif name == "la.png":
        assert np.array_equal(found[..., 0], np.asarray(crafted.noise().convert("L")))
    else:
        turned = np.rot90(plain, k=-1) if name == "rotated.jpg" else plain
        assert np.abs(found - turned).mean() < (60 if name in ("rgb.jpg", "cmyk.jpg", "p.png") else 1e-9)


@pytest.mark.fault(10, "truncated, empty, HTML or SVG by another name, 100 megapixels in 12 kB: refused by name")
@pytest.mark.parametrize("name", list(crafted.bad()))
def test_what_is_no_picture_is_refused_by_name(name: str, tmp_path: Path) -> None:
    crafted.write(tmp_path, crafted.bad())
    assert name != "bomb.png" or (tmp_path / name).stat().st_size < 20_000
    with pytest.raises(DataError, match=f"{name}: ") as found:
        open_picture(tmp_path / name)
    assert "\n" not in str(found.value)


def spoil(data: Path, count: int = 2) -> list[str]:
    """Make pictures of the tiny data set unreadable; returns their names."""
    faults = list(crafted.bad().values())
    names = [f"{3 * number + 1:03d}.jpg" for number in range(count)]
    for name, content in zip(names, faults, strict=False):
        (data / "images" / name).write_bytes(content)
    return names


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Trained on all pictures; validation would look at the same ones, and is never short of any."""
    return lambda *more: tiny_recipe("data.validation=null", "data.test=null", "loader.batch=5", "seed=1", *more)


@skips
@pytest.mark.parametrize("cache", ["true", "false"])
def test_unreadable_pictures_are_left_out_and_listed(
    recipe: Callable[..., Recipe], tiny_data: Path, tmp_path: Path, cache: str
) -> None:
    names = spoil(tiny_data)
    runs.train(recipe("data.skip_unreadable=0.2", f"data.cache={cache}"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == names
    assert all(line["reason"].startswith(str(tiny_data / "images" / line["picture"])) for line in lines)
    kept = dataset(recipe("data.skip_unreadable=0.2"), "train")
    assert isinstance(kept, CaptionData)
    assert len(kept.pictures) == 10 and kept.item.tolist() == list(range(10)) and len(kept.texts) == 20
    whole = dataset(recipe("data.skip_unreadable=0.2"), "train", whole=True)
    assert len(whole.pictures) == 12


@skips
def test_more_than_the_limit_stop_before_any_work(
    recipe: Callable[..., Recipe], tiny_data: Path, tmp_path: Path
) -> None:
    spoil(tiny_data)
    with pytest.raises(DataError, match=r"2 of 12 pictures cannot be read, data.skip_unreadable: 0.1 allows 1; .*001"):
        runs.train(recipe("data.skip_unreadable=0.1"), tmp_path / "one")
    with pytest.raises(DataError, match="001.jpg"):
        runs.train(recipe(), tmp_path / "two")
    assert not list((tmp_path / "one" / "checkpoints").iterdir())


@skips
def test_the_order_of_a_resumed_run_is_that_of_one_without_a_break(
    recipe: Callable[..., Recipe], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(tiny_data)
    options = ("data.skip_unreadable=0.2", "data.cache=false", "loader.workers=2")
    runs.train(recipe(*options), tmp_path / "whole")
    runs.train(recipe(*options), tmp_path / "parts")
    newest = tmp_path / "parts" / "checkpoints" / "step-8"
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()  # as if it had been killed half way
    monkeypatch.setenv("JOINTEMBED_CACHE", str(tmp_path / "another"))  # the pictures are looked at anew
    runs.train(recipe(*options), tmp_path / "parts", resume=True)
    one, other = (
        load_file(tmp_path / run / "checkpoints" / "step-8" / "model.safetensors") for run in ("whole", "parts")
    )
    assert one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    assert (tmp_path / "whole" / "skipped.jsonl").read_text() == (tmp_path / "parts" / "skipped.jsonl").read_text()


@skips
def test_pictures_without_captions_and_a_class_that_would_be_gone(tmp_path: Path) -> None:
    class Folder:
        names = ("a/0.png", "a/1.png", "b/0.png", "b/1.png")

        def __init__(self, *bad: int) -> None:
            self.bad = bad

        def __len__(self) -> int:
            return 4

        def open(self, number: int) -> Image.Image:
            return open_picture(
                b"" if number in self.bad else crafted.encoded(crafted.noise()), name=self.names[number]
            )

        def sizes(self) -> list[int]:
            return [len(self.bad), 1, 1, 1]

    def data(*bad: int) -> ImageData:
        return ImageData("four", Folder(*bad), np.array([0, 0, 1, 1]), ("a", "b"), Folder.names)

    kept = readable(data(0), 0.25, workers=0, folder=tmp_path)
    assert kept.picture_ids == Folder.names[1:] and kept.labels is not None and kept.labels.tolist() == [0, 1, 1]
    assert kept.skipped == (("a/0.png", "a/0.png: the file is empty"),)
    assert readable(data(), 0.25, workers=0, folder=tmp_path).skipped == ()
    with pytest.raises(DataError, match="2 of 4 pictures cannot be read, among them all of the class 'b'"):
        readable(data(2, 3), 0.5, workers=0, folder=tmp_path)
    next(tmp_path.glob("unreadable-*.json")).write_text("{")
    with pytest.raises(DataError, match="unreadable-.*json: the list .* delete the file"):
        [readable(data(*bad), 0.5, workers=0, folder=tmp_path) for bad in ((0,), (), (2, 3))]


@skips
def test_a_picture_that_was_mended_is_taken_again(tmp_path: Path) -> None:
    content, names = crafted.encoded(crafted.noise(), "BMP"), ("a.bmp", "b.bmp")

    def kept() -> tuple[str, ...]:
        data = ImageData("two", PictureFolder(tmp_path, names), None, None, names)
        return readable(data, 0.5, workers=0, folder=tmp_path / "cache").picture_ids

    crafted.write(tmp_path, {"a.bmp": content, "b.bmp": bytes(len(content))})
    assert kept() == kept() == ("a.bmp",)
    (tmp_path / "b.bmp").write_bytes(content)
    assert kept() == names
    assert json.loads(next((tmp_path / "cache").glob("unreadable-*.json")).read_text()) == []


@skips
def test_sounds_are_looked_at_for_each_rate(tmp_path: Path) -> None:
    path = str(write_tones(tmp_path / "ESC-50", clips=2, rate=4000))
    for rate, good in ((44100, False), (4000, True), (44100, False)):
        data = esc50(path=path, rate=rate)
        if good:
            assert readable(data, 0.5, workers=0, folder=tmp_path).skipped == ()
            continue
        with pytest.raises(DataError, match="4 of 4 pictures cannot be read.*4000 samples a second, not 44100"):
            readable(data, 0.5, workers=0, folder=tmp_path)


@skips
@pytest.mark.parametrize("value", ["-0.1", "1", ".nan", "some"])
def test_a_limit_that_is_none_is_refused(recipe: Callable[..., Recipe], value: str) -> None:
    with pytest.raises(RecipeError, match="data.skip_unreadable"):
        recipe(f"data.skip_unreadable={value}")


@skips
def test_data_check_still_counts_what_training_skips(
    recipe: Callable[..., Recipe], tiny_data: Path, tmp_path: Path
) -> None:
    recipe()
    names = spoil(tiny_data)
    text = (tmp_path / "tiny.yaml").read_text().replace("captions: all", "captions: all\n  skip_unreadable: 0.2")
    (tmp_path / "skips.yaml").write_text(text)
    from jointembed import cli

    done = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path / "skips.yaml"), "--split", "train"])
    assert done.exit_code == 1 and all(name in done.output for name in names)

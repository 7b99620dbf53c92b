from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tones import write_wav

from jointembed.data import VIEWS
from jointembed.data.audio import Sound
from jointembed.data.forms import as_view, blank, is_one
from jointembed.errors import DataError

PICTURES = VIEWS["resize"](size=16)
PLANES = VIEWS["cmc"](size=16, flip=0.0)
SOUNDS = VIEWS["waveform_mel_center"](rate=4000, seconds=0.5, mels=16, fft=256, hop=64, high=2000.0)


def test_a_sound_in_any_form_is_the_same_view(tmp_path: Path) -> None:
    samples = (np.sin(np.arange(3000) / 9) * 0.5).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", samples, 4000)
    forms = [path, str(path), samples, samples.astype(np.float64), torch.from_numpy(samples),
             Sound(torch.from_numpy(samples), 4000)]  # fmt: skip
    for key, shape in (("waveform", (1, 2000)), ("mel", (1, 16, 32))):
        views = [as_view(SOUNDS, form, key, "input 0") for form in forms]
        assert tuple(views[0].shape) == shape == tuple(blank(SOUNDS, key).shape)
        assert all(torch.allclose(one, views[0], atol=1e-3 if key == "waveform" else 0.1) for one in views)


def test_planes_are_made_of_a_picture_or_taken_as_they_are() -> None:
    picture = Image.new("RGB", (20, 30), (200, 30, 90))
    made = as_view(PLANES, picture, "chroma", "input 0")
    assert made.shape == (2, 16, 16) == blank(PLANES, "chroma").shape and made.is_floating_point()
    assert torch.equal(as_view(PLANES, made.double(), "chroma", "input 0"), made)
    assert as_view(PICTURES, picture, "image", "input 0").dtype == torch.uint8


def test_an_open_picture_is_seen_as_its_file_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "transparent.png")
    Image.fromarray(noise[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(np.linspace(0, 65535, 240, dtype=np.uint16).reshape(12, 20)).save(tmp_path / "16bit.png")
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as picture:
            found = as_view(PICTURES, picture, "image", "input 0")
            assert picture.size == (20, 12)
        assert torch.equal(found, as_view(PICTURES, path, "image", "input 0")), path.name
    with pytest.raises(DataError, match="input 0: floating-point pixels"):
        as_view(PICTURES, Image.new("F", (4, 4)), "image", "input 0")


@pytest.mark.parametrize(
    ("pipeline", "source", "message"),
    [
        (SOUNDS, np.zeros((2, 4), np.float32), r"input 3: a sound must be \(T,\) floats, found \(2, 4\)"),
        (SOUNDS, np.zeros(4, np.int16), r"input 3: a sound must be \(T,\) floats, found \(4,\) torch.int16"),
        (SOUNDS, np.zeros(0, np.float32), r"input 3: a sound must be"),
        (SOUNDS, np.full(9, np.nan, np.float32), "input 3: has values that are not finite"),
        (SOUNDS, Sound(torch.zeros(9), 8000), "sounds of 8000 samples a second reach a pipeline of 4000"),
        (SOUNDS, b"RIFF", "input 3: not a sound but bytes"),
        (SOUNDS, "absent.wav", "absent.wav: no such sound"),
        (PICTURES, torch.zeros(3, 8, 8), r"input 3: a float tensor .* \(3, 16, 16\), .* found \(3, 8, 8\)"),
        (PICTURES, torch.full((3, 16, 16), torch.inf), "input 3: has values that are not finite"),
        (PICTURES, np.zeros((8, 8, 3), np.float32), r"input 3: an array must be \(H, W, 3\) uint8"),
        (PICTURES, b"GIF", "input 3: not a picture"),
    ],
)
def test_what_is_no_input_is_named(pipeline: Any, source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_view(pipeline, source, pipeline.views[0], "input 3")


@pytest.mark.parametrize(
    ("inputs", "pipeline", "one"),
    [
        ("a dog", None, True),
        (["a dog"], None, False),
        (np.array(["a", "b"]), None, False),
        (Path("a.jpg"), PICTURES, True),
        (b"...", PICTURES, True),
        (np.zeros((8, 8, 3), np.uint8), PICTURES, True),
        (np.zeros((2, 8, 8, 3), np.uint8), PICTURES, False),
        (torch.zeros(3, 8, 8), PICTURES, True),
        (torch.zeros(9), SOUNDS, True),
        (torch.zeros(2, 9), SOUNDS, False),
        (Sound(torch.zeros(9), 4000), SOUNDS, True),
        ([Sound(torch.zeros(9), 4000)], SOUNDS, False),
    ],
)
def test_one_input_or_a_list(inputs: Any, pipeline: Any, one: bool) -> None:
    assert is_one(inputs, pipeline) is one

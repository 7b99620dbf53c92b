"""Sounds: wav files, the layout of ESC-50, and their views."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tones import write_tones, write_wav
from torch import Tensor

from jointembed.data import DATASETS, VIEWS
from jointembed.data.audio import Sound, Sounds, esc50, open_sound
from jointembed.data.audio_views import SOUND_VIEWS, mel_filters
from jointembed.data.records import ImageData
from jointembed.data.samples import ImageSamples
from jointembed.errors import DataError, RecipeError
from jointembed.recipe import check_block

SMALL = {"rate": 4000, "seconds": 0.5, "mels": 16, "fft": 256, "hop": 64, "high": 2000.0}

# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(width: int, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 700)
    samples[:2] = -1.0, 0.0
    sound = open_sound(write_wav(tmp_path / "a.wav", samples, 8000, width))
    assert sound.rate == 8000 and sound.samples.dtype == torch.float32
    torch.testing.assert_close(
        sound.samples, torch.from_numpy(samples).float(), rtol=0, atol=max(1e-7, 1.01 / 2 ** (8 * width - 1))
    )
    assert sound.samples[:2].tolist() == [-1, 0]


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = np.stack([np.full(50, 0.5), np.full(50, -0.25)], axis=1)
    assert open_sound(write_wav(tmp_path / "a.wav", samples, 8000)).samples.tolist() == [0.125] * 50


def test_broken_files_are_named(tmp_path: Path) -> None:
    good = write_wav(tmp_path / "good.wav", np.zeros(500), 8000).read_bytes()
    cases = {
        "empty": (b"", "not a PCM wav file"),
        "text": (b"<html>", "not a PCM wav file"),
        "cut": (good[:-100], "cut off after 900 of 1000 bytes"),
        "float": (good[:20] + b"\x03\x00" + good[22:], "not a PCM wav file"),
        "silent": (write_wav(tmp_path / "none.wav", np.zeros(0), 8000).read_bytes(), "0 samples of 1 channels"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.wav: .*{message}"):
            open_sound(path)
    with pytest.raises(DataError, match="missing.wav: no such sound"):
        open_sound(tmp_path / "missing.wav")


# -- ESC-50 ---------------------------------------------------------------------------------------------------------


def test_folds_labels_and_sounds(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "ESC-50", clips=4)
    every, second = esc50(path=str(root), rate=4000), esc50(path=str(root), folds=[2], rate=4000)
    assert isinstance(every, ImageData) and len(every.pictures) == 8 and len(second.pictures) == 4
    assert every.classes == second.classes == ("class 0", "class 1", "class 2")
    assert every.labels is not None and every.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert second.picture_ids == every.picture_ids[4:] == second.pictures.names
    assert torch.equal(second.pictures.open(1).samples, every.pictures.open(5).samples)
    assert every.pictures.open(0).samples.shape == (4000,) and every.fingerprint != second.fingerprint


def test_a_sound_of_another_rate_is_named(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "ESC-50", clips=1)
    with pytest.raises(DataError, match=r"1-0-A-0.wav: 4000 samples a second, not 44100"):
        esc50(path=str(root)).pictures.open(0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fold,", "folder,", "no column 'fold'"),
        ("1-1-A-1.wav,1", "1-1-A-1.wav,one", "line 3: fold and target must be whole numbers"),
        ("1-1-A-1.wav", "1-0-A-0.wav", "'1-0-A-0.wav' is there twice"),
        ("1,class 1,", "0,class 1,", "1-1-A-1.wav: class 0 is 'class 1' here and 'class 0' before"),
        (",2,class 2,", ",7,class 2,", "classes must be numbered 0 to 2, found 7"),
        ("1-1-A-1.wav", "1-1-B-1.wav", "1-1-B-1.wav: No such file"),
        ("1-1-A-1.wav", "../../x.wav", "must stay inside"),
    ],
)
def test_a_table_that_contradicts_itself_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    root = write_tones(tmp_path / "ESC-50", clips=3, folds=1)
    table = root / "meta" / "esc50.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        esc50(path=str(root), rate=4000)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    root = write_tones(tmp_path / "ESC-50", clips=1)
    with pytest.raises(DataError, match="no sound of fold 5"):
        esc50(path=str(root), folds=[1, 5])
    with pytest.raises(DataError, match="esc50.csv: cannot be read"):
        esc50(path=str(tmp_path))
    (root / "meta" / "esc50.csv").write_text("filename,fold,target,category\n")
    with pytest.raises(DataError, match="no sound in it"):
        esc50(path=str(root))


def test_a_recipe_names_data_and_views() -> None:
    assert DATASETS["esc50"] is esc50 and set(SOUND_VIEWS) < set(VIEWS)
    block = check_block({"name": "waveform_mel", "seconds": 2}, VIEWS, "data.audio")
    assert block["rate"] == 44100 and block["mels"] == 64 and block["seconds"] == 2.0


# -- views ----------------------------------------------------------------------------------------------------------


def noise(size: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 700, 2000, 9000])
@pytest.mark.parametrize("name", sorted(SOUND_VIEWS))
def test_shapes_whatever_the_length(name: str, size: int) -> None:
    pipeline = SOUND_VIEWS[name](**SMALL)
    views = pipeline(Sound(noise(size), 4000))
    assert tuple(views) == pipeline.views == ("waveform", "mel")
    assert views["waveform"].shape == (1, 2000) and views["mel"].shape == (1, 16, 1 + 2000 // 64)
    assert all(view.dtype == torch.float32 and view.isfinite().all() for view in views.values())


@pytest.mark.parametrize("name", sorted(SOUND_VIEWS))
def test_the_seed_of_torch_decides_everything(name: str) -> None:
    pipeline, sound = SOUND_VIEWS[name](**SMALL), Sound(noise(9000), 4000)

    def run(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return pipeline(sound)

    first, again, other = run(3), run(3), run(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert pipeline.random == (name == "waveform_mel") == (not torch.equal(first["waveform"], other["waveform"]))
    if not pipeline.random:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        pipeline(sound)
        assert torch.equal(before, torch.get_rng_state())


def test_crops_lie_everywhere_and_the_middle_is_the_middle() -> None:
    ramp = Sound(torch.arange(1, 6001) / 10000, 4000)
    options = SMALL | {"gain": [0.0, 0.0], "noise_p": 0.0}
    starts = []
    for _ in range(200):
        x = SOUND_VIEWS["waveform_mel"](**options)(ramp)["waveform"][0]
        start = round(float(x[0]) * 10000) - 1
        assert torch.equal(x, ramp.samples[start : start + 2000])
        starts.append(start)
    assert min(starts) < 200 and max(starts) > 3800 and max(starts) <= 4000
    middle = SOUND_VIEWS["waveform_mel_center"](**SMALL)
    assert torch.equal(middle(ramp)["waveform"][0], ramp.samples[2000:4000])
    short = Sound(ramp.samples[:1000], 4000)
    assert torch.equal(middle(short)["waveform"][0, 500:1500], short.samples)
    assert not middle(short)["waveform"][0, :500].any() and not middle(short)["waveform"][0, 1500:].any()


def test_gain_and_noise_are_those_asked_for() -> None:
    sound = Sound(noise(2000), 4000)
    fixed = SMALL | {"place": "center", "gain": [6.0, 6.0], "noise_p": 0.0}
    louder = SOUND_VIEWS["waveform_mel"](**fixed)
    assert not louder.random
    torch.testing.assert_close(louder(sound)["waveform"][0], sound.samples * 10 ** (6 / 20))
    noisy = SOUND_VIEWS["waveform_mel"](**fixed | {"gain": [0.0, 0.0], "noise_p": 1.0, "noise": [10.0, 10.0]})
    added = noisy(sound)["waveform"][0] - sound.samples
    ratio = 10 * math.log10(float(sound.samples.square().mean() / added.square().mean()))
    assert ratio == pytest.approx(10, abs=0.5)
    gains = SOUND_VIEWS["waveform_mel"](**fixed | {"gain": [-3.0, 3.0]})
    decibels = [20 * math.log10(float((gains(sound)["waveform"][0] / sound.samples)[0])) for _ in range(100)]
    assert -3 <= min(decibels) < -2.5 and 2.5 < max(decibels) <= 3


def test_a_spectrogram_does_not_know_how_loud_it_was() -> None:
    pipeline = SOUND_VIEWS["waveform_mel_center"](**SMALL)
    soft, loud = (pipeline(Sound(scale * noise(2000), 4000))["mel"] for scale in (1.0, 4.0))
    torch.testing.assert_close(soft, loud, rtol=1e-3, atol=1e-3)
    assert float(soft.mean()) == pytest.approx(0, abs=1e-5) and float(soft.std()) == pytest.approx(1, abs=1e-5)
    assert float(pipeline(Sound(torch.zeros(2000), 4000))["mel"].abs().max()) < 0.01  # no noise out of silence


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 1700.0])
def test_a_tone_lights_its_band(frequency: float) -> None:
    tone = torch.sin(2 * math.pi * frequency * torch.arange(2000) / 4000)
    mel = SOUND_VIEWS["waveform_mel_center"](**SMALL)(Sound(tone, 4000))["mel"][0]
    corner = torch.linspace(hertz_to_mel(20.0), hertz_to_mel(2000.0), 18)
    band = int(mel[:, 4:-4].mean(1).argmax())
    assert corner[band] < hertz_to_mel(frequency) < corner[band + 2]


def hertz_to_mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


@pytest.mark.parametrize("arguments", [(64, 2048, 44100, 20.0, 22050.0), (16, 256, 4000, 0.0, 2000.0)])
def test_filters_equal_those_of_transformers_and_the_formula(arguments: tuple[int, int, int, float, float]) -> None:
    from transformers.audio_utils import mel_filter_bank

    mels, fft, rate, low, high = arguments
    found = mel_filters(*arguments)
    theirs = mel_filter_bank(fft // 2 + 1, mels, low, high, rate, norm=None, mel_scale="htk")
    torch.testing.assert_close(found, torch.from_numpy(theirs.T).float(), rtol=1e-5, atol=1e-6)
    spacing = (hertz_to_mel(high) - hertz_to_mel(low)) / (mels + 1)
    for band in range(mels):
        left, middle, right = (700 * (10 ** ((hertz_to_mel(low) + (band + k) * spacing) / 2595) - 1) for k in range(3))
        frequencies = [k * rate / fft for k in range(fft // 2 + 1)]
        expected = [max(0.0, min((f - left) / (middle - left), (right - f) / (right - middle))) for f in frequencies]
        torch.testing.assert_close(found[band], torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": 0.0}, "seconds: 0.0, expected a positive number"),
        ({"high": 2001.0}, "20.0 to 2001.0 Hz is not within 0 and half the rate"),
        ({"low": 2000.0}, "2000.0 to 2000.0 Hz"),
        ({"gain": [3.0, -3.0]}, "gain: .*two rising numbers"),
        ({"noise": [3.0]}, "noise: .*two rising numbers"),
        ({"noise_p": 1.5}, "noise_p: 1.5 is no probability"),
        ({"fft": 8192}, "fft: 8192 samples must be even and less than twice the crop"),
        ({"mels": 200}, "mels: 200 bands are too narrow for windows of 256 samples"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SOUND_VIEWS["waveform_mel"](**SMALL | wrong)


def test_a_pipeline_refuses_sounds_of_another_rate() -> None:
    with pytest.raises(DataError, match="sounds of 8000 samples a second reach a pipeline of 4000"):
        SOUND_VIEWS["waveform_mel"](**SMALL)(Sound(noise(2000), 8000))


def test_samples_are_batches_of_both_views(tmp_path: Path) -> None:
    data = esc50(path=str(write_tones(tmp_path / "tones", clips=3)), rate=4000)
    batch = ImageSamples(data, SOUND_VIEWS["waveform_mel"](**SMALL), seed=0).__getitems__([(0, 4), (0, 1)])
    assert batch["waveform"].shape == (2, 1, 2000) and batch["mel"].shape == (2, 1, 16, 32)
    assert batch["index"].tolist() == [4, 1] and batch["label"].tolist() == [1, 1]


def test_sounds_is_what_a_data_set_opens(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(10), 4000)
    sounds = Sounds(tmp_path, ["a.wav"], 4000)
    assert len(sounds) == 1 and sounds.sizes() == [64] and sounds.names == ("a.wav",)

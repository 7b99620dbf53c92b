"""A small data set in the layout of ESC-50: chords that differ in pitch and tremolo, as wav files."""

import csv
import wave
from pathlib import Path

import numpy as np


def write_wav(path: Path, samples: np.ndarray, rate: int, width: int = 2) -> Path:
    """Samples (T,) or (T, channels) in -1 .. 1 as PCM of so many bytes."""
    scaled = np.clip(np.round(samples * 2 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
    whole = scaled.astype("<i8") + (128 if width == 1 else 0)
    data = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def chord(rng: np.random.Generator, rate: int, seconds: float) -> np.ndarray:
    """Two tones and a tremolo, all at random."""
    time = np.arange(round(rate * seconds)) / rate
    low, high = rate * 0.02 * 2 ** rng.uniform(0, 4, 2)
    tones = sum(np.sin(2 * np.pi * (one * time + rng.uniform())) for one in (low, high))
    tremolo = 1 + 0.8 * np.sin(2 * np.pi * (rng.uniform(1, 8) * time + rng.uniform()))
    return 0.2 * tones * tremolo


def write_tones(
    root: Path, *, clips: int = 12, folds: int = 2, classes: int = 3, rate: int = 4000, seconds: float = 1.0
):
    """`clips` in each fold; the classes mean nothing."""
    rng = np.random.default_rng(0)
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    with open(root / "meta" / "esc50.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for number in range(clips * folds):
            fold, target = 1 + number // clips, number % classes
            name = f"{fold}-{number}-A-{target}.wav"
            write_wav(root / "audio" / name, chord(rng, rate, seconds), rate)
            table.writerow([name, fold, target, f"class {target}", "False", number, "A"])
    return root

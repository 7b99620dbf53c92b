"""Data sets of sound: wav files, and the layout of ESC-50 (Piczak, ACM Multimedia 2015)."""

import csv
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jointembed.data.pictures import inside
from jointembed.data.records import ImageData
from jointembed.errors import DataError

MAX_SAMPLES = 48_000 * 600  # ten minutes


class Sound(NamedTuple):
    """One decoded sound."""

    samples: Tensor  # (T,) float32 in -1 .. 1, the mean of its channels
    rate: int  # samples a second


def open_sound(path: Path) -> Sound:
    """Decode a wav file of 8, 16, 24 or 32 bit PCM.

    Raises:
        DataError: naming the file, where it is missing, empty, cut off, too long or none of these.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            if not 0 < count * channels <= MAX_SAMPLES or rate <= 0:
                raise DataError(f"{path}: {count} samples of {channels} channels, {rate} a second; cannot be used")
            data = file.readframes(count)
    except FileNotFoundError:
        raise DataError(f"{path}: no such sound") from None
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{path}: not a PCM wav file ({error or type(error).__name__})") from None
    if len(data) != count * channels * width:
        raise DataError(f"{path}: cut off after {len(data)} of {count * channels * width} bytes")
    frames = _decoded(np.frombuffer(data, dtype=np.uint8), width)
    return Sound(torch.from_numpy(frames.reshape(count, channels).mean(1, dtype=np.float32)), rate)


def _decoded(data: np.ndarray, width: int) -> np.ndarray:
    """Little-endian samples of `width` bytes, which are signed but for those of one byte, as float32."""
    if width == 1:
        return (data.astype(np.float32) - 128) / 128
    wide = np.zeros((len(data) // width, 4), dtype=np.uint8)
    wide[:, 4 - width :] = data.reshape(-1, width)
    return (wide.view("<i4")[:, 0] / np.float32(2**31)).astype(np.float32)


class Sounds:
    """Wav files under one root, by relative names, all of one rate."""

    def __init__(self, root: Path, names: Sequence[str], rate: int) -> None:
        """Check that every file is there and stays inside the root.

        Raises:
            DataError: naming the sound.
        """
        self.root, self.rate = root, rate
        self.names: Sequence[str] = tuple(names)
        try:
            self._sizes = [inside(root, name).stat().st_size for name in names]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from None

    def __len__(self) -> int:
        """Number of sounds."""
        return len(self.names)

    def open(self, number: int) -> Sound:
        """Decode one sound. Raises DataError where its rate is another."""
        sound = open_sound(self.root / self.names[number])
        if sound.rate != self.rate:
            raise DataError(f"{self.root / self.names[number]}: {sound.rate} samples a second, not {self.rate}")
        return sound

    def sizes(self) -> Sequence[int]:
        """Bytes of each file."""
        return self._sizes


def esc50(*, path: str, folds: list[int] | None = None, rate: int = 44100) -> ImageData:
    """Sounds of a folder in the layout of ESC-50, with their classes, in the order of `meta/esc50.csv`.

    Args:
        path: the folder, with `audio/*.wav` and `meta/esc50.csv` (`filename`, `fold`, `target`, `category`, ...).
        folds: those to read, 1 to 5 in ESC-50; None for all.
        rate: of all sounds, samples a second.

    Raises:
        DataError: naming file and line: a column, class or file that is missing or contradicts another.
    """
    root, table = Path(path), Path(path) / "meta" / "esc50.csv"
    rows = _rows(table)
    classes = _classes(rows, table)
    chosen = [row for row in rows if folds is None or row[1] in folds]
    missing = sorted(set(folds or ()) - {fold for _, fold, _, _ in rows})
    if missing:
        raise DataError(f"{table}: no sound of fold {missing[0]}")
    names = tuple(name for name, _, _, _ in chosen)
    return ImageData(
        name=root.name,
        pictures=Sounds(root / "audio", names, rate),
        labels=np.array([target for _, _, target, _ in chosen], dtype=np.int64),
        classes=classes,
        picture_ids=names,
    )


def _rows(table: Path) -> list[tuple[str, int, int, str]]:
    """File name, fold, target and category of each line."""
    found = []
    try:
        with open(table, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for number, row in enumerate(reader, 2):
                try:
                    found.append((row["filename"], int(row["fold"]), int(row["target"]), row["category"]))
                except KeyError as error:
                    raise DataError(f"{table}: no column {error}") from None
                except (ValueError, TypeError):
                    raise DataError(f"{table}: line {number}: fold and target must be whole numbers") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from None
    names = [name for name, *_ in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{table}: {twice!r} is there twice")
    if not found:
        raise DataError(f"{table}: no sound in it")
    return found


def _classes(rows: Sequence[tuple[str, int, int, str]], table: Path) -> tuple[str, ...]:
    """Names by number; each number has one."""
    names: dict[int, str] = {}
    for name, _, target, category in rows:
        if names.setdefault(target, category) != category:
            raise DataError(f"{table}: {name}: class {target} is {category!r} here and {names[target]!r} before")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{table}: classes must be numbered 0 to {len(names) - 1}, found {sorted(names)[-1]}")
    return tuple(names[target] for target in range(len(names)))

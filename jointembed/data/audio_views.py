"""Views of a sound: its waveform and its mel spectrogram, of one crop."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from jointembed.data.audio import Sound
from jointembed.data.views import row
from jointembed.errors import DataError, RecipeError


class SoundViews:
    """A crop, louder or softer, with noise, as `waveform` (1, T) and `mel` (1, M, F). See `waveform_mel`."""

    views = ("waveform", "mel")

    def __init__(
        self,
        rate: int,
        size: int,
        place: Literal["random", "center"],
        gain: Sequence[float],
        noise: Sequence[float],
        noise_p: float,
        filters: Tensor,
        hop: int,
    ) -> None:
        """Keep the values; sizes in samples, gain and noise in decibels."""
        self.rate, self.size, self.place, self.gain, self.noise, self.noise_p = rate, size, place, gain, noise, noise_p
        self.filters, self.hop = filters, hop
        self.window = torch.hann_window(2 * (filters.shape[1] - 1))

    @property
    def random(self) -> bool:
        """Whether two calls differ."""
        return self.place == "random" or self.gain[0] < self.gain[1] or self.noise_p > 0

    def __call__(self, sound: Sound) -> dict[str, Tensor]:
        """Draw from torch's global generator and render. Raises DataError for a sound of another rate."""
        if sound.rate != self.rate:
            raise DataError(f"data.audio.rate: sounds of {sound.rate} samples a second reach a pipeline of {self.rate}")
        x = self._crop(sound.samples)
        loud, chance, ratio = torch.rand(3).tolist() if self.random else (0.0, 1.0, 0.0)
        if chance < self.noise_p:
            below = self.noise[0] + ratio * (self.noise[1] - self.noise[0])
            x = x + torch.randn_like(x) * x.square().mean().sqrt() * 10 ** (-below / 20)
        x = x * 10 ** ((self.gain[0] + loud * (self.gain[1] - self.gain[0])) / 20)
        return {"waveform": x[None], "mel": self._mel(x)[None]}

    def _crop(self, x: Tensor) -> Tensor:
        """Cut, or fill up with silence."""
        spare = len(x) - self.size
        start = int(torch.rand(()) * (abs(spare) + 1)) if self.place == "random" else abs(spare) // 2
        if spare >= 0:
            return x[start : start + self.size].clone()
        return torch.nn.functional.pad(x, (start, -spare - start))

    def _mel(self, x: Tensor) -> Tensor:
        """Logarithm of the energy in each band, of mean 0 and standard deviation 1: (M, F)."""
        frames = torch.stft(x, len(self.window), self.hop, window=self.window, return_complex=True)
        energy = torch.log(self.filters @ frames.abs().square() + 1e-6)
        return (energy - energy.mean()) / energy.std().clamp_min(1e-3)


def waveform_mel(
    *,
    rate: int,
    seconds: float,
    place: Literal["random", "center"],
    gain: list[float],
    noise: list[float],
    noise_p: float,
    mels: int,
    fft: int,
    hop: int,
    low: float,
    high: float,
) -> SoundViews:
    """`waveform` (1, T) and `mel` (1, M, F) of one crop of `seconds`, at random or in the middle.

    `gain` is drawn between two numbers of decibels. With probability `noise_p` white noise is added, as many decibels
    below the crop as are drawn from `noise`. `mels` bands lie between `low` and `high` Hz, windows of `fft` samples
    `hop` apart.
    """
    _check(rate=rate, seconds=seconds, mels=mels, fft=fft, hop=hop, high=high)
    if not 0 <= low < high <= rate / 2:
        raise RecipeError(f"low, high: {low} to {high} Hz is not within 0 and half the rate, {rate / 2}")
    for name, values in (("gain", gain), ("noise", noise)):
        if len(values) != 2 or not values[0] <= values[1]:
            raise RecipeError(f"{name}: {values}, expected two rising numbers of decibels")
    if not 0 <= noise_p <= 1:
        raise RecipeError(f"noise_p: {noise_p} is no probability")
    size = round(rate * seconds)
    if size <= fft // 2 or fft % 2:
        raise RecipeError(f"fft: {fft} samples must be even and less than twice the crop, {size}")
    return SoundViews(rate, size, place, gain, noise, noise_p, mel_filters(mels, fft, rate, low, high), hop)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise RecipeError(f"{name}: {value}, expected a positive number")


@lru_cache(maxsize=8)
def mel_filters(mels: int, fft: int, rate: int, low: float, high: float) -> Tensor:
    """Triangles of height 1 that lie evenly on the mel scale, m = 2595 log10(1 + f / 700) (O'Shaughnessy 1987).

    Args:
        mels: M.
        fft: samples of a window.
        rate: samples a second.
        low: Hz, where the first one begins.
        high: Hz, where the last one ends.

    Returns:
        (M, fft / 2 + 1) weights of the frequencies k * rate / fft.

    Raises:
        RecipeError: if a band is so narrow that no frequency of the window lies in it.
    """
    first, last = (2595 * math.log10(1 + end / 700) for end in (low, high))
    corner = 700 * (10 ** (torch.linspace(first, last, mels + 2, dtype=torch.float64) / 2595) - 1)
    frequency = torch.arange(fft // 2 + 1, dtype=torch.float64) * rate / fft
    rising = (frequency - corner[:-2, None]) / (corner[1:-1] - corner[:-2])[:, None]
    falling = (corner[2:, None] - frequency) / (corner[2:] - corner[1:-1])[:, None]
    weights = torch.minimum(rising, falling).clamp_min(0).float()
    if not bool(weights.any(1).all()):
        raise RecipeError(f"mels: {mels} bands are too narrow for windows of {fft} samples; take fewer or a longer fft")
    return weights


_ESC50: dict[str, Any] = {
    "rate": 44100, "seconds": 4.0, "place": "random", "gain": [-6.0, 6.0], "noise": [20.0, 60.0], "noise_p": 0.5,
    "mels": 64, "fft": 2048, "hop": 512, "low": 20.0, "high": 22050.0,
}  # fmt: skip

SOUND_VIEWS: dict[str, Callable[..., SoundViews]] = {
    "waveform_mel": row(waveform_mel, **_ESC50),
    "waveform_mel_center": row(waveform_mel, **_ESC50 | {"place": "center", "gain": [0.0, 0.0], "noise_p": 0.0}),
}

"""Single operations of the view pipelines, in Pillow, here, and in torchvision's transforms v2 on bytes."""

import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as plain
from torchvision.transforms.v2 import functional as v2

from jointembed.data import augment


def decode(file: bytes) -> Image.Image:
    """A picture as the authors' loaders open it."""
    with Image.open(io.BytesIO(file)) as picture:
        return picture.convert("RGB")


def time_steps(file: bytes, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds of processor for one step in Pillow, here, and in torchvision's transforms v2 on bytes."""
    picture = decode(file)
    width, height = picture.size
    box = (width // 8, height // 8, width // 2, height // 2)
    corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    source = augment.pixels(picture)
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    crop = picture.crop(corners).resize((size, size), Image.Resampling.BICUBIC)
    bytes_ = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
    levels = bytes_.float()
    jitters: dict[str, Callable[[float], tuple[Callable, ...]]] = {
        name: lambda factor, name=name: (  # type: ignore[misc]
            lambda: getattr(plain, f"adjust_{name}")(crop, factor),
            lambda: augment.JITTER[name](levels.clone(), factor),
            lambda: getattr(v2, f"adjust_{name}")(bytes_, factor),
        )
        for name in augment.JITTER
    }
    runs: dict[str, tuple[Callable, ...]] = {
        "crop and resize, bicubic": (
            lambda: picture.crop(corners).resize((size, size), Image.Resampling.BICUBIC),
            lambda: augment.resample(source, box, size, size, "bicubic"),
            lambda: v2.resized_crop(
                whole, box[1], box[0], box[3], box[2], [size, size], InterpolationMode.BICUBIC, antialias=True
            ),
        ),
        "pixels of a picture": (
            lambda: torch.from_numpy(np.array(picture)),
            lambda: augment.pixels(picture),
            lambda: v2.pil_to_tensor(picture),
        ),
        **{name: pick(0.07 if name == "hue" else 1.2) for name, pick in jitters.items()},
        "grey": (
            lambda: plain.to_grayscale(crop, 3),
            lambda: augment.grey(levels),
            lambda: v2.rgb_to_grayscale(bytes_, 3),
        ),
        "blur": (
            lambda: crop.filter(ImageFilter.GaussianBlur(1.5)),
            lambda: augment.blur(levels, 1.5),
            lambda: v2.gaussian_blur(bytes_, [13, 13], [1.5, 1.5]),
        ),
        "solarize": (
            lambda: ImageOps.solarize(crop),
            lambda: augment.solarize(bytes_),
            lambda: v2.solarize(bytes_, 128),
        ),
    }
    return {name: _time_step(run, 10 * repeats) for name, run in runs.items()}


def _time_step(run: Sequence[Callable], repeats: int) -> dict[str, float]:
    seconds: list[list[float]] = [[] for _ in run]
    for _ in range(repeats + 2):
        for times, one in zip(seconds, run, strict=True):
            start = time.thread_time()
            one()
            times.append(time.thread_time() - start)
    names = ("pillow", "ours", "torchvision_v2")
    return {name: 1e6 * statistics.median(times[2:]) for name, times in zip(names, seconds, strict=True)}

"""Views a second from JPEG, against Pillow and torchvision's first transforms as the authors wrote their pipelines."""

import io
import itertools
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as plain
from torchvision.transforms.v2 import functional as v2

from jointembed.data import augment
from jointembed.data.views import VIEWS, Views

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TURN = 8  # pictures before another variant's turn: short for the load of the machine, long for its caches
Run = Callable[[bytes], Any]


def bench_views(
    *,
    pictures: Sequence[Path] | None = None,
    count: int = 64,
    repeats: int = 5,
    size: int = 224,
    small: int = 96,
    seed: int = 0,
) -> dict[str, Any]:
    """Time pipelines and their steps, the variants a few pictures each in turn, in one process.

    Args:
        pictures: JPEG files; None makes `count` synthetic ones of 640 x 480.
        count: pictures used.
        repeats: rounds over them.
        size: side of views and pictures for the encoder.
        small: side of the small crops.
        seed: of what the pipelines draw.

    Returns:
        `pipelines`: name -> variant -> median milliseconds and images a second; `ratio` is plain / ours, where `plain`
        ends in normalised floats, as the authors' does, and `ours` in bytes, which the encoder normalises on its
        device; `ratio_normalised` adds that work to ours, `ratio_bytes` takes it from plain. `reduced` decodes at a
        reduced size where every crop keeps one pixel for each of its own. `steps`: one operation in each library.
        `agreement`: mean difference of a squashed picture in grey levels. `machine`: what it ran on.
    """
    files = [path.read_bytes() for path in list(pictures)[:count]] if pictures else synthetic_jpegs(count, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        return {
            "pipelines": {name: _compare(runs, files, repeats, seed) for name, runs in _pipelines(size, small).items()},
            "steps": _steps(files, size, repeats),
            "agreement": _agreement(files[0], size),
            "machine": _machine(len(files)),
        }
    finally:
        torch.set_num_threads(before)


def synthetic_jpegs(count: int, seed: int = 0, width: int = 640, height: int = 480) -> list[bytes]:
    """JPEGs of about the bytes and the detail of a photograph: grain over waves of all lengths."""
    draw = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        picture = np.zeros((height, width, 3))
        for side in (4, 8, 16, 32, 64, 128):
            waves = draw.normal(0, 45 / side**0.3, (side, side, 3)).clip(-120, 120) + 127
            layer = Image.fromarray(waves.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(layer, dtype=np.float64) - 127
        grain = draw.normal(127, 6, (height, width, 1))
        buffer = io.BytesIO()
        Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


# -- pipelines ------------------------------------------------------------------------------------------------------


def _pipelines(size: int, small: int) -> dict[str, dict[str, Run]]:
    jitter = (0.4, 0.4, 0.2, 0.1)
    pair = [_plain_view(size, (0.08, 1.0), jitter, blur, solar, True) for blur, solar in ((1.0, 0.0), (0.1, 0.2))]
    large = _plain_view(size, (0.14, 1.0), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, False)
    little = _plain_view(small, (0.05, 0.14), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, False)
    centre = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    rows = {
        "vicreg": (pair, VIEWS["vicreg"](size=size)),
        "multi_crop": ([large] * 2 + [little] * 6, VIEWS["multi_crop"](sizes=[size, small])),
        "resize": ([[transforms.Resize((size, size))]], VIEWS["resize"](size=size)),
        "center": ([centre], VIEWS["center"](size=size)),
    }
    return {name: _variants(steps, views) for name, (steps, views) in rows.items()}


def _plain_view(
    size: int, scale: tuple[float, float], jitter: Sequence[float], blur: float, solarize: float, bicubic: bool
) -> list[Callable]:
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    return [
        transforms.RandomResizedCrop(size, scale=scale, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(*jitter)], p=0.8),
        transforms.RandomGrayscale(0.2),
        lambda p: p.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() < blur else p,
        lambda p: ImageOps.solarize(p) if random.random() < solarize else p,
    ]


def _variants(steps: Sequence[list[Callable]], views: Views) -> dict[str, Run]:
    floats = [transforms.Compose([*one, transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]) for one in steps]
    bytes_ = [transforms.Compose([*one, transforms.PILToTensor()]) for one in steps]

    def ours(file: bytes) -> dict[str, Tensor]:
        with Image.open(io.BytesIO(file)) as picture:
            return views(picture)

    def reduced(file: bytes) -> dict[str, Tensor]:
        with Image.open(io.BytesIO(file)) as picture:
            plan = views.draw(*picture.size)
            picture.draft(None, views.decode_size(plan, margin=1.0) or picture.size)
            return views.render(picture, plan)

    return {
        "plain": lambda file: _all(floats, file),
        "plain_bytes": lambda file: _all(bytes_, file),
        "ours": ours,
        "ours_normalised": lambda file: [_normalised(view) for view in ours(file).values()],
        "reduced": reduced,
    }


def _decode(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as picture:
        return picture.convert("RGB")


def _all(steps: Sequence[Callable], file: bytes) -> list[Tensor]:
    picture = _decode(file)
    return [step(picture) for step in steps]


def _normalised(x: Tensor) -> Tensor:
    mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
    return x.float().sub_(mean * 255).div_(deviation * 255)


def _compare(runs: dict[str, Run], files: Sequence[bytes], repeats: int, seed: int) -> dict[str, Any]:
    """Every variant on a few pictures in turn, so that what else the machine does falls on all alike."""
    torch.manual_seed(seed)
    random.seed(seed)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(files[0])
    for _, first in itertools.product(range(repeats), range(0, len(files), TURN)):
        for name, run in runs.items():
            for file in files[first : first + TURN]:
                start = time.perf_counter()
                run(file)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {
        name: {"milliseconds": 1000 * value, "images_per_second": 1 / value} for name, value in medians.items()
    }
    return found | {
        "ratio": medians["plain"] / medians["ours"],
        "ratio_normalised": medians["plain"] / medians["ours_normalised"],
        "ratio_bytes": medians["plain_bytes"] / medians["ours"],
        "ratio_reduced": medians["plain"] / medians["reduced"],
    }


# -- steps ----------------------------------------------------------------------------------------------------------


def _steps(files: Sequence[bytes], size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds of one step in Pillow, here, and in torchvision's transforms v2 on bytes."""
    picture = _decode(files[0])
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
            start = time.perf_counter()
            one()
            times.append(time.perf_counter() - start)
    names = ("pillow", "ours", "torchvision_v2")
    return {name: 1e6 * statistics.median(times[2:]) for name, times in zip(names, seconds, strict=True)}


def _agreement(file: bytes, size: int) -> float:
    expected = transforms.PILToTensor()(_decode(file).resize((size, size), Image.Resampling.BILINEAR))
    found = VIEWS["resize"](size=size)(_decode(file))["image"]
    return (found.float() - expected.float()).abs().mean().item()


def _machine(pictures: int) -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "vector": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "threads": 1,
        "pictures": pictures,
    }

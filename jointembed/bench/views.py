"""Views a second from JPEG, against Pillow and torchvision's first transforms as the authors wrote their pipelines."""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as plain

from jointembed.bench.measure import Seconds, compared, take_turns
from jointembed.bench.processes import Tensors, run_processes
from jointembed.bench.retrieval import peak_mb, reset_peak
from jointembed.bench.view_steps import decode, time_steps
from jointembed.data.crops import Change, Crop
from jointembed.data.pictures import open_picture
from jointembed.data.pipeline import Views
from jointembed.data.views import VIEWS
from jointembed.errors import DataError, RecipeError
from jointembed.recipe import nearest

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TURN = 8  # pictures before another variant's turn: short for the load of the machine, long for its caches
Run = Callable[[bytes], Any]
Step = Callable[[Any], Any]


def bench_views(
    *,
    pictures: Path | None = None,
    side: int | None = None,
    count: int = 32,
    repeats: int = 3,
    size: int = 224,
    small: int = 96,
    pipelines: Sequence[str] | None = None,
    memory: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Time pipelines and their steps from bytes in memory, a few pictures each in turn, on one thread.

    Args:
        pictures: folder of JPEG files; None makes `count` synthetic ones of 640 x 480.
        side: longer side in pixels to which they are resized, and written as JPEG again; None leaves them as they are.
        count: pictures used.
        repeats: rounds over them.
        size: side of large views; `vicreg_small` has 4/7 of it.
        small: side of the small crops.
        pipelines: names of those to run; None for all.
        memory: also measure peak memory, in processes of their own.
        seed: of what the pipelines draw.

    Returns:
        `source`: what the pictures are. `pipelines`: name -> `times`, of each variant what `measure.compared` gives
        (seconds are of a turn of 8 pictures, ratios to `jointembed`) and `images_per_second` of one core; `peak_mb`
        while views are made, the libraries not counted; `agreement`, the mean difference in grey levels from Pillow's
        and torchvision's operations given the same draws, decoded whole and as in training; `same`, p-values of
        two-sample tests against the authors' pipeline. `steps`: microseconds of one operation.

        Variants: `authors` ends in normalised floats, as theirs do, and `jointembed` in bytes, which the encoder
        normalises on its device; `jointembed_normalised` does that work too; `authors_bytes` leaves it out. `whole`
        always decodes the whole JPEG, `margin_1` reduces as soon as every crop keeps a pixel for each of its own.

    Raises:
        RecipeError: no such pipeline.
    """
    known = known_pipelines(size, small)
    for name in pipelines or ():
        if name not in known:
            raise RecipeError(f"no pipeline {name!r}{nearest(name, known)}")
    files, source = _pictures(pictures, side, count, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        found = {
            name: _measure(*row, files, repeats, seed) for name, row in known.items() if name in (pipelines or [name])
        }
        steps = time_steps(files[0], size, repeats)
    finally:
        torch.set_num_threads(before)
    for name in found if memory else ():
        found[name]["peak_mb"] = {
            side: float(run_processes(1, memory_of, name, side, files[:TURN], size, small)[0]["mb"])
            for side in ("jointembed", "authors")
        }
    return {"source": source, "size": size, "seed": seed, "pipelines": found, "steps": steps}


def _pictures(folder: Path | None, side: int | None, count: int, seed: int) -> tuple[list[bytes], dict[str, Any]]:
    if folder is None:
        files, origin = synthetic_jpegs(count, seed), "made up"
    else:
        paths = jpegs_in(folder)
        files, origin = [path.read_bytes() for path in paths[:count]], folder.name
    if side is not None:
        files, origin = [_resized(file, side) for file in files], f"{origin}, resized to {side} px and written again"
    sizes = [decode(file).size for file in files]
    source: dict[str, Any] = {"pictures": origin, "count": len(files)}
    source |= {
        key: float(np.median(one)) for key, one in zip(("width", "height"), zip(*sizes, strict=True), strict=True)
    }
    return files, source | {"kilobytes": float(np.median([len(file) for file in files])) / 1000}


def _resized(file: bytes, side: int) -> bytes:
    picture = decode(file)
    scale = side / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return _jpeg(picture.resize(size, Image.Resampling.LANCZOS))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def jpegs_in(folder: Path) -> list[Path]:
    """JPEGs of a folder, by name. Raises DataError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise DataError(f"{folder}: no JPEG in it")
    return found


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
        files.append(_jpeg(Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))))
    return files


# -- pipelines ------------------------------------------------------------------------------------------------------


def known_pipelines(size: int, small: int) -> dict[str, tuple[list[list[Step]], Callable[..., Views]]]:
    """Name -> the authors' steps of each view, and ours given a `margin`."""
    little = round(size * 4 / 7)
    resize = transforms.Resize((size, size))
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    large = _plain_view(size, (0.14, 1.0), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, False)
    tiny = _plain_view(small, (0.05, 0.14), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, False)
    return {
        "vicreg": (_plain_pair(size), partial(VIEWS["vicreg"], size=size)),
        "vicreg_small": (_plain_pair(little), partial(VIEWS["vicreg"], size=little)),
        "multi_crop": ([large] * 2 + [tiny] * 6, partial(VIEWS["multi_crop"], sizes=[size, small])),
        "caption_crop": ([[*crop]], partial(VIEWS["crop"], size=size)),
        "caption_resize": ([[resize]], partial(VIEWS["resize"], size=size)),
    }


def _plain_pair(size: int) -> list[list[Step]]:
    jitter = (0.4, 0.4, 0.2, 0.1)
    return [_plain_view(size, (0.08, 1.0), jitter, blur, solar, True) for blur, solar in ((1.0, 0.0), (0.1, 0.2))]


def _plain_view(
    size: int, scale: tuple[float, float], jitter: Sequence[float], blur: float, solarize: float, bicubic: bool
) -> list[Step]:
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    return [
        transforms.RandomResizedCrop(size, scale=scale, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(*jitter)], p=0.8),
        transforms.RandomGrayscale(0.2),
        lambda p: p.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() < blur else p,
        lambda p: ImageOps.solarize(p) if random.random() < solarize else p,
    ]


def _variants(steps: Sequence[list[Step]], make: Callable[..., Views]) -> dict[str, Run]:
    floats = [transforms.Compose([*one, transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]) for one in steps]
    bytes_ = [transforms.Compose([*one, transforms.PILToTensor()]) for one in steps]
    ours = make()
    runs: dict[str, Run] = {
        "jointembed": partial(_ours, ours),
        "authors": partial(_authors, floats),
        "authors_bytes": partial(_authors, bytes_),
        "jointembed_normalised": lambda file: [_normalised(view) for view in _ours(ours, file)],
    }
    margins = {"whole": None, "margin_1": 1.0}
    return runs | {name: partial(_ours, make(margin=one)) for name, one in margins.items() if one != ours.margin}


def _ours(views: Views, file: bytes) -> list[Tensor]:
    return list(views.opened(partial(open_picture, file)).values())


def _authors(steps: Sequence[Step], file: bytes) -> list[Tensor]:
    picture = decode(file)
    return [step(picture) for step in steps]


def _normalised(x: Tensor) -> Tensor:
    mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
    return x.float().sub_(mean * 255).div_(deviation * 255)


def _measure(
    steps: Sequence[list[Step]], make: Callable[..., Views], files: Sequence[bytes], repeats: int, seed: int
) -> dict[str, Any]:
    torch.manual_seed(seed)
    random.seed(seed)
    runs = _variants(steps, make)
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    whole = min(TURN, len(files))
    for first in range(0, len(files), TURN):
        some = files[first : first + TURN]
        turns = {name: partial(_all, run, some) for name, run in runs.items()}
        for name, rounds in take_turns(turns, repeats).items():  # the last turn may be short: a median is of equal ones
            seconds[name] += [Seconds(*(value * whole / len(some) for value in one)) for one in rounds]
    times = compared(seconds)
    for row in times.values():
        row["images_per_second"] = whole / row["cpu_seconds"]
    return {
        "times": times,
        "agreement": {"whole": agreement(make(margin=None), files), "training": agreement(make(), files)},
        "same": same_distribution(runs["jointembed"], runs["authors_bytes"], files),
    }


def _all(run: Run, files: Sequence[bytes]) -> None:
    for file in files:
        run(file)


def memory_of(name: str, side: str, files: Sequence[bytes], size: int, small: int) -> Tensors:
    """MB above what the libraries take while a pipeline makes the views of some pictures, one after the other."""
    torch.manual_seed(0)
    run = _variants(*known_pipelines(size, small)[name])[side]
    run(_jpeg(Image.new("RGB", (8, 8))))  # what is made once must not count
    before = reset_peak()
    _all(run, files)
    return {"mb": torch.tensor(peak_mb() - before)}


# -- agreement ------------------------------------------------------------------------------------------------------


def plain_render(picture: Image.Image, crop: Crop, change: Change) -> Tensor:
    """What was drawn for a crop, by Pillow's and torchvision's first operations: bytes (3, size, size)."""
    place = change.place
    left, top, width, height = place.box
    mode = Image.Resampling[crop.interpolation.upper()]
    view = picture.crop((left, top, left + width, top + height)).resize((place.width, place.height), mode)
    for name, factor in change.jitter:
        view = getattr(plain, f"adjust_{name}")(view, factor)
    view = plain.to_grayscale(view, 3) if change.grey else view
    view = view if change.sigma is None else view.filter(ImageFilter.GaussianBlur(change.sigma))
    view = ImageOps.solarize(view) if change.solarize else view
    return transforms.PILToTensor()(ImageOps.mirror(view) if change.flip else view)


def agreement(views: Views, files: Sequence[bytes]) -> float:
    """Mean difference in grey levels between ours and `plain_render` of the whole picture, the draws being the same."""
    apart = []
    for number, file in enumerate(files):
        torch.manual_seed(number)
        found = _ours(views, file)
        picture = decode(file)
        torch.manual_seed(number)
        for ours, crop, change in zip(found, views.crops, views.draw(*picture.size).changes, strict=True):
            apart.append((ours.float() - plain_render(picture, crop, change)).abs().mean().item())
    return float(np.mean(apart))


def same_distribution(ours: Run, theirs: Run, files: Sequence[bytes]) -> dict[str, float]:
    """P-values of Kolmogorov-Smirnov's two-sample test, over the first view of each picture."""
    found, expected = ([look(run(file)[0]) for file in files] for run in (ours, theirs))
    return {
        name: float(ks_2samp(*([one[name] for one in side] for side in (found, expected))).pvalue) for name in found[0]
    }


def look(view: Tensor) -> Mapping[str, float]:
    """Numbers that jitter, blur and resampling change, of bytes (3, H, W); `detail` is the log energy of edges."""
    x = view.float()
    grey = x.mean(0)
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return {
        "red": x[0].mean().item(),
        "blue": x[2].mean().item(),
        "deviation": x.std().item(),
        "colourfulness": (x.amax(0) - x.amin(0)).mean().item(),
        "detail": edges.square().mean().add(1).log().item(),
    }

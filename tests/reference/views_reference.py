"""The authors' view pipelines written plainly: Pillow and torchvision's first transforms, one call an operation."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

Transform = Callable[[Image.Image], Tensor]


class Blur:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Solarize:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.solarize(picture) if random.random() < self.p else picture


def last(normalise: bool) -> list:
    """To float and normalised as in training, or bytes to compare."""
    if not normalise:
        return [transforms.PILToTensor()]
    return [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


def training_view(
    size: int,
    scale: tuple[float, float],
    jitter: Sequence[float],
    *,
    jitter_p: float = 0.8,
    blur: float = 0.0,
    solarize: float = 0.0,
    bicubic: bool = False,
    normalise: bool = True,
) -> Transform:
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=mode),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*jitter)], p=jitter_p),
            transforms.RandomGrayscale(0.2),
            Blur(blur),
            Solarize(solarize),
            *last(normalise),
        ]
    )


def vicreg(size: int = 224, normalise: bool = True) -> list[Transform]:
    jitter = (0.4, 0.4, 0.2, 0.1)
    return [
        training_view(size, (0.08, 1.0), jitter, blur=blur, solarize=solarize, bicubic=True, normalise=normalise)
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    ]


def multi_crop(normalise: bool = True, sizes: tuple[int, int] = (224, 96)) -> list[Transform]:
    jitter = (0.8, 0.8, 0.8, 0.2)
    large = training_view(sizes[0], (0.14, 1.0), jitter, blur=0.5, normalise=normalise)
    small = training_view(sizes[1], (0.05, 0.14), jitter, blur=0.5, normalise=normalise)
    return [large] * 2 + [small] * 6


def resize(size: int = 224, normalise: bool = True) -> list[Transform]:
    return [transforms.Compose([transforms.Resize((size, size)), *last(normalise)])]


def center(size: int = 224, normalise: bool = True) -> list[Transform]:
    steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *last(normalise)]
    return [transforms.Compose(steps)]


def photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A coloured gradient with sharp shapes and grain: smooth parts, edges and fine detail, as in a photograph."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    slopes = random.uniform(-140, 140, (3, 2))
    base = random.uniform(60, 190, 3) + x[..., None] * slopes[:, 0] + y[..., None] * slopes[:, 1]
    picture = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top = random.uniform(-0.1, 0.9, 2) * (width, height)
        size = random.uniform(0.05, 0.4, 2) * (width, height)
        fill = tuple(int(level) for level in random.integers(0, 256, 3))
        draw.ellipse((left, top, left + size[0], top + size[1]), fill=fill)
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def laplacian_energy(x: Tensor) -> float:
    """Mean square of the Laplacian of grey levels (3, H, W): how much fine detail a picture has."""
    grey = x.float().mean(0)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return laplacian.square().mean().item()


def seeded(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)

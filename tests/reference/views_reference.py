"""The authors' view pipelines written plainly: Pillow and torchvision's first transforms, one call an operation."""

import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter, ImageOps
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


def laplacian_energy(x: Tensor) -> float:
    """Mean square of the Laplacian of grey levels (3, H, W): how much fine detail a picture has."""
    grey = x.float().mean(0)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return laplacian.square().mean().item()


def seeded(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)

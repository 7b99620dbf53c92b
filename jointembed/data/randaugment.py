"""RandAugment (Cubuk et al. 2020) as InfoMin was trained with it, and the photometric operations of PIRL."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

FILL = (124, 116, 104)  # the mean colour of ImageNet
STRONGEST = 10.0

Operation = tuple[str, float, bool]  # name, signed strength -1 .. 1, bicubic
Apply = Callable[[Image.Image, float, Image.Resampling], Image.Image]


def _shift(picture: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Apply:
    return lambda picture, strength, _: kind(picture).enhance(0.1 + 1.8 * abs(strength))


def _brighten_dark(picture: Image.Image, strength: float) -> Image.Image:
    added = int(110 * abs(strength))
    table = [min(255, level + added) if level < 128 else level for level in range(256)]
    return picture.point(table * 3)


# Each takes a picture, a signed strength of which 1 is the strongest, and the resampling of the geometric ones.
OPERATIONS: dict[str, Apply] = {
    "autocontrast": lambda p, s, r: ImageOps.autocontrast(p),
    "equalize": lambda p, s, r: ImageOps.equalize(p),
    "invert": lambda p, s, r: ImageOps.invert(p),
    "rotate": lambda p, s, r: p.rotate(30 * s, resample=r, fillcolor=FILL),
    "posterize": lambda p, s, r: ImageOps.posterize(p, max(1, int(4 * abs(s)))),
    "solarize": lambda p, s, r: ImageOps.solarize(p, int(256 * abs(s))),
    "solarize_add": lambda p, s, r: _brighten_dark(p, s),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda p, s, r: _shift(p, (1, 0.3 * s, 0, 0, 1, 0), r),
    "shear_y": lambda p, s, r: _shift(p, (1, 0, 0, 0.3 * s, 1, 0), r),
    "translate_x": lambda p, s, r: _shift(p, (1, 0, 0.45 * s * p.width, 0, 1, 0), r),
    "translate_y": lambda p, s, r: _shift(p, (1, 0, 0, 0, 1, 0.45 * s * p.height), r),
}


def draw_operations(count: int, magnitude: float) -> Iterator[Operation]:
    """Draw `count` operations with replacement; each is left out half of the time.

    The magnitude (0 .. 10) varies by a normal of deviation .5, cut to the range, and its sign is random.
    """
    names = list(OPERATIONS)
    for _ in range(count):
        which, skip, sign, bicubic = torch.rand(4).tolist()
        level = min(STRONGEST, max(0.0, magnitude + 0.5 * torch.randn(()).item())) / STRONGEST
        if skip >= 0.5:
            yield names[int(which * len(names))], -level if sign < 0.5 else level, bicubic < 0.5


def draw_photometric() -> tuple[Operation, ...]:
    """Draw PIRL's four operations, always in this order: 4 to 8 bits a channel, sharpness, a threshold, contrast.

    As in its authors' code (facebookresearch/vissl, vissl/data/ssl_transforms/pil_photometric_transforms_lib.py).
    """
    bits, threshold = torch.randint(4, 9, ()).item(), torch.randint(257, ()).item()
    steps = {
        "posterize": bits / 4,
        "sharpness": torch.rand(()).item(),
        "solarize": threshold / 256,
        "autocontrast": 1.0,
    }
    return tuple((name, strength, False) for name, strength in steps.items())


def apply_operations(x: Tensor, operations: Iterable[Operation]) -> Tensor:
    """Apply drawn operations to bytes (3, H, W), with Pillow."""
    picture = Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())
    for name, strength, bicubic in operations:
        resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        picture = OPERATIONS[name](picture, strength, resample)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

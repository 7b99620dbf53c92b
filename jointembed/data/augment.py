"""Pixel operations of the view pipelines: what Pillow computes, to a grey level or two, in a fraction of the time.

A decoded picture is seen without a copy as bytes (H, W, 4), red green blue and one unused, and is cropped and resized
by torch's vectorised antialiasing kernel. Colours are then changed in place on float32 planes (C, H, W) that hold
whole grey levels 0 .. 255: every operation ends on whole levels, cut off as Pillow's bytes are.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Box = tuple[int, int, int, int]  # left, top, width, height
Interpolation = Literal["bilinear", "bicubic"]

RED, GREEN, BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536  # ITU-R 601 luma, in the 16 bits that Pillow has


def pixels(picture: Image.Image) -> Tensor:
    """Bytes of an RGB picture, (H, W, 4) sharing its memory where Pillow offers that, else (H, W, 3). Read only."""
    picture.load()
    if hasattr(picture, "__arrow_c_array__"):  # Pillow 11.2
        import pyarrow

        try:
            flat = torch.from_dlpack(pyarrow.array(picture).values)
            return flat.view(picture.height, picture.width, -1)
        except ValueError:  # a picture so large that Pillow keeps it in several blocks
            pass
    return torch.from_numpy(np.array(picture))


def resample(source: Tensor, box: Box, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """Crop a box out of bytes (H, W, C) and resize it, antialiased, to bytes (3, height, width)."""
    left, top, box_width, box_height = box
    cut = source[top : top + box_height, left : left + box_width].permute(2, 0, 1)
    if (box_height, box_width) == (height, width):
        return cut[:3].contiguous()
    return functional.interpolate(cut[None], size=(height, width), mode=interpolation, antialias=True)[0, :3]


def to_bytes(x: Tensor) -> Tensor:
    """Whole grey levels as uint8; by way of int16, which is twice as fast."""
    return x.to(torch.int16).to(torch.uint8)


def luma(x: Tensor) -> Tensor:
    """Grey levels of planes (3, H, W), rounded: (H, W)."""
    return (x[0] * RED).add_(x[1], alpha=GREEN).add_(x[2], alpha=BLUE).add_(0.5).floor_()


def _whole(x: Tensor, factor: float) -> Tensor:
    """Cut to whole levels; a factor of at most 1 cannot leave 0 .. 255."""
    return x.clamp_(0, 255).floor_() if factor > 1 else x.floor_()


def brightness(x: Tensor, factor: float) -> Tensor:
    """Mix planes with black, in place."""
    return _whole(x.mul_(factor), factor)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Mix planes with the mean of their luma, in place."""
    red, green, blue = x.mean((1, 2)).tolist()
    mean = math.floor(RED * red + GREEN * green + BLUE * blue + 0.5)
    return _whole(torch.add(torch.tensor((1 - factor) * mean), x, alpha=factor, out=x), factor)


def saturation(x: Tensor, factor: float) -> Tensor:
    """Mix planes with their luma, in place."""
    return _whole(torch.lerp(luma(x).expand_as(x), x, factor, out=x), factor)


def hue(x: Tensor, shift: float) -> Tensor:
    """Turn the hue of planes (3, H, W) by `shift` of a full circle (-.5 .. .5), in place.

    Hue and saturation are cut to 8 bits on the way, as in Pillow's HSV.
    """
    red, green, blue = x.unbind(0)
    value, chroma, turn, a, b = x.new_empty(5, *x.shape[1:]).unbind(0)
    torch.maximum(torch.maximum(red, green, out=value), blue, out=value)
    torch.minimum(torch.minimum(red, green, out=chroma), blue, out=chroma)
    torch.sub(value, chroma, out=chroma)
    # Sixths of the circle, times chroma: as where blue is largest, then where green is, then where red is.
    torch.sub(red, green, out=turn).add_(chroma, alpha=4)
    torch.sub(blue, red, out=a).add_(chroma, alpha=2)
    torch.lerp(a, turn, torch.sub(value, green, out=b).clamp_(max=1), out=turn)
    torch.lerp(torch.sub(green, blue, out=a), turn, torch.sub(value, red, out=b).clamp_(max=1), out=turn)
    turn.div_(torch.clamp(chroma, min=1, out=a)).mul_(255 / 6).floor_()
    # A negative hue is one circle of 255 short, and a byte wraps at 256: one step less, then both wrap alike.
    turn.add_(torch.clamp(turn, -1, 0, out=a)).add_(math.trunc(shift * 255))
    turn.add_(torch.mul(turn, 1 / 256, out=a).floor_(), alpha=-256).mul_(6 / 255)
    spread = chroma.mul_(255).div_(torch.clamp(value, min=1, out=a)).floor_().mul_(value)  # 255 times the new chroma
    torch.sub(value, spread, alpha=2 / 255, out=a)
    torch.addcmul(a, spread, torch.sub(turn, 3, out=b).abs_().clamp_(1, 2), value=1 / 255, out=red)
    value.add_(spread, alpha=1 / 255)
    torch.addcmul(value, spread, torch.sub(turn, 2, out=b).abs_().clamp_(1, 2), value=-1 / 255, out=green)
    torch.addcmul(value, spread, torch.sub(turn, 4, out=b).abs_().clamp_(1, 2), value=-1 / 255, out=blue)
    return x.round_()


JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


def jitter(x: Tensor, steps: Iterable[tuple[str, float]]) -> Tensor:
    """Apply named operations of `JITTER` in turn, in place."""
    for name, factor in steps:
        JITTER[name](x, factor)
    return x


def grey(x: Tensor) -> Tensor:
    """Luma of planes (3, H, W) as one plane (1, H, W); `to_bytes(...).expand(3, ...)` makes three of it at the end."""
    return luma(x)[None]


def solarize(x: Tensor, threshold: int = 128) -> Tensor:
    """Invert bytes at or over the threshold."""
    inverted = x.bitwise_not()
    return torch.minimum(x, inverted) if threshold == 128 else torch.where(x >= threshold, inverted, x)


def _box(sigma: float) -> tuple[int, float]:
    """Half-width and end weight of the extended box of variance sigma^2 / 3 (Gwosdek et al. 2011, as in Pillow).

    It has 2l + 1 weights of 1 and one of `edge` at either end, before division by their sum.
    """
    variance = sigma * sigma / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (3 * variance - whole * (whole + 1)) / (6 * ((whole + 1) ** 2 - variance))
    return whole, edge


@lru_cache(maxsize=32)
def _box_parts(size: int, whole: int) -> tuple[np.ndarray, np.ndarray]:
    """A box on a line of `size` whose ends are repeated, its whole weights and its end weights: two (size, size)."""
    inner, ends = np.zeros((size, size)), np.zeros((size, size))
    rows = np.arange(size)
    for shift in range(-whole - 1, whole + 2):
        np.add.at(ends if abs(shift) > whole else inner, (rows, (rows + shift).clip(0, size - 1)), 1.0)
    return inner, ends


def blur_radius(sigma: float) -> int:
    """Half-width of the band of `blur_matrix`."""
    return 3 * (_box(sigma)[0] + 1)


def blur_matrix(size: int, sigma: float) -> Tensor:
    """Pillow's Gaussian blur of a line of `size`, its ends repeated, as a banded matrix (size, size)."""
    whole, edge = _box(sigma)
    radius = 3 * (whole + 1)
    inner, outer = _box_parts(min(size, 3 * radius), whole)
    box = (inner + edge * outer) / (2 * whole + 1 + 2 * edge)
    ends = box @ box @ box
    if size < 3 * radius:
        return torch.from_numpy(ends).float()
    band = np.zeros((size, size + 2 * radius + 1), dtype=np.float32)
    band[:, : 2 * radius + 1] = ends[radius, : 2 * radius + 1]
    matrix = band.reshape(-1)[: size * (size + 2 * radius)].reshape(size, -1)[:, radius : radius + size]
    matrix[:radius, : 2 * radius] = ends[:radius, : 2 * radius]
    matrix[-radius:, -2 * radius :] = ends[radius - 1 :: -1, 2 * radius - 1 :: -1]
    return torch.from_numpy(matrix)


_TILE = 48  # measured


def _tiles(size: int, sigma: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Outputs, the inputs they need, and the weights (outputs, inputs) between them, tile by tile.

    All tiles but those at the ends are alike, so that the matrix of a short line holds the weights of a long one.
    """
    radius = blur_radius(sigma)
    short = size if 2 * radius > _TILE else min(size, 2 * _TILE)
    matrix = blur_matrix(short, sigma)
    for start in range(0, size, _TILE):
        stop = min(start + _TILE, size)
        first, last = max(0, start - radius), min(size, stop + radius)
        shift = 0 if first == 0 else size - short if last == size else first
        yield slice(start, stop), slice(first, last), matrix[start - shift : stop - shift, first - shift : last - shift]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of planes (C, H, W), their edges repeated.

    A convolution with so short a kernel is bound by memory; a product with its matrix, in tiles that are mostly band,
    is not, and takes half the time.
    """
    x = x.contiguous()
    middle, out = torch.empty_like(x), torch.empty_like(x)
    tiles = list(_tiles(x.shape[1], sigma))
    for outputs, inputs, weights in tiles:
        torch.bmm(weights.expand(len(x), -1, -1), x[:, inputs], out=middle[:, outputs])
    tiles = tiles if x.shape[1] == x.shape[2] else list(_tiles(x.shape[2], sigma))
    rows, lines = middle.view(-1, x.shape[2]), out.view(-1, x.shape[2])
    for outputs, inputs, weights in tiles:
        torch.mm(rows[:, inputs], weights.T, out=lines[:, outputs])
    return out.round_()


# From linear RGB to CIE XYZ (sRGB primaries, IEC 61966-2-1), each row divided by the D65 white it gives.
_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / torch.tensor([[0.95047], [1.0], [1.08883]])
# Middle and half-range of L, a, b and of Y, Db, Dr over all bytes: both spaces leave as -1 .. 1.
_LAB_RANGE = torch.tensor([[50.0, 50.0], [6.024, 92.2103], [-6.6888, 101.1681]])
_TO_YDBDR = torch.tensor([[0.299, 0.587, 0.114], [-0.450, -0.883, 1.333], [-1.333, 1.116, 0.217]])


def lab(x: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of bytes (3, H, W): float planes of L 0 .. 100, a and b about -107 .. 98."""
    linear = x.float().div_(255)
    linear = torch.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055).pow_(2.4))
    xyz = torch.mm(_TO_XYZ, linear.view(3, -1))
    fx, fy, fz = torch.where(xyz > 0.008856, xyz.pow(1 / 3), 7.787 * xyz + 16 / 116).view(3, *x.shape[1:])
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def opponents(x: Tensor, space: Literal["lab", "ydbdr"]) -> Tensor:
    """One plane of luminance and two of chroma (3, H, W) of bytes, each scaled to -1 .. 1 by its range."""
    if space == "lab":
        middle, half = _LAB_RANGE[:, :1, None], _LAB_RANGE[:, 1:, None]
        return (lab(x) - middle) / half
    planes = torch.mm(_TO_YDBDR, x.float().div_(255).view(3, -1)).view(3, *x.shape[1:])
    return torch.stack([planes[0] * 2 - 1, planes[1] / 1.333, planes[2] / 1.333])


def patches(x: Tensor, corners: Iterable[tuple[int, int]], size: int) -> Tensor:
    """Square patches of (C, H, W) at (top, left) corners: (P, C, size, size)."""
    return torch.stack([x[:, top : top + size, left : left + size] for top, left in corners])

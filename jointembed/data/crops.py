"""Crops: where one lies in a picture, what is drawn for it, how it is rendered, and what tensors it becomes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from jointembed.data import augment
from jointembed.data.augment import Box, Interpolation
from jointembed.data.randaugment import Operation, apply_operations, draw_operations, draw_photometric
from jointembed.errors import RecipeError

# -- where a crop lies ----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A box of the picture, the size it is resized to, and the corner (top, left) of what is kept of that."""

    box: Box
    height: int
    width: int
    corner: tuple[int, int] = (0, 0)


class Geometry(Protocol):
    """Where a crop lies."""

    @property
    def random(self) -> bool:
        """Whether two calls differ."""
        ...

    def __call__(self, width: int, height: int, size: int) -> Place:
        """Place, in a picture of that width and height, of a crop that ends as size x size."""
        ...


@dataclass(frozen=True)
class Squash:
    """The whole picture, its sides resized without regard to their ratio."""

    random = False

    def __call__(self, width: int, height: int, size: int) -> Place:
        """The whole picture."""
        return Place((0, 0, width, height), size, size)


_STRIP = 32  # the sides of a picture that is resized as a whole differ by at most so many times


@dataclass(frozen=True)
class Centre:
    """The shorter side resized to `resize` times the size, then the middle of it.

    Of a longer strip the middle is cut out first: resized as a whole, one of 60,000 x 1 pixels takes 12 GB.
    """

    resize: float
    random = False

    def __post_init__(self) -> None:
        """Check the ratio."""
        if self.resize < 1:
            raise RecipeError(f"resize: {self.resize}, the shorter side cannot be smaller than the crop")

    def __call__(self, width: int, height: int, size: int) -> Place:
        """The middle of the picture, rounded as torchvision's Resize and CenterCrop round it."""
        least, most = min(width, height), max(width, height)
        cut = max(0, (most - _STRIP * least) // 2)  # as much of both ends: the middle stays where it is
        most -= 2 * cut
        short = round(size * self.resize)
        long = int(short * most / least)
        box = (cut, 0, most, least) if height <= width else (0, cut, least, most)
        rows, columns = (short, long) if height <= width else (long, short)
        return Place(box, rows, columns, (round((rows - size) / 2), round((columns - size) / 2)))


@dataclass(frozen=True)
class Area:
    """A box whose area is a uniform share of the picture's and whose width / height is uniform in its logarithm."""

    scale: Sequence[float]
    ratio: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, math.inf)
        if self.ratio[0] == 0 or self.scale[1] == 0:
            raise RecipeError(f"scale {list(self.scale)} and ratio {list(self.ratio)} must be above 0")

    @property
    def random(self) -> bool:
        """Whether two calls differ: not where every box would be the largest of one ratio."""
        return self.scale[0] < 1 or self.ratio[0] < self.ratio[1]

    def __call__(self, width: int, height: int, size: int) -> Place:
        """The first of ten boxes that fits, else the largest in the middle whose ratio is allowed."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10 if self.random else 0):
            share, turn, left, top = torch.rand(4).tolist()
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + turn * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Place((int(left * (width - w + 1)), int(top * (height - h + 1)), w, h), size, size)
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return Place(((width - w) // 2, (height - h) // 2, w, h), size, size)


def _check_range(name: str, values: Sequence[float], most: float) -> None:
    if len(values) != 2 or not 0 <= values[0] <= values[1] <= most:
        raise RecipeError(f"{name}: {list(values)}, expected two rising numbers of 0 to {most:g}")


# -- what is drawn for it -------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What was drawn for one crop; operations in the order they are applied. `parts` is of each of its patches."""

    place: Place
    jitter: tuple[tuple[str, float], ...] = ()
    grey: bool = False
    grey_first: bool = False
    sigma: float | None = None
    operations: tuple[Operation, ...] = ()
    solarize: bool = False
    flip: bool = False
    corners: tuple[tuple[int, int], ...] = ()
    parts: "tuple[Change, ...]" = ()


_JITTER = tuple(augment.JITTER)
_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class Colour:
    """Ranges of the jitter (brightness, contrast, saturation, hue) and of the blur's sigma, and probabilities.

    `operations` is how many of RandAugment are drawn, at `magnitude` (0 to 10); `photometric` the probability of PIRL's
    four operations, after the jitter. `grey_first` is before the jitter, which then has only brightness and contrast.
    """

    jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: Sequence[float] = (0.1, 2.0)
    solarize: float = 0.0
    flip: float = 0.0
    operations: int = 0
    magnitude: float = 10.0
    photometric: float = 0.0
    grey_first: bool = False

    def __post_init__(self) -> None:
        """Check ranges and probabilities."""
        for name in ("jitter_p", "grey", "blur", "solarize", "flip", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name}: {getattr(self, name)} is no probability")
        _check_range("sigma", self.sigma, math.inf)
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise RecipeError(
                f"jitter: {list(self.jitter)}, expected brightness, contrast, saturation and hue, the last at most 0.5"
            )

    @property
    def random(self) -> bool:
        """Whether two draws differ."""
        chances = (self.grey, self.solarize, self.flip)
        always = self.operations + self.jitter_p + self.blur + self.photometric  # their strengths are drawn too
        return always > 0 or any(0 < chance < 1 for chance in chances)

    def draw(self, place: Place) -> Change:
        """Draw the change of one crop; nothing is drawn where nothing is random."""
        if not self.random:
            return Change(place, grey=self.grey == 1, solarize=self.solarize == 1, flip=self.flip == 1)
        jitter, grey, blur, sigma, solarize, flip, order, *amounts = torch.rand(11).tolist()
        operations = tuple(draw_operations(self.operations, self.magnitude))
        if self.photometric and torch.rand(()).item() < self.photometric:
            operations = (*operations, *draw_photometric())
        return Change(
            place,
            jitter=tuple(self._jitter(order, amounts)) if jitter < self.jitter_p else (),
            grey=grey < self.grey,
            grey_first=self.grey_first,
            sigma=self.sigma[0] + sigma * (self.sigma[1] - self.sigma[0]) if blur < self.blur else None,
            operations=operations,
            solarize=solarize < self.solarize,
            flip=flip < self.flip,
        )

    def _jitter(self, order: float, amounts: Sequence[float]) -> Iterator[tuple[str, float]]:
        for which in _ORDERS[int(order * len(_ORDERS))]:
            spread = self.jitter[which]
            low, high = (-spread, spread) if which == 3 else (max(0.0, 1 - spread), 1 + spread)
            if spread:
                yield _JITTER[which], low + amounts[which] * (high - low)


@dataclass(frozen=True)
class Plan:
    """What was drawn for all crops of a picture of `size` (width, height)."""

    size: tuple[int, int]
    changes: tuple[Change, ...]

    def on(self, width: int, height: int) -> tuple[Change, ...]:
        """The changes with their boxes moved to the same picture at another size."""
        if (width, height) == self.size:
            return self.changes
        across, down = width / self.size[0], height / self.size[1]
        return tuple(
            change._replace(place=change.place._replace(box=_scaled(change.place.box, across, down, width, height)))
            for change in self.changes
        )


def _scaled(box: Box, across: float, down: float, width: int, height: int) -> Box:
    left, top = min(width - 1, round(box[0] * across)), min(height - 1, round(box[1] * down))
    right, bottom = round((box[0] + box[2]) * across), round((box[1] + box[3]) * down)
    return left, top, max(1, min(width, right) - left), max(1, min(height, bottom) - top)


# -- what tensors it becomes ----------------------------------------------------------------------------------------


class Output(Protocol):
    """What tensors a rendered crop becomes."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the views."""
        ...

    @property
    def random(self) -> bool:
        """Whether it draws."""
        ...

    def corners(self) -> tuple[tuple[int, int], ...]:
        """Draw what is random in it: corners (top, left) of patches."""
        ...

    def __call__(self, x: Tensor, change: Change) -> dict[str, Tensor]:
        """Views of a rendered crop, bytes (3, size, size)."""
        ...


@dataclass(frozen=True)
class Whole:
    """The crop as it is; with `box`, also where it lies in the picture."""

    key: str
    box: bool = False
    random = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Its name, and that of its box."""
        return (self.key, f"{self.key}_box") if self.box else (self.key,)

    def corners(self) -> tuple[tuple[int, int], ...]:
        """Nothing is drawn."""
        return ()

    def __call__(self, x: Tensor, change: Change) -> dict[str, Tensor]:
        """Bytes (3, size, size); the box is x, y, width, height in pixels, and 1 where it was flipped, else 0."""
        if not self.box:
            return {self.key: x}
        return {self.key: x, f"{self.key}_box": torch.tensor([*change.place.box, change.flip], dtype=torch.float32)}


@dataclass(frozen=True)
class Opponents:
    """Luminance and chroma apart."""

    space: Literal["lab", "ydbdr"]
    keys = ("luminance", "chroma")
    random = False

    def corners(self) -> tuple[tuple[int, int], ...]:
        """Nothing is drawn."""
        return ()

    def __call__(self, x: Tensor, change: Change) -> dict[str, Tensor]:
        """Float planes (1, H, W) and (2, H, W)."""
        planes = augment.opponents(x, self.space)
        return {"luminance": planes[:1].clone(), "chroma": planes[1:].clone()}


@dataclass(frozen=True)
class Patches:
    """A grid of `side` x `side` square patches, `stride` apart, each moved at random by 0 .. `spread` both ways.

    `keep` of them are kept (all where None), in random order where `shuffle` or where some are left out; `separate`
    gives each a key of its own.
    """

    key: str
    side: int
    size: int
    stride: int
    spread: int = 0
    keep: int | None = None
    shuffle: bool = False
    separate: bool = False

    def __post_init__(self) -> None:
        """Check that the grid is one."""
        if self.side < 1 or self.size < 1 or self.stride < 1 or self.spread < 0:
            raise RecipeError(
                f"{self.key}: {self.side} x {self.side} patches of {self.size} pixels, {self.stride} apart and moved "
                f"by up to {self.spread}, do not fit the crop they are cut from"
            )
        if self.keep is not None and not 0 < self.keep <= self.side**2:
            raise RecipeError(f"{self.key}: {self.keep} patches out of a grid of {self.side**2}")

    @property
    def random(self) -> bool:
        """Whether it draws."""
        return self.spread > 0 or self.shuffle or self.keep is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """One name, or one a patch."""
        count = self.keep or self.side**2
        return tuple(f"{self.key}{number + 1}" for number in range(count)) if self.separate else (self.key,)

    def corners(self) -> tuple[tuple[int, int], ...]:
        """Corners (top, left) of the patches kept."""
        cells = list(itertools.product(range(self.side), repeat=2))
        if self.shuffle or self.keep is not None:
            cells = [cells[number] for number in torch.randperm(len(cells))[: self.keep].tolist()]
        moves = torch.randint(self.spread + 1, (len(cells), 2)).tolist()
        return tuple(
            (row * self.stride + down, column * self.stride + across)
            for (row, column), (down, across) in zip(cells, moves, strict=True)
        )

    def __call__(self, x: Tensor, change: Change) -> dict[str, Tensor]:
        """Bytes (P, 3, h, h), or P times (3, h, h)."""
        found = augment.patches(x, change.corners, self.size)
        if change.parts:
            found = torch.stack([recolour(patch, part) for patch, part in zip(found, change.parts, strict=True)])
        if not self.separate:
            return {self.key: found}
        return {key: patch.clone() for key, patch in zip(self.keys, found, strict=True)}


# -- the crop -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """One crop of a pipeline, size x size: `colour` is drawn once for all, `patch_colour` for each patch of it."""

    output: Output
    size: int
    geometry: Geometry
    interpolation: Interpolation = "bilinear"
    colour: Colour = Colour()
    patch_colour: Colour | None = None

    def __post_init__(self) -> None:
        """Check the size."""
        if self.size < 1:
            raise RecipeError(f"size: {self.size} pixels")

    @property
    def random(self) -> bool:
        """Whether two draws differ."""
        colours = [self.colour] + ([] if self.patch_colour is None else [self.patch_colour])
        return self.geometry.random or self.output.random or any(colour.random for colour in colours)

    def draw(self, width: int, height: int) -> Change:
        """Draw everything random in it, for a picture of that size."""
        change = self.colour.draw(self.geometry(width, height, self.size))
        corners = self.output.corners()
        if self.patch_colour is not None:
            change = change._replace(parts=tuple(self.patch_colour.draw(change.place) for _ in corners))
        return change._replace(corners=corners) if corners else change


def render_crop(source: Tensor, crop: Crop, change: Change) -> Tensor:
    """Render what was drawn, on the bytes (H, W, C) of a picture: bytes (3, size, size)."""
    place = change.place
    x = augment.resample(source, place.box, place.height, place.width, crop.interpolation)
    if (place.height, place.width) != (crop.size, crop.size):
        top, left = place.corner
        x = x[:, top : top + crop.size, left : left + crop.size]
    return recolour(x, change)


def recolour(x: Tensor, change: Change) -> Tensor:
    """Everything of a change but its place, on bytes (3, H, W)."""
    early = change.grey and not change.operations  # grey planes blur in a third of the time, to the same result
    if change.jitter or change.sigma is not None or early:
        planes = x.float()
        if change.grey and change.grey_first:
            planes = augment.grey(planes).repeat(3, 1, 1)
        planes = augment.jitter(planes, change.jitter)
        planes = augment.grey(planes) if early else planes
        planes = planes if change.sigma is None else augment.blur(planes, change.sigma)
        x = augment.to_bytes(planes)
    if change.operations:
        x = apply_operations(x, change.operations)
        x = augment.to_bytes(augment.grey(x.float())) if change.grey else x
    x = augment.solarize(x) if change.solarize else x
    x = x.flip(-1) if change.flip else x
    return x.expand(3, -1, -1).clone(memory_format=torch.contiguous_format)

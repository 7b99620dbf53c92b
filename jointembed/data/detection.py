"""What a detection data set is here: pictures, categories, and the boxes and masks of the objects in each picture.

The readers are `detection_coco` and `detection_voc`; whatever they accept has passed the checks below.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from jointembed.data.masks import decode_masks
from jointembed.data.records import Pictures
from jointembed.errors import DataError

SLACK = 1.0  # px a box may reach beyond its picture, as rounding makes it; cut off for training, scored as it is
SMALLEST = 0.01  # px; a narrower box has no area: in float32 its sides would fall together


@dataclass(frozen=True)
class Objects:
    """The n annotated objects of one picture, in the order of the source."""

    xywh: np.ndarray  # (n, 4) float64: left, top, width, height in px from the upper left corner, as in the source
    labels: np.ndarray  # (n,) int64, 1 .. K
    crowd: np.ndarray  # (n,) bool: a region of many objects (COCO); never a training target
    difficult: np.ndarray  # (n,) bool: trained on, but neither asked for nor counted by the VOC rule
    area: np.ndarray  # (n,) float64, px
    ids: np.ndarray  # (n,) int64, as the source numbers them, or numbered by the reader
    masks: tuple[bytes, ...] | None = None  # n compressed run lengths; None where they were not read

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    @property
    def xyxy(self) -> np.ndarray:
        """(n, 4) float64: left, top, right, bottom."""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], axis=1)


@dataclass(frozen=True)
class DetectionData:
    """I pictures with their objects, and the K categories they are of."""

    name: str
    pictures: Pictures
    sizes: np.ndarray  # (I, 2) int64: width and height of each picture, px
    categories: tuple[str, ...]  # K names; label k is categories[k - 1]
    category_ids: tuple[int, ...]  # K, as the source numbers them
    objects: tuple[Objects, ...]  # I
    picture_ids: tuple[str, ...]  # I, as the source names them

    def __post_init__(self) -> None:
        """Check that the parts belong together and that every object is one."""
        counts = {len(self.pictures), len(self.sizes), len(self.objects), len(self.picture_ids)}
        if len(counts) > 1:
            raise DataError(
                f"{self.name}: {len(self.pictures)} pictures, {len(self.sizes)} sizes, {len(self.objects)} lists of "
                f"objects, {len(self.picture_ids)} picture ids; they must be equally many"
            )
        if not len(self.pictures):
            raise DataError(f"{self.name}: no picture in it")
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise DataError(f"{self.name}: categories must be there, each once: {', '.join(self.categories) or 'none'}")
        if len(set(self.category_ids)) != len(self.categories):
            raise DataError(f"{self.name}: {len(self.categories)} categories, but ids {self.category_ids}")
        for number, one in enumerate(self.objects):
            self._check(number, one)
        if len({one.masks is None for one in self.objects if len(one)}) > 1:
            raise DataError(f"{self.name}: some pictures have masks and some have not")

    def _check(self, number: int, one: Objects) -> None:
        where = f"{self.name}: picture {self.picture_ids[number]}"
        width, height = (int(side) for side in self.sizes[number])
        if width < 1 or height < 1:
            raise DataError(f"{where}: its size is {width} x {height}")
        parts = (one.xywh, one.labels, one.crowd, one.difficult, one.area, one.ids)
        if len({len(part) for part in parts}) > 1 or one.xywh.shape[1:] != (4,):
            raise DataError(f"{where}: boxes, labels, flags, areas and ids must be equally many")
        if one.masks is not None and len(one.masks) != len(one):
            raise DataError(f"{where}: {len(one.masks)} masks of {len(one)} objects")
        for row, box in enumerate(one.xywh.tolist()):
            fault = box_fault(box, width, height)
            if fault is None and not (math.isfinite(one.area[row]) and one.area[row] >= 0):
                fault = f"its area is {one.area[row]}"
            if fault is None and not 1 <= one.labels[row] <= len(self.categories):
                fault = f"its label is {one.labels[row]}, of {len(self.categories)} categories"
            if fault is not None:
                raise DataError(f"{where}: annotation {one.ids[row]}: {fault}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    @property
    def has_masks(self) -> bool:
        """Whether every object carries its mask."""
        return any(one.masks is not None for one in self.objects)

    def open(self, number: int) -> Image.Image:
        """Decode one picture. Raises DataError where its size is not the annotated one: its boxes would be wrong."""
        picture = self.pictures.open(number)
        width, height = (int(side) for side in self.sizes[number])
        if picture.size != (width, height):
            raise DataError(
                f"{self.pictures.names[number]}: {picture.width} x {picture.height} pixels, "
                f"but its annotations are for {width} x {height}"
            )
        return picture

    def target(self, number: int, *, masks: bool = False) -> dict[str, Any]:
        """Everything about the objects of one picture, as tensors.

        Args:
            number: of the picture.
            masks: decode the masks too.

        Returns:
            `boxes` (n, 4) float32 left, top, right, bottom, cut off at the picture; `labels` (n,) int64 1 .. K;
            `iscrowd`, `difficult` (n,) bool; `area` (n,) float32; `ids` (n,) int64; `masks` (n, H, W) uint8 if asked.

        Raises:
            DataError: masks that were not read.
        """
        one, (width, height) = self.objects[number], self.sizes[number].tolist()
        found: dict[str, Any] = {
            "boxes": torch.from_numpy(clipped(one.xyxy, width, height).astype(np.float32)),
            "labels": torch.from_numpy(one.labels),
            "iscrowd": torch.from_numpy(one.crowd),
            "difficult": torch.from_numpy(one.difficult),
            "area": torch.from_numpy(one.area.astype(np.float32)),
            "ids": torch.from_numpy(one.ids),
        }
        if masks:
            if one.masks is None and len(one):
                raise DataError(f"{self.name}: the masks were not read; set masks: true where the data are named")
            found["masks"] = torch.from_numpy(decode_masks(one.masks or (), width, height))
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, encoded sizes, categories and objects: the key of an honest resume."""
        digest = hashlib.sha256("\0".join(self.categories).encode("utf-8", "surrogatepass"))
        for name, size, one in zip(self.pictures.names, self.pictures.sizes(), self.objects, strict=True):
            digest.update(f"\n{name}\0{size}\0".encode("utf-8", "surrogatepass"))
            for part in (one.xywh, one.labels, one.crowd, one.difficult, one.area):
                digest.update(np.ascontiguousarray(part).tobytes())
            digest.update(b"\0".join(one.masks or ()))
        return digest.hexdigest()


def box_fault(xywh: list[float], width: int, height: int) -> str | None:
    """What is wrong with a box in a picture of that size, in words, or None."""
    left, top, wide, high = xywh
    if not all(math.isfinite(value) for value in xywh):
        return f"its box {xywh} is not finite"
    if wide < 0 or high < 0:
        return f"its box {xywh} has a negative side"
    if wide < SMALLEST or high < SMALLEST:
        return f"its box {xywh} has no area"
    right, bottom = left + wide, top + high
    if min(left, top) < -SLACK or right > width + SLACK or bottom > height + SLACK:
        return f"its box {xywh} reaches beyond the picture of {width} x {height}"
    if min(right, width) - max(left, 0) < SMALLEST or min(bottom, height) - max(top, 0) < SMALLEST:
        return f"its box {xywh} lies outside the picture of {width} x {height}"
    return None


def has_no_area(xywh: list[float]) -> bool:
    """Whether a box is finite but so narrow that nothing can be learnt from it or found in it."""
    return all(math.isfinite(value) for value in xywh) and 0 <= min(xywh[2:]) < SMALLEST


def clipped(xyxy: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (n, 4) cut off at the picture's edges."""
    return np.clip(xyxy, 0.0, np.array([width, height, width, height], dtype=xyxy.dtype))

"""Instance masks as COCO writes them: polygons, run lengths, and run lengths as a string; checked, then one form.

Format: http://cocodataset.org/#format-data. What pycocotools would misread in silence is refused here: a list of four
numbers (taken for a box), run lengths that do not fill the picture, a damaged string.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from jointembed.errors import DataError


def encode_segmentation(segmentation: object, width: int, height: int, where: str) -> bytes:
    """Any of the three forms as compressed run lengths; what polygons have outside the picture is cut off.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, ...], or `{"size": [height, width], "counts": ...}` with
            counts a list of run lengths or a string.
        width: of the picture, px.
        height: of the picture, px.
        where: begins every message.

    Raises:
        DataError: none of the three, an empty list, a polygon of less than three points, a coordinate that is not a
            finite number, run lengths of another size or sum, a string that is no run lengths.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, width, height, where)
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, width, height, where)
    raise DataError(f"{where}: the segmentation is {type(segmentation).__name__}; expected polygons or run lengths")


def _from_polygons(polygons: list[Any], width: int, height: int, where: str) -> bytes:
    if not polygons:
        raise DataError(f"{where}: the segmentation is empty; this object has no mask")
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            found = f"{len(polygon)} numbers" if isinstance(polygon, list) else type(polygon).__name__
            raise DataError(f"{where}: polygon {number} is {found}; expected x and y of three points or more")
        if not all(is_finite_number(value) for value in polygon):
            raise DataError(f"{where}: polygon {number} holds a coordinate that is not a finite number")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]


def _from_run_lengths(record: dict[str, Any], width: int, height: int, where: str) -> bytes:
    size, counts = record.get("size"), record.get("counts")
    if size != [height, width]:
        raise DataError(f"{where}: run lengths of size {size}; the picture's is [{height}, {width}]")
    if isinstance(counts, str):
        lengths = run_lengths(counts, where)
    elif isinstance(counts, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in counts):
        lengths = counts
    else:
        raise DataError(f"{where}: the counts of a mask are a list of whole numbers or a string")
    if any(one < 0 for one in lengths) or sum(lengths) != width * height:
        raise DataError(f"{where}: run lengths add up to {sum(lengths)}; the picture has {width * height} pixels")
    if isinstance(counts, str):
        return counts.encode("ascii")
    return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)["counts"]


def run_lengths(text: str, where: str) -> list[int]:
    """The run lengths in a compressed string: five bits a character, each from the third on relative to two before.

    Raises:
        DataError: a character that cannot be there, or an end within a number.
    """
    found: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise DataError(f"{where}: broken run lengths at {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more characters of this number follow
            continue
        if code & 16:  # its sign
            value -= 1 << shift
        found.append(value + found[-2] if len(found) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError(f"{where}: broken run lengths, they end within a number")
    return found


def is_finite_number(value: object) -> bool:
    """Whether a JSON value is a number of a size that pixels can have: no NaN or infinity, no true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def decode_masks(counts: Sequence[bytes], width: int, height: int) -> np.ndarray:
    """Compressed run lengths of one picture's objects to (n, H, W) uint8, 0 or 1."""
    if not counts:
        return np.zeros((0, height, width), dtype=np.uint8)
    decoded = coco_mask.decode([{"size": [height, width], "counts": one} for one in counts])
    return np.ascontiguousarray(decoded.transpose(2, 0, 1))


def encode_masks(masks: np.ndarray) -> tuple[bytes, ...]:
    """(n, H, W) masks, nonzero inside, to compressed run lengths."""
    return tuple(coco_mask.encode(np.asfortranarray(mask != 0).astype(np.uint8, order="F"))["counts"] for mask in masks)


def mask_area(counts: bytes, width: int, height: int) -> int:
    """Pixels inside a mask in compressed run lengths."""
    return int(coco_mask.area({"size": [height, width], "counts": counts}))

"""A fixed part of a data set: by a published list of file names, or seeded, stratified where there are classes."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from jointembed.data.json_file import read_text
from jointembed.data.order import layout_of, regrouped
from jointembed.data.records import CaptionData, ImageData, Pictures, stamps_of
from jointembed.errors import DataError

log = logging.getLogger(__name__)


class PicturePart:
    """Some pictures of a collection, in the order given; those of shards lie where they lay."""

    def __init__(self, pictures: Pictures, numbers: Sequence[int]) -> None:
        """Keep the collection and the numbers of the pictures in it, which ascend where it has a layout."""
        self._pictures, self._numbers = pictures, tuple(numbers)
        self.names: Sequence[str] = tuple(pictures.names[number] for number in self._numbers)
        kept = np.bincount(np.asarray(self._numbers, dtype=np.int64), minlength=len(pictures))
        self.layout = regrouped(layout_of(pictures), kept)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._numbers)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB; raises DataError naming it."""
        return self._pictures.open(self._numbers[number])

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture."""
        sizes = self._pictures.sizes()
        return [sizes[number] for number in self._numbers]

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Those of the whole collection: a change of another picture merely costs a computation."""
        return stamps_of(self._pictures)


def choose(data: ImageData, *, subset: str | None, fraction: float | None, subset_seed: int) -> ImageData:
    """The part of a data set that a recipe asks for; all of it where `subset` and `fraction` are None.

    The pictures keep their order and the classes their numbers. The part's hash, SHA-256 of the ids of its pictures, is
    kept in `ImageData.subset`, stands shortened in the name, and is logged.

    Args:
        data: the whole.
        subset: text file of one picture a line, as in ImageNet's 1% and 10% lists of SimCLR: a file name, or an id
            with folders in it.
        fraction: of each class (of all pictures where there are no labels), above 0 and up to 1; rounded, at least one
            picture of each class. Pictures are ranked by SHA-256 of seed and id, so that a smaller fraction is part of
            a larger one, on any machine.
        subset_seed: of the fraction.

    Raises:
        DataError: naming the line that names no picture, several, or one that is listed already; for both a list and a
            fraction, or a fraction that is none.
    """
    if subset is None and fraction is None:
        return data
    if subset is not None and fraction is not None:
        raise DataError(f"{data.name}: a subset is a list of files or a fraction, not both")
    if subset is not None:
        numbers, name = _listed(data, Path(subset)), Path(subset).name
    else:
        assert fraction is not None
        numbers, name = _stratified(data, fraction, subset_seed), f"{100 * fraction:g}% seed {subset_seed}"
    ids = tuple(data.picture_ids[number] for number in numbers)
    digest = hashlib.sha256("".join(f"{one}\0" for one in ids).encode("utf-8", "surrogatepass")).hexdigest()
    log.info("%s: %s is %d of %d pictures, subset %s", data.name, name, len(ids), len(data.picture_ids), digest)
    return replace(
        data,
        name=f"{data.name} ({name}, {digest[:8]})",
        pictures=PicturePart(data.pictures, numbers),
        labels=None if data.labels is None else data.labels[numbers],
        picture_ids=ids,
        subset=digest,
    )


def share_of(data: CaptionData, *, pictures: float = 1.0, captions: float = 1.0, seed: int = 0) -> CaptionData:
    """A seeded part of a data set with captions: of its items, and of the captions of each.

    Items and captions are ranked by SHA-256 of seed and id, so that a smaller share is part of a larger one, on any
    machine. An item keeps all its pictures; what is kept keeps its order.

    Args:
        data: the whole.
        pictures: share of the items, rounded, at least one item.
        captions: share of each item's captions, rounded, at least one caption.
        seed: of the ranking.
    """
    first = {int(item): number for number, item in reversed(list(enumerate(data.item)))}
    names = {item: data.picture_ids[number] for item, number in first.items()}
    items = _ranked(sorted(names), [names[item] for item in sorted(names)], pictures, seed)
    kept = {
        item: _ranked(range(len(texts)), [f"{names[item]}\0{n}" for n in range(len(texts))], captions, seed)
        for item, texts in ((item, data.captions[item]) for item in items)
    }
    numbers = np.flatnonzero(np.isin(data.item, items)).tolist()
    ids = data.caption_ids
    return replace(
        data,
        name=f"{data.name} ({100 * pictures:g}% of the pictures, {100 * captions:g}% of the captions, seed {seed})",
        pictures=data.pictures if len(numbers) == len(data.pictures) else PicturePart(data.pictures, numbers),
        item=np.searchsorted(items, data.item[numbers]).astype(np.int64),
        captions=tuple(tuple(data.captions[item][n] for n in kept[item]) for item in items),
        picture_ids=tuple(data.picture_ids[number] for number in numbers),
        caption_ids=None if ids is None else tuple(tuple(ids[item][n] for n in kept[item]) for item in items),
    )


def _ranked(values: Sequence[int], names: Sequence[str], share: float, seed: int) -> list[int]:
    """The share of some values whose names come first in a seeded order, ascending; at least one of them."""
    ranks = {value: _rank(seed, name) for value, name in zip(values, names, strict=True)}
    return sorted(sorted(values, key=ranks.__getitem__)[: max(1, round(share * len(values)))])


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


def _listed(data: ImageData, path: Path) -> list[int]:
    by_id = {one: [number] for number, one in enumerate(data.picture_ids)}
    by_name: dict[str, list[int]] = {}
    for number, one in enumerate(data.picture_ids):
        by_name.setdefault(one.rsplit("/", 1)[-1], []).append(number)
    chosen: dict[int, int] = {}  # picture -> line
    for line, text in enumerate(read_text(path).splitlines(), 1):
        wanted = text.strip()
        if not wanted:
            continue
        found = (by_id if "/" in wanted else by_name).get(wanted, [])
        if len(found) != 1:
            count = "no picture" if not found else f"{len(found)} pictures, such as {data.picture_ids[found[0]]!r},"
            raise DataError(f"{path}: line {line}: {count} of {data.name} has the name {wanted!r}")
        if chosen.setdefault(found[0], line) != line:
            raise DataError(f"{path}: line {line}: {wanted!r} stands in line {chosen[found[0]]} already")
    if not chosen:
        raise DataError(f"{path}: no file name in it")
    return sorted(chosen)


def _stratified(data: ImageData, fraction: float, seed: int) -> list[int]:
    if not 0 < fraction <= 1:
        raise DataError(f"{data.name}: fraction is {fraction}; expected a number above 0 and up to 1")
    ranks = [_rank(seed, one) for one in data.picture_ids]
    labels = np.zeros(len(ranks), dtype=np.int64) if data.labels is None else data.labels
    chosen: list[int] = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label).tolist()
        inside.sort(key=ranks.__getitem__)
        chosen += inside[: max(1, round(fraction * len(inside)))]
    return sorted(chosen)

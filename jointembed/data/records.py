"""What a data set is here: pictures, the item each of them shows, and the captions of each item."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jointembed.errors import DataError


class Pictures(Protocol):
    """Pictures by number; their names appear in every message about them."""

    @property
    def names(self) -> Sequence[str]:
        """Of each picture, unique."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def open(self, number: int) -> Any:
        """Decode one to what a view pipeline takes: an RGB picture, or a sound; raises DataError naming it."""
        ...

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture, part of the fingerprint."""
        ...


@runtime_checkable
class Stamped(Protocol):
    """Pictures that know the files they lie in."""

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change in nanoseconds of each file: one that is replaced shows it without being read."""
        ...


def stamps_of(pictures: Pictures) -> Sequence[tuple[int, int]]:
    """`stamps` of pictures that have them; none of others. Raises DataError naming a file that is gone."""
    return pictures.stamps() if isinstance(pictures, Stamped) else ()


@dataclass(frozen=True)
class CaptionData:
    """I pictures of M items and the captions of each item.

    An item is what captions belong to: mostly one picture, but two renderings of one emoji are one item.
    """

    name: str
    pictures: Pictures
    item: np.ndarray  # (I,) int64, 0 .. M-1
    captions: tuple[tuple[str, ...], ...]  # M tuples, none of them empty
    picture_ids: tuple[str, ...]  # I, as the source names them
    caption_ids: tuple[tuple[int, ...], ...] | None = None  # as `captions`, where the source numbers them
    skipped: tuple[tuple[str, str], ...] = ()  # name of each picture left out as unreadable, and the reason

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if len(self.pictures) != len(self.item) or len(self.item) != len(self.picture_ids):
            raise DataError(
                f"{self.name}: {len(self.pictures)} pictures, {len(self.item)} item numbers and "
                f"{len(self.picture_ids)} picture ids; they must be equally many"
            )
        if not len(self.pictures):
            raise DataError(f"{self.name}: no picture in it")
        for picture_id, item in zip(self.picture_ids, self.item, strict=True):
            if not 0 <= item < len(self.captions):
                raise DataError(f"{self.name}: picture {picture_id} shows item {item}, of {len(self.captions)} items")
            for caption in self.captions[item] or ("",):
                if not caption.strip():
                    raise DataError(f"{self.name}: picture {picture_id} has no caption, or an empty one")

    @cached_property
    def text_item(self) -> np.ndarray:
        """Item of each caption, captions taken item by item: (T,) int64."""
        counts = [len(captions) for captions in self.captions]
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All T captions, item by item."""
        return tuple(caption for captions in self.captions for caption in captions)

    @cached_property
    def positives(self) -> np.ndarray:
        """Pairs (picture, caption) that belong together: (P, 2) int64."""
        first = np.concatenate([[0], np.cumsum([len(captions) for captions in self.captions])])
        pairs = [
            (picture, text) for picture, item in enumerate(self.item) for text in range(first[item], first[item + 1])
        ]
        return np.asarray(pairs, dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, encoded sizes, items and captions: the key of caches and of an honest resume."""
        digest = hashlib.sha256()
        for name, size, item in zip(self.pictures.names, self.pictures.sizes(), self.item, strict=True):
            digest.update(f"{name}\0{size}\0{item}\n".encode("utf-8", "surrogatepass"))
        for captions in self.captions:
            digest.update(("\0".join(captions) + "\n").encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """I pictures, and of each its class where the data set has classes."""

    name: str
    pictures: Pictures
    labels: np.ndarray | None  # (I,) int64, 0 .. C-1
    classes: tuple[str, ...] | None  # C names; None where there are no labels
    picture_ids: tuple[str, ...]  # I, as the source names them
    subset: str | None = None  # SHA-256 of the ids, where the pictures are a chosen part of their data set
    skipped: tuple[tuple[str, str], ...] = ()  # name of each picture left out as unreadable, and the reason

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if not len(self.pictures):
            raise DataError(f"{self.name}: no picture in it")
        if len(self.pictures) != len(self.picture_ids):
            raise DataError(f"{self.name}: {len(self.pictures)} pictures and {len(self.picture_ids)} picture ids")
        if (self.labels is None) != (self.classes is None):
            raise DataError(f"{self.name}: labels and the names of classes come together")
        if self.labels is None or self.classes is None:
            return
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.pictures),):
            raise DataError(
                f"{self.name}: {len(self.pictures)} pictures, but labels are {self.labels.dtype} {self.labels.shape}"
            )
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.name}: two classes have one name")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(outside):
            first = outside[0]
            raise DataError(
                f"{self.name}: picture {self.picture_ids[first]} has label {self.labels[first]}, of "
                f"{len(self.classes)} classes"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names and encoded sizes: all that a run without labels depends on."""
        digest = hashlib.sha256()
        for name, size in zip(self.pictures.names, self.pictures.sizes(), strict=True):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def label_fingerprint(self) -> str | None:
        """SHA-256 of classes and labels; None without them."""
        if self.labels is None or self.classes is None:
            return None
        digest = hashlib.sha256("".join(f"{name}\0" for name in self.classes).encode("utf-8", "surrogatepass"))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

"""What a data set is here: pictures, the item each of them shows, and the captions of each item."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

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

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB; raises DataError naming it."""
        ...

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture, part of the fingerprint."""
        ...


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

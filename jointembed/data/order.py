"""The order of an epoch over data in shards: mixed far enough to train on, near enough to read ahead.

As a reader with several shards open and a shuffle buffer would give it, but as a pure function of (seed, epoch): any
position can be asked for, so a resume replays and loses nothing, and no rank or worker needs to know of another.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from jointembed.errors import DataError


class Layout(NamedTuple):
    """How samples lie on disk, and how far a shuffle may reach."""

    sizes: tuple[int, ...]  # samples of each shard; a shard's samples are numbered one after another
    window: int  # samples that are shuffled among each other, the buffer
    interleave: int  # shards that are read at once


class Order(Protocol):
    """Sample numbers of an epoch, by position."""

    def __len__(self) -> int:
        """Samples an epoch."""
        ...

    def __getitem__(self, positions: slice) -> np.ndarray:
        """Sample numbers at these positions: (n,) int64."""
        ...


class WindowedOrder:
    """One epoch's order over a layout, computed window by window: memory for a group of shards and a window.

    The shards are permuted, taken `interleave` at a time, and merged so that all of a group run out together; that
    stream is cut into windows, the first at a random place, and each is permuted. So a batch holds samples of
    `interleave` shards, and each shard is read nearly from front to back.
    """

    def __init__(self, layout: Layout, seed: int, epoch: int) -> None:
        """Permute the shards.

        Args:
            layout: shards, window, interleave.
            seed: of the run.
            epoch: its number.

        Raises:
            DataError: for a window or interleave below 1.
        """
        if layout.window < 1 or layout.interleave < 1:
            raise DataError(f"window {layout.window}, interleave {layout.interleave}: both must be at least 1")
        rng = np.random.default_rng([seed, epoch])
        self._key, self._window, self._interleave = [seed, epoch], layout.window, layout.interleave
        self._shards = rng.permutation(len(layout.sizes))
        self._offset = int(rng.integers(layout.window))  # of the first cut: no two epochs cut at the same places
        self._sizes = np.asarray(layout.sizes, dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])  # number of each shard's first sample
        ends = np.cumsum(self._sizes[self._shards])
        self._ends = ends[np.minimum(np.arange(0, len(ends), self._interleave) + self._interleave, len(ends)) - 1]
        self._last_group: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._last_window: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        """Samples an epoch."""
        return int(self._first[-1])

    def __getitem__(self, positions: slice) -> np.ndarray:
        """Sample numbers at consecutive positions: (n,) int64."""
        start, stop, step = positions.indices(len(self))
        if step != 1:
            raise ValueError("an order is read forwards, position by position")
        numbers = range((start + self._offset) // self._window, -(-(stop + self._offset) // self._window))
        parts = [np.empty(0, dtype=np.int64)]
        for number in numbers:
            first = max(0, number * self._window - self._offset)
            parts.append(self._permuted(number)[max(0, start - first) : max(0, stop - first)])
        return np.concatenate(parts)

    def _permuted(self, number: int) -> np.ndarray:
        if self._last_window[0] != number:
            first = number * self._window - self._offset
            ids = self._stream(max(0, first), min(len(self), first + self._window))
            self._last_window = number, np.random.default_rng([*self._key, 1, number]).permutation(ids)
        return self._last_window[1]

    def _stream(self, start: int, stop: int) -> np.ndarray:
        """The merged shards from one position to another."""
        parts = []
        for group in range(*np.searchsorted(self._ends, [start, stop - 1], side="right") + [0, 1]):
            first = int(self._ends[group - 1]) if group else 0
            parts.append(self._group(group)[max(0, start - first) : max(0, stop - first)])
        return np.concatenate(parts)

    def _group(self, group: int) -> np.ndarray:
        if self._last_group[0] != group:
            shards = self._shards[group * self._interleave : (group + 1) * self._interleave]
            ids = np.concatenate([np.arange(self._first[shard], self._first[shard + 1]) for shard in shards])
            place = np.concatenate([(np.arange(self._sizes[shard]) + 0.5) / self._sizes[shard] for shard in shards])
            self._last_group = group, ids[np.argsort(place, kind="stable")]
        return self._last_group[1]


def epoch_order(layout: Layout | None, samples: int, seed: int) -> Callable[[int], Order]:
    """Epoch -> order of its samples: windowed where they lie in shards, else one permutation of them all."""
    if layout is None:
        return lambda epoch: np.random.default_rng([seed, epoch]).permutation(samples)
    if sum(layout.sizes) != samples:
        raise DataError(f"shards of {sum(layout.sizes)} samples for a data set of {samples}")
    return lambda epoch: WindowedOrder(layout, seed, epoch)


def layout_of(pictures: object) -> Layout | None:
    """The layout of pictures in shards; None for those that can be read in any order at equal cost."""
    return getattr(pictures, "layout", None)


def regrouped(layout: Layout | None, samples_of: np.ndarray) -> Layout | None:
    """The layout of samples where a picture stands for several or none of them, as its captions do.

    Args:
        layout: of the pictures.
        samples_of: (I,) samples of each picture, numbered picture by picture.
    """
    if layout is None:
        return None
    ends = np.cumsum(layout.sizes)
    upto = np.concatenate([[0], np.cumsum(samples_of)])[np.concatenate([[0], ends])]
    return layout._replace(sizes=tuple(int(size) for size in np.diff(upto)))

"""Counts of candidates above and level with each query's best positive, both directions from one matrix product.

Letters: I images, T texts, D dimensions, P pairs; U different image rows, V different text rows.

The I x T scores are computed in tiles and never held together. A count is exact only if a positive's score and those
it is compared with are the same numbers of the same product, so:

- Rows that are equal to the bit are multiplied once and share their scores: a matrix product does not promise equal
  results at different places of a matrix, and two equal captions must tie.
- Texts are sorted by their first positive image, so that positives lie on a diagonal of tiles. A tile that holds all
  positives of its queries is counted as soon as it is made. Where positives are scattered, their tiles are made twice,
  first to find each query's best positive, then to count; the second product is checked against the first.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError

Matrix = Tensor | np.ndarray

_TILE = 1 << 23  # scores of a tile: 32 MB
_MOST_TILES = 100_000  # as long as they are not too large for it
_CHUNK = 4096  # rows converted at a time


class Counts(NamedTuple):
    """Of each query; all zero where a query has no positive."""

    above: np.ndarray  # (Q,) int64 candidates that score above its best positive; all of them are negatives
    ties: np.ndarray  # (Q,) int64 negatives at the score of its best positive
    tied_positives: np.ndarray  # (Q,) int64 positives at that score, the best one included


@dataclass(frozen=True)
class Rows:
    """One side of the product: its different rows, and which given rows they stand for."""

    values: Tensor  # (U, D) float32, no two of them equal
    row: np.ndarray  # (N,) int64: values[row[n]] is the given row n
    members: np.ndarray  # (N,) int64 given rows, those of values[0] first
    start: np.ndarray  # (U + 1,) int64: members[start[u] : start[u + 1]] share values[u]
    largest: float  # the largest norm of a given row


class _Tile(NamedTuple):
    image: slice  # of the different image rows
    text: slice
    pairs: np.ndarray  # numbers of the pairs inside
    closed: bool  # no pair of its images or texts lies in another tile


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: no autocast, no TF32, no bfloat16, whatever the process has asked for."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def read_rows(side: str, given: Matrix, order: np.ndarray, *, normalize: bool, device: torch.device) -> Rows:
    """Convert embeddings to float32, scale them to length 1 if asked (zeros stay zeros), and merge equal rows.

    Args:
        side: "image" or "text", for messages.
        given: (N, D) of any floating type.
        order: (N,) the order in which different rows are numbered.
        normalize: divide each row by its norm.
        device: where the rows go.

    Raises:
        EvaluationError: naming the first row that holds NaN or infinity.
    """
    rows = torch.empty(given.shape, dtype=torch.float32, device=device)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    largest = 0.0
    for first in range(0, len(order), _CHUNK):
        chunk = _float32(given[first : first + _CHUNK]).to(device)
        norm = torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64)
        if not bool(norm.isfinite().all()):
            row = int((~norm.isfinite()).nonzero()[0])
            value = float(chunk[row][~chunk[row].isfinite()][0])
            raise EvaluationError(f"{side} embeddings: row {first + row} holds {value}; every value must be finite")
        largest = max(largest, float(norm.max()))
        if normalize:
            chunk = chunk.double() / torch.where(norm > 0, norm, 1.0)[:, None]
        # Adding zero turns -0.0 into 0.0, so that equal rows have equal bytes.
        rows[torch.from_numpy(place[first : first + _CHUNK]).to(device)] = chunk.float() + 0.0
    return _merge_equal(rows, order, largest=1.0 if normalize else largest)


def _float32(chunk: Matrix) -> Tensor:
    if isinstance(chunk, Tensor):
        return chunk.detach().float()
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused by row
        return torch.from_numpy(chunk.astype(np.float32))


def _merge_equal(rows: Tensor, order: np.ndarray, *, largest: float) -> Rows:
    """Keep one of each set of equal rows, numbered as they appear; `order` names the given row at each place."""
    values = rows.cpu().numpy()
    head = np.ascontiguousarray(values[:, :4])  # most rows differ here already, and only the others are digested
    _, group, size = np.unique(head.view(f"V{head[0].nbytes}").ravel(), return_inverse=True, return_counts=True)
    seen: dict[bytes | int, int] = {}
    keys = (
        hashlib.blake2b(row, digest_size=16).digest() if shared else place
        for place, (row, shared) in enumerate(zip(values, size[group] > 1, strict=True))
    )
    number = np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(order))
    if len(seen) < len(order):
        first = torch.from_numpy(np.unique(number, return_index=True)[1]).to(rows.device)
        for start in range(0, len(seen), _CHUNK):  # in place: a row only ever moves towards the start
            rows[start : min(start + _CHUNK, len(seen))] = rows[first[start : start + _CHUNK]]
        rows = rows[: len(seen)]
    row = np.empty_like(number)
    row[order] = number
    counts = np.bincount(number, minlength=len(seen))
    start_of = np.concatenate([[0], np.cumsum(counts)])
    return Rows(rows, row, order[np.argsort(number, kind="stable")], start_of, largest)


def count_scores(
    image: Matrix,
    text: Matrix,
    pairs: np.ndarray,
    of_images: np.ndarray,
    of_texts: np.ndarray,
    *,
    normalize: bool = True,
    block: int | None = None,
) -> tuple[Counts, Counts]:
    """Count, for every image among the texts and for every text among the images.

    Args:
        image: (I, D).
        text: (T, D).
        pairs: (P, 2) int64 image and text that belong together, none of them twice.
        of_images: (P,) bool, the pairs that are positives where an image is the query.
        of_texts: (P,) bool, those where a text is the query.
        normalize: score by cosine, else by inner product.
        block: images of a tile; by default tiles have about eight million scores.

    Returns:
        Counts of the images and of the texts, in the order given.

    Raises:
        EvaluationError: for values that are not finite, or inner products that would not be.
    """
    device = image.device if isinstance(image, Tensor) else text.device if isinstance(text, Tensor) else None
    device = device or torch.device("cpu")
    with full_precision(device):
        images = read_rows("image", image, np.arange(len(image)), normalize=normalize, device=device)
        home = np.full(len(text), len(images.values))  # row of the first image that a text belongs to
        np.minimum.at(home, pairs[:, 1], images.row[pairs[:, 0]])
        order = np.argsort(home, kind="stable")
        texts = read_rows("text", text, order, normalize=normalize, device=device)
        if images.largest * texts.largest > torch.finfo(torch.float32).max:
            raise EvaluationError(
                f"inner products of rows of length {images.largest:.3g} (image) and {texts.largest:.3g} (text) "
                "do not fit float32; scale the embeddings down or normalize them"
            )
        tiles = _tiles(images, texts, pairs, home, block)
        return _Counter(images, texts, pairs, of_images, of_texts).run(tiles)


def _tiles(images: Rows, texts: Rows, pairs: np.ndarray, home: np.ndarray, block: int | None) -> list[_Tile]:
    """Cut the product so that texts and the images they belong to meet on the diagonal; tiles with pairs first."""
    u, v = len(images.values), len(texts.values)
    height = block or max(1, math.ceil(u / math.ceil(u / max(1.0, math.sqrt(_TILE * u / v)))))
    width = max(1, 2 * _TILE // height)
    tops = np.append(np.arange(0, u, height), u)
    home_block = home[texts.members[texts.start[:-1]]] // height  # (V,) ascending
    edges = [0, *(np.flatnonzero(np.diff(home_block)) + 1).tolist()]
    edges = [*edges[:: math.ceil(len(tops) * len(edges) / _MOST_TILES)], v]
    lefts = np.array([left for a, b in pairwise(edges) for left in range(a, b, width)] + [v])
    down = images.row[pairs[:, 0]] // height
    across = np.searchsorted(lefts, texts.row[pairs[:, 1]], side="right") - 1
    n_across = len(lefts) - 1
    key = down * n_across + across
    by_tile = np.argsort(key, kind="stable")
    held, first = np.unique(key[by_tile], return_index=True)
    inside = dict(zip(held.tolist(), np.split(by_tile, first[1:]), strict=True))
    in_row = np.bincount(held // n_across, minlength=len(tops))
    in_column = np.bincount(held % n_across, minlength=len(lefts))
    empty = np.empty(0, dtype=np.int64)
    tiles = [
        _Tile(
            slice(int(tops[i]), int(tops[i + 1])),
            slice(int(lefts[j]), int(lefts[j + 1])),
            inside.get(i * n_across + j, empty),
            bool(in_row[i] == 1 and in_column[j] == 1 and i * n_across + j in inside),
        )
        for i in range(len(tops) - 1)
        for j in range(n_across)
    ]
    return sorted(tiles, key=lambda tile: not len(tile.pairs))


class _Counter:
    """The running counts. Arrays over queries are in the order of `Rows.members`, in which a tile is a slice."""

    def __init__(
        self, images: Rows, texts: Rows, pairs: np.ndarray, of_images: np.ndarray, of_texts: np.ndarray
    ) -> None:
        self.images, self.texts = images, texts
        self.device = images.values.device
        self.buffer = torch.empty(0, device=self.device)
        self.flags = torch.empty(0, device=self.device)
        self.row = self._to_device(np.stack([images.row[pairs[:, 0]], texts.row[pairs[:, 1]]]))  # (2, P)
        self.place = self._to_device(np.stack([_inverse(images)[pairs[:, 0]], _inverse(texts)[pairs[:, 1]]]))
        self.of = self._to_device(np.stack([of_images, of_texts]))  # (2, P) bool
        self.score = torch.empty(len(pairs), device=self.device)
        lengths = (len(images.row), len(texts.row))
        self.best = [torch.full((n,), -math.inf, device=self.device) for n in lengths]
        self.above = [torch.zeros(n, dtype=torch.float64, device=self.device) for n in lengths]
        self.level = [torch.zeros(n, dtype=torch.float64, device=self.device) for n in lengths]
        self.member_row = [self._to_device(side.row[side.members]) for side in (images, texts)]

    def run(self, tiles: list[_Tile]) -> tuple[Counts, Counts]:
        for tile in tiles:
            if len(tile.pairs):
                scores = self._product(tile)
                self._find_best(tile, scores)
                if tile.closed:
                    self._count(tile, scores)
        for tile in tiles:
            if not tile.closed:
                scores = self._product(tile)
                self._check_same(tile, scores)
                self._count(tile, scores)
        return self._counts(0, self.images), self._counts(1, self.texts)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _product(self, tile: _Tile) -> Tensor:
        a, b = self.images.values[tile.image], self.texts.values[tile.text]
        if self.buffer.numel() < len(a) * len(b):
            self.buffer = torch.empty(len(a) * len(b), device=self.device)
        return torch.mm(a, b.T, out=self.buffer[: len(a) * len(b)].view(len(a), len(b)))

    def _pair_scores(self, tile: _Tile, scores: Tensor) -> tuple[Tensor, Tensor]:
        inside = self._to_device(tile.pairs)
        row, column = self.row[:, inside]
        return inside, scores[row - tile.image.start, column - tile.text.start]

    def _find_best(self, tile: _Tile, scores: Tensor) -> None:
        inside, found = self._pair_scores(tile, scores)
        self.score[inside] = found
        for side, best in enumerate(self.best):
            used = self.of[side, inside]
            best.scatter_reduce_(0, self.place[side, inside][used], found[used], "amax")

    def _check_same(self, tile: _Tile, scores: Tensor) -> None:
        inside, found = self._pair_scores(tile, scores)
        if not torch.equal(found, self.score[inside]):
            raise EvaluationError(
                f"the matrix product on {self.device} gave two scores for one pair of embeddings, so ranks would not "
                "be exact; evaluate on the CPU"
            )

    def _count(self, tile: _Tile, scores: Tensor) -> None:
        """Count a tile; where rows stand for several queries, spread it out, a piece of bounded size at a time."""
        rows = slice(int(self.images.start[tile.image.start]), int(self.images.start[tile.image.stop]))
        columns = slice(int(self.texts.start[tile.text.start]), int(self.texts.start[tile.text.stop]))
        if (rows.stop - rows.start, columns.stop - columns.start) == tuple(scores.shape):
            self._add(scores, rows, columns)
            return
        width = max(1, min(columns.stop - columns.start, _TILE))
        height = max(1, _TILE // width)
        for top in range(rows.start, rows.stop, height):
            some_rows = slice(top, min(top + height, rows.stop))
            spread = scores[self.member_row[0][some_rows] - tile.image.start]
            for left in range(columns.start, columns.stop, width):
                some_columns = slice(left, min(left + width, columns.stop))
                piece = spread[:, self.member_row[1][some_columns] - tile.text.start]
                self._add(piece, some_rows, some_columns)

    def _add(self, scores: Tensor, rows: slice, columns: slice) -> None:
        if self.flags.numel() < scores.numel():
            self.flags = torch.empty(scores.numel(), device=self.device)
        # Zeros and ones as float32: their sums are exact below 2^24 and several times as fast as those of bool.
        flags = self.flags[: scores.numel()].view(scores.shape)
        for compare, total in ((torch.gt, self.above), (torch.eq, self.level)):
            total[0][rows] += compare(scores, self.best[0][rows, None], out=flags).sum(1)
            total[1][columns] += compare(scores, self.best[1][None, columns], out=flags).sum(0)

    def _counts(self, side: int, rows: Rows) -> Counts:
        place = _inverse(rows)
        used = self.of[side]
        at_best = self.score[used] == self.best[side][self.place[side][used]]
        tied = np.bincount(self.place[side][used][at_best].cpu().numpy(), minlength=len(place))
        has_positive = tied > 0
        above = np.where(has_positive, self.above[side].cpu().numpy().astype(np.int64), 0)
        ties = np.where(has_positive, self.level[side].cpu().numpy().astype(np.int64) - tied, 0)
        return Counts(above[place], ties[place], tied[place])


def _inverse(rows: Rows) -> np.ndarray:
    """(N,) place of each given row in `members`."""
    place = np.empty(len(rows.members), dtype=np.int64)
    place[rows.members] = np.arange(len(rows.members))
    return place

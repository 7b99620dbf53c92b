"""Counts of candidates above and level with each query's best positive, both directions from one matrix product.

Letters: I images, T texts, D dimensions, P pairs; U different image rows, V different text rows.

The I x T scores are computed in tiles and never held together. A count is exact only if a positive's score and those
it is compared with are the same numbers of the same product, so:

- Rows that are equal to the bit are multiplied once and share their scores: a matrix product does not promise equal
  results at different places of a matrix, and two equal captions must tie.
- Texts are sorted by the images they belong to, so that positives lie in a diagonal of tiles, and texts that belong to
  images far apart (a caption that two pictures share) in columns of their own. The tiles that hold positives are made
  first. A tile is counted as soon as all positives of its queries have been seen, which is at once on the diagonal; the
  few others are made again, and the second product is checked against the first.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError

Matrix = Tensor | np.ndarray

_TILE = 1 << 23  # scores of a tile: 32 MB
_PIECE = 1 << 18  # scores counted at a time on the CPU: 1 MB, which its cache holds
_MOST_TILES = 100_000  # as long as they are not too large for it
_CHUNK = 256  # rows converted at a time


class Counts(NamedTuple):
    """Of each query; all zero where a query has no positive."""

    above: np.ndarray  # (Q,) int64 candidates that score above its best positive; all of them are negatives
    ties: np.ndarray  # (Q,) int64 negatives at the score of its best positive
    tied_positives: np.ndarray  # (Q,) int64 positives at that score, the best one included


@dataclass(frozen=True)
class Merged:
    """The different rows of one side, numbered as they first appear."""

    number: np.ndarray  # (N,) int64 of each given row
    first: np.ndarray  # (U,) int64 the first given row of each number
    norm: Tensor  # (N,) float64 of the given rows
    normalize: bool

    @property
    def longest(self) -> float:
        """The largest norm of a row as it is multiplied."""
        return 1.0 if self.normalize else float(self.norm.max())


@dataclass(frozen=True)
class Rows:
    """One side of the product: its different rows, and which given rows they stand for."""

    values: Tensor  # (U, D) float32, no two of them equal
    row: np.ndarray  # (N,) int64: values[row[n]] is the given row n
    members: np.ndarray  # (N,) int64 given rows, those of values[0] first
    start: np.ndarray  # (U + 1,) int64: members[start[u] : start[u + 1]] share values[u]


class _Tile(NamedTuple):
    image: slice  # of the different image rows
    text: slice
    pairs: np.ndarray  # numbers of the pairs inside
    final: bool  # made in order, it is the last with positives of its images, and the last with those of its texts


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


@contextmanager
def _one_thread() -> Iterator[int]:
    """Everything but the product on one thread, and the number of threads that the product may use.

    Counting is memory traffic that one core saturates; a barrier for each small operation costs more than it saves,
    and a whole time slice where other processes share the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def merge_equal(side: str, given: Matrix, *, normalize: bool) -> Merged:
    """Find the rows that are equal once they are float32 and, if asked, of length 1 (zeros stay zeros).

    Args:
        side: "image" or "text", for messages.
        given: (N, D) of any floating type.
        normalize: divide each row by its norm.

    Raises:
        EvaluationError: naming the first row that holds NaN or infinity.
    """
    norms = torch.empty(len(given), dtype=torch.float64, device=given.device if isinstance(given, Tensor) else None)
    with _one_thread():
        for first in range(0, len(given), _CHUNK):
            chunk = _float32(given[first : first + _CHUNK])
            norm = torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64)
            if not bool(norm.isfinite().all()):
                row = int((~norm.isfinite()).nonzero()[0])
                value = float(chunk[row][~chunk[row].isfinite()][0])
                raise EvaluationError(f"{side} embeddings: row {first + row} holds {value}; every value must be finite")
            norms[first : first + _CHUNK] = norm
        # Most rows already differ in their first four numbers; only the others are digested whole.
        head = scaled(given[:, :4], norms, normalize).cpu().numpy()
        _, group, size = np.unique(head.view(f"V{head[0].nbytes}").ravel(), return_inverse=True, return_counts=True)
        key: list[bytes | int] = list(range(len(given)))
        shared = np.flatnonzero(size[group] > 1)
        for some in np.split(shared, range(_CHUNK, len(shared), _CHUNK)):
            at = _index(given, some)
            for n, row in zip(some, scaled(given[at], norms[at], normalize).cpu().numpy(), strict=True):
                key[n] = hashlib.blake2b(row, digest_size=16).digest()
    seen: dict[bytes | int, int] = {}
    number = np.fromiter((seen.setdefault(one, len(seen)) for one in key), np.int64, len(key))
    return Merged(number, np.unique(number, return_index=True)[1], norms, normalize)


def make_rows(given: Matrix, merged: Merged, order: np.ndarray, device: torch.device) -> Rows:
    """Make the different rows, in the order asked for.

    Args:
        given: (N, D) the rows that were merged.
        merged: what `merge_equal` said of them.
        order: (U,) int64 numbers of the different rows.
        device: where the rows go.
    """
    values = torch.empty(len(order), given.shape[1], dtype=torch.float32, device=device)
    chosen = merged.first[order]
    with _one_thread():
        for first in range(0, len(order), _CHUNK):
            at = _index(given, chosen[first : first + _CHUNK])
            values[first : first + _CHUNK] = scaled(given[at], merged.norm[at], merged.normalize)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    row = place[merged.number]
    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(order)))])
    return Rows(values, row, np.argsort(row, kind="stable"), start)


def read_rows(side: str, given: Matrix, *, normalize: bool, device: torch.device) -> Rows:
    """`merge_equal` and `make_rows` in the order of appearance."""
    merged = merge_equal(side, given, normalize=normalize)
    return make_rows(given, merged, np.arange(len(merged.first)), device)


def _index(given: Matrix, rows: np.ndarray) -> Any:
    return torch.from_numpy(rows).to(given.device) if isinstance(given, Tensor) else rows


def scaled(rows: Matrix, norm: Tensor, normalize: bool) -> Tensor:
    """Float32 rows as they are multiplied. Adding zero turns -0.0 into 0.0, so that equal rows have equal bytes."""
    values = _float32(rows)
    if normalize:
        values = (values.double() / torch.where(norm > 0, norm, 1.0)[:, None]).float()
    return (values + 0.0).contiguous()


def _float32(rows: Matrix) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.detach().float()
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused by row
        return torch.from_numpy(rows.astype(np.float32))


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
        merged = [merge_equal(*side, normalize=normalize) for side in (("image", image), ("text", text))]
        if merged[0].longest * merged[1].longest > torch.finfo(torch.float32).max:
            raise EvaluationError(
                f"inner products of rows of length {merged[0].longest:.3g} (image) and {merged[1].longest:.3g} (text) "
                "do not fit float32; scale the embeddings down or normalize them"
            )
        images = make_rows(image, merged[0], np.arange(len(merged[0].first)), device)
        height = _height(len(images.values), len(merged[1].first), block)
        home = _home(images.row[pairs[:, 0]] // height, merged[1].number[pairs[:, 1]], merged[1].number)
        order = np.argsort(home, kind="stable")
        texts = make_rows(text, merged[1], order, device)
        tiles = _tiles(images, texts, pairs, height, home[order])
        with _one_thread() as threads:
            return _Counter(images, texts, pairs, of_images, of_texts, threads).run(tiles)


def _height(u: int, v: int, block: int | None) -> int:
    """Image rows of a tile: as large a part of the images as a tile is wide a part of the texts."""
    return block or max(1, math.ceil(u / math.ceil(u / max(1.0, math.sqrt(_TILE * u / v)))))


def _home(block: np.ndarray, text: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The block of images that each different text belongs to.

    A text of several blocks, or given several times, is put after the last block; one without pairs before the first.

    Args:
        block: (P,) of the image of each pair.
        text: (P,) number of the text of each pair.
        number: (T,) number of each given text.
    """
    texts = int(number.max()) + 1
    after = int(block.max()) + 1
    low, high = np.full(texts, after), np.full(texts, -1)
    np.minimum.at(low, text, block)
    np.maximum.at(high, text, block)
    scattered = (low < high) | ((np.bincount(number, minlength=texts) > 1) & (high >= 0))
    return np.where(scattered, after, high)


def _tiles(images: Rows, texts: Rows, pairs: np.ndarray, height: int, home: np.ndarray) -> list[_Tile]:
    """Cut the product where `home` (V,) of the texts changes. Tiles with pairs come first, scattered texts ahead."""
    u, v = len(images.values), len(texts.values)
    width = max(1, 2 * _TILE // height)
    tops = np.append(np.arange(0, u, height), u)
    edges = [0, *(np.flatnonzero(np.diff(home)) + 1).tolist()]
    edges = [*edges[:: math.ceil(len(tops) * len(edges) / _MOST_TILES)], v]
    lefts = np.array([left for a, b in pairwise(edges) for left in range(a, b, width)] + [v])
    n_down, n_across = len(tops) - 1, len(lefts) - 1
    down = images.row[pairs[:, 0]] // height
    across = np.searchsorted(lefts, texts.row[pairs[:, 1]], side="right") - 1
    cell = (n_across - 1 - across) * n_down + down  # tiles are numbered column by column, from the right
    by_cell = np.argsort(cell, kind="stable")
    held, first = np.unique(cell[by_cell], return_index=True)
    last_of_row, last_of_column = np.zeros(n_down, dtype=np.int64), np.zeros(n_across, dtype=np.int64)
    np.maximum.at(last_of_row, held % n_down, held)
    np.maximum.at(last_of_column, held // n_down, held)
    final = (last_of_row[held % n_down] == held) & (last_of_column[held // n_down] == held)
    inside = np.split(by_cell, first[1:])
    others = np.setdiff1d(np.arange(n_down * n_across), held)

    def tile(number: int, its_pairs: np.ndarray, is_final: bool) -> _Tile:
        i, j = number % n_down, n_across - 1 - number // n_down
        bounds = slice(int(tops[i]), int(tops[i + 1])), slice(int(lefts[j]), int(lefts[j + 1]))
        return _Tile(*bounds, its_pairs, is_final)

    with_pairs = [tile(*one) for one in zip(held.tolist(), inside, final.tolist(), strict=True)]
    return with_pairs + [tile(number, by_cell[:0], False) for number in others.tolist()]


class _Counter:
    """The running counts. Arrays over queries are in the order of `Rows.members`, in which a tile is a slice."""

    def __init__(
        self,
        images: Rows,
        texts: Rows,
        pairs: np.ndarray,
        of_images: np.ndarray,
        of_texts: np.ndarray,
        threads: int,
    ) -> None:
        self.images, self.texts, self.threads = images, texts, threads
        self.device = images.values.device
        self.piece = _PIECE if self.device.type == "cpu" else _TILE
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
                if tile.final:
                    self._count(tile, scores)
        for tile in tiles:
            if not tile.final:
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
        torch.set_num_threads(self.threads)
        scores = torch.mm(a, b.T, out=self.buffer[: len(a) * len(b)].view(len(a), len(b)))
        torch.set_num_threads(1)
        return scores

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
        """Count a tile, a piece at a time; where a row stands for several queries, its scores are repeated there."""
        rows = slice(int(self.images.start[tile.image.start]), int(self.images.start[tile.image.stop]))
        columns = slice(int(self.texts.start[tile.text.start]), int(self.texts.start[tile.text.stop]))
        repeat_rows = rows.stop - rows.start > len(scores)
        repeat_columns = columns.stop - columns.start > scores.shape[1]
        height = max(1, self.piece // (columns.stop - columns.start))
        for top in range(rows.start, rows.stop, height):
            some = slice(top, min(top + height, rows.stop))
            if repeat_rows:
                piece = scores[self.member_row[0][some] - tile.image.start]
            else:
                piece = scores[some.start - rows.start : some.stop - rows.start]
            if repeat_columns:
                piece = piece[:, self.member_row[1][columns] - tile.text.start]
            self._add(piece, some, columns)

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

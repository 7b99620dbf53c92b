"""Counts of candidates above and level with each query's best positive, both directions from one matrix product.

Letters: I images, T texts, D dimensions, P pairs.

Scores are those of float64; most of them are never computed. The I x T product is made in tiles at the lowest
precision that tells enough: bfloat16 where the processor has it, else float32. How far such a score can be from the
true one is bounded for each query (Cauchy-Schwarz on what rounding took from the rows, and the rounding of sums). A
candidate outside that margin around the best positive's score, which is known in float64 before any tile is made, is
certainly above or certainly below. The few inside are computed in float64. A tile with many inside is made again at the
next precision.

So ranks do not depend on the device, its precision, the tiles, or on where in a matrix a row stands. Two scores tie
where they are closer than float64 can tell: equal rows always do, and different rows of the same score.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.rows import Matrix, as_float32, finite_norms, full_precision, one_thread

HEIGHT, WIDTH = 1024, 8192  # of a tile
BLOCK = 16 * HEIGHT  # images held at a time: each further block reads all texts again
_PIECE = 1 << 18  # scores counted at a time on the CPU: 1 MB, which its cache holds
_MOST_NEAR = 1 / 64  # share of a tile beyond which a product costs less than as many single ones
_UNDERFLOW = 2.0**-100  # more than it takes from a sum


@runtime_checkable
class RowReader(Protocol):
    """Embeddings somewhere; `EmbeddingParts` are."""

    @property
    def width(self) -> int:
        """D."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of them: (n, D) float32."""
        ...

    def where(self, row: int) -> str:
        """What messages call a row."""
        ...


class Counts(NamedTuple):
    """Of each query; all zero where a query has no positive."""

    above: np.ndarray  # (Q,) int64 candidates that score above its best positive; all of them are negatives
    ties: np.ndarray  # (Q,) int64 negatives at the score of its best positive
    tied_positives: np.ndarray  # (Q,) int64 positives at that score, the best one included


def count_scores(
    image: Matrix | RowReader,
    text: Matrix | RowReader,
    pairs: np.ndarray,
    of_images: np.ndarray,
    of_texts: np.ndarray,
    *,
    normalize: bool = True,
    block: int = BLOCK,
) -> tuple[Counts, Counts]:
    """Count, for every image among the texts and for every text among the images.

    Args:
        image: (I, D).
        text: (T, D).
        pairs: (P, 2) int64 image and text that belong together, none of them twice.
        of_images: (P,) bool, the pairs that are positives where an image is the query.
        of_texts: (P,) bool, those where a text is the query.
        normalize: score by cosine, else by inner product.
        block: images held at a time.

    Returns:
        Counts of the images and of the texts, in the order given.

    Raises:
        EvaluationError: for values that are not finite.
    """
    device = next((one.device for one in (image, text) if isinstance(one, Tensor)), torch.device("cpu"))
    with full_precision(device), one_thread() as threads:
        sides = _Side("image", image, normalize, device), _Side("text", text, normalize, device)
        return _Counter(sides, pairs, (of_images, of_texts), threads, block).run()


def precisions(device: torch.device) -> list[torch.dtype]:
    """What products are made at, the fastest first; the last one decides."""
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return [*([torch.bfloat16] if fast else []), torch.float32, torch.float64]


class _Side:
    """All rows of one side, found to be finite. They are multiplied over their length, or over the longest one's."""

    def __init__(self, name: str, rows: Matrix | RowReader, normalize: bool, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.norm = torch.empty(len(rows), dtype=torch.float64, device=device)  # as multiplied: 1, or at most 1
        where = "row {}".format if isinstance(rows, Tensor | np.ndarray) else rows.where
        for first in range(0, len(rows), WIDTH):
            given = self._given(first, first + WIDTH)
            self.norm[first : first + WIDTH] = finite_norms(given, f"{name} embeddings", first, where)
        self.scale = self.norm.clone() if normalize else self.norm.max().expand(len(rows)).clone()
        self.scale[self.scale == 0] = 1.0
        self.norm /= self.scale

    def read(self, start: int, stop: int) -> "_Rows":
        return _Rows(self._given(start, stop), self.scale[start:stop])

    def _given(self, start: int, stop: int) -> Tensor:
        rows = self.rows
        some = rows[start:stop] if isinstance(rows, Tensor | np.ndarray) else rows.read(start, min(stop, len(rows)))
        return as_float32(some).to(self.device)


class _Rows:
    """Some rows of a side, as given and as they are multiplied."""

    def __init__(self, given: Tensor, scale: Tensor) -> None:
        self.given, self.scale = given, scale  # (n, D) float32, (n,) float64
        self._rounded: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def split(self, height: int) -> "list[_Rows]":
        return [_Rows(*both) for both in zip(self.given.split(height), self.scale.split(height), strict=True)]

    def exact(self, rows: Tensor | slice) -> Tensor:
        """(m, D) float64."""
        return self.given[rows].double() / self.scale[rows, None]

    def rounded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All rows at a precision, (n, D), and the length of what was rounded off each, (n,) float64; made once."""
        if dtype not in self._rounded:
            values = torch.empty(self.given.shape, dtype=dtype, device=self.given.device)
            lost = torch.empty_like(self.scale)
            step = max(1, _PIECE // self.given.shape[1])
            for some in (slice(first, first + step) for first in range(0, len(values), step)):
                exact = self.exact(some)
                values[some] = exact
                lost[some] = torch.linalg.vector_norm(exact - values[some], dim=1)
            self._rounded[dtype] = values, lost
        return self._rounded[dtype]


def _dots(images: _Rows, texts: _Rows, row: Tensor, column: Tensor) -> Tensor:
    """(m,) float64 scores of single pairs."""
    step = max(1, _PIECE // images.given.shape[1])
    parts = zip(row.split(step), column.split(step), strict=True)
    return torch.cat([torch.linalg.vecdot(images.exact(i), texts.exact(j)) for i, j in parts])


class _Counter:
    """The running counts of both directions: 0 asks with the images (rows of a tile), 1 with the texts (columns)."""

    def __init__(
        self,
        sides: tuple[_Side, _Side],
        pairs: np.ndarray,
        of: tuple[np.ndarray, np.ndarray],
        threads: int,
        block: int,
    ) -> None:
        self.sides, self.threads, self.device = sides, threads, sides[0].device
        self.height, self.block = min(block, HEIGHT), block
        self.precisions = precisions(self.device)  # those that tell enough
        order = np.lexsort((pairs[:, 1] // WIDTH, pairs[:, 0] // self.height))
        self.pairs, self.of = pairs[order], [self._to_device(one[order]) for one in of]
        self.dimension = sides[0].read(0, 1).given.shape[1]
        self.best = [torch.full_like(side.norm, -math.inf) for side in sides]
        self.above = [torch.zeros_like(side.norm, dtype=torch.int64) for side in sides]
        self.level = [torch.zeros_like(side.norm, dtype=torch.int64) for side in sides]

    def run(self) -> tuple[Counts, Counts]:
        score = self._pair_scores()
        queries = [self._to_device(self.pairs[:, side])[self.of[side]] for side in range(2)]
        for side, query in enumerate(queries):
            self.best[side].scatter_reduce_(0, query, score[self.of[side]], "amax")
        images, texts = self.sides
        for start in range(0, len(images.norm), self.block):
            held = images.read(start, start + self.block).split(self.height)
            for left in range(0, len(texts.norm), WIDTH):
                columns = texts.read(left, left + WIDTH)
                for number, rows in enumerate(held):
                    self._add(rows, columns, start + number * self.height, left)
        i2t, t2i = (self._counts(side, query, score[self.of[side]]) for side, query in enumerate(queries))
        return i2t, t2i

    def _tie(self, side: int, query: Tensor | slice) -> Tensor:
        """(q,) below it scores tie: twice what float64 can be off, of queries that long and candidates of length 1."""
        return (self.dimension + 16) * 2.0**-52 * self.sides[side].norm[query]

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _pair_scores(self) -> Tensor:
        """(P,) float64, in the order of `pairs`: tile by tile, so that rows are read where they lie together."""
        tile = self.pairs // (self.height, WIDTH)
        found, top, images = [], -1, self.sides[0].read(0, 0)
        for some in np.split(np.arange(len(tile)), np.flatnonzero(np.diff(tile, axis=0).any(1)) + 1):
            first, left = (tile[some[0]] * (self.height, WIDTH)).tolist()
            if first != top:
                top, images = first, self.sides[0].read(first, first + self.height)
            row, column = self._to_device((self.pairs[some] - (first, left)).T)
            found.append(_dots(images, self.sides[1].read(left, left + WIDTH), row, column))
        return torch.cat(found)

    def _add(self, images: _Rows, texts: _Rows, top: int, left: int) -> None:
        """Count a tile, at the first precision that tells enough."""
        queries = slice(top, top + len(images.given)), slice(left, left + len(texts.given))
        while True:
            dtype, last = self.precisions[0], len(self.precisions) == 1
            rounded = images.rounded(dtype), texts.rounded(dtype)
            scores = self._product(rounded[0][0], rounded[1][0])
            bounds = [self._bounds(side, query, rounded, dtype) for side, query in enumerate(queries)]
            found = _count(scores, bounds, _PIECE if self.device.type == "cpu" else scores.numel())
            if last or sum(int(near.sum()) for _, near in found) <= _MOST_NEAR * scores.numel():
                break
            self.precisions.pop(0)
        for side, (query, (above, near)) in enumerate(zip(queries, found, strict=True)):
            self.above[side][query] += above
            if last:
                self.level[side][query] += near
            elif bool(near.any()):
                self._add_near(side, images, texts, _within(scores, *bounds[side], near, side), (top, left))

    def _product(self, images: Tensor, texts: Tensor) -> Tensor:
        torch.set_num_threads(self.threads)
        scores = torch.mm(images, texts.T)
        torch.set_num_threads(1)
        return scores

    def _bounds(
        self, side: int, query: slice, rounded: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """(q,) twice: a score of the product below the first is below the best positive's, one above the second above.

        They are rounded as the scores are: rounding keeps the order, so what a score beyond them proves stays true.
        """
        best, margin, norm = self.best[side][query], self._tie(side, query), self.sides[side].norm[query]
        if dtype != torch.float64:
            lost, longest_lost = rounded[side][1], float(rounded[1 - side][1].max())
            longest = 1 + longest_lost
            sums = self.dimension * 2.0**-24 * (norm + lost) * longest  # of float32, in any order
            margin = margin + 1.01 * (lost * longest + norm * longest_lost + sums) + _UNDERFLOW
        return (best - margin).to(dtype), (best + margin).to(dtype)

    def _add_near(
        self, side: int, images: _Rows, texts: _Rows, near: tuple[Tensor, Tensor], corner: tuple[int, int]
    ) -> None:
        """Decide in float64 what a product could not."""
        query = near[side] + corner[side]
        ahead = _dots(images, texts, *near) - self.best[side][query]
        tie = self._tie(side, query)
        self.above[side] += torch.bincount(query[ahead > tie], minlength=len(self.above[side]))
        self.level[side] += torch.bincount(query[ahead.abs() <= tie], minlength=len(self.level[side]))

    def _counts(self, side: int, query: Tensor, score: Tensor) -> Counts:
        level = score >= self.best[side][query] - self._tie(side, query)
        tied = torch.bincount(query[level], minlength=len(self.best[side]))
        asked = tied > 0
        if bool((self.level[side][asked] == 0).any()):  # not even the best positive was met again
            raise EvaluationError(f"the matrix product on {self.device} is less exact than its precision; "
                                  "ranks would be wrong; evaluate on another device")  # fmt: skip
        # A positive at the very edge of a tie may be level by one sum's order and not by another's.
        above, ties = self.above[side] * asked, (self.level[side] - tied).clamp(min=0) * asked
        return Counts(above.cpu().numpy(), ties.cpu().numpy(), tied.cpu().numpy())


def _count(scores: Tensor, bounds: Sequence[tuple[Tensor, Tensor]], piece: int) -> list[tuple[Tensor, Tensor]]:
    """For each row, then for each column: (q,) int64 scores above its second bound, and scores between both.

    Args:
        scores: (n, m).
        bounds: two of (n,), two of (m,).
        piece: scores to look at together.
    """
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32  # compares faster than bfloat16
    limits = [[one.to(wide) for one in both] for both in bounds]
    height = max(1, piece // scores.shape[1])
    # Zeros and ones as float32: their sums are exact below 2^24 and several times as fast as those of bool.
    flags = torch.empty(height, scores.shape[1], device=scores.device)
    counts = [[torch.zeros(len(one), dtype=torch.int64, device=scores.device) for one in both] for both in bounds]
    for some in (slice(first, first + height) for first in range(0, len(scores), height)):
        part = scores[some].to(wide)
        flag = flags[: len(part)]
        for number, compare in enumerate((torch.ge, torch.gt)):
            counts[0][number][some] = compare(part, limits[0][number][some, None], out=flag).sum(1).long()
            counts[1][number] += compare(part, limits[1][number], out=flag).sum(0).long()
    return [(above, least - above) for least, above in counts]


def _within(scores: Tensor, low: Tensor, high: Tensor, near: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Row and column of the scores between the bounds of their row (side 0) or column (side 1).

    Args:
        scores: (n, m).
        low: (n,) or (m,).
        high: (n,) or (m,).
        near: (n,) or (m,) how many there are.
        side: 0 or 1.
    """
    query = near.nonzero()[:, 0]
    part = scores.index_select(side, query)
    low, high = (bound[query].unsqueeze(1 - side) for bound in (low, high))
    place = list(((part >= low) & (part <= high)).nonzero().unbind(1))
    place[side] = query[place[side]]
    return place[0], place[1]

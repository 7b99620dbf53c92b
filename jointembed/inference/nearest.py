"""The k highest dot products, exactly: blocks of bounded memory, ties by row number.

Each score and its row become one 64-bit whole number whose order is (score, then lower row first), so that equal
scores need no further thought. Whether two equal rows get equal scores from a matrix product depends on where they
stand in it, in the last bit; so a few more candidates than asked for are scored again in float64, each for itself.
Where rounding could have kept another row from being a candidate, all rows that it could have are scored again.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EmbeddingsError

SPARE = 16  # candidates above k that are scored again
_QUERIES = 64  # at once
_SCORES = 1 << 19  # a block: 4 MB of keys stay in the cache of a core
_UNIT = 2.0**-24  # relative rounding error of one float32 operation
_LAST = 0xFFFFFFFF


class Vectors:
    """Rows (N, D) float32 in one or several parts, mostly memory-mapped."""

    def __init__(self, parts: Sequence[Tensor], width: int) -> None:
        """Take the parts over; N must stay below 2^32."""
        self.parts, self.width = list(parts), width
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        if len(self) > _LAST:
            raise EmbeddingsError(f"{len(self)} rows; at most {_LAST} are numbered")

    def __len__(self) -> int:
        """N."""
        return int(self.starts[-1])

    @cached_property
    def longest(self) -> float:
        """The greatest length of a row, found once; 0 where there is no row."""
        blocks = self.blocks(_SCORES)
        return max((float(torch.linalg.vector_norm(block, dim=1).max()) for _, block in blocks), default=0.0)

    def blocks(self, rows: int) -> "list[tuple[int, Tensor]]":
        """Number of the first row, and at most so many rows, of one part after the other."""
        return [
            (int(first) + offset, part[offset : offset + rows])
            for first, part in zip(self.starts, self.parts, strict=False)
            for offset in range(0, len(part), rows)
        ]

    def take(self, rows: np.ndarray) -> Tensor:
        """A copy of some rows: (M,) int64 in, (M, D) out."""
        found = torch.empty(len(rows), self.width)
        of_part = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(of_part):
            here = np.flatnonzero(of_part == number)
            found[torch.from_numpy(here)] = self.parts[number][torch.from_numpy(rows[here] - self.starts[number])]
        return found


def nearest(queries: Tensor, vectors: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the highest dot products, by exhaustion.

    Args:
        queries: (Q, D) float32.
        vectors: N rows.
        k: how many; all N where there are fewer.

    Returns:
        Scores (Q, K) float32, descending, and rows (Q, K) int64, equal scores by row number; K = min(k, N).
    """
    count = min(k, len(vectors))
    scores = np.empty((len(queries), count), dtype=np.float32)
    rows = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        candidates = _candidates(some, vectors, min(count + SPARE, len(vectors)))
        for offset, query in enumerate(some):
            scores[start + offset], rows[start + offset] = settled(query, vectors, candidates[offset], count)
    return scores, rows


def settled(query: Tensor, vectors: Vectors, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of one query (D,), given the C >= k rows with its highest float32 scores: (k,) and (k,).

    No other row has a higher float32 score than any candidate. So the float64 score of another row is at most the
    lowest candidate's and twice the rounding error. Where that reaches the k-th score, one more pass finds the rows.
    """
    scores, rows = rescored(query, vectors, candidates, len(candidates))
    if len(rows) < len(vectors):
        error = _rounding(query, vectors)
        if not float(scores[-1]) + 2 * error < float(scores[k - 1]):
            scores, rows = rescored(query, vectors, _reaching(query, vectors, float(scores[k - 1]) - error), k)
    return scores[:k], rows[:k]


def _rounding(query: Tensor, vectors: Vectors) -> float:
    """How far a float32 score may be from the one of `rescored`.

    A sum of D products in any order is wrong by at most D u |query| |row| to first order, u the rounding error of one
    operation (Higham 2002, section 3.1). The 4 are for rounding the other score and what it is compared with, the
    percent for the second order and the lengths, and the last term for products too small for float32.
    """
    length = float(torch.linalg.vector_norm(query.double()))
    smallest = torch.finfo(torch.float32).tiny
    return 1.01 * (vectors.width + 4) * _UNIT * length * vectors.longest + vectors.width * smallest


def _reaching(query: Tensor, vectors: Vectors, floor: float) -> np.ndarray:
    """Rows (M,) whose float32 score is not below a floor, ascending."""
    blocks = vectors.blocks(_SCORES)
    return np.concatenate([first + np.flatnonzero(~(block @ query < floor).numpy()) for first, block in blocks])


def rescored(query: Tensor, vectors: Vectors, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates (C,) of one query (D,) in float64 and keep the k best: (k,) float32 and (k,) int64."""
    blocks = np.array_split(candidates, len(candidates) * vectors.width // _SCORES + 1)
    products = [(vectors.take(block).double() * query.double()).sum(dim=1) for block in blocks]
    scores = torch.cat(products).float().numpy()
    order = np.lexsort((candidates, -scores))[:k]
    return scores[order], candidates[order]


def _candidates(queries: Tensor, vectors: Vectors, count: int) -> np.ndarray:
    """Rows (Q, count) with the highest float32 scores."""
    best = torch.empty(len(queries), 0, dtype=torch.int64)
    for first, block in vectors.blocks(max(1, _SCORES // max(1, len(queries)))):
        keys = _keys(queries @ block.T, first)
        best = torch.cat([best, keys.topk(min(count, keys.shape[1]), sorted=False).values], dim=1)
        best = best.topk(min(count, best.shape[1]), sorted=False).values
    return (_LAST - (best & _LAST)).numpy()


def _keys(scores: Tensor, first: int) -> Tensor:
    """Whole numbers in the order of (score, then lower row): (Q, B) float32 in, (Q, B) int64 out, all different."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, which it equals
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # of negative numbers the larger bits are the smaller value
    rows = torch.arange(first, first + scores.shape[1])
    return (ordered << 32) | (_LAST - rows)

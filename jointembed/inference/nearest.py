"""The k highest dot products, exactly: blocks of bounded memory, ties by row number.

Each score and its row become one 64-bit whole number whose order is (score, then lower row first), so that equal
scores need no further thought. Whether two equal rows get equal scores from a matrix product depends on where they
stand in it, in the last bit; so a few more candidates than asked for are scored again in float64, each for itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EmbeddingsError

SPARE = 16  # candidates above k that are scored again
_QUERIES = 64  # at once
_SCORES = 1 << 19  # a block: 4 MB of keys stay in the cache of a core
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
            scores[start + offset], rows[start + offset] = rescored(query, vectors, candidates[offset], count)
    return scores, rows


def rescored(query: Tensor, vectors: Vectors, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates (C,) of one query (D,) in float64 and keep the k best: (k,) float32 and (k,) int64."""
    scores = (vectors.take(candidates).double() * query.double()).sum(dim=1).float().numpy()
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

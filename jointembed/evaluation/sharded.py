"""Retrieval ranks of embeddings that do not fit in memory, equal to `retrieval_ranks` on those that do.

Letters: I images, T texts, D dimensions, P pairs. Images are held a block at a time, texts stream past it in chunks;
the scores exist a tile at a time. What stays in memory besides is a few numbers a query and a pair.

A count is exact only if equal rows have equal scores, wherever they lie. All tiles have one shape, the last ones filled
up with zeros, and it is tried out first whether the matrix product of that shape gives a row the same scores at every
place. Where it does not, products are taken in float64 and rounded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import RetrievalRanks, Truth, check_k, check_truth, ranks_of
from jointembed.evaluation.scores import Counts, full_precision, scaled

HEIGHT, WIDTH = 1024, 8192  # of a tile: 32 MB of scores
BLOCK = 16 * HEIGHT  # images held at a time: each further block reads all texts again
_PIECE = 1 << 18  # scores counted at a time: 1 MB, which a processor's cache holds

Product = Callable[[Tensor, Tensor], Tensor]


class Rows(Protocol):
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


def sharded_ranks(
    image: Rows,
    text: Rows,
    positives: np.ndarray | Tensor | Sequence[Sequence[int]],
    *,
    k: Sequence[int] = (1, 5, 10),
    t2i_positives: np.ndarray | Tensor | None = None,
    normalize: bool = True,
    missing: Literal["refuse", "ignore"] = "refuse",
    image_item: np.ndarray | Tensor | None = None,
    text_item: np.ndarray | Tensor | None = None,
    block: int = BLOCK,
) -> RetrievalRanks:
    """As `retrieval_ranks`, of rows that are read as they are needed.

    Equal rows tie exactly. Where different rows score the same in exact arithmetic, rounding decides, here as there.

    Args:
        image: (I, D) embeddings, `EmbeddingParts`.
        text: (T, D) embeddings.
        positives: as in `retrieval_ranks`, by row.
        k: the K of R@K.
        t2i_positives: as in `retrieval_ranks`.
        normalize: score by cosine, else by inner product.
        missing: "refuse" queries without a positive, or "ignore" them: they are asked nothing, but stay candidates.
        image_item: as in `retrieval_ranks`.
        text_item: as in `retrieval_ranks`.
        block: images in memory at a time.

    Raises:
        EvaluationError: as `retrieval_ranks`, with the file and row of a value that is not finite.
    """
    wanted = check_k(k)
    if image.width != text.width:
        raise EvaluationError(f"image embeddings have {image.width} dimensions and text embeddings {text.width}")
    if block < 1:
        raise EvaluationError(f"block is {block}; it must be at least 1 image")
    truth = check_truth(positives, t2i_positives, len(image), len(text), missing, image_item, text_item)
    with full_precision(torch.device("cpu")):
        return ranks_of(_Count(image, text, truth, normalize=normalize, block=block).run(), truth, wanted)


class _Count:
    """The running counts of both directions."""

    def __init__(self, image: Rows, text: Rows, truth: Truth, *, normalize: bool, block: int) -> None:
        self.image, self.text, self.truth, self.normalize = image, text, truth, normalize
        self.height, self.width = (_filled(n, most) for n, most in ((len(image), HEIGHT), (len(text), WIDTH)))
        self.block = -(-block // self.height) * self.height
        self.product = find_product(self.height, self.width, image.width)
        self.flags = torch.empty(max(_PIECE, self.width))
        sizes = (len(image), len(text))
        self.score = torch.empty(len(truth.pairs))
        self.best = [torch.full((size,), -math.inf) for size in sizes]
        self.above = [torch.zeros(size, dtype=torch.int64) for size in sizes]
        self.level = [torch.zeros(size, dtype=torch.int64) for size in sizes]

    def run(self) -> tuple[Counts, Counts]:
        for pairs, scores, top, left in self._tiles_with_pairs():
            rows, columns = torch.from_numpy(self.truth.pairs[pairs]).unbind(1)
            self.score[pairs] = scores[rows - top, columns - left]
        of = (self.truth.of_images, self.truth.of_texts)
        for side, used in enumerate(map(torch.from_numpy, of)):
            query = torch.from_numpy(self.truth.pairs[:, side])
            self.best[side].scatter_reduce_(0, query[used], self.score[used], "amax")
        for scores, top, left in self._all_tiles():
            self._add(scores, top, left)
        return self._counts(0), self._counts(1)

    def _read(self, side: str, rows: Rows, start: int, stop: int, filled: int) -> Tensor:
        """Rows as they are multiplied, filled up with zeros."""
        given = torch.from_numpy(rows.read(start, stop))
        norm = torch.linalg.vector_norm(given, dim=1, dtype=torch.float64)
        if not bool(norm.isfinite().all()):
            row = int((~norm.isfinite()).nonzero()[0])
            value = float(given[row][~given[row].isfinite()][0])
            raise EvaluationError(
                f"{side} embeddings: {rows.where(start + row)} holds {value}; every value must be finite"
            )
        values = torch.zeros(filled, rows.width)
        values[: len(given)] = scaled(given, norm, self.normalize)
        return values

    def _images(self, start: int, count: int) -> Tensor:
        return self._read("image", self.image, start, min(start + count, len(self.image)), count)

    def _texts(self, start: int) -> Tensor:
        return self._read("text", self.text, start, min(start + self.width, len(self.text)), self.width)

    def _scores(self, images: Tensor, texts: Tensor, top: int, left: int) -> Tensor:
        scores = self.product(images, texts)[: len(self.image) - top, : len(self.text) - left]
        if not self.normalize and not bool(scores.isfinite().all()):
            raise EvaluationError("inner products do not fit float32; scale the embeddings down or normalize them")
        return scores

    def _tiles_with_pairs(self) -> Iterator[tuple[np.ndarray, Tensor, int, int]]:
        row, column = (self.truth.pairs // (self.height, self.width)).T
        cell = row * (-(-len(self.text) // self.width)) + column
        order = np.argsort(cell, kind="stable")
        known, images = -1, torch.empty(0)
        for pairs in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
            top, left = int(row[pairs[0]]) * self.height, int(column[pairs[0]]) * self.width
            if top != known:
                known, images = top, self._images(top, self.height)
            yield pairs, self._scores(images, self._texts(left), top, left), top, left

    def _all_tiles(self) -> Iterator[tuple[Tensor, int, int]]:
        for start in range(0, len(self.image), self.block):
            held = self._images(start, min(self.block, -(-(len(self.image) - start) // self.height) * self.height))
            for left in range(0, len(self.text), self.width):
                texts = self._texts(left)
                for number, images in enumerate(held.split(self.height)):
                    top = start + number * self.height
                    yield self._scores(images, texts, top, left), top, left

    def _add(self, scores: Tensor, top: int, left: int) -> None:
        columns = slice(left, left + scores.shape[1])
        height = max(1, _PIECE // scores.shape[1])
        for first in range(0, len(scores), height):
            piece = scores[first : first + height]
            rows = slice(top + first, top + first + len(piece))
            # zeros and ones as float32: their sums are exact and several times as fast as those of bool
            flags = self.flags[: piece.numel()].view(piece.shape)
            for compare, total in ((torch.gt, self.above), (torch.eq, self.level)):
                total[0][rows] += compare(piece, self.best[0][rows, None], out=flags).sum(1).long()
                total[1][columns] += compare(piece, self.best[1][None, columns], out=flags).sum(0).long()

    def _counts(self, side: int) -> Counts:
        used = torch.from_numpy((self.truth.of_images, self.truth.of_texts)[side])
        query = torch.from_numpy(self.truth.pairs[:, side])[used]
        tied = torch.bincount(query[self.score[used] == self.best[side][query]], minlength=len(self.best[side]))
        asked = tied > 0
        above, ties = self.above[side] * asked, (self.level[side] - tied) * asked
        if bool((ties < 0).any()):
            raise EvaluationError("the matrix product gave two scores for one pair, so ranks would not be exact")
        return Counts(above.numpy(), ties.numpy(), tied.numpy())


def _filled(rows: int, most: int) -> int:
    """Rows of a tile: a multiple of 64, so that no part of a product is at an edge; at most `most`."""
    return min(most, -(-rows // 64) * 64)


def find_product(height: int, width: int, dimensions: int) -> Product:
    """A matrix product of (height, D) and (width, D) that gives equal rows equal scores at every place.

    Raises:
        EvaluationError: where neither float32 nor rounded float64 does.
    """
    scores = torch.empty(height, width)

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return torch.mm(a, b.T, out=scores)

    def rounded(a: Tensor, b: Tensor) -> Tensor:
        return scores.copy_(a.double() @ b.double().T)

    for product in (plain, rounded):
        if _same_everywhere(product, height, width, dimensions):
            return product
    raise EvaluationError(
        "the matrix product of this machine gives equal rows unequal scores; ranks would not be exact"
    )


def _same_everywhere(product: Product, height: int, width: int, dimensions: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        a, b = torch.randn(2, dimensions, generator=generator)
        scores = product(a.repeat(height, 1), b.repeat(width, 1))
        if not bool((scores == scores[0, 0]).all()):
            return False
    return True

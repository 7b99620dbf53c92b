"""The protocols that published retrieval numbers follow, from embeddings to numbers. See docs/retrieval_protocols.md.

A picture and a caption belong together where their items are equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.corrections import Scored
from jointembed.evaluation.files import GroundTruth
from jointembed.evaluation.retrieval import (
    RetrievalRanks,
    check_embeddings,
    merge_folds,
    retrieval_ranks,
    summarize,
    whole_numbers,
)
from jointembed.evaluation.rows import Matrix, full_precision, read_rows


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What a protocol gives: numbers, the ranks they come from, and the numbers of embeddings that tell nothing."""

    metrics: dict[str, float]
    ranks: RetrievalRanks

    @cached_property
    def chance(self) -> dict[str, float]:
        """The same numbers, expected of embeddings that tell nothing."""
        return summarize(self.ranks.blind())


@dataclass(frozen=True)
class Protocol:
    """Which pictures and captions a published number is about, and what searches what."""

    name: str
    pictures: int | None = None  # that there must be, each of its own item; any number where None
    captions: int | None = None  # of each picture that count, the first ones; all where None
    folds: int = 1  # of consecutive pictures, searched one by one; their numbers are averaged

    def __call__(
        self,
        image: Matrix,
        text: Matrix,
        image_item: np.ndarray,
        text_item: np.ndarray,
        *,
        k: Sequence[int] = (1, 5, 10),
        normalize: bool = True,
        picture_ids: Sequence[str | int] | None = None,
        correct: Callable[[Matrix, Matrix], Scored] | None = None,
    ) -> Retrieval:
        """Evaluate embeddings.

        Args:
            image: (I, D) embeddings.
            text: (T, D) embeddings.
            image_item: (I,) int64 what each picture shows.
            text_item: (T,) int64 what each caption describes.
            k: the K of R@K.
            normalize: score by cosine, else by inner product.
            picture_ids: (I,) names for messages; folds refuse pictures that are sorted by them.
            correct: a correction, applied to what searches one another, fold by fold; scores are what it says.

        Raises:
            EvaluationError: if the data do not fit the protocol, and as `retrieval_ranks`.
        """
        check_embeddings(image, text)  # a correction takes what it is given, or fails at it
        image_item = whole_numbers("image_item", image_item, len(image))
        text_item = whole_numbers("text_item", text_item, len(text))
        self._check_pictures(image_item)
        if self.captions is not None:
            rows = first_captions(text_item, self.captions)
            self._check_captions(image_item, text_item[rows], picture_ids)
            text, text_item = _take(text, rows), text_item[rows]
        if self.folds > 1:
            self._check_order(picture_ids)
        size = len(image_item) // self.folds
        found = []
        for first in range(0, len(image_item), size):
            items = image_item[first : first + size]
            rows = np.flatnonzero(np.isin(text_item, items)) if self.folds > 1 else np.arange(len(text_item))
            scored = Scored(image[first : first + size], _take(text, rows), normalize)
            if correct is not None:
                scored = correct(scored.image, scored.text)
            found.append(
                retrieval_ranks(
                    scored.image,
                    scored.text,
                    matches(items, text_item[rows]),
                    k=k,
                    normalize=scored.normalize,
                    image_item=items,
                    text_item=text_item[rows],
                )
            )
        ranks = merge_folds(found)
        return Retrieval(summarize(ranks), ranks)

    def _check_pictures(self, image_item: np.ndarray) -> None:
        items = len(np.unique(image_item))
        if self.pictures is not None and not len(image_item) == items == self.pictures:
            raise EvaluationError(
                f"{self.name}: needs {self.pictures:,} pictures, each of its own item; found {len(image_item):,} "
                f"pictures of {items:,} items (the protocol 'full' takes any number)"
            )

    def _check_captions(
        self, image_item: np.ndarray, text_item: np.ndarray, picture_ids: Sequence[str | int] | None
    ) -> None:
        items, counts = np.unique(text_item, return_counts=True)
        few = np.flatnonzero(~np.isin(image_item, items[counts == self.captions]))
        if len(few):
            name = few[0] if picture_ids is None else picture_ids[few[0]]
            found = int(np.sum(text_item == image_item[few[0]]))
            raise EvaluationError(
                f"{self.name}: picture {name} has {found} captions; every picture needs at least {self.captions}"
            )

    def _check_order(self, picture_ids: Sequence[str | int] | None) -> None:
        ids = [str(one).rjust(20, "0") for one in picture_ids or ()]
        if ids and picture_ids and ids == sorted(ids):
            raise EvaluationError(
                f"{self.name}: pictures are sorted by id ({picture_ids[0]}, {picture_ids[1]}, ...), but the folds are "
                "consecutive pictures in the order of the Karpathy file; published numbers hold for that order only"
            )


PROTOCOLS = {
    "full": Protocol("full"),
    "coco_5k": Protocol("coco_5k", pictures=5000, captions=5),
    "coco_1k_5fold": Protocol("coco_1k_5fold", pictures=5000, captions=5, folds=5),
    "flickr_1k": Protocol("flickr_1k", pictures=1000),
}


def matches(image_item: np.ndarray, text_item: np.ndarray) -> np.ndarray:
    """Pairs (picture, caption) whose items are equal: (P, 2) int64, picture by picture.

    Args:
        image_item: (I,) int64.
        text_item: (T,) int64.
    """
    image_item, text_item = whole_numbers("image_item", image_item), whole_numbers("text_item", text_item)
    by_item = np.argsort(text_item, kind="stable")
    low, high = (np.searchsorted(text_item[by_item], image_item, side=side) for side in ("left", "right"))
    count = high - low
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([np.repeat(np.arange(len(image_item)), count), by_item[np.repeat(low, count) + offset]], axis=1)


def first_captions(text_item: np.ndarray, count: int = 5) -> np.ndarray:
    """Rows of the first `count` captions of each item, in the order given: int64.

    Args:
        text_item: (T,) int64.
        count: captions to keep; items with fewer keep what they have.
    """
    by_item = np.argsort(text_item, kind="stable")
    ordered = text_item[by_item]
    place = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return np.sort(by_item[place < count])


def _take(values: Matrix, rows: np.ndarray) -> Matrix:
    if len(rows) == len(values):
        return values
    return values[torch.from_numpy(rows).to(values.device)] if isinstance(values, Tensor) else values[rows]


def judged(
    image: Matrix,
    text: Matrix,
    truth: GroundTruth,
    *,
    k: Sequence[int] = (1, 5, 10),
    normalize: bool = True,
    text_item: np.ndarray | None = None,
) -> Retrieval:
    """Retrieval on a published ground truth: queries that were not judged are left out, but stay candidates.

    Adds `{i2t,t2i}_mAP@R` and `{i2t,t2i}_R-precision` in percent, ECCV Caption's main numbers (Chun et al. 2022).

    Args:
        image: (I, D) embeddings.
        text: (T, D) embeddings.
        truth: pairs judged for image queries and for text queries.
        k: the K of R@K.
        normalize: score by cosine, else by inner product.
        text_item: (T,) row of the image that each text was written for, the cluster of the bootstrap; by default the
            first image that was judged to match.

    Raises:
        EvaluationError: as `retrieval_ranks`.
    """
    ranks = retrieval_ranks(
        image,
        text,
        truth.i2t,
        k=k,
        t2i_positives=truth.t2i,
        normalize=normalize,
        missing="ignore",
        text_item=text_item,
    )
    metrics = summarize(ranks)
    asked = {
        "i2t": (image, text, truth.i2t, truth.i2t_listed),
        "t2i": (text, image, truth.t2i[:, ::-1], truth.t2i_listed),
    }
    for name, (query, candidate, pairs, listed) in asked.items():
        average, precision = precision_at_r(query, candidate, pairs, listed=listed, normalize=normalize)
        metrics |= {f"{name}_mAP@R": float(100 * average.mean()), f"{name}_R-precision": float(100 * precision.mean())}
    return Retrieval(metrics, ranks)


def precision_at_r(
    query: Matrix,
    candidate: Matrix,
    pairs: np.ndarray,
    *,
    listed: np.ndarray | None = None,
    normalize: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """mAP@R and R-precision of each judged query, expected under random order of equal scores.

    With R positives: R-precision is the share of positives among the first R answers; mAP@R is the mean over r = 1..R
    of (precision among the first r, if answer r is a positive, else 0) (Musgrave et al. 2020). Where g of n candidates
    of one score are positives, c positives and a candidates score higher, answer a + j (1 <= j <= n) adds
    g/n * (c + 1 + (j - 1)(g - 1)/(n - 1)) / (a + j).

    Args:
        query: (Q, D) embeddings.
        candidate: (C, D) embeddings.
        pairs: (P, 2) int64 pairs (query, candidate) that belong together.
        listed: (Q,) int64 R of each query, where positives were listed that are no candidates; by default those in
            `pairs`.
        normalize: score by cosine, else by inner product.

    Returns:
        Two arrays (J,) over the queries that have a positive, in ascending order, between 0 and 1.
    """
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    asked, first = np.unique(pairs[:, 0], return_index=True)
    positives = np.split(pairs[:, 1], first[1:])
    wanted = [len(one) for one in positives] if listed is None else listed[asked].tolist()
    found = np.empty((len(asked), 2))
    with full_precision(device):
        queries = read_rows("query", query, normalize=normalize, device=device)
        answers = read_rows("candidate", candidate, normalize=normalize, device=device)
        step = max(1, (1 << 21) // len(candidate))
        for start in range(0, len(asked), step):
            rows = torch.from_numpy(queries.row[asked[start : start + step]]).to(device)
            scores = (queries.values[rows] @ answers.values.T).cpu().numpy()[:, answers.row]
            for number, row in enumerate(scores, start):
                found[number] = _precision_at_r(row, positives[number], wanted[number])
    return found[:, 0], found[:, 1]


def _precision_at_r(scores: np.ndarray, positives: np.ndarray, r: int) -> tuple[float, float]:
    """mAP@R and R-precision of one query among (C,) scores."""
    ascending = np.sort(scores)
    values, hits = np.unique(scores[positives], return_counts=True)
    average = precision = 0.0
    better = 0
    for value, g in zip(values[::-1], hits[::-1], strict=True):
        low, high = np.searchsorted(ascending, value, "left"), np.searchsorted(ascending, value, "right")
        n, above = high - low, len(scores) - high
        j = np.arange(1, min(n, r - above) + 1)
        precision += g / n * len(j)
        average += float(np.sum(g / n * (better + 1 + (j - 1) * (g - 1) / max(n - 1, 1)) / (above + j)))
        better += g
    return average / r, precision / r

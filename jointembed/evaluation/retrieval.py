"""Cross-modal retrieval: ranks, R@K, medians and chance level, exact under ties.

`i2t` asks with an image for its texts, `t2i` with a text for its images. Docs: docs/retrieval_protocols.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.counting import BLOCK, Counts, RowReader, count_scores
from jointembed.evaluation.rows import Matrix

_FLOATING = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class QueryRanks:
    """How the Q queries of one direction fared. A query without a positive has `positives` 0 and counts nowhere."""

    above: np.ndarray  # (Q,) int64 negatives that score above the best positive
    ties: np.ndarray  # (Q,) int64 negatives that score the same as it
    tied_positives: np.ndarray  # (Q,) int64 positives at that score, itself included
    positives: np.ndarray  # (Q,) int64 positives of the query
    item: np.ndarray  # (Q,) int64 what the query shows or describes: the cluster of the bootstrap
    fold: np.ndarray  # (Q,) int64 queries of one fold met the same candidates
    candidates: int  # that each query was compared with

    @property
    def judged(self) -> np.ndarray:
        """(Q,) bool: the queries that have a positive."""
        return self.positives > 0

    @property
    def rank(self) -> np.ndarray:
        """(Q,) expected 1-based rank of the best positive, ties broken at random: a + 1 + t / (p + 1); else NaN."""
        return np.where(self.judged, self.above + 1 + self.ties / (self.tied_positives + 1), np.nan)

    def hit(self, k: int) -> np.ndarray:
        """(Q,) probability that one of the first `k` answers is a positive, ties broken at random; else NaN."""
        return np.where(self.judged, hit_probability(self.above, self.ties, self.tied_positives, k), np.nan)

    def blind(self) -> "QueryRanks":
        """The same queries, asked of embeddings that tell nothing: every candidate ties with every other."""
        ties = np.where(self.judged, self.candidates - self.positives, 0)
        return replace(self, above=np.zeros_like(ties), ties=ties, tied_positives=self.positives)


@dataclass(frozen=True, eq=False)
class RetrievalRanks:
    """Ranks in both directions and the K of R@K."""

    i2t: QueryRanks
    t2i: QueryRanks
    k: tuple[int, ...]

    @property
    def directions(self) -> dict[str, QueryRanks]:
        """Both directions by name."""
        return {"i2t": self.i2t, "t2i": self.t2i}

    def blind(self) -> "RetrievalRanks":
        """Ranks of embeddings that tell nothing, on the same queries."""
        return replace(self, i2t=self.i2t.blind(), t2i=self.t2i.blind())


def hit_probability(above: np.ndarray, ties: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Probability of a positive among the first `k` answers, where equal scores are in random order.

    With a negatives above the best positive, t negatives and p positives level with it, and m = k - a places left:
    0 if m <= 0, else 1 - C(t, m) / C(t + p, m), as the product over i < m of (t - i) / (t + p - i).

    Args:
        above: (Q,) a.
        ties: (Q,) t.
        positives: (Q,) p, at least 1 where the result matters.
        k: K.

    Returns:
        (Q,) float64.
    """
    miss = np.ones(len(above))
    for i in range(k):
        left = np.maximum(ties - i, 0)
        miss = np.where(i < k - above, miss * left / np.maximum(left + positives, 1), miss)
    return 1.0 - miss


def retrieval_ranks(
    image: Matrix | RowReader,
    text: Matrix | RowReader,
    positives: np.ndarray | Tensor | Sequence[Sequence[int]],
    *,
    k: Sequence[int] = (1, 5, 10),
    t2i_positives: np.ndarray | Tensor | None = None,
    normalize: bool = True,
    missing: Literal["refuse", "ignore"] = "refuse",
    block: int = BLOCK,
    image_item: np.ndarray | Tensor | None = None,
    text_item: np.ndarray | Tensor | None = None,
) -> RetrievalRanks:
    """Rank every text for every image and every image for every text, with any many-to-many truth.

    Both directions are counted in tiles of one product, in memory for `block` images and a few tiles besides the
    embeddings, which may also lie in files. Scores are compared as float64 would (`counting.py`). Negatives level with
    the best positive are counted apart, so that collapsed embeddings score chance.

    Args:
        image: (I, D) embeddings: a tensor on any device, an array, or `EmbeddingParts`.
        text: (T, D) embeddings.
        positives: (P, 2) array of pairs (image, text) that belong together, or a list of I lists of texts.
        k: the K of R@K.
        t2i_positives: (P', 2) pairs (image, text) for text queries, where these were judged apart (ECCV); by default
            `positives` serve both directions.
        normalize: score by cosine (a row of zeros scores 0), else by inner product.
        missing: "refuse" queries without a positive, or "ignore" them: they are asked nothing, but stay candidates.
        block: images held at a time; fewer take less memory, and each further block reads all texts again.
        image_item: (I,) what each image shows, the cluster of the bootstrap; by default every image is its own.
        text_item: (T,) what each text describes; by default the item of the first image it belongs to.

    Returns:
        Per-query counts, from which `summarize`, `intervals` and `paired_difference` compute the rest.

    Raises:
        EvaluationError: naming the side and row of a value that is not finite, a query without positives, an index
            out of range, a pair given twice, or shapes that do not fit.
    """
    wanted = check_k(k)
    check_embeddings(image, text)
    if block < 1:
        raise EvaluationError(f"block is {block}; it must be at least 1 image")
    truth = check_truth(positives, t2i_positives, len(image), len(text), missing, image_item, text_item)
    found = count_scores(image, text, truth.pairs, truth.of_images, truth.of_texts, normalize=normalize, block=block)
    return ranks_of(found, truth, wanted)


class Truth(NamedTuple):
    """Which images and texts belong together, checked; directions may have been judged apart."""

    pairs: np.ndarray  # (P, 2) int64 image and text, none of them twice
    of_images: np.ndarray  # (P,) bool, positives where an image is the query
    of_texts: np.ndarray  # (P,) bool, positives where a text is the query
    positives: tuple[np.ndarray, np.ndarray]  # (I,) and (T,) how many each query has
    items: tuple[np.ndarray, np.ndarray]  # (I,) and (T,) clusters of the bootstrap


def check_truth(
    positives: np.ndarray | Tensor | Sequence[Sequence[int]],
    t2i_positives: np.ndarray | Tensor | None,
    n_images: int,
    n_texts: int,
    missing: str,
    image_item: np.ndarray | Tensor | None,
    text_item: np.ndarray | Tensor | None,
) -> Truth:
    """Check what `retrieval_ranks` is told of I images and T texts. Raises EvaluationError as it does."""
    i2t = check_pairs(positives, n_images, n_texts)
    t2i = i2t if t2i_positives is None else check_pairs(t2i_positives, n_images, n_texts)
    codes, where = np.unique(np.concatenate([i2t, t2i]) @ np.array([n_texts, 1]), return_inverse=True)
    pairs = np.stack(np.divmod(codes, n_texts), axis=1)
    of_images, of_texts = np.zeros(len(pairs), dtype=bool), np.zeros(len(pairs), dtype=bool)
    of_images[where[: len(i2t)]] = True
    of_texts[where[len(i2t) :]] = True
    n_positives = np.bincount(i2t[:, 0], minlength=n_images), np.bincount(t2i[:, 1], minlength=n_texts)
    for side, counts in zip(("image", "text"), n_positives, strict=True):
        _check_answerable(side, counts, missing)
    return Truth(pairs, of_images, of_texts, n_positives, _items(pairs, n_images, n_texts, image_item, text_item))


def ranks_of(found: tuple[Counts, Counts], truth: Truth, k: tuple[int, ...]) -> RetrievalRanks:
    """Ranks in both directions, from the counts of the images and of the texts."""
    sizes = [len(one) for one in truth.positives]
    i2t, t2i = (
        _query_ranks(found[side], truth.positives[side], truth.items[side], sizes[1 - side]) for side in range(2)
    )
    return RetrievalRanks(i2t, t2i, k)


def _query_ranks(counts: Counts, positives: np.ndarray, item: np.ndarray, candidates: int) -> QueryRanks:
    return QueryRanks(*counts, positives, item, fold=np.zeros_like(item), candidates=candidates)


def check_embeddings(image: Matrix | RowReader, text: Matrix | RowReader) -> None:
    """Raise EvaluationError unless both are rows of a floating type, (I, D) and (T, D) of one D."""
    widths = [_width(*side) for side in (("image", image), ("text", text))]
    if widths[0] != widths[1]:
        raise EvaluationError(
            f"image embeddings have {widths[0]} dimensions and text embeddings {widths[1]}; they must have equally many"
        )


def _width(side: str, rows: Matrix | RowReader) -> int:
    if not isinstance(rows, Tensor | np.ndarray):
        if not isinstance(rows, RowReader):
            raise EvaluationError(f"{side} embeddings are a {type(rows).__name__}; expected a tensor or an array")
        return rows.width
    if rows.ndim != 2 or 0 in rows.shape:
        raise EvaluationError(f"{side} embeddings have shape {tuple(rows.shape)}; expected rows x dimensions")
    if not (rows.is_floating_point() if isinstance(rows, Tensor) else rows.dtype.name in _FLOATING):
        raise EvaluationError(f"{side} embeddings are of type {rows.dtype}; expected a floating type")
    return rows.shape[1]


def check_k(k: Sequence[int]) -> tuple[int, ...]:
    """Return the K of R@K as a tuple. Raises EvaluationError where they are not different whole numbers above 0."""
    if not k or len(set(k)) < len(k) or any(not isinstance(one, (int, np.integer)) or one < 1 for one in k):
        raise EvaluationError(f"k is {tuple(k)}; expected different whole numbers from 1 up")
    return tuple(int(one) for one in k)


def whole_numbers(name: str, values: np.ndarray | Tensor | Sequence[int], length: int | None = None) -> np.ndarray:
    """Return one whole number per row as int64. Raises EvaluationError, naming the array, where it is not that."""
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (length is not None and len(array) != length):
        wanted = "one whole number a row" if length is None else f"{length:,} whole numbers"
        raise EvaluationError(f"{name} has shape {array.shape} and type {array.dtype}; expected {wanted}")
    return array.astype(np.int64)


def check_pairs(positives: np.ndarray | Tensor | Sequence[Sequence[int]], n_images: int, n_texts: int) -> np.ndarray:
    """Return positives as (P, 2) int64 pairs (image, text).

    Args:
        positives: (P, 2) array of pairs, or a list of `n_images` lists of texts.
        n_images: I.
        n_texts: T.

    Raises:
        EvaluationError: for an index out of range, a pair given twice, another shape or type, or no pair at all.
    """
    if not isinstance(positives, (Tensor, np.ndarray)):
        if len(positives) != n_images:
            raise EvaluationError(
                f"positives list the texts of {len(positives):,} images, but there are {n_images:,}; "
                "pairs (image, text) must be an array of shape (P, 2)"
            )
        none = np.empty(0, dtype=np.int64)
        texts = [whole_numbers(f"positives[{i}]", one) if len(one) else none for i, one in enumerate(positives)]
        owner = np.repeat(np.arange(n_images), [len(of_one) for of_one in texts])
        positives = np.stack([owner, np.concatenate(texts)], axis=1)
    pairs = positives.cpu().numpy() if isinstance(positives, Tensor) else positives
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise EvaluationError(f"positives have shape {pairs.shape} and type {pairs.dtype}; expected whole (P, 2) pairs")
    if not len(pairs):
        raise EvaluationError("positives are empty; no query has a positive")
    pairs = pairs.astype(np.int64)
    for column, (side, rows) in enumerate((("image", n_images), ("text", n_texts))):
        outside = np.flatnonzero((pairs[:, column] < 0) | (pairs[:, column] >= rows))
        if len(outside):
            found = pairs[outside[0], column]
            raise EvaluationError(f"positives: pair {outside[0]} names {side} {found}, but there are {rows:,} {side}s")
    codes, first, count = np.unique(pairs @ np.array([n_texts, 1]), return_index=True, return_counts=True)
    if len(codes) < len(pairs):
        one = pairs[first[count > 1][0]]
        raise EvaluationError(f"positives: the pair of image {one[0]} and text {one[1]} is given more than once")
    return pairs


def _check_answerable(side: str, counts: np.ndarray, missing: str) -> None:
    if missing not in ("refuse", "ignore"):
        raise EvaluationError(f"missing is {missing!r}; expected 'refuse' or 'ignore'")
    without = np.flatnonzero(counts == 0)
    if len(without) == len(counts):
        raise EvaluationError(f"no {side} has a positive")
    if len(without) and missing == "refuse":
        raise EvaluationError(
            f"{side} {without[0]} has no positive ({len(without):,} of {len(counts):,} {side}s have none); "
            "give it one, leave it out, or pass missing='ignore'"
        )


def _items(
    pairs: np.ndarray,
    n_images: int,
    n_texts: int,
    image_item: np.ndarray | Tensor | None,
    text_item: np.ndarray | Tensor | None,
) -> tuple[np.ndarray, np.ndarray]:
    images = np.arange(n_images) if image_item is None else whole_numbers("image_item", image_item, n_images)
    if text_item is not None:
        return images, whole_numbers("text_item", text_item, n_texts)
    owner = np.full(n_texts, n_images)
    np.minimum.at(owner, pairs[:, 1], pairs[:, 0])
    return images, np.append(images, -1)[owner]


def summarize(ranks: RetrievalRanks) -> dict[str, float]:
    """Turn ranks into the numbers that papers print; where there are folds, the mean of the folds' numbers.

    Returns:
        `i2t_R@K` and `t2i_R@K` in percent, `rsum` their sum, `{i2t,t2i}_medr` the median rank (rounded down, as in
        VSE++) and `_meanr` the mean rank, both 1-based; `tied_queries`, how many queries of both directions have a
        negative level with their best positive; `n_images` and `n_texts`, the candidates.
    """
    numbers = {
        f"{name}_R@{k}": _mean_of_folds(one, 100 * one.hit(k), np.mean)
        for name, one in ranks.directions.items()
        for k in ranks.k
    }
    numbers["rsum"] = sum(numbers.values())
    for name, one in ranks.directions.items():
        numbers[f"{name}_medr"] = _mean_of_folds(one, one.rank, lambda rank: np.floor(np.median(rank)))
        numbers[f"{name}_meanr"] = _mean_of_folds(one, one.rank, np.mean)
    numbers["tied_queries"] = float(np.sum(ranks.i2t.ties > 0) + np.sum(ranks.t2i.ties > 0))
    return numbers | {"n_images": float(ranks.t2i.candidates), "n_texts": float(ranks.i2t.candidates)}


def _mean_of_folds(ranks: QueryRanks, values: np.ndarray, number: Callable[[np.ndarray], np.floating]) -> float:
    found = [number(values[ranks.judged & (ranks.fold == fold)]) for fold in np.unique(ranks.fold[ranks.judged])]
    return float(np.mean(found))


def retrieval_metrics(
    image: Matrix, text: Matrix, image_of_text: np.ndarray | Tensor | Sequence[int], *, k: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """R@K in percent, medians and means of ranks, by cosine, where each text belongs to one image.

    Args:
        image: (I, D) embeddings.
        text: (T, D) embeddings.
        image_of_text: (T,) number of each text's image; every image has at least one text.
        k: the K of R@K.

    Returns:
        The numbers of `summarize`.

    Raises:
        EvaluationError: as `retrieval_ranks`.
    """
    owner = whole_numbers("image_of_text", image_of_text, len(text))
    pairs = np.stack([owner, np.arange(len(owner))], axis=1)
    return summarize(retrieval_ranks(image, text, pairs, k=k))


def chance(
    positives: np.ndarray | Tensor | Sequence[Sequence[int]], n_images: int, n_texts: int, k: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """What embeddings that tell nothing are expected to score, under the names of `summarize`.

    Queries without a positive are left out, as by `missing="ignore"`.

    Args:
        positives: (P, 2) pairs (image, text), or a list of `n_images` lists of texts.
        n_images: I.
        n_texts: T.
        k: the K of R@K.

    Raises:
        EvaluationError: for pairs that do not fit.
    """
    pairs = check_pairs(positives, n_images, n_texts)
    counts = [np.bincount(pairs[:, side], minlength=rows) for side, rows in enumerate((n_images, n_texts))]
    nothing = [Counts(*(np.zeros_like(count),) * 3) for count in counts]
    i2t = _query_ranks(nothing[0], counts[0], np.arange(n_images), n_texts)
    t2i = _query_ranks(nothing[1], counts[1], np.arange(n_texts), n_images)
    return summarize(RetrievalRanks(i2t, t2i, check_k(k)).blind())


def merge_folds(folds: Sequence[RetrievalRanks]) -> RetrievalRanks:
    """Join ranks of folds, each searched on its own, so that `summarize` gives the mean of the folds' numbers.

    Args:
        folds: ranks with the same K and equally many candidates.

    Raises:
        EvaluationError: where folds differ in these.
    """
    facts = {(ranks.k, ranks.i2t.candidates, ranks.t2i.candidates) for ranks in folds}
    if len(facts) != 1:
        raise EvaluationError(f"folds must have the same K and equally many candidates; found {sorted(facts)}")
    return RetrievalRanks(_join([ranks.i2t for ranks in folds]), _join([ranks.t2i for ranks in folds]), folds[0].k)


def _join(folds: list[QueryRanks]) -> QueryRanks:
    arrays = ("above", "ties", "tied_positives", "positives", "item")
    joined = {name: np.concatenate([getattr(ranks, name) for ranks in folds]) for name in arrays}
    number = np.repeat(np.arange(len(folds)), [len(ranks.item) for ranks in folds])
    return QueryRanks(**joined, fold=number, candidates=folds[0].candidates)

"""Bootstrap intervals over items, and paired differences of two runs on the same queries.

The queries of one item (a picture and its captions) stand or fall together, so items are drawn, with replacement, and
bring all their queries with them (cluster bootstrap, percentile intervals: Efron & Tibshirani 1993, chapters 8 and 13).
Where there are folds, items are drawn within each fold.
"""

from typing import NamedTuple

import numpy as np

from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import QueryRanks, RetrievalRanks, summarize

_AT_ONCE = 2_000_000  # weights held at a time


class Difference(NamedTuple):
    """By how much a number of run A exceeds that of run B."""

    difference: float  # A - B
    low: float  # percentile interval
    high: float
    share: float  # two-sided: twice the share of resamples on the other side of 0, at most 1; small where 0 is unlikely


def intervals(
    ranks: RetrievalRanks, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of every number of `summarize` that depends on the ranks.

    Args:
        ranks: of one evaluation.
        level: coverage, between 0 and 1.
        samples: resamples of the items.
        seed: of the resampling; equal seeds give equal intervals.

    Returns:
        name -> (low, high).

    Raises:
        EvaluationError: for a level or a number of samples that makes no interval.
    """
    drawn = resample(ranks, samples=samples, seed=seed)
    return {name: _percentiles(values, level) for name, values in drawn.items()}


def paired_difference(
    ranks_a: RetrievalRanks, ranks_b: RetrievalRanks, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Difference A - B of every number, with its interval: both runs are resampled with the same items.

    Args:
        ranks_a: of run A.
        ranks_b: of run B, on the same queries and candidates.
        level: coverage, between 0 and 1.
        samples: resamples of the items.
        seed: of the resampling.

    Returns:
        name -> difference, interval and two-sided share.

    Raises:
        EvaluationError: if the two were not asked the same queries, or report different K.
    """
    _check_same_queries(ranks_a, ranks_b)
    a, b = summarize(ranks_a), summarize(ranks_b)
    drawn_a = resample(ranks_a, samples=samples, seed=seed)
    drawn_b = resample(ranks_b, samples=samples, seed=seed)
    found = {}
    for name in drawn_a:
        change = drawn_a[name] - drawn_b[name]
        low, high = _percentiles(change, level)
        beyond = min(np.sum(change <= 0), np.sum(change >= 0))
        found[name] = Difference(a[name] - b[name], low, high, float(min(1.0, 2 * (beyond + 1) / (samples + 1))))
    return found


def resample(ranks: RetrievalRanks, *, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Every number of `summarize` that depends on the ranks, on resampled items: name -> (samples,).

    Raises:
        EvaluationError: if `samples` is below 2.
    """
    if samples < 2:
        raise EvaluationError(f"samples is {samples}; a bootstrap needs at least 2")
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([np.stack([one.fold, one.item], 1)[one.judged] for one in ranks.directions.values()])
    clusters, cluster = np.unique(pooled, axis=0, return_inverse=True)  # (M, 2) by fold
    split = np.split(cluster.reshape(-1), [int(ranks.i2t.judged.sum())])
    sides = zip(ranks.directions.values(), split, strict=True)
    tables = [_table(one, which, len(clusters), ranks.k) for one, which in sides]
    first = np.unique(clusters[:, 0], return_index=True)[1]
    bounds = np.append(first, len(clusters))
    longest = max(len(which) for which in split)
    step = max(1, _AT_ONCE // longest)
    parts = []
    for start in range(0, samples, step):
        weights = _draw(rng, bounds, min(step, samples - start))
        parts.append(_numbers(ranks, tables, weights, bounds))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Table(NamedTuple):
    """The judged queries of one direction."""

    sums: np.ndarray  # (M, 2 + K) a cluster's number of queries, sum of ranks, sums of hits
    rank: np.ndarray  # (Q,) ascending
    cluster: np.ndarray  # (Q,) of the queries in that order


def _table(ranks: QueryRanks, cluster: np.ndarray, n_clusters: int, k: tuple[int, ...]) -> _Table:
    rank = ranks.rank[ranks.judged]
    columns = [np.ones_like(rank), rank, *(ranks.hit(one)[ranks.judged] for one in k)]
    sums = np.stack([np.bincount(cluster, column, minlength=n_clusters) for column in columns], axis=1)
    order = np.argsort(rank, kind="stable")
    return _Table(sums, rank[order], cluster[order])


def _draw(rng: np.random.Generator, bounds: np.ndarray, samples: int) -> np.ndarray:
    """(samples, M) how often each cluster is drawn; as many draws in a fold as it has clusters."""
    weights = np.empty((samples, bounds[-1]), dtype=np.int32)
    for row in weights:
        for a, b in zip(bounds[:-1], bounds[1:], strict=True):
            row[a:b] = np.bincount(rng.integers(0, b - a, b - a), minlength=b - a)
    return weights


def _numbers(
    ranks: RetrievalRanks, tables: list[_Table], weights: np.ndarray, bounds: np.ndarray
) -> dict[str, np.ndarray]:
    recalls, others = {}, {}
    for name, table in zip(ranks.directions, tables, strict=True):
        folds = list(zip(bounds[:-1], bounds[1:], strict=True))
        totals = np.stack([weights[:, a:b].astype(np.float64) @ table.sums[a:b] for a, b in folds])  # (F, S, 2 + K)
        means = _ratio(totals[..., 1:], totals[..., :1]).mean(axis=0)
        for column, k in enumerate(ranks.k, start=1):
            recalls[f"{name}_R@{k}"] = 100 * means[:, column]
        medians = [_weighted_median(table, weights, a, b) for a, b in folds]
        others[f"{name}_medr"] = np.mean([np.floor(median) for median in medians], axis=0)
        others[f"{name}_meanr"] = means[:, 0]
    return recalls | {"rsum": np.sum(list(recalls.values()), axis=0)} | others


def _weighted_median(table: _Table, weights: np.ndarray, first: int, last: int) -> np.ndarray:
    """(samples,) median rank over the clusters first .. last-1, each query as often as its cluster was drawn."""
    inside = (table.cluster >= first) & (table.cluster < last)
    rank = table.rank[inside]
    reached = np.cumsum(weights[:, table.cluster[inside]], axis=1, dtype=np.int32)
    total = reached[:, -1:]
    low = (reached <= (total - 1) // 2).sum(axis=1)
    high = np.minimum((reached <= total // 2).sum(axis=1), len(rank) - 1)
    return np.where(total[:, 0] > 0, (rank[low] + rank[high]) / 2, np.nan)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """NaN where a resample has no query, which happens only to a handful of items with one direction each."""
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    _check_level(level)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise EvaluationError(f"level is {level}; expected a share between 0 and 1, such as 0.95")


def _check_same_queries(a: RetrievalRanks, b: RetrievalRanks) -> None:
    if a.k != b.k:
        raise EvaluationError(f"the runs report R@K at different K: {a.k} and {b.k}")
    for name in a.directions:
        one, other = a.directions[name], b.directions[name]
        if len(one.item) != len(other.item) or one.candidates != other.candidates:
            raise EvaluationError(
                f"{name}: {len(one.item):,} queries among {one.candidates:,} candidates in one run, "
                f"{len(other.item):,} among {other.candidates:,} in the other; only equal queries can be paired"
            )
        for field in ("item", "fold", "positives"):
            unlike = np.flatnonzero(getattr(one, field) != getattr(other, field))
            if len(unlike):
                raise EvaluationError(
                    f"{name}: query {unlike[0]} has {field} {getattr(one, field)[unlike[0]]} in one run and "
                    f"{getattr(other, field)[unlike[0]]} in the other; only equal queries can be paired"
                )

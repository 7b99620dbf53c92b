"""k-means over the data set, of which every rank holds a part; what goes before it, and what is kept of it.

Samples go by their numbers and sums run in float64: which rank holds which sample does not matter, but for rounding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import gather_without_grad, sum_over_ranks
from jointembed.objectives.statistics import BatchError, full_precision, wide

CHUNK = 4096  # rows whose scores are held at a time
ROUNDING = 1e-6  # share of a squared length, or of the largest variance, that is no more than rounding in float32


class Clusters(NamedTuple):
    """What k-means found."""

    centroids: Tensor  # (K, D), the same on every rank; spherical ones have length 1
    assignment: Tensor  # (n,) int64, cluster of this rank's samples


@torch.no_grad()
def kmeans(
    rows: Tensor, index: Tensor, clusters: int, *, iterations: int = 10, seed: int = 0, spherical: bool = True
) -> Clusters:
    """Lloyd's iterations from the rows of random samples, and a last assignment.

    A cluster left without samples goes on from the one farthest from its centroid, of equals that of lowest number.

    Args:
        rows: (n, D) of this rank.
        index: (n,) their sample numbers, each of which occurs on one rank, once.
        clusters: K.
        iterations: of Lloyd; 0 assigns to the samples drawn at the start.
        seed: of the start.
        spherical: compare by cosine; rows and centroids are scaled to length 1. Otherwise by Euclidean distance.

    Raises:
        BatchError: if there are fewer samples than clusters, or a sample occurs twice.
    """
    with full_precision(rows):
        rows = functional.normalize(wide(rows), dim=1) if spherical else wide(rows)
        centroids = _start(rows, index, clusters, seed)
        for _ in range(iterations):
            assignment, distance = _nearest(rows, centroids, spherical)
            means, counts = _means(rows, assignment, clusters)
            means[counts == 0] = _farthest(rows, index, distance, int((counts == 0).sum())).double()
            centroids = (functional.normalize(means, dim=1) if spherical else means).to(rows.dtype)
        return Clusters(centroids, _nearest(rows, centroids, spherical)[0])


def _start(rows: Tensor, index: Tensor, clusters: int, seed: int) -> Tensor:
    """The rows of K samples, drawn by their numbers."""
    numbers = gather_without_grad(index).sort().values
    if bool((numbers.diff() == 0).any()):
        raise BatchError("k-means: a sample occurs twice")
    if len(numbers) < clusters:
        raise BatchError(f"k-means: {clusters} clusters need as many samples, found {len(numbers)}")
    order = torch.randperm(len(numbers), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    places = torch.full_like(numbers, -1)  # of each number among the centroids
    places[order[:clusters].to(numbers.device)] = torch.arange(clusters, device=numbers.device)
    own = places[torch.searchsorted(numbers, index)]
    return sum_over_ranks(rows.new_zeros(clusters, rows.shape[1]).index_copy_(0, own[own >= 0], rows[own >= 0]))


def _nearest(rows: Tensor, centroids: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row (n,), and the squared distance to it, 0 where that is but rounding."""
    offset = 0.5 if spherical else centroids.square().sum(1) / 2
    best = [(part @ centroids.T - offset).max(1) for part in rows.split(CHUNK)]
    squares = rows.square().sum(1)
    distance = squares - 2 * torch.cat([score for score, _ in best])
    return torch.cat([place for _, place in best]), torch.where(distance > ROUNDING * squares, distance, 0)


def _means(rows: Tensor, assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The means (K, D) of the rows of all ranks in each cluster, and how many they are (K,); float64."""
    sums = rows.new_zeros(clusters, rows.shape[1] + 1, dtype=torch.float64)
    for part, own in zip(rows.split(CHUNK), assignment.split(CHUNK), strict=True):
        sums.index_add_(0, own, functional.pad(part.double(), (0, 1), value=1.0))
    sums = sum_over_ranks(sums)
    return sums[:, :-1] / sums[:, -1:].clamp_min(1), sums[:, -1]


def _farthest(rows: Tensor, index: Tensor, distance: Tensor, count: int) -> Tensor:
    """The rows (count, D) of all ranks with the largest distances; every rank asks for as many."""
    if count == 0:
        return rows[:0]
    own = _farthest_first(distance, index)[:count]
    rows, distance, index = (gather_without_grad(each[own]) for each in (rows, distance, index))
    return rows[_farthest_first(distance, index)[:count]]


def _farthest_first(distance: Tensor, index: Tensor) -> Tensor:
    by_number = index.argsort()
    return by_number[distance[by_number].argsort(descending=True, stable=True)]


class Assignments(nn.Module):
    """The cluster of every training sample, by each of several clusterings: a buffer, equal on all ranks."""

    cluster: Tensor  # (heads, samples) int64, -1 where none is known

    def __init__(self, heads: int, samples: int) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("cluster", torch.full((heads, samples), -1))

    def put(self, head: int, index: Tensor, cluster: Tensor) -> None:
        """Replace a clustering by that of the samples (n,) of all ranks."""
        index, cluster = gather_without_grad(index), gather_without_grad(cluster)
        self.cluster[head].fill_(-1)[index.to(self.cluster.device)] = cluster.to(self.cluster.device)

    def of(self, index: Tensor | None) -> Tensor:
        """Clusters (heads, N) of the samples (N,). Raises BatchError for one that no clustering has seen."""
        if index is None:
            raise BatchError("an objective on clusters needs the numbers of the samples: index")
        found = self.cluster[:, index]
        if bool((found < 0).any()):
            raise BatchError(f"sample {int(index[(found < 0).any(0)][0])} has no cluster: start_epoch did not see it")
        return found


@torch.no_grad()
def pca_whiten(rows: Tensor, components: int) -> Tensor:
    """Principal components of the samples of all ranks, each with variance 1, or 0 where there is none: (n, P).

    Args:
        rows: (n, D) of this rank.
        components: P, or D if that is less; the largest are kept.

    Raises:
        BatchError: if there are fewer than two samples.
    """
    with full_precision(rows):
        rows = wide(rows)
        first = sum_over_ranks(torch.cat([rows.double().sum(0), rows.new_tensor([len(rows)], dtype=torch.float64)]))
        if first[-1] < 2:
            raise BatchError(f"whitening needs at least 2 samples, found {int(first[-1])}")
        mean = first[:-1] / first[-1]
        products = torch.zeros_like(mean).diag()
        for part in rows.split(CHUNK):
            products += (part - mean).T @ (part - mean)
        values, vectors = torch.linalg.eigh(sum_over_ranks(products) / (first[-1] - 1))
        values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
        scale = torch.where(values > ROUNDING * values[0], values, torch.inf).rsqrt()
        return torch.cat([((part - mean) @ (vectors * scale)).to(rows.dtype) for part in rows.split(CHUNK)])

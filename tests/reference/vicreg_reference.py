"""VICReg as the equations of the paper say it, dimension by dimension."""

from itertools import combinations

import torch
from torch import Tensor


def variance(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Eq. 1-2."""
    n, d = z.shape
    value = z.new_zeros(())
    for j in range(d):
        mean = sum(z[i, j] for i in range(n)) / n
        spread = sum((z[i, j] - mean) ** 2 for i in range(n)) / (n - 1)
        value = value + torch.clamp(gamma - torch.sqrt(spread + eps), min=0)
    return value / d


def covariance(z: Tensor) -> Tensor:
    """Eq. 3-4."""
    n, d = z.shape
    mean = sum(z[i] for i in range(n)) / n
    matrix = sum(torch.outer(z[i] - mean, z[i] - mean) for i in range(n)) / (n - 1)
    return sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 5."""
    return sum(((a[i] - b[i]) ** 2).sum() for i in range(len(a))) / len(a)


def paper(a: Tensor, b: Tensor, weights=(25, 25, 1), of_a=(1, 1), of_b=(1, 1)) -> Tensor:
    """Eq. 6; `of_a` and `of_b` scale variance and covariance of a branch."""
    spread = of_a[0] * variance(a) + of_b[0] * variance(b)
    redundancy = of_a[1] * covariance(a) + of_b[1] * covariance(b)
    return weights[0] * invariance(a, b) + weights[1] * spread + weights[2] * redundancy


def official(a: Tensor, b: Tensor, weights=(25, 25, 1), of_a=(1, 1), of_b=(1, 1)) -> Tensor:
    """The authors' code: the squared distance also averages over dimensions, the variance over branches."""
    return paper(a, b, (weights[0] / a.shape[1], weights[1] / 2, weights[2]), of_a, of_b)


def solo_learn(a: Tensor, b: Tensor) -> Tensor:
    """solo-learn: the variance is not averaged over branches."""
    return paper(a, b, (25 / a.shape[1], 25, 1))


def of_views(views: dict[str, Tensor], pairs=None, convention="official") -> Tensor:
    """Any number of views, 25 / 25 / 1."""
    pairs = pairs or list(combinations(views, 2))
    distance = sum(
        invariance(views[p], views[q]) / (1 if convention == "paper" else views[p].shape[1]) for p, q in pairs
    )
    spread = sum(variance(z) for z in views.values()) / len(views) * (2 if convention == "paper" else 1)
    redundancy = 2 * sum(covariance(z) for z in views.values()) / len(views)
    return 25 * distance / len(pairs) + 25 * spread + redundancy

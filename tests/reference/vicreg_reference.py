"""VICReg as the equations of the paper say it, dimension by dimension."""

from itertools import combinations

import torch
from torch import Tensor


def variance(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Eq. 1-2."""
    n, d = z.shape
    value = z.new_zeros(())
    for j in range(d):
        mean = z[:, j].sum() / n
        spread = z.new_zeros(())
        for i in range(n):
            spread = spread + (z[i, j] - mean) ** 2 / (n - 1)
        value = value + torch.clamp(gamma - torch.sqrt(spread + eps), min=0)
    return value / d


def covariance(z: Tensor) -> Tensor:
    """Eq. 3-4."""
    n, d = z.shape
    mean = z.sum(0) / n
    matrix = z.new_zeros(d, d)
    for row in z:
        matrix = matrix + torch.outer(row - mean, row - mean) / (n - 1)
    value = z.new_zeros(())
    for i in range(d):
        for j in range(d):
            value = value + (matrix[i, j] ** 2 if i != j else 0)
    return value / d


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 5."""
    value = a.new_zeros(())
    for x, y in zip(a, b, strict=True):
        value = value + ((x - y) ** 2).sum()
    return value / len(a)


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
    value = torch.zeros((), dtype=torch.float64)
    pairs = pairs or list(combinations(views, 2))
    for first, second in pairs:
        size = views[first].shape[1] if convention == "official" else 1
        value = value + 25 * invariance(views[first], views[second]) / size / len(pairs)
    for z in views.values():
        value = value + (25 if convention == "official" else 50) * variance(z) / len(views)
        value = value + 2 * covariance(z) / len(views)
    return value

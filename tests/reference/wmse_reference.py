"""W-MSE as eq. 3-5 of the paper say it, one sub-batch and one row after the other."""

import torch
from torch import Tensor


def cholesky(matrix: Tensor) -> Tensor:
    """The lower triangle L of L L^T, entry by entry."""
    d = len(matrix)
    entry: list[list[Tensor]] = [[matrix.new_zeros(()) for _ in range(d)] for _ in range(d)]
    for i in range(d):
        for j in range(i + 1):
            rest = matrix[i, j] - sum(entry[i][k] * entry[j][k] for k in range(j))
            entry[i][j] = torch.sqrt(rest) if i == j else rest / entry[j][j]
    return torch.stack([torch.stack(row) for row in entry])


def whitened(z: Tensor, eps: float = 0.0) -> Tensor:
    """Eq. 3: W (z - mean), W the inverse of the covariance's Cholesky factor."""
    n, d = z.shape
    mean = z.sum(0) / n
    matrix = z.new_zeros(d, d)
    for row in z:
        matrix = matrix + torch.outer(row - mean, row - mean) / (n - 1)
    w = torch.linalg.inv(cholesky((1 - eps) * matrix + eps * torch.eye(d, dtype=z.dtype)))
    return torch.stack([w @ (row - mean) for row in z])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the squared distance of the rows, both scaled to length 1."""
    value = a.new_zeros(())
    for x, y in zip(a, b, strict=True):
        value = value + ((x / x.norm() - y / y.norm()) ** 2).sum()
    return value / len(a)


def w_mse(views: list[Tensor], orders: list[list[list[int]]], eps: float = 0.0) -> Tensor:
    """Mean over shuffles, sub-batches of equal size and pairs of views; an order is a list of sub-batches' rows."""
    values = []
    for order in orders:
        for rows in order:
            white = [whitened(z[rows], eps) for z in views]
            values += [distance(white[i], white[j]) for i in range(len(views)) for j in range(i)]
    return torch.stack(values).mean()

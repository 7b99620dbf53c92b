"""Barlow Twins as eq. 1-2 of the paper say it, dimension by dimension."""

import torch
from torch import Tensor


def standardised(z: Tensor, eps: float) -> list[Tensor]:
    """Columns with mean 0 and biased variance 1."""
    columns = []
    for j in range(z.shape[1]):
        deviation = z[:, j] - z[:, j].sum() / len(z)
        columns.append(deviation / torch.sqrt((deviation**2).sum() / len(z) + eps))
    return columns


def barlow_twins(a: Tensor, b: Tensor, off_diagonal: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """Eq. 1."""
    left, right = standardised(a, eps), standardised(b, eps)
    value = a.new_zeros(())
    for i in range(len(left)):
        for j in range(len(right)):
            c = (left[i] * right[j]).sum() / len(a)
            value = value + ((1 - c) ** 2 if i == j else off_diagonal * c**2)
    return value

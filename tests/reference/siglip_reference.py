"""SigLIP's algorithm 1, pair by pair."""

import torch
from torch import Tensor


def siglip(
    a: Tensor, b: Tensor, temperature: float = 0.1, bias: float = -10.0, item: list[int] | None = None
) -> Tensor:
    """Mean over rows of the sum over columns; every row of the same item is a positive."""
    item = item or list(range(len(a)))
    loss = a.new_zeros(())
    for i in range(len(a)):
        for j in range(len(b)):
            logit = torch.dot(a[i], b[j]) / (a[i].norm() * b[j].norm()) / temperature + bias
            sign = 1 if item[i] == item[j] else -1
            loss = loss - torch.log(1 / (1 + torch.exp(-sign * logit)))
    return loss / len(a)

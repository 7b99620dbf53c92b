"""MoCo as eq. 1 and algorithm 1 of the paper say it, row by row."""

import torch
from torch import Tensor


def unit(row: Tensor) -> Tensor:
    return row / (row * row).sum().sqrt()


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean of -log(exp(q k / t) / (exp(q k / t) + sum over the queue))."""
    loss = query.new_zeros(())
    for q, k in zip(query, key.detach(), strict=True):
        own = torch.exp(torch.dot(unit(q), unit(k)) / temperature)
        sums = own
        for earlier in queue:
            sums = sums + torch.exp(torch.dot(unit(q), unit(earlier)) / temperature)
        loss = loss - torch.log(own / sums)
    return loss / len(query)

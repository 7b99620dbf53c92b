"""InfoMin's loss, query by query."""

import torch
from torch import Tensor


def moco(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of MoCo, of cosines."""
    loss = queries.new_zeros(())
    for query, key in zip(queries, keys.detach(), strict=True):
        right = torch.exp(torch.dot(query, key) / query.norm() / key.norm() / temperature)
        wrong = query.new_zeros(())
        for other in queue:
            wrong = wrong + torch.exp(torch.dot(query, other) / query.norm() / other.norm() / temperature)
        loss = loss - torch.log(right / (right + wrong))
    return loss / len(queries)


def infomin(
    query: Tensor, jigsaw: Tensor, key: Tensor, queue: Tensor, weight: float = 0.5, temperature: float = 0.15
) -> Tensor:
    return (1 - weight) * moco(query, key, queue, temperature) + weight * moco(jigsaw, key, queue, temperature)

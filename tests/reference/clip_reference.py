"""InfoNCE in both directions, row by row."""

import torch
from torch import Tensor


def clip(a: Tensor, b: Tensor, temperature: float = 0.07, item: list[int] | None = None) -> Tensor:
    """Mean of both cross-entropies; other rows of the same item are left out of the softmax."""
    item = item or list(range(len(a)))
    score = [[torch.dot(x, y) / (x.norm() * y.norm()) / temperature for y in b] for x in a]
    loss = a.new_zeros(())
    for i in range(len(a)):
        kept = [j for j in range(len(a)) if j == i or item[j] != item[i]]
        rows = sum(torch.exp(score[i][j]) for j in kept)
        columns = sum(torch.exp(score[j][i]) for j in kept)
        loss = loss - torch.log(torch.exp(score[i][i]) / rows) - torch.log(torch.exp(score[i][i]) / columns)
    return loss / (2 * len(a))

"""VSE++ as eq. 5 and 6 of the paper say it, pair by pair."""

import torch
from torch import Tensor


def vse(a: Tensor, b: Tensor, margin: float = 0.2, hardest: bool = True, item: list[int] | None = None) -> Tensor:
    """Sum over the batch and both directions."""
    item = item or list(range(len(a)))
    score = [[torch.dot(x, y) / (x.norm() * y.norm()) for y in b] for x in a]
    loss = a.new_zeros(())
    for i in range(len(a)):
        negatives = [j for j in range(len(a)) if item[j] != item[i]]
        for costs in (
            [torch.clamp(margin - score[i][i] + score[i][j], min=0) for j in negatives],
            [torch.clamp(margin - score[i][i] + score[j][i], min=0) for j in negatives],
        ):
            if costs:
                loss = loss + (torch.stack(costs).max() if hardest else torch.stack(costs).sum())
    return loss

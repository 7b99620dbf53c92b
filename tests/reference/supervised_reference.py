"""Cross-entropy, sample by sample."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, label: list[int]) -> Tensor:
    """The mean of -log softmax at the label."""
    losses = [-torch.log(torch.exp(row)[k] / torch.exp(row).sum()) for row, k in zip(logits, label, strict=True)]
    return torch.stack(losses).mean()

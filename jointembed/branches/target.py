"""An EMA target: a copy of a module that follows it slowly (MoCo, BYOL)."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from jointembed import distributed
from jointembed.branches.branch import Branch
from jointembed.layers import Embedding

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_target(online: ModuleT) -> ModuleT:
    """A copy of the module that takes no gradient."""
    target = deepcopy(online)
    target.requires_grad_(False)
    return target


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the target: parameters to `momentum * target + (1 - momentum) * online`, buffers to the online ones.

    Args:
        target: from `make_target`.
        online: the module that it was made of.
        momentum: 0 .. 1; 1 leaves the parameters where they are.

    Raises:
        ValueError: a momentum out of range, or modules of different structure.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be within 0 and 1, found {momentum}")
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
    for kept, current in zip(target.buffers(), online.buffers(), strict=True):
        kept.copy_(current)


@torch.no_grad()
def forward_shuffled(branch: Branch, x: Tensor, maps: bool = False) -> Embedding:
    """Embed rows that other ranks lent: batch norm of one rank then says nothing of its own queries (MoCo, sec. 3.3).

    Every rank sends its rows (n, ...), takes as many of the shuffled global batch through the branch, and gets the
    embeddings of its own rows back, in order. With one rank this is `branch(x)`.
    """
    if distributed.world() == 1:
        return branch(x, maps=maps)
    counts = distributed.row_counts(x)
    order = distributed.broadcast_object(torch.randperm(sum(counts)))
    start = sum(counts[: distributed.rank()])
    own = slice(start, start + len(x))
    lent = branch(distributed.gather_without_grad(x, counts)[order[own]])
    back = order.argsort()[own]
    h, z = (distributed.gather_without_grad(rows, counts)[back] for rows in (lent.h, lent.z))
    return Embedding(h, z)

"""An EMA target: a copy of a module that follows it slowly (MoCo, BYOL)."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

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

"""Members: independent copies of an encoder, each with an expander of its own, side by side in one branch."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class Members(nn.Module):
    """Copies of one module, drawn one after another from the generator; what they return is joined.

    A branch of members is an ensemble that trains in one run: each member has its own objective
    (`objectives.members.PerMember`), and a cosine of the joined embeddings is close to the mean of theirs. On few data
    that is worth more than one network of the same cost. An encoder that is frozen, or in part, is shared by the
    members' expanders.

    Args:
        make: a new copy; it has an attribute `width`.
        count: of copies.
        split: whether each copy takes its own equal part of the input's last dimension (expanders), or all of it.
    """

    def __init__(self, make: Callable[[], nn.Module], count: int, *, split: bool) -> None:
        """See the class."""
        super().__init__()
        self.copies = nn.ModuleList([make() for _ in range(count)])
        self.split = split
        self.width = sum(cast(int, copy.width) for copy in self.copies)
        self.modality = getattr(self.copies[0], "modality", "image")

    def forward(self, x: Any) -> Tensor:
        """What each copy makes of its input, joined along the last dimension."""
        inputs = x.chunk(len(self.copies), dim=-1) if self.split else [x] * len(self.copies)
        return torch.cat([copy(one) for copy, one in zip(self.copies, inputs, strict=True)], dim=-1)


def first_member(encoder: nn.Module) -> nn.Module:
    """The first copy of a branch of members, which stands for its kin; any other encoder itself."""
    return encoder.copies[0] if isinstance(encoder, Members) else encoder

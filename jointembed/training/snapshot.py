"""What a forward pass moves besides gradients: random states and buffers, so that it can be as if it had not been."""

import torch
from torch import Tensor, nn


def random_state() -> list[Tensor]:
    """Of torch's generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])


class Snapshot:
    """Random state and buffers (batch-norm statistics, queues, an online probe) of a model before a step."""

    def __init__(self, core: nn.Module) -> None:
        """Copy them."""
        self.core, self.random = core, random_state()
        self.buffers = [buffer.clone() for buffer in core.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back, and drop the gradients."""
        set_random_state(self.random)
        for buffer, kept in zip(self.core.buffers(), self.buffers, strict=True):
            buffer.copy_(kept)
        self.core.zero_grad(set_to_none=True)

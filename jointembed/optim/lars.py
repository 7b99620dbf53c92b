"""LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017), as the authors of VICReg train with it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from jointembed.errors import RecipeError


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled per tensor by eta * ||p|| / ||g + wd * p||.

    For each tensor p with gradient g: d = g + wd * p;  d *= eta * ||p|| / ||d|| where the group says `adapt` and
    neither norm is 0;  m = momentum * m + d;  p -= lr * m. The learning rate multiplies after the momentum, so a
    change of it acts at once on the whole step. Gradients are left as they are.

    Args:
        params: tensors or groups; a group may set its own `lr`, `weight_decay`, `momentum`, `eta` and `adapt`.
        lr: learning rate.
        weight_decay: L2 factor, part of the norm in the ratio.
        momentum: of the scaled gradient.
        eta: trust coefficient.

    Raises:
        RecipeError: a negative hyper-parameter, or a momentum of 1 or more.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.2,
        weight_decay: float = 1e-6,
        momentum: float = 0.9,
        eta: float = 1e-3,
    ) -> None:
        """Check and keep the defaults of the groups."""
        for name, value in {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta}.items():
            if value < 0:
                raise RecipeError(f"optimizer.{name}: {value} is negative")
        if momentum >= 1:
            raise RecipeError(f"optimizer.momentum: {momentum} is not under 1")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta, "adapt": True}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every tensor that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            tensors = [p for p in group["params"] if p.grad is not None]
            # One launch for all tensors pays on a GPU; on a CPU each tensor stays in cache through its own step.
            on_cpu = all(p.device.type == "cpu" for p in tensors)
            for together in [[p] for p in tensors] if on_cpu else [tensors]:
                _step(together, [self._momentum(p) for p in together], group)
        return loss

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum"]


def _step(tensors: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
    """Tensors of one group, in calls on lists."""
    gradients = [p.grad for p in tensors if p.grad is not None]
    directions = torch._foreach_add(gradients, tensors, alpha=group["weight_decay"])  # new tensors, never the gradients
    if group["adapt"]:
        torch._foreach_mul_(directions, trust_ratios(tensors, directions, group["eta"]))
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, directions)
    torch._foreach_add_(tensors, momenta, alpha=-group["lr"])


def trust_ratios(tensors: Sequence[Tensor], directions: Sequence[Tensor], eta: float) -> list[Tensor]:
    """Eta * ||p|| / ||d|| of each pair as scalars in the tensor's dtype, 1 where either norm is 0."""
    wide = torch.float64 if any(p.dtype == torch.float64 for p in tensors) else torch.float32
    size = torch.stack(torch._foreach_norm(list(tensors), 2, wide))
    slope = torch.stack(torch._foreach_norm(list(directions), 2, wide))
    ratios = torch.where((size > 0) & (slope > 0), eta * size / slope, 1.0)
    return [ratio.to(p.dtype) for ratio, p in zip(ratios.unbind(), tensors, strict=True)]

"""Parameter groups: which tensors decay, which follow the schedule, and at what share of the learning rate."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from jointembed.errors import RecipeError


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    scale: Mapping[str, float] | None = None,
    decay_all: bool = False,
    vector_scale: float = 1.0,
    constant: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Split the trained parameters into groups for any optimizer of `OPTIMIZERS`.

    Vectors (biases, norm weights: one dimension or none) take no weight decay and no LARS adaptation.

    Args:
        model: its parameters with `requires_grad` are grouped, each once.
        weight_decay: of weights (two dimensions or more).
        scale: module path -> factor on the learning rate; the longest matching path wins.
        decay_all: treat vectors as weights.
        vector_scale: a further factor on the learning rate of vectors (.024 in Barlow Twins), unless `decay_all`.
        constant: module paths whose learning rate stays at its peak (the predictor of SimSiam).

    Returns:
        Groups with `params`, `name`, `weight_decay`, `adapt`, `lr_scale`, `scheduled`; none of them empty.

    Raises:
        RecipeError: a path with no trained parameter under it.
    """
    factors, fixed = dict(scale or {}), tuple(constant)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for prefix in (*factors, *fixed):
        _check_prefix(prefix, model, names)
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((one for one in factors if _under(name, one)), key=len, default="")
        weight = decay_all or parameter.ndim > 1
        scheduled = not any(_under(name, one) for one in fixed)
        key = (prefix, weight, scheduled)
        if key not in groups:
            kind = "weights" if weight else "vectors"
            groups[key] = {
                "params": [],
                "name": " ".join([prefix or "all", kind] + ([] if scheduled else ["constant"])),
                "weight_decay": weight_decay if weight else 0.0,
                "adapt": weight,
                "lr_scale": factors.get(prefix, 1.0) * (1.0 if weight else vector_scale),
                "scheduled": scheduled,
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _check_prefix(prefix: str, model: nn.Module, trained: list[str]) -> None:
    if any(_under(name, prefix) for name in trained):
        return
    if any(_under(name, prefix) for name, _ in model.named_parameters()):
        raise RecipeError(f"learning rate of {prefix!r}: all its parameters are frozen")
    paths = {".".join(parts[:end]) for parts in (n.split(".") for n in trained) for end in range(1, len(parts) + 1)}
    near = get_close_matches(prefix, sorted(paths), n=1)
    raise RecipeError(
        f"learning rate of {prefix!r}: no parameter of that path" + (f"; nearest is {near[0]!r}" if near else "")
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate; groups off the schedule keep their share of the first one."""
    for group in optimizer.param_groups:
        peak = group.setdefault("initial_lr", group["lr"])
        group["lr"] = (lr if group.get("scheduled", True) else peak) * group.get("lr_scale", 1.0)

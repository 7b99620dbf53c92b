"""What part of a training step the loss takes, with the paper's network."""

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from jointembed.bench.loss import embeddings, step
from jointembed.bench.measure import Seconds, take_turns
from jointembed.bench.rivals import known_losses
from jointembed.branches.branch import Branch
from jointembed.branches.image import TorchvisionEncoder
from jointembed.layers import MLP


def loss_share(
    *, n: int = 256, width: int = 8192, batch: int = 8, size: int = 224, model: str = "resnet50", repeats: int = 3
) -> dict[str, Any]:
    """VICReg's loss at n beside the forward and backward pass of both views through encoder and expander.

    The network is timed at `batch` and at twice that. Two predictions for n pictures follow: in proportion, and along
    the line through both, whose intercept (gradients of the weights, which a small batch pays in full) counts once. The
    optimizer is left out, which makes the share larger than it is.

    Args:
        n: pictures of the step that is asked about.
        width: of the expander's three layers.
        batch: pictures that are timed.
        size: side of a view in px.
        model: of torchvision.
        repeats: rounds; medians count.

    Returns:
        Seconds of `loss` at n, `network` at `batch` and `network_twice` at twice that; `network_scaled` and
        `network_line`, those of n pictures; and `percent_scaled`, `percent_line`, the loss's part of loss and network.
        `authors_loss` and its percents are those of the authors' formula. All of processor time.
    """
    branch = Branch(TorchvisionEncoder(model=model), MLP(_width(model), widths=[width] * 3))
    views = torch.randn(2, 2 * batch, 3, size, size)
    a, b = embeddings(n, width)
    losses = known_losses(["authors"])
    times = take_turns(
        {
            "loss": lambda: step(losses["jointembed"], a, b),
            "authors_loss": lambda: step(losses["authors"], a, b),
            "network": lambda: _pass(branch, views[:, :batch]),
            "network_twice": lambda: _pass(branch, views),
        },
        repeats,
    )
    found = {name: _median(own) for name, own in times.items()}
    slope = (found["network_twice"] - found["network"]) / batch
    found["network_scaled"] = found["network"] * n / batch
    found["network_line"] = found["network"] + slope * (n - batch)
    for loss, name in (("loss", "percent"), ("authors_loss", "authors_percent")):
        for way in ("scaled", "line"):
            found[f"{name}_{way}"] = 100 * found[loss] / (found[loss] + found[f"network_{way}"])
    return found | {"n": n, "width": width, "batch": batch, "size": size, "model": model}


def _width(model: str) -> int:
    with torch.device("meta"):
        return TorchvisionEncoder(model=model).width


def _pass(branch: nn.Module, views: Tensor) -> None:
    branch.zero_grad(set_to_none=True)
    sum(branch(view).z.sum() for view in views).backward()


def _median(times: list[Seconds]) -> float:
    return statistics.median(one.cpu for one in times)

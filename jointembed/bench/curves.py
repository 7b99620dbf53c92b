"""The loss of one training in float32 and in bfloat16, with the same seeds, pictures and weights."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jointembed.bench.steps import chosen_precision, train
from jointembed.bench.train import image_batches, image_model, write_jpegs

SMOOTH = 0.1  # share of the curve that a smoothed value is the mean of


def bench_curves(
    *, pictures: Path | None = None, steps: int = 100, batch: int = 64, size: int = 128, width: int = 2048
) -> dict[str, Any]:
    """Train ResNet-18 with VICReg and Adam twice, by `fit`.

    Args:
        pictures: folder of JPEGs; None makes some up.
        steps: of each training.
        batch: pictures a step.
        size: side of the views.
        width: of the expander.

    Returns:
        `losses`: precision -> loss of every step, of fp32 and of what `auto` takes here; `largest_difference` of the
        smoothed curves, relative to float32's, and `last_difference`, at their ends.
    """
    torch.manual_seed(0)
    first = image_model(width)
    with TemporaryDirectory() as made:
        folder = pictures or write_jpegs(Path(made), 4 * batch)
        batches = list(image_batches(folder, size, batch, steps))
    losses = {
        precision: train(
            copy.deepcopy(first), lambda start: iter(batches), steps=steps, precision=precision, optimizer="adam",
            log_every=1,
        )
        for precision in dict.fromkeys(("fp32", chosen_precision("auto")))
    }  # fmt: skip
    return {"losses": losses, "steps": steps, "batch": batch, "size": size, "width": width} | differences(
        losses["fp32"], losses[chosen_precision("auto")]
    )


def differences(reference: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How far two smoothed curves are apart, relative to the first: at most, and at the end."""
    one, two = (smoothed(curve) for curve in (reference, other))
    apart = [abs(b - a) / abs(a) for a, b in zip(one, two, strict=True)]
    return {"largest_difference": max(apart), "last_difference": apart[-1]}


def smoothed(curve: Sequence[float]) -> list[float]:
    """Means of a tenth of the curve, from every place where there is one."""
    window = max(1, round(SMOOTH * len(curve)))
    values = torch.tensor(list(curve), dtype=torch.float64)
    return values.unfold(0, window, 1).mean(1).tolist()

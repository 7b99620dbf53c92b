"""BYOL as eq. 2 of the paper and the sum over both directions say it, row by row."""

import math

from torch import Tensor


def error(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 2: squared distance of the rows, both scaled to length 1; the target takes no gradient."""
    value = prediction.new_zeros(())
    for q, z in zip(prediction, target.detach(), strict=True):
        value = value + ((q / (q * q).sum().sqrt() - z / (z * z).sum().sqrt()) ** 2).sum()
    return value / len(prediction)


def byol(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Each view's prediction against the other view's target."""
    return error(predictions[0], targets[1]) + error(predictions[1], targets[0])


def momentum(step: int, steps: int, base: float) -> float:
    """Section 3.3."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2

"""SIGReg sample by sample, with the trapezoidal rule over both signs of t."""

import math

import torch
from torch import Tensor


def statistic(column: Tensor, t_max: float, knots: int) -> Tensor:
    """N times the weighted squared distance of the characteristic functions of a column (N,) and of N(0, 1)."""
    n, step = len(column), t_max / (knots - 1)
    values = []
    for k in range(-knots + 1, knots):
        t = k * step
        real = sum((torch.cos(t * x) for x in column), start=torch.zeros_like(column[0])) / n
        imaginary = sum((torch.sin(t * x) for x in column), start=torch.zeros_like(column[0])) / n
        gaussian = math.exp(-(t**2) / 2)
        values.append(((real - gaussian) ** 2 + imaginary**2) * gaussian)
    area = sum((left + right) / 2 * step for left, right in zip(values, values[1:], strict=False))
    assert isinstance(area, Tensor)
    return n * area


def lejepa(
    views: dict[str, Tensor], projection: Tensor, centres: list[str], weight: float, t_max: float = 3.0, knots: int = 17
) -> Tensor:
    """(1 - lambda) times the distance to the centres, lambda times the mean statistic."""
    distances, statistics = [], []
    for z in views.values():
        for i in range(len(z)):
            centre = torch.stack([views[view][i] for view in centres]).mean(0)
            distances.append((z[i] - centre).square().mean())
        for m in range(projection.shape[1]):
            statistics.append(statistic(z @ projection[:, m], t_max, knots))
    return (1 - weight) * torch.stack(distances).mean() + weight * torch.stack(statistics).mean()

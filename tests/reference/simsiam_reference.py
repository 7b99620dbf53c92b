"""SimSiam as eq. 1-4 of the paper say it, row by row."""

from torch import Tensor


def distance(p: Tensor, z: Tensor) -> Tensor:
    """Eq. 1."""
    value = p.new_zeros(())
    for x, y in zip(p, z, strict=True):
        value = value - (x * y).sum() / ((x * x).sum().sqrt() * (y * y).sum().sqrt())
    return value / len(p)


def simsiam(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, stop_gradient: bool = True) -> Tensor:
    """Eq. 2, with the stopped gradient eq. 4."""
    if stop_gradient:
        z1, z2 = z1.detach(), z2.detach()
    return distance(p1, z2) / 2 + distance(p2, z1) / 2

"""VICRegL's matching and local loss, place by place."""

import math

from reference import vicreg_reference
from torch import Tensor


def positions(box: list[float], height: int, width: int) -> list[tuple[float, float]]:
    """The middle of every cell of a map in the original picture."""
    left, top, box_width, box_height, flipped = box
    found = []
    for row in range(height):
        for column in range(width):
            seen = width - 1 - column if flipped else column
            found.append((left + (seen + 0.5) * box_width / width, top + (row + 0.5) * box_height / height))
    return found


def matches(a: list[list[float]], b: list[list[float]], most: int | None) -> list[tuple[int, int]]:
    """Pairs (place of a, its nearest place of b), of the nearest ones, by the number of the place."""
    pairs = []
    for i, x in enumerate(a):
        distance, j = min((math.dist(x, y), j) for j, y in enumerate(b))
        pairs.append((distance, i, j))
    return sorted((i, j) for _, i, j in sorted(pairs)[:most])


def criterion(a: Tensor, b: Tensor, coefficients=(25.0, 25.0, 1.0)) -> Tensor:
    """VICReg of N pictures, variance and covariance averaged over both."""
    spread = (vicreg_reference.variance(a) + vicreg_reference.variance(b)) / 2
    redundancy = (vicreg_reference.covariance(a) + vicreg_reference.covariance(b)) / 2
    distance = vicreg_reference.invariance(a, b) / a.shape[1]
    return coefficients[0] * distance + coefficients[1] * spread + coefficients[2] * redundancy


def one_way(a: Tensor, b: Tensor, key_a, key_b, most, coefficients) -> Tensor:
    found = [matches(x, y, most) for x, y in zip(key_a, key_b, strict=True)]
    places = len(found[0])
    loss = a.new_zeros(())
    for m in range(places):
        of_a = a[range(len(a)), [pairs[m][0] for pairs in found]]
        of_b = b[range(len(b)), [pairs[m][1] for pairs in found]]
        loss = loss + criterion(of_a, of_b, coefficients) / places
    return loss


def local(
    a: Tensor, b: Tensor, at_a: Tensor, at_b: Tensor, most=20, feature_most=None, coefficients=(25.0, 25.0, 1.0)
) -> Tensor:
    loss = a.new_zeros(())
    for by_a, by_b, count in ((at_a, at_b, most), (a, b, feature_most)):
        forth = one_way(a, b, by_a.tolist(), by_b.tolist(), count, coefficients)
        loss = loss + (forth + one_way(b, a, by_b.tolist(), by_a.tolist(), count, coefficients)) / 2
    return loss

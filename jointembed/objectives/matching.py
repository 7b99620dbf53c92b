"""Places of feature maps: where they lie in the picture, which of two views belong together, and their statistics."""

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.distributed import row_counts, sum_over_ranks, total
from jointembed.objectives.statistics import BatchError


def positions(box: Tensor, height: int, width: int) -> Tensor:
    """Where the middle of each cell of a map lies in the original picture.

    Args:
        box: (N, 5) the crop it was made of: x, y, width, height, and 1 where it was flipped left to right, else 0.
        height: H of the map.
        width: W of the map.

    Returns:
        (N, H * W, 2) x and y, row by row.
    """
    across = (torch.arange(width, device=box.device, dtype=box.dtype) + 0.5) / width
    down = (torch.arange(height, device=box.device, dtype=box.dtype) + 0.5) / height
    left, top, box_width, box_height, flipped = (one[:, None] for one in box.unbind(1))
    x = left + box_width * torch.where(flipped > 0, 1 - across, across)
    y = top + box_height * down
    return torch.stack([x.repeat(1, height), y.repeat_interleave(width, 1)], dim=2)


@torch.no_grad()
def nearest(a: Tensor, b: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The rows of a whose nearest neighbour in b is nearest, in the order they have, and which neighbour that is.

    Args:
        a: (N, P, C) features or positions of one view, a set of P rows for each of N pictures.
        b: (N, Q, C) of the other.
        most: M, how many are taken, P at most; None takes all.

    Returns:
        Two (N, M) int64: numbers of the rows of a, and those of their neighbours in b.
    """
    least, neighbour = torch.cdist(a, b).min(2)
    count = a.shape[1] if most is None else min(most, a.shape[1])
    chosen = least.topk(count, dim=1, largest=False).indices.sort(1).values
    return chosen, neighbour.gather(1, chosen)


def take(z: Tensor, rows: Tensor) -> Tensor:
    """Rows (N, M) of each picture's set (N, P, D): (N, M, D)."""
    return z.gather(1, rows[:, :, None].expand(-1, -1, z.shape[2]))


def variance_and_covariance_of_places(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Means over m of `variance_term` and `covariance_term` of z[:, m], all places at once, in the D x D form.

    Args:
        z: (n, M, D) M places of this rank's pictures, in float32 or float64.
        gamma: target standard deviation.
        eps: added to the variance.

    Raises:
        BatchError: if the global batch has fewer than two pictures.
    """
    count = sum(row_counts(z))
    if count < 2:
        raise BatchError(f"variance and covariance need at least 2 samples in the global batch, found {count}")
    # the gradients of both terms sum to 0 over the batch, so that none flows through its mean
    centred = z - sum_over_ranks(z.sum(0)) / count
    covariance = total(torch.einsum("nmi,nmj->mij", centred, centred)) / (count - 1)
    variance = covariance.diagonal(dim1=1, dim2=2)
    hinge = functional.relu(gamma - torch.sqrt(variance + eps)).mean()
    return hinge, (covariance.square().sum() - variance.square().sum()) / variance.numel()

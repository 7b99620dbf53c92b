"""Barlow Twins. Zbontar, Jing, Misra, LeCun, Deny, ICML 2021."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jointembed.distributed import sum_over_ranks, world
from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, check_pair
from jointembed.objectives.statistics import CentredBatch, centre, full_precision, wide

GRAM_UP_TO = 0.6  # N / D up to which four products of N^2 D were measured to cost less than three of N D^2


class _CrossCorrelation(torch.autograd.Function):
    """The diagonal (D,) of C = A^T B / N and ||C||_F^2, A and B standardised over the global batch.

    ||C||_F^2 = sum (A A^T * B B^T) / N^2, with gradient 2 (B B^T) A / N^2 in A. Behind the standardisation, whose means
    over the batch are sums over a row or column of C, so backward needs nothing of the other ranks:
    d/dz = (G - A * mean(G * A)) / std, G the gradient in A; mean(G) is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, batches: tuple[CentredBatch, CentredBatch], eps: float
    ) -> tuple[Tensor, Tensor]:
        size = batches[0].size
        stds = [torch.sqrt(batch.variance * ((size - 1) / size) + eps) for batch in batches]
        own_a, own_b = (batch.own / std for batch, std in zip(batches, stds, strict=True))
        rows_a, rows_b = (batch.rows for batch in batches)
        if rows_a is None or rows_b is None:
            c = sum_over_ranks(own_a.T @ own_b).div_(size)
            diagonal, squares_a, squares_b = c.diagonal().clone(), c.square().sum(1), c.square().sum(0)
            product_a, product_b = own_b @ c.T, own_a @ c
        else:
            rows_a, rows_b = rows_a / stds[0], rows_b / stds[1]
            product_a = (own_b @ rows_b.T / size) @ rows_a
            product_b = (own_a @ rows_a.T / size) @ rows_b
            products = ((own_a, own_b), (own_a, product_a), (own_b, product_b))
            sums = sum_over_ranks(torch.stack([(left * right).sum(0) for left, right in products]))
            diagonal, squares_a, squares_b = sums / size
        ctx.size = size
        ctx.save_for_backward(own_a, own_b, *stds, product_a, product_b, diagonal, squares_a, squares_b)
        return diagonal, squares_a.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own_a, own_b, std_a, std_b, product_a, product_b, diagonal, squares_a, squares_b = ctx.saved_tensors
        on, square = gradients

        def own_gradient(own: Tensor, other: Tensor, product: Tensor, squares: Tensor, std: Tensor) -> Tensor:
            mean = on * diagonal + 2 * square * squares
            return (other * on + product * (2 * square) - own * mean) * (world() / (ctx.size * std))

        grad_a = own_gradient(own_a, own_b, product_a, squares_a, std_a)
        return grad_a, own_gradient(own_b, own_a, product_b, squares_b, std_b), None, None


def barlow_twins_loss(
    a: Tensor, b: Tensor, *, off_diagonal: float = 0.0051, scale: float = 1.0, eps: float = 1e-5
) -> dict[str, Tensor]:
    """Cross-correlation towards the identity: scale * (sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2).

    C = A^T B / N (eq. 1-2), A and B standardised over the global batch as by batch norm without affine: biased
    variance, eps under the root. C itself is made only where N > 0.6 D; the value is exact either way.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        off_diagonal: lambda, weight of the redundancy reduction term.
        scale: of the whole loss (the authors trained ImageNet with 0.024).
        eps: added to the variance.

    Returns:
        `loss`, and unscaled, unweighted, detached: `on_diagonal` and `off_diagonal`.

    Raises:
        BatchError: (a ValueError) if the shapes differ or the global batch has fewer than two rows.
    """
    check_pair(a, b)
    with full_precision(a):
        a, b = wide(a), wide(b)
        batches = centre(a, gram_up_to=GRAM_UP_TO), centre(b, gram_up_to=GRAM_UP_TO)
        diagonal, square = _CrossCorrelation.apply(a, b, batches, eps)
        on = (diagonal - 1).square().sum()
        off = square - diagonal.square().sum()
    return {"loss": scale * (on + off_diagonal * off), "on_diagonal": on.detach(), "off_diagonal": off.detach()}


class BarlowTwins(PairObjective):
    """Barlow Twins of two views; the arguments are those of `barlow_twins_loss`."""

    def __init__(self, *, off_diagonal: float = 0.0051, scale: float = 1.0, eps: float = 1e-5) -> None:
        """See the class."""
        super().__init__()
        self.off_diagonal, self.scale, self.eps = off_diagonal, scale, eps

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `barlow_twins_loss`."""
        a, b = self.pair(online)
        return barlow_twins_loss(a, b, off_diagonal=self.off_diagonal, scale=self.scale, eps=self.eps)

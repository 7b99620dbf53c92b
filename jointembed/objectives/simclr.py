"""SimCLR: the normalised, temperature-scaled cross-entropy NT-Xent. Chen, Kornblith, Norouzi, Hinton, ICML 2020."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jointembed.distributed import gather_without_grad, rank, row_counts, sum_over_ranks, world
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, check_pair, named
from jointembed.objectives.statistics import full_precision, wide


class _CrossEntropies(torch.autograd.Function):
    """Mean cross-entropies of the a-rows and of the b-rows of the global batch, each over 2N - 1 candidates.

    Each rank makes its own 2n rows of the 2N x 2N scores. They are symmetric, so the rows and the normaliser of every
    row also hold its own columns: d/dz_i = (1 / N) sum_j (w_i P_ij + w_j P_ji - (w_i + w_j) T_ij) z_j / temperature, P
    the softmax, T the partners, w the gradient of a row's mean. Backward is one product and needs no other rank.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, item: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        counts = row_counts(a)
        size, start = sum(counts), sum(counts[: rank()])
        own = torch.arange(start, start + len(a), device=a.device)
        rows = torch.cat([gather_without_grad(z, counts) for z in (a, b)])  # (2N, D)
        partner = torch.cat([own + size, own])
        own = torch.cat([own, own + size])
        scores = (torch.cat([a, b]) / temperature) @ rows.T  # (2n, 2N)
        positive = scores.gather(1, partner[:, None])[:, 0]
        if item is not None:
            every = gather_without_grad(item, counts)
            same = (item[:, None] == every[None, :]).repeat(2, 2).scatter_(1, partner[:, None], False)
            scores.masked_fill_(same, -math.inf)
        scores.scatter_(1, own[:, None], -math.inf)
        normaliser = scores.logsumexp(1)
        every_normaliser = torch.cat([gather_without_grad(part, counts) for part in normaliser.chunk(2)])
        ctx.size, ctx.temperature = size, temperature
        ctx.save_for_backward(scores, normaliser, every_normaliser, partner, rows)
        terms = sum_over_ranks(torch.stack([part.sum() for part in (normaliser - positive).chunk(2)])) / size
        return terms[0], terms[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scores, normaliser, every_normaliser, partner, rows = ctx.saved_tensors
        of_a, of_b = gradients
        own = torch.cat([of_a.expand(len(scores) // 2), of_b.expand(len(scores) // 2)])[:, None]
        every = torch.cat([of_a.expand(ctx.size), of_b.expand(ctx.size)])
        weights = (scores - normaliser[:, None]).exp_().mul_(own)
        weights += (scores - every_normaliser).exp_().mul_(every)
        weights.scatter_add_(1, partner[:, None], (-(of_a + of_b)).expand(len(scores), 1))
        with full_precision(rows):
            gradient = (weights @ rows) * (world() / (ctx.size * ctx.temperature))
        return *gradient.chunk(2), None, None


def nt_xent_loss(a: Tensor, b: Tensor, *, temperature: float = 0.1, item: Tensor | None = None) -> dict[str, Tensor]:
    """NT-Xent: the mean of 2N cross-entropies, each row of both branches picking its partner among all 2N - 1 others.

    For a row i with partner j: -log( exp(cos_ij / temperature) / sum_{k != i} exp(cos_ik / temperature) ), eq. 1, over
    the global batch. Other rows of the same item are left out of the sum. The authors' code adds the means of both
    branches where the paper, and this function, average them.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        temperature: that divides the cosines.
        item: (N,) numbers; rows with equal ones are never negatives of one another.

    Returns:
        `loss`, and detached its two parts `a_to_b` and `b_to_a`, the means over the rows of a and of b.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(a, b)
    with full_precision(a):
        unit = (functional.normalize(wide(z), dim=1) for z in (a, b))
        a_to_b, b_to_a = _CrossEntropies.apply(*unit, item, temperature)
        return {"loss": (a_to_b + b_to_a) / 2, "a_to_b": a_to_b.detach(), "b_to_a": b_to_a.detach()}


class SimCLR(PairObjective):
    """NT-Xent of two views, which may or may not share a branch; the argument is that of `nt_xent_loss`."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        """See the class. Raises RecipeError if the temperature is not positive."""
        super().__init__()
        if temperature <= 0:
            raise RecipeError(f"objective.temperature: must be positive, found {temperature}")
        self.temperature = temperature

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `nt_xent_loss` with the names of the views."""
        a, b = self.pair(online)
        return named(nt_xent_loss(a, b, temperature=self.temperature, item=item), online)

"""Contrast of an embedding with one positive and with K negatives that the whole batch shares: InfoNCE and NCE."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import gather_without_grad, rank, row_counts, sum_over_ranks, world
from jointembed.objectives.statistics import BatchError, batch_mean, full_precision, wide


class Scores(NamedTuple):
    """Cosines of n queries, divided by a temperature."""

    positive: Tensor  # (n,)
    negative: Tensor  # (n, K), -inf where a negative is left out


def scores(
    query: Tensor, positive: Tensor, negative: Tensor, temperature: float, left_out: Tensor | None = None
) -> Scores:
    """Cosines of each query with its positive and with all negatives, divided by the temperature.

    Args:
        query: (n, D) this rank's embeddings, of any length.
        positive: (n, D) their partners.
        negative: (K, D).
        temperature: tau.
        left_out: (n, K) bool, true where a negative is none for that query.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    if query.shape != positive.shape or query.shape[1:] != negative.shape[1:]:
        found = f"{tuple(query.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        raise BatchError(f"queries and positives must be (N, D), negatives (K, D), found {found}")
    with full_precision(query):
        query, positive, negative = (functional.normalize(wide(z), dim=1) for z in (query, positive, negative))
        against = query @ negative.to(query.dtype).T / temperature
        against = against if left_out is None else against.masked_fill(left_out, -torch.inf)
        return Scores((query * positive).sum(1) / temperature, against)


def info_nce(found: Scores) -> Tensor:
    """Mean over the batch of -log softmax of the positive's score among all (van den Oord et al. 2018, eq. 4)."""
    together = torch.cat([found.positive[:, None], found.negative], dim=1)
    return batch_mean(together.logsumexp(1) - found.positive)


def log_mean_exp(negative: Tensor) -> Tensor:
    """Logarithm of the mean of exp(score) of each row's own negatives: (n, K) to (n,)."""
    return negative.logsumexp(1) - _count(negative).log()


def nce(found: Scores, log_mean: Tensor) -> Tensor:
    """Noise-contrastive estimation: mean of -log h(positive) - sum over the negatives of log(1 - h(negative)).

    The posterior that a score s came from the data and not from m draws of uniform noise is h = P / (P + m / n) with
    P = exp(s) / Z over n samples (Wu et al., CVPR 2018, eq. 5-7; CMC's eq. 12). Z is n times the mean of exp(s), so
    that h = sigmoid(s - log(m mean exp(s))) knows nothing of n.

    Args:
        found: of this rank.
        log_mean: logarithm of the mean of exp(s), one for all queries, or one for each (n,).
    """
    offset = log_mean + _count(found.negative).log()
    positive = functional.logsigmoid(found.positive - offset)
    negative = functional.logsigmoid(offset[:, None] - found.negative).sum(1)
    return batch_mean(-positive - negative)


class _OfAllRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(x))
        return gather_without_grad(x, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(gradients[0])[ctx.own], None


def candidates(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all ranks for a loss of which each rank computes the part of its own queries, as `batch_mean` adds it up.

    Where every rank computes the whole loss, `distributed.gather` does without the communication in backward.

    Args:
        x: (n, ...) this rank's rows, n may differ between ranks.

    Returns:
        (N, ...), whose gradient is what all ranks' losses say of a row; and the number of the first own row.
    """
    if world() == 1:
        return x, 0
    counts = row_counts(x)
    return _OfAllRanks.apply(x, counts), sum(counts[: rank()])


def _count(negative: Tensor) -> Tensor:
    """How many negatives each row has, at least 1."""
    return negative.isfinite().sum(1).clamp_min(1).to(negative.dtype)


class Partition(nn.Module):
    """The mean of exp(score) over the negatives of the first step, kept for good (Wu et al., CVPR 2018, section 3.2).

    Attributes:
        mean: () over all ranks, 0 before the first commit.
    """

    mean: Tensor

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self._held: Tensor | None = None

    @torch.no_grad()
    def forward(self, negative: Tensor) -> Tensor:
        """Logarithm of the mean (), which before the first commit is that of the first scores (n, K) given here."""
        if self.mean == 0 and self._held is None:
            sums = sum_over_ranks(torch.stack([negative.double().exp().sum(), negative.isfinite().sum()]))
            self._held = sums[0] / sums[1]
        kept = self.mean if self._held is None else self._held
        return kept.log().to(negative.dtype)

    def drop(self) -> None:
        """Forget what is held; before each step, as the last one may have been left out."""
        self._held = None

    def commit(self) -> None:
        """Keep the mean for good. Every rank must call it."""
        if self._held is not None:
            self.mean.copy_(self._held)
            self._held = None


class PatchHead(nn.Module):
    """One embedding of P patches: a layer for each patch, then a linear one over all of them (PIRL, section 3.2).

    Args:
        width: R of a patch.
        patches: P.
        out: D.
        hidden: whether the layer of a patch is R-R-ReLU-D, else R-D.
    """

    def __init__(self, width: int, patches: int, out: int, *, hidden: bool = False) -> None:
        """See the class."""
        super().__init__()
        self.patches = patches
        first = [nn.Linear(width, width), nn.ReLU()] if hidden else []
        self.each = nn.Sequential(*first, nn.Linear(width, out))
        self.all = nn.Linear(patches * out, out)

    def forward(self, h: Tensor) -> Tensor:
        """(N, P, R) to (N, D). Raises BatchError (a ValueError) for another number of patches."""
        if h.ndim != 3 or h.shape[1] != self.patches:
            raise BatchError(
                f"{self.patches} patches a picture expected, (N, {self.patches}, R), found {tuple(h.shape)}"
            )
        return self.all(self.each(h).flatten(1))

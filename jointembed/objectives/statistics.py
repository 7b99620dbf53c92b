"""Statistics of the global batch: variance and covariance at Gram cost, and the health of embeddings.

N rows in the global batch, n of them on this rank, W ranks, D dimensions. The terms are exact whatever N, D and W are:
||Zc^T Zc||_F = ||Zc Zc^T||_F for the centred batch Zc, so the D x D covariance matrix is never made where the N x N
Gram matrix is smaller. A term has the value of the global batch on every rank, and its gradient in the own rows is W
times that of the global batch, so that DDP's average over ranks is exact. Backward needs no communication.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jointembed.distributed import gather, gather_without_grad, rank, row_counts, sum_over_ranks, total, world
from jointembed.errors import JointEmbedError

WIDEST = 60.0  # range of logarithms whose exponentials, their sums and reciprocals are all normal float32 numbers
GRAM_UP_TO = 1.0  # N / D up to which the N x N form was measured to be the faster one


class BatchError(JointEmbedError, ValueError):
    """A batch that a statistic cannot be computed from."""


class CentredBatch(NamedTuple):
    """The global batch minus its mean, detached: what variance and covariance of a branch share."""

    own: Tensor  # (n, D) this rank's rows
    rows: Tensor | None  # (N, D) all ranks' rows; None where the D x D form is cheaper
    variance: Tensor  # (D,) unbiased
    size: int  # N


def full_precision(z: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the tensor's device, for statistics that need at least float32."""
    device = z.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()  # most of the cost of a context that would change nothing
    return torch.autocast(device, enabled=False)


def wide(z: Tensor) -> Tensor:
    """(N, D) embeddings in float32 at least; float64 stays float64. Raises BatchError for another shape."""
    if z.ndim != 2:
        raise BatchError(f"embeddings must be (N, D), found {tuple(z.shape)}")
    return z if z.dtype == torch.float64 else z.float()


@torch.no_grad()
def centre(z: Tensor, *, gram_up_to: float = GRAM_UP_TO) -> CentredBatch:
    """Gather and centre the batch of one branch, once for all its terms.

    Communication: the row counts, and one all-gather where N <= gram_up_to * D; else two all-reduces of D numbers.

    Args:
        z: (n, D) this rank's embeddings, in float32 or float64.
        gram_up_to: N / D up to which all rows are kept for the N x N form.

    Raises:
        BatchError: if the global batch has fewer than two rows.
    """
    counts = row_counts(z)
    count = sum(counts)
    if count < 2:
        raise BatchError(f"variance and covariance need at least 2 samples in the global batch, found {count}")
    gram = count <= gram_up_to * z.shape[1]
    if gram or world() == 1:
        rows = gather_without_grad(z, counts)
        rows = rows - rows.mean(0)
        start = sum(counts[: rank()])
        own = rows[start : start + len(z)]
        squares = rows.square().sum(0)
    else:
        own = z - sum_over_ranks(z.sum(0)) / count
        squares = sum_over_ranks(own.square().sum(0))
    return CentredBatch(own, rows if gram else None, squares / (count - 1), count)


def _hinge(batch: CentredBatch, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """The variance term, and the factor (D,) of a centred row in its gradient."""
    std = torch.sqrt(batch.variance + eps)
    slope = (std < gamma) / (std * (-(batch.size - 1) * len(std)))
    return functional.relu(gamma - std).mean(), slope


def _squares(batch: CentredBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The covariance term, and what its gradient needs: the smaller of both matrices."""
    own, rows, variance, size = batch
    if rows is None:
        matrix = sum_over_ranks(own.T @ own).div_(size - 1)
        matrix.fill_diagonal_(0)
        return matrix.square().sum() / len(variance), (matrix,)
    gram = own @ rows.T  # (n, N), this rank's rows of the global Gram matrix
    squares = sum_over_ranks(gram.square().sum()) / (size - 1) ** 2
    return (squares - variance.square().sum()).clamp_min(0) / len(variance), (gram, rows, variance)


def _gradient_of_squares(own: Tensor, size: int, kept: tuple[Tensor, ...], incoming: Tensor) -> Tensor:
    """W times the covariance term's gradient in the own rows."""
    if len(kept) == 1:
        product = own @ kept[0]
    else:
        gram, rows, variance = kept
        product = (own * variance).addmm_(gram, rows, beta=-1, alpha=1 / (size - 1))
    return product.mul_(incoming * (4 * world() / ((size - 1) * own.shape[1])))


class _Variance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, batch: CentredBatch, gamma: float, eps: float) -> Tensor:
        value, slope = _hinge(batch, gamma, eps)
        ctx.save_for_backward(batch.own, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, slope = ctx.saved_tensors
        return own * (slope * (gradients[0] * world())), None, None, None


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, batch: CentredBatch) -> Tensor:
        value, kept = _squares(batch)
        ctx.size = batch.size
        ctx.save_for_backward(batch.own, *kept)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        own, *kept = ctx.saved_tensors
        return _gradient_of_squares(own, ctx.size, tuple(kept), gradients[0]), None


class _Both(torch.autograd.Function):
    """Both terms in one call: at small sizes calls are what a term costs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, batch: CentredBatch, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
        (variance, slope), (covariance, kept) = _hinge(batch, gamma, eps), _squares(batch)
        ctx.size = batch.size
        ctx.save_for_backward(batch.own, slope, *kept)
        return variance, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, slope, *kept = ctx.saved_tensors
        gradient = _gradient_of_squares(own, ctx.size, tuple(kept), gradients[1])
        return gradient.addcmul_(own, slope * (gradients[0] * world())), None, None, None


def variance_term(z: Tensor, gamma: float = 1.0, eps: float = 1e-4, batch: CentredBatch | None = None) -> Tensor:
    """Hinge on the standard deviation of each dimension: (1/D) sum_j max(0, gamma - sqrt(Var(z^j) + eps)).

    Bardes, Ponce, LeCun, ICLR 2022, eq. 1-2, with the unbiased variance of the global batch.

    Args:
        z: (n, D) this rank's embeddings.
        gamma: target standard deviation.
        eps: added to the variance.
        batch: `centre(z)` where the caller has it.

    Raises:
        BatchError: (a ValueError) if z is not (n, D) or the global batch has fewer than two rows.
    """
    with full_precision(z):
        z = wide(z)
        return _Variance.apply(z, batch or centre(z), gamma, eps)


def covariance_term(z: Tensor, batch: CentredBatch | None = None) -> Tensor:
    """Squared off-diagonal covariances: (1/D) sum_{i != j} C_ij^2 with C = Zc^T Zc / (N - 1).

    Bardes, Ponce, LeCun, ICLR 2022, eq. 3-4. For N <= D from the Gram matrix G = Zc Zc^T: the sum is
    ||G||_F^2 / (N - 1)^2 - sum_j Var_j^2 and its gradient 4 / (N - 1) * (G Zc / (N - 1) - Zc * Var).

    Args:
        z: (n, D) this rank's embeddings.
        batch: `centre(z)` where the caller has it.

    Raises:
        BatchError: (a ValueError) if z is not (n, D) or the global batch has fewer than two rows.
    """
    with full_precision(z):
        z = wide(z)
        return _Covariance.apply(z, batch or centre(z))


def variance_and_covariance(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """`variance_term` and `covariance_term` of this rank's embeddings z (n, D), which are gathered once."""
    with full_precision(z):
        z = wide(z)
        batch = centre(z)
        return _Both.apply(z, batch, gamma, eps)


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean of cos(a_i, b_i) over the rows i of the global batch, with gradient.

    Args:
        a: (n, D) this rank's rows.
        b: (n, D) their partners.
    """
    with full_precision(a):
        a, b = (functional.normalize(wide(z), dim=1) for z in (a, b))
        return batch_mean((a * b).sum(1))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of ||a_i - b_i||^2 over the rows i of the global batch, with gradient.

    Args:
        a: (n, D) this rank's rows.
        b: (n, D) their partners.
    """
    with full_precision(a):
        a, b = wide(a), wide(b)
        return total(functional.mse_loss(a, b, reduction="sum")) / sum(row_counts(a))


def whiten(z: Tensor, eps: float = 0.0) -> Tensor:
    """Rows with mean 0 and covariance I: L^-1 (z_i - mean), L L^T the covariance (Ermolov et al., ICML 2021, eq. 3).

    Args:
        z: (..., n, D) batches, each whitened by itself; of these rows alone, without communication.
        eps: the covariance is (1 - eps) * C + eps * I, C with 1 / (n - 1).

    Returns:
        (..., n, D), in float32 at least.

    Raises:
        BatchError: if the covariance of a batch has no Cholesky factor: too few rows, or collapsed ones.
    """
    with full_precision(z):
        z = z if z.dtype == torch.float64 else z.float()
        centred = z - z.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / (z.shape[-2] - 1)
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        factor, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * identity)
        if bool(failed.any()):
            raise BatchError(
                f"whitening: the covariance of {z.shape[-2]} rows of {z.shape[-1]} dimensions is singular (collapsed "
                "embeddings, or fewer rows than twice the dimensions); take larger sub-batches or an eps above 0"
            )
        return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


def batch_mean(values: Tensor) -> Tensor:
    """Mean of the numbers (n,) of all ranks, n of them on this rank: a scalar, with gradient."""
    sums = total(torch.stack([values.sum(), values.new_tensor(len(values))]))
    return sums[0] / sums[1]


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes that give every prototype the same share of the global batch (SwAV, Caron et al. 2020, eq. 3-5).

    Q = diag(u) exp(scores / epsilon) diag(v): each iteration scales the prototypes to equal sums over the samples of
    all ranks, then each sample to sum 1. Only u and v change, so an iteration is two products of a matrix and a vector;
    scores too far apart for that in floating point, which cosines are not, are scaled in logarithms.

    Args:
        scores: (n, K) of this rank's samples against K prototypes.
        epsilon: weight of the entropy; smaller codes are harder.
        iterations: 0 gives each sample's softmax.

    Returns:
        (n, K) codes of this rank's samples, rows of sum 1, without gradient.

    Raises:
        BatchError: if the scores are not (n, K).
    """
    with full_precision(scores):
        logs = wide(scores.detach()) / epsilon
        highest, lowest = _range_over_ranks(logs)
        if iterations == 0 or not highest - lowest <= WIDEST:
            for _ in range(iterations):
                logs = functional.log_softmax(logs - _log_sum_over_ranks(logs), dim=1)
            return functional.softmax(logs, dim=1)
        matrix = logs.sub_(highest).exp_()
        of_samples = matrix.new_ones(len(matrix))
        for _ in range(iterations):
            of_prototypes = sum_over_ranks(of_samples @ matrix).reciprocal_()
            of_samples = (matrix @ of_prototypes).reciprocal_()
        return matrix.mul_(of_prototypes).mul_(of_samples[:, None])


def _range_over_ranks(values: Tensor) -> tuple[float, float]:
    """Highest and lowest value of all ranks; a rank may have none."""
    if len(values):
        lowest, highest = torch.aminmax(values)
        own = torch.stack([highest, -lowest])
    else:
        own = values.new_full((2,), -math.inf)
    above, below = (own if world() == 1 else gather_without_grad(own[None], [1] * world()).amax(0)).tolist()
    return above, -below


def _log_sum_over_ranks(logs: Tensor) -> Tensor:
    """Logarithm of the sum of exp over the rows of all ranks, (n, K) to (K,)."""
    highest = logs.amax(0) if len(logs) else logs.new_full(logs.shape[1:], -math.inf)
    highest = gather_without_grad(highest[None], [1] * world()).amax(0)
    return highest + sum_over_ranks((logs - highest).exp().sum(0)).log()


def cosine_scores(a: Tensor, b: Tensor, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of the global batch, with gradient, and which of them show the same item.

    Args:
        a: (n, D) this rank's embeddings of one view.
        b: (n, D) of the other view.
        item: (n,) numbers; rows with equal ones show the same thing. None: every row is an item of its own.

    Returns:
        (N, N) cosines, rows of a by rows of b, and (N, N) bool, true on the diagonal.
    """
    a, b = (gather(functional.normalize(wide(z), dim=1)) for z in (a, b))
    if item is None:
        return a @ b.T, torch.eye(len(a), dtype=torch.bool, device=a.device)
    item = gather_without_grad(item)
    return a @ b.T, item[:, None] == item[None, :]


# -- health: of the rows given, without communication ---------------------------------------------------------------


def std_per_dimension(z: Tensor) -> Tensor:
    """Unbiased standard deviation of each dimension of (N, D) rows: (D,). Of these rows alone: gather them before."""
    z = wide(z.detach())
    if len(z) < 2:
        raise BatchError(f"a standard deviation needs at least 2 samples, found {len(z)}")
    return ((z - z.mean(0)).square().sum(0) / (len(z) - 1)).sqrt()


def mean_absolute_correlation(z: Tensor, limit: int | None = 1024) -> float:
    """Mean of |correlation| over pairs of different dimensions, 0 (decorrelated) to 1; constant ones count as 0.

    Args:
        z: (N, D) rows; of these alone, without communication.
        limit: use this many evenly spaced dimensions where there are more; None uses all of them.
    """
    z = wide(z.detach())
    width = z.shape[1]
    if limit is not None and width > limit:
        width = limit
        z = z[:, torch.linspace(0, z.shape[1] - 1, width, device=z.device).round().long()]
    if width < 2:
        return 0.0
    std = std_per_dimension(z)
    alive = std > 16 * torch.finfo(z.dtype).eps * z.abs().amax(0)  # more than the rounding of a constant
    unit = functional.normalize((z - z.mean(0)) * alive, dim=0)
    with full_precision(z):
        pairs = sum(float((block.T @ unit).abs().sum()) for block in unit.split(1024, dim=1))
    return max(0.0, pairs - int(alive.sum())) / (width * (width - 1))


def singular_values(z: Tensor) -> Tensor:
    """Singular values of (N, D) rows as they are, not centred: (min(N, D),) float64 on the CPU, descending.

    From the eigenvalues of the smaller Gram matrix in float64: exact to 1e-8 of the largest one.
    """
    z = wide(z.detach()).to("cpu", torch.float64)
    gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def rankme(z: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of (N, D) rows, 1 (collapsed) to min(N, D): exp of the entropy of the singular values.

    Garrido et al., "RankMe", ICML 2023, eq. 1: p_k = sigma_k / ||sigma||_1 + eps, rows not centred.
    """
    values = singular_values(z)
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return float(torch.exp(-(share * share.log()).sum()))

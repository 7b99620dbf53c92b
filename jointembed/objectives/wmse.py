"""W-MSE: whitened embeddings cannot collapse. Ermolov, Siarohin, Sangineto, Sebe, ICML 2021."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.distributed import gather
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import Objective, check_pair
from jointembed.objectives.statistics import BatchError, full_precision, whiten, wide


def w_mse_loss(
    a: Tensor, b: Tensor, *, size: int = 128, iterations: int = 1, eps: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Squared distance of whitened, then normalised embeddings: the mean of 2 - 2 cos(w(a)_i, w(b)_i), eq. 4-5.

    The global batch is shuffled into sub-batches of `size` rows, the same for both branches; each is whitened by the
    Cholesky factor of its own covariance, in float32 at least. The authors take a size of 2 D.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        size: of a sub-batch; it divides the global N.
        iterations: how many shuffles the loss is the mean of.
        eps: the covariance is (1 - eps) C + eps I.
        seed: of the shuffles.

    Returns:
        `loss`.

    Raises:
        BatchError: (a ValueError) if the shapes differ, the global batch is no multiple of `size`, a sub-batch has too
            few rows for D, or a covariance is singular.
    """
    check_pair(a, b)
    return {"loss": _distance([a, b], size, iterations, eps, seed)}


def _distance(views: Sequence[Tensor], size: int, iterations: int, eps: float, seed: int) -> Tensor:
    with full_precision(views[0]):
        every = [gather(wide(z)) for z in views]
        _check_size(len(every[0]), every[0].shape[1], size, eps)
        generator = torch.Generator("cpu").manual_seed(seed)
        distances = []
        for _ in range(iterations):
            order = torch.randperm(len(every[0]), generator=generator, device="cpu").to(every[0].device).view(-1, size)
            white = [functional.normalize(whiten(z[order], eps), dim=-1) for z in every]
            distances += [2 - 2 * (x * y).sum(-1).mean() for x, y in combinations(white, 2)]
        return torch.stack(distances).mean()


def _check_size(count: int, width: int, size: int, eps: float) -> None:
    if count == 0 or count % size:
        raise BatchError(f"W-MSE: the global batch of {count} rows does not divide into sub-batches of {size}")
    if eps == 0 and size <= width:
        raise BatchError(
            f"W-MSE: sub-batches of {size} rows are too small to whiten {width} dimensions; at least {width + 1} rows "
            f"are needed, {2 * width} recommended"
        )


class WMSE(Objective):
    """W-MSE of two views or more, which may or may not share a branch: the mean of `w_mse_loss` over all pairs.

    The authors' settings: 64 dimensions and sub-batches of 128 (CIFAR); 128 and 256 for STL-10, Tiny-ImageNet (with 4
    iterations where there are two views) and ImageNet-100.

    Args:
        size: of a sub-batch.
        iterations: shuffles a step.
        eps: weight of the identity in the covariance.
    """

    step: Tensor

    def __init__(self, *, size: int = 128, iterations: int = 1, eps: float = 0.0) -> None:
        """See the class. Raises RecipeError for a size below 2, no iteration, or an eps outside 0 .. 1."""
        super().__init__()
        if size < 2 or iterations < 1 or not 0 <= eps <= 1:
            raise RecipeError(
                "objective: size must be at least 2, iterations at least 1, eps within 0 and 1, found "
                f"{size}, {iterations} and {eps}"
            )
        self.size, self.iterations, self.eps = size, iterations, eps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if there are fewer than two views."""
        names = list(views)
        if len(names) < 2:
            raise RecipeError(f"objective: W-MSE compares 2 views or more, found {', '.join(names) or 'none'}")

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`; the shuffle is that of the step."""
        self.check_views(online)
        z = {view: embedding.z for view, embedding in online.items()}
        for first, second in combinations(z, 2):
            check_pair(z[first], z[second], (first, second))
        return {"loss": _distance(list(z.values()), self.size, self.iterations, self.eps, int(self.step))}

    def end_step(self, progress: float) -> None:
        """Count the step, for the next shuffle."""
        self.step += 1

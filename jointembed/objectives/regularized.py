"""VICReg's variance and covariance terms on top of any objective. Bardes, Ponce, LeCun, ICLR 2022, section 6."""

from collections.abc import Mapping

import torch
from torch import Tensor

from jointembed.layers import Embedding
from jointembed.objectives.objective import Objective
from jointembed.objectives.statistics import variance_and_covariance
from jointembed.objectives.wrapped import Wrapped


def regularization(
    views: Mapping[str, Tensor],
    *,
    variance: float = 1.0,
    covariance: float = 0.01,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> dict[str, Tensor]:
    """The sum mu v + nu c of a global batch: v the mean over views of variance terms, c twice that of covariance's.

    With two views these are the sums and means of the authors' code of VICReg (`vicreg_loss`, `official`).

    Args:
        views: view -> embeddings (N, D), or (N, P, D) of which each patch is a row.
        variance: mu.
        covariance: nu.
        gamma: target standard deviation.
        eps: added to the variance.

    Returns:
        `loss` (weighted), and unweighted, detached: `variance` (v) and `covariance` (c).

    Raises:
        BatchError: (a ValueError) if a view has fewer than two rows in the global batch.
    """
    parts = [variance_and_covariance(rows.flatten(0, -2), gamma, eps) for rows in views.values()]
    variances, covariances = zip(*parts, strict=True)
    v, c = torch.stack(variances).mean(), 2 * torch.stack(covariances).mean()
    return {"loss": variance * v + covariance * c, "variance": v.detach(), "covariance": c.detach()}


class Regularized(Wrapped):
    """Any objective plus `regularization` of its online embeddings z; all its hooks and needs are passed on.

    Args:
        objective: which one.
        variance: mu.
        covariance: nu.
        gamma: target standard deviation.
        eps: added to the variance.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        variance: float = 1.0,
        covariance: float = 0.01,
        gamma: float = 1.0,
        eps: float = 1e-4,
    ) -> None:
        """See the class."""
        super().__init__(objective)
        self.remedies = ("raise regularize.variance", "raise regularize.covariance")
        self.variance, self.covariance, self.gamma, self.eps = variance, covariance, gamma, eps

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms with a regularized `loss`, and `unregularized` and `regularize/...` besides."""
        terms = super().forward(online, target, index=index, item=item, label=label)
        added = regularization(
            {view: embedding.z for view, embedding in online.items()},
            variance=self.variance,
            covariance=self.covariance,
            gamma=self.gamma,
            eps=self.eps,
        )
        return terms | {
            "loss": terms["loss"] + added["loss"],
            "unregularized": terms["loss"].detach(),
            "regularize/variance": added["variance"],
            "regularize/covariance": added["covariance"],
        }

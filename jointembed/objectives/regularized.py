"""VICReg's variance and covariance terms on top of any objective. Bardes, Ponce, LeCun, ICLR 2022, section 6."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from jointembed.layers import Embedding
from jointembed.objectives.objective import Embed, Objective, ViewShape
from jointembed.objectives.statistics import variance_and_covariance


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


class Regularized(Objective):
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
        super().__init__()
        self.objective = objective
        self.variance, self.covariance, self.gamma, self.eps = variance, covariance, gamma, eps
        self.needs = objective.needs
        self.constant_lr = tuple(f"objective.{path}" for path in objective.constant_lr)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms with a regularized `loss`, and `unregularized` and `regularize/...` besides."""
        terms = self.objective(online, target, index=index, item=item, label=label)
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

    def check_views(self, views: Iterable[str]) -> None:
        """What the objective checks."""
        self.objective.check_views(views)

    def check_branches(self, views: Mapping[str, str]) -> None:
        """What the objective checks."""
        self.objective.check_branches(views)

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Attach the objective."""
        self.objective.attach(views, samples)

    def online_views(self, views: Iterable[str]) -> list[str]:
        """Those of the objective."""
        return self.objective.online_views(views)

    def target_views(self, views: Iterable[str]) -> list[str]:
        """Those of the objective."""
        return self.objective.target_views(views)

    def momentum(self, progress: float) -> float:
        """That of the objective."""
        return self.objective.momentum(progress)

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Pass the hook on."""
        self.objective.start_epoch(epoch, embed)

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Pass the hook on."""
        self.objective.before_step(batch)

    def end_step(self, progress: float) -> None:
        """Pass the hook on."""
        self.objective.end_step(progress)

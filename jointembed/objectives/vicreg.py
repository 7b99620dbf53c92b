"""VICReg: variance, invariance, covariance. Bardes, Ponce, LeCun, ICLR 2022."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding, Norm
from jointembed.objectives.objective import Objective, Pairs, ViewShape, check_pair, check_pairs, make_predictor, paired
from jointembed.objectives.statistics import squared_distance, variance_and_covariance, wide

Convention = Literal["official", "paper"]
Coefficients = float | Sequence[float] | Mapping[str, float]


def vicreg_loss(
    a: Tensor,
    b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float | Sequence[float] = 25.0,
    covariance: float | Sequence[float] = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: Convention = "official",
) -> dict[str, Tensor]:
    """VICReg's loss of two branches: lambda s(a, b) + mu v + nu c, of the global batch.

    With v_k = (1/D) sum_j max(0, gamma - sqrt(Var_j + eps)) and c_k = (1/D) sum_{i != j} C_ij^2 of branch k, unbiased:
    * `official`, their code: s is the mean over N and D of (a - b)^2, v the mean and c the sum over branches.
    * `paper`, eq. 1-6: s is the mean over N of ||a - b||^2, v and c are sums over branches.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        invariance: lambda.
        variance: mu, one for both branches or one for each: mu v becomes mu_a v_a + mu_b v_b, halved in `official`.
        covariance: nu, one for both branches or one for each.
        gamma: target standard deviation.
        eps: added to the variance.
        convention: whose sums and means.

    Returns:
        `loss`; unweighted, detached: `invariance`, `variance`, `covariance`, and of each branch `variance/a` (v_a) ...

    Raises:
        BatchError: (a ValueError) if the shapes differ or the global batch has fewer than two rows.
    """
    check_pair(a, b)
    a, b = wide(a), wide(b)
    return _terms({"a": a, "b": b}, [(a, b)], (invariance, variance, covariance), (gamma, eps), convention)


def _of_views(value: Coefficients, views: Sequence[str]) -> dict[str, float]:
    if isinstance(value, int | float):
        return dict.fromkeys(views, float(value))
    if len(value) != len(views):
        raise ValueError(f"one coefficient, or one for each of {len(views)} branches expected, found {len(value)}")
    return dict(value) if isinstance(value, Mapping) else dict(zip(views, value, strict=True))


def _terms(
    views: Mapping[str, Tensor],
    pairs: Iterable[tuple[Tensor, Tensor]],
    coefficients: tuple[float, Coefficients, Coefficients],
    hinge: tuple[float, float],
    convention: Convention,
) -> dict[str, Tensor]:
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be official or paper, found {convention!r}")
    invariance, (variance, covariance) = coefficients[0], (_of_views(value, list(views)) for value in coefficients[1:])
    official = convention == "official"
    v_share, c_share = (1 if official else 2) / len(views), 2 / len(views)
    distances = [(squared_distance(q, z), 1 / z.shape[1] if official else 1.0) for q, z in pairs]
    spreads = [variance_and_covariance(z, *hinge) for z in views.values()]
    terms = torch.stack([*(s for s, _ in distances), *(v for v, _ in spreads), *(c for _, c in spreads)])
    shares = [share / len(distances) for _, share in distances]
    weights = [invariance * share for share in shares]
    weights += [v_share * variance[view] for view in views] + [c_share * covariance[view] for view in views]
    of_pairs, of_variance, of_covariance = terms.detach().split([len(distances), len(views), len(views)])
    return {
        "loss": (terms * terms.new_tensor(weights)).sum(),  # not @, which autocast would round
        "invariance": (of_pairs * of_pairs.new_tensor(shares)).sum(),
        "variance": v_share * of_variance.sum(),
        "covariance": c_share * of_covariance.sum(),
        **{f"variance/{view}": v for view, v in zip(views, of_variance.unbind(), strict=True)},
        **{f"covariance/{view}": c for view, c in zip(views, of_covariance.unbind(), strict=True)},
    }


class VICReg(Objective):
    """VICReg of any number B of views, which may or may not share a branch.

    With two views this is `vicreg_loss`. s is the mean over `pairs` of views (None: all; `a+b` is the mean of views a
    and b), v the mean over views (paper: twice that), c twice that mean; v and c have one coefficient or one for each.
    `predictor` has the hidden widths of an MLP q: s is the mean of s(q(a), b) and s(a, q(b)), no gradient is stopped.
    """

    remedies = ("raise objective.variance or lower objective.invariance", "raise objective.covariance")

    def __init__(
        self,
        *,
        invariance: float = 25.0,
        variance: float | dict[str, float] = 25.0,
        covariance: float | dict[str, float] = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
        convention: Convention = "official",
        pairs: Pairs | None = None,
        predictor: list[int] | None = None,
        predictor_norm: Norm = "batch",
    ) -> None:
        """See the class. Raises RecipeError if `pairs` is empty or holds anything but pairs of different views."""
        super().__init__()
        check_pairs(pairs, "objective.pairs")
        self.invariance, self.variance, self.covariance, self.hinge = invariance, variance, covariance, (gamma, eps)
        self.convention, self.pairs, self.hidden, self.predictor_norm = convention, pairs, predictor, predictor_norm
        self.predictor: nn.Module | None = None

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if there are fewer than two views, or a name given here is none of them."""
        names = list(views)
        if len(names) < 2:
            raise RecipeError(f"objective: VICReg compares 2 views or more, found {', '.join(names) or 'none'}")
        for key, value in (("variance", self.variance), ("covariance", self.covariance)):
            if isinstance(value, dict) and set(value) != set(names):
                raise RecipeError(f"objective.{key}: one number for each of {names} expected, found {sorted(value)}")
        check_pairs(self.pairs, "objective.pairs", names)

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the predictor, one for all views."""
        self.predictor = None if self.hidden is None else make_predictor(views, self.hidden, self.predictor_norm)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `vicreg_loss`, those of a branch under the names of the views."""
        self.check_views(online)
        z = {view: wide(embedding.z) for view, embedding in online.items()}
        q = z if self.predictor is None else {view: self.predictor(rows) for view, rows in z.items()}
        pairs = paired(z, self.pairs) if q is z else paired(q, self.pairs, z) + paired(z, self.pairs, q)
        return _terms(z, pairs, (self.invariance, self.variance, self.covariance), self.hinge, self.convention)

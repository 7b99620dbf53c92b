"""VICRegL: VICReg of pictures, and of matched places in their maps. Bardes, Ponce, LeCun, NeurIPS 2022."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import MLP, Embedding, Norm
from jointembed.objectives.matching import nearest, positions, take, variance_and_covariance_of_places
from jointembed.objectives.objective import PairObjective, ViewShape, check_pair
from jointembed.objectives.statistics import BatchError, full_precision, squared_distance, variance_and_covariance

Coefficients = tuple[float, float, float]  # lambda, mu, nu


def local_loss(
    a: Tensor,
    b: Tensor,
    at_a: Tensor,
    at_b: Tensor,
    *,
    matches: int = 20,
    feature_matches: int | None = None,
    coefficients: Coefficients = (25.0, 25.0, 1.0),
) -> dict[str, Tensor]:
    """VICReg between matched places, by location and by feature, each from a to b and from b to a (section 3.2).

    The m-th matches of all pictures are one batch; the criterion of a batch is that of `vicreg_loss` (`official`) with
    half its nu, and its mean over m is taken. Both directions are averaged, location and feature added.

    Args:
        a: (N, P, D) local embeddings of one view.
        b: (N, Q, D) of the other.
        at_a: (N, P, 2) where they lie in the original picture.
        at_b: (N, Q, 2).
        matches: M by location, the gamma nearest.
        feature_matches: M by feature; None for all.
        coefficients: lambda, mu, nu.

    Returns:
        `loss`, and detached its two parts `location` and `feature`.

    Raises:
        BatchError: (a ValueError) if the global batch has fewer than two pictures.
    """
    with full_precision(a):
        a, b = (z if z.dtype == torch.float64 else z.float() for z in (a, b))
        parts = []
        for key_a, key_b, most in ((at_a, at_b, matches), (a, b, feature_matches)):
            of_a, in_b = nearest(key_a, key_b, most)
            of_b, in_a = nearest(key_b, key_a, most)
            forth = _criterion(take(a, of_a), take(b, in_b), coefficients)
            back = _criterion(take(b, of_b), take(a, in_a), coefficients)
            parts.append((forth + back) / 2)
    return {"loss": parts[0] + parts[1], "location": parts[0].detach(), "feature": parts[1].detach()}


def _criterion(a: Tensor, b: Tensor, coefficients: Coefficients) -> Tensor:
    """Of pictures (N, D), or of places (N, M, D)."""
    check_pair(a.flatten(0, -2), b.flatten(0, -2))
    statistics = variance_and_covariance if a.ndim == 2 else variance_and_covariance_of_places
    s = squared_distance(a.flatten(0, -2), b.flatten(0, -2)) / a.shape[-1]
    (v_a, c_a), (v_b, c_b) = statistics(a), statistics(b)
    invariance, variance, covariance = coefficients
    return invariance * s + variance * (v_a + v_b) / 2 + covariance * (c_a + c_b) / 2


class VICRegL(PairObjective):
    """VICRegL of two views: alpha * VICReg of z + (1 - alpha) * `local_loss` of projected maps.

    The view pipeline tells where its crops lie (`boxes: true`). Every branch has a local projector of its own.

    Args:
        alpha: weight of pictures against places.
        matches: by location, of a pair of views and a direction.
        feature_matches: by feature; None for every place.
        projector: widths of the MLP on places.
        norm: in the projector.
        invariance: lambda.
        variance: mu.
        covariance: nu.
    """

    needs = frozenset({"maps"})
    remedies = ("raise objective.variance or lower objective.invariance", "raise objective.covariance")
    projectors: nn.ModuleDict

    def __init__(
        self,
        *,
        alpha: float = 0.75,
        matches: int = 20,
        feature_matches: int | None = None,
        projector: tuple[int, ...] = (512, 512, 512),
        norm: Norm = "batch",
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        """See the class. Raises RecipeError if alpha is out of range, or there is nothing to match or project."""
        super().__init__()
        if not 0 <= alpha < 1 or min(matches, 1 if feature_matches is None else feature_matches) < 1 or not projector:
            raise RecipeError(
                "objective: alpha must be at least 0 and below 1, matches at least 1 and projector not empty, "
                f"found {alpha}, {matches}, {feature_matches} and {list(projector)}"
            )
        self.alpha, self.widths, self.norm = alpha, list(projector), norm
        self.coefficients = (invariance, variance, covariance)
        self.options: dict[str, Any] = {"matches": matches, "feature_matches": feature_matches}

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the local projectors, for maps as wide as h."""
        self.branch = {view: shape.branch for view, shape in views.items()}
        self.projectors = nn.ModuleDict(
            {shape.branch: MLP(shape.h, widths=self.widths, norm=self.norm) for shape in views.values()}
        )

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Keep where the crops of the batch lie. Raises RecipeError if the views come without."""
        missing = [f"{view}_box" for view in self.branch if f"{view}_box" not in batch]
        if missing:
            raise RecipeError(f"data.image: VICRegL needs {missing[0]!r} of every picture; set boxes: true")
        self.boxes = {view: batch[f"{view}_box"] for view in self.branch}

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, and its parts `global`, `location` and `feature`."""
        whole = _criterion(*self.pair(online), self.coefficients)
        (a, at_a), (b, at_b) = (self._places(view, embedding) for view, embedding in online.items())
        local = local_loss(a, b, at_a, at_b, coefficients=self.coefficients, **self.options)
        loss = self.alpha * whole + (1 - self.alpha) * local.pop("loss")
        return {"loss": loss, "global": whole.detach()} | local

    def _places(self, view: str, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Projected places of a view, (N, P, D), and where they lie, (N, P, 2)."""
        projector, maps = self.projectors[self.branch[view]], embedding.maps
        if maps is None or maps.shape[1] != embedding.h.shape[1]:
            found = "none" if maps is None else f"{tuple(maps.shape)}"
            raise BatchError(f"VICRegL needs maps (N, {embedding.h.shape[1]}, H, W) of view {view!r}, found {found}")
        cells = maps.flatten(2).mT
        z = projector(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
        return z, positions(self.boxes[view].to(maps.device).float(), *maps.shape[2:])

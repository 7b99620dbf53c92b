"""SIGReg, the objective of LeJEPA: embeddings of an isotropic Gaussian. Balestriero, LeCun, arXiv 2511.08544, 2025."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jointembed.distributed import row_counts, sum_over_ranks, world
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import Objective, ViewShape, check_pair, embedding_width
from jointembed.objectives.statistics import batch_mean, full_precision, wide


def directions(width: int, slices: int, seed: int) -> Tensor:
    """Random unit columns (D, M), the same on every rank."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return functional.normalize(torch.randn(width, slices, generator=generator, device="cpu"), dim=0)


class _CharacteristicSums(torch.autograd.Function):
    """Sums over the global batch of cos(k step x) and sin(k step x), k = 0 .. knots - 1, as (knots, 2, M).

    From powers of exp(i step x): one cosine and one sine an entry, and nothing of size knots * n * M is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, knots: int) -> Tensor:
        ctx.step, turn = step, torch.polar(torch.ones_like(x), step * x)
        ctx.save_for_backward(turn)
        power, sums = torch.ones_like(turn), []
        for _ in range(knots):
            sums.append(torch.view_as_real(power.sum(0)).T)
            power = power * turn
        return sum_over_ranks(torch.stack(sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        turn = ctx.saved_tensors[0]
        power, gradient = torch.ones_like(turn), torch.zeros_like(turn.real)
        for k, (of_cosine, of_sine) in enumerate(gradients[0]):
            gradient += (k * ctx.step) * (power.real * of_sine - power.imag * of_cosine)
            power = power * turn
        return gradient * world(), None, None


def epps_pulley(x: Tensor, *, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """Distance of each column from N(0, 1): N times the integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt.

    phi_N(t) is the mean over the global batch of exp(i t x). The trapezoidal rule over -t_max .. t_max, with `knots`
    points in 0 .. t_max, as in the authors' code; their paper's listing is t_max 5, knots 9. (n, M) to (M,).

    Args:
        x: (n, M) this rank's rows.
        t_max: where the integral ends.
        knots: at least 2.
    """
    with full_precision(x):
        x = wide(x)
        size, step = sum(row_counts(x)), t_max / (knots - 1)
        means = _CharacteristicSums.apply(x, step, knots) / size
        gaussian = torch.exp(-0.5 * (step * torch.arange(knots, dtype=x.dtype, device=x.device)).square())
        weight = 2 * step * gaussian
        weight[[0, -1]] /= 2
        error = (means[:, 0] - gaussian[:, None]).square() + means[:, 1].square()
        return size * (weight @ error)


def lejepa_loss(
    views: Mapping[str, Tensor], projection: Tensor, *, centres: Iterable[str], weight: float = 0.05, **options: Any
) -> dict[str, Tensor]:
    """(1 - weight) * prediction + weight * SIGReg.

    prediction is the mean over views, N and D of (z - mu)^2, mu the mean of a sample's embeddings over the views
    `centres`; SIGReg is the mean over views and directions of `epps_pulley`.

    Args:
        views: (N, D) embeddings of each view.
        projection: (D, M) unit directions.
        centres: the global views, by name.
        weight: lambda.
        **options: of `epps_pulley`.

    Returns:
        `loss`, and unweighted, detached, `prediction` and `sigreg`.
    """
    (first, a), *rest = views.items()
    for view, z in rest:
        check_pair(a, z, (first, view))
    with full_precision(a):
        full = {view: wide(z) for view, z in views.items()}
        every, centre = torch.stack(list(full.values())), torch.stack([full[view] for view in centres]).mean(0)
        prediction = batch_mean((every - centre).square().mean((0, 2)))
        sigreg = torch.stack([epps_pulley(z @ projection.to(z), **options).mean() for z in every]).mean()
    loss = (1 - weight) * prediction + weight * sigreg
    return {"loss": loss, "prediction": prediction.detach(), "sigreg": sigreg.detach()}


class SIGReg(Objective):
    """LeJEPA of two views or more; views named `crop1`, `crop2`, ... are local ones, which no centre is made of.

    Args:
        weight: lambda.
        slices: M directions, drawn anew in each step.
        t_max, knots: of `epps_pulley`.
    """

    step: Tensor  # () int64, steps begun

    def __init__(self, *, weight: float = 0.05, slices: int = 1024, t_max: float = 3.0, knots: int = 17) -> None:
        """See the class. Raises RecipeError for a weight outside 0 .. 1, or fewer than 2 knots."""
        super().__init__()
        if not 0 <= weight <= 1 or knots < 2:
            raise RecipeError(f"objective: weight within 0 and 1 and 2 knots or more expected, found {weight}, {knots}")
        self.slices, self.options = slices, {"weight": weight, "t_max": t_max, "knots": knots}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if there are fewer than two views, or local ones alone."""
        names = list(views)
        if len(names) < 2 or all(name.startswith("crop") for name in names):
            raise RecipeError(f"objective: SIGReg needs 2 views or more, not crops alone; found {', '.join(names)}")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Raise RecipeError unless all embeddings have one width."""
        embedding_width(views)

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Count the step."""
        self.step += 1

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `lejepa_loss`."""
        self.check_views(online)
        views = {view: embedding.z for view, embedding in online.items()}
        projection = directions(next(iter(views.values())).shape[-1], self.slices, int(self.step))
        centres = [view for view in views if not view.startswith("crop")]
        return lejepa_loss(views, projection, centres=centres, **self.options)

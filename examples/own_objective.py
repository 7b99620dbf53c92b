"""An objective of one's own: alignment and uniformity on the sphere (Wang and Isola, ICML 2020, equations 1 and 2)."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jointembed import build, runs
from jointembed.layers import Embedding
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.objective import PairObjective
from jointembed.objectives.statistics import cosine_scores, full_precision
from jointembed.recipe import load_recipe


def alignment_uniformity_loss(
    a: Tensor, b: Tensor, *, uniformity: float = 1.0, t: float = 2.0, item: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean squared distance of partners, and the logarithm of the mean Gaussian potential of all other pairs.

    `cosine_scores` gathers the rows of all processes with their gradient, so N is that of the global batch, and a
    squared distance on the sphere is 2 - 2 cos.

    Args:
        a: (N, D) embeddings of one view.
        b: (N, D) of the other.
        uniformity: weight of the second term.
        t: width of the potential.
        item: (N,) numbers; rows with equal ones show the same thing and are not pushed apart.
    """
    with full_precision(a):
        scores, _ = cosine_scores(a, b, item)
        alignment = (2 - 2 * scores.diagonal()).mean()
        spread = torch.stack([_potential(one, t, item) for one in (a, b)]).mean()
    return {"loss": alignment + uniformity * spread, "alignment": alignment.detach(), "uniformity": spread.detach()}


def _potential(z: Tensor, t: float, item: Tensor | None) -> Tensor:
    scores, same = cosine_scores(z, z, item)
    return (-t * (2 - 2 * scores[~same])).exp().mean().log()


class AlignmentUniformity(PairObjective):
    """The loss as a recipe may name it: keyword-only arguments are what a recipe may set."""

    def __init__(self, *, uniformity: float = 1.0, t: float = 2.0) -> None:
        """See the function."""
        super().__init__()
        self.uniformity, self.t = uniformity, t

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of a batch."""
        a, b = self.pair(online)
        return alignment_uniformity_loss(a, b, uniformity=self.uniformity, t=self.t, item=item)


if __name__ == "__main__":
    OBJECTIVES["alignment_uniformity"] = AlignmentUniformity
    overrides = ["name=aligned", "objective={name: alignment_uniformity, uniformity: 0.5}", *sys.argv[1:]]
    runs.train(build.check(load_recipe("recipes/quickstart.yaml", overrides)), Path("runs/aligned"), overwrite=True)

"""CLIP's symmetric InfoNCE. Radford et al., ICML 2021; van den Oord, Li, Vinyals, 2018."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, check_pair, named
from jointembed.objectives.statistics import cosine_scores, full_precision


def clip_loss(
    a: Tensor, b: Tensor, *, temperature: float | Tensor = 0.07, item: Tensor | None = None
) -> dict[str, Tensor]:
    """Cross-entropy of picking the own partner among the global batch, mean of both directions.

    With s_ij = cos(a_i, b_j) / temperature: a_to_b is the mean over i of -log softmax_j(s_i)_i, b_to_a the same over
    columns. Another row of the same item is neither negative nor positive: it is left out of the softmax, so each row
    has exactly one positive, its own partner.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        temperature: a number, or a scalar tensor that may be learned.
        item: (N,) numbers; rows with equal ones are never negatives of one another.

    Returns:
        `loss`, and detached its two parts `a_to_b` and `b_to_a`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(a, b)
    with full_precision(a):
        scores, same = cosine_scores(a, b, item)
        target = torch.arange(len(scores), device=scores.device)
        others = same & (target[:, None] != target[None, :])
        logits = (scores / temperature).masked_fill(others, -math.inf)
        a_to_b, b_to_a = functional.cross_entropy(logits, target), functional.cross_entropy(logits.T, target)
    return {"loss": (a_to_b + b_to_a) / 2, "a_to_b": a_to_b.detach(), "b_to_a": b_to_a.detach()}


class CLIP(PairObjective):
    """InfoNCE of two views.

    Args:
        temperature: that divides the cosines; where learned, its start.
        learn_temperature: learn the logarithm of 1 / temperature.
        max_scale: limit of a learned 1 / temperature.
    """

    def __init__(self, *, temperature: float = 0.07, learn_temperature: bool = False, max_scale: float = 100.0) -> None:
        """See the class. Raises RecipeError if temperature or max_scale is not positive."""
        super().__init__()
        if min(temperature, max_scale) <= 0:
            raise RecipeError(
                f"objective: temperature and max_scale must be positive, found {temperature} and {max_scale}"
            )
        self.temperature = None if learn_temperature else temperature  # no coefficient of a ramp where it is learned
        self.log_limit = math.log(max_scale)
        start = min(-math.log(temperature), self.log_limit)
        self.log_scale = nn.Parameter(torch.tensor([start])) if learn_temperature else None  # shards take no scalar

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `clip_loss` with the names of the views, and `temperature` where it is learned."""
        a, b = self.pair(online)
        if self.log_scale is None:
            assert self.temperature is not None
            return named(clip_loss(a, b, temperature=self.temperature, item=item), online)
        temperature = torch.exp(-self.log_scale).squeeze(0)
        terms = named(clip_loss(a, b, temperature=temperature, item=item), online)
        return terms | {"temperature": temperature.detach()}

    def end_step(self, progress: float) -> None:
        """Keep the limit, on the parameter itself: past a limit inside the graph its gradient would be 0 for good."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=self.log_limit)

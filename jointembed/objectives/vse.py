"""VSE++: hinge on the hardest negative. Faghri, Fleet, Kiros, Fidler, BMVC 2018."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, check_pair, named
from jointembed.objectives.statistics import cosine_scores, full_precision


def vse_loss(
    a: Tensor, b: Tensor, *, margin: float = 0.2, hardest: bool = True, item: Tensor | None = None
) -> dict[str, Tensor]:
    """Hinge loss of cosines in both directions, summed (not averaged) over the global batch.

    With s_ij = cos(a_i, b_j): a_to_b is the sum over i of max_j max(0, margin + s_ij - s_ii), b_to_a the sum over j of
    max_i max(0, margin + s_ij - s_jj), over negatives alone (eq. 6); without `hardest` the sum replaces max_j and max_i
    (eq. 5). Collapsed embeddings score 2 N margin.

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        margin: of the hinge.
        hardest: the hardest negative of each row, or all of them.
        item: (N,) numbers; rows with equal ones are never negatives of one another.

    Returns:
        `loss`, and detached its two parts `a_to_b` and `b_to_a`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(a, b)
    with full_precision(a):
        scores, same = cosine_scores(a, b, item)
        own = scores.diagonal()
        parts = []
        for anchor, dim in ((own[:, None], 1), (own[None, :], 0)):
            cost = functional.relu(margin + scores - anchor).masked_fill(same, 0.0)
            parts.append(cost.amax(dim).sum() if hardest else cost.sum())
    return {"loss": parts[0] + parts[1], "a_to_b": parts[0].detach(), "b_to_a": parts[1].detach()}


class VSE(PairObjective):
    """VSE++ of two views.

    Args:
        margin: of the hinge.
        hardest: the hardest negative of each row (VSE++), or the sum over all negatives (VSE0).
        warmup_steps: with `hardest`, steps at the start that use the sum: the hardest negative from the first step on
            is prone to stay at its plateau 2 N margin.
    """

    step: Tensor  # () int64, steps begun

    def __init__(self, *, margin: float = 0.2, hardest: bool = True, warmup_steps: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.margin, self.hardest, self.warmup_steps = margin, hardest, warmup_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

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
        """Terms of `vse_loss`, with the names of the views."""
        a, b = self.pair(online)
        warming = self.warmup_steps > 0 and int(self.step) <= self.warmup_steps
        return named(vse_loss(a, b, margin=self.margin, hardest=self.hardest and not warming, item=item), online)

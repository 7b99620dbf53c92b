"""SigLIP's pairwise sigmoid loss. Zhai, Mustafa, Kolesnikov, Beyer, ICCV 2023."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, check_pair
from jointembed.objectives.statistics import cosine_scores, full_precision


def siglip_loss(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    item: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every pair of the global batch as one question, same or not: -(1/N) sum_ij log sigmoid(y_ij x_ij).

    x_ij = cos(a_i, b_j) / temperature + bias; y_ij is 1 for the own partner and for every row of the same item, -1
    elsewhere (algorithm 1).

    Args:
        a: (N, D) embeddings of one branch.
        b: (N, D) embeddings of the other.
        temperature: a number, or a scalar tensor that may be learned.
        bias: the same; it starts low because nearly all pairs are negative.
        item: (N,) numbers; rows with equal ones are positives of one another.

    Returns:
        `loss`, and detached its two parts `positive` and `negative`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(a, b)
    with full_precision(a):
        scores, same = cosine_scores(a, b, item)
        logits = scores / temperature + bias
        positive = functional.softplus(-logits).masked_fill(~same, 0.0).sum() / len(scores)
        negative = functional.softplus(logits).masked_fill(same, 0.0).sum() / len(scores)
    return {"loss": positive + negative, "positive": positive.detach(), "negative": negative.detach()}


class SigLIP(PairObjective):
    """SigLIP of two views; temperature and bias are learned.

    Args:
        temperature: start of the temperature.
        bias: start of the bias.
    """

    def __init__(self, *, temperature: float = 0.1, bias: float = -10.0) -> None:
        """See the class. Raises RecipeError if the temperature is not positive."""
        super().__init__()
        if temperature <= 0:
            raise RecipeError(f"objective.temperature: a positive number expected, found {temperature}")
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # a scalar cannot be put in shards
        self.bias = nn.Parameter(torch.tensor([bias]))

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `siglip_loss`, and the learned `temperature` and `bias`."""
        a, b = self.pair(online)
        temperature, bias = torch.exp(-self.log_scale).squeeze(0), self.bias.squeeze(0)
        terms = siglip_loss(a, b, temperature=temperature, bias=bias, item=item)
        return terms | {"temperature": temperature.detach(), "bias": bias.detach().clone()}

"""Contrastive multiview coding: each view against a memory of the other. Tian, Krishnan, Isola, ECCV 2020."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from jointembed.distributed import gather_without_grad
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.contrast import Partition, info_nce, nce, scores
from jointembed.objectives.memory import Bank
from jointembed.objectives.objective import PairObjective, ViewShape, embedding_width, named
from jointembed.objectives.statistics import BatchError

Loss = Literal["nce", "infonce"]


def cmc_loss(
    a: Tensor,
    b: Tensor,
    memories: tuple[Tensor, Tensor],
    negatives: tuple[Tensor, Tensor],
    *,
    temperature: float = 0.07,
    left_out: Tensor | None = None,
    partitions: Sequence[Partition] | None = None,
) -> dict[str, Tensor]:
    """L(a, memory of b) + L(b, memory of a) (eq. 5), by the cosine over the temperature.

    L is InfoNCE with the memory's row of the same sample as the positive (eq. 3); or, with `partitions`, its
    approximation by NCE (eq. 12), see `contrast.nce`.

    Args:
        a: (N, D) embeddings of one view.
        b: (N, D) of the other.
        memories: (N, D) rows of the same samples in the memory of a, and in that of b.
        negatives: (K, D) rows of other samples in the memory of a, and in that of b.
        temperature: tau.
        left_out: (N, K) bool, true where a negative is the sample itself.
        partitions: of the scores of a and of b; None for InfoNCE.

    Returns:
        `loss`, and detached its two parts `a_to_b` and `b_to_a`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    found = (
        scores(a, memories[1], negatives[1], temperature, left_out),
        scores(b, memories[0], negatives[0], temperature, left_out),
    )
    if partitions is None:
        a_to_b, b_to_a = (info_nce(one) for one in found)
    else:
        a_to_b, b_to_a = (nce(one, partition(one.negative)) for one, partition in zip(found, partitions, strict=True))
    return {"loss": a_to_b + b_to_a, "a_to_b": a_to_b.detach(), "b_to_a": b_to_a.detach()}


class CMC(PairObjective):
    """CMC of two views, luminance and chroma in the paper, each with a memory of every sample.

    Args:
        loss: `nce` or `infonce`.
        negatives: drawn from each memory in a step, the same samples for the whole batch.
        temperature: tau.
        momentum: of the memories.
    """

    banks: nn.ModuleList
    items: Tensor  # (samples,) int64 picture of each sample, no negative of its own; -1 until it was seen

    def __init__(
        self, *, loss: Loss = "nce", negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        """See the class. Raises RecipeError for an unknown loss or a number out of range."""
        super().__init__()
        if loss not in get_args(Loss):
            raise RecipeError(f"objective.loss: must be nce or infonce, found {loss!r}")
        if min(temperature, negatives) <= 0 or not 0 <= momentum < 1:
            raise RecipeError(
                "objective: temperature and negatives must be positive, momentum at least 0 and below 1, "
                f"found {temperature}, {negatives} and {momentum}"
            )
        self._held: tuple[Tensor, Tensor] | None = None
        self.negatives, self.temperature, self.momentum_of_bank = negatives, temperature, momentum
        self.partitions = nn.ModuleList([Partition(), Partition()] if loss == "nce" else [])

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the memories. Raises RecipeError if the embeddings differ in width."""
        width = embedding_width(views)
        self.banks = nn.ModuleList([Bank(samples, width, momentum=self.momentum_of_bank) for _ in views])
        self.register_buffer("items", torch.full((samples,), -1))

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `cmc_loss` by the names of the views."""
        a, b = self.pair(online)
        if index is None:
            raise BatchError("CMC needs the numbers of the samples (index)")
        item = index if item is None else item
        self._held = index, item
        first, second = cast(list[Bank], self.banks)
        drawn = first.draw(self.negatives)
        first.hold(index, a)
        second.hold(index, b)
        terms = cmc_loss(
            a,
            b,
            (first.rows[index], second.rows[index]),
            (first.rows[drawn], second.rows[drawn]),
            temperature=self.temperature,
            left_out=(drawn == index[:, None]) | (self.items[drawn] == item[:, None]),
            partitions=cast(list[Partition], self.partitions) or None,
        )
        return named(terms, online)

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Begin anew where the first step was left out."""
        for partition in cast(list[Partition], self.partitions):
            partition.drop()

    def end_step(self, progress: float) -> None:
        """Move the memories."""
        for part in cast(list[Bank | Partition], [*self.banks, *self.partitions]):
            part.commit()
        if self._held is not None:
            index, item = (gather_without_grad(numbers) for numbers in self._held)
            self.items[index] = item
            self._held = None

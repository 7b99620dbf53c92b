"""What an objective is to the model and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.statistics import BatchError


class Objective(nn.Module, ABC):
    """Turns the embeddings of a batch into named scalars, one of them `loss`.

    `needs` names what the model must provide besides embeddings (`target`, `maps`, ...).
    """

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of a batch.

        Args:
            online: view -> embedding, `z` of (N, D).
            target: the same of the EMA branches, for objectives that need them.
            index: (N,) number of the sample.
            item: (N,) number of the picture; equal items are never negatives of one another.
            label: (N,) class, for supervised objectives alone.

        Returns:
            `loss`, and other terms, detached; scalars of the global batch.
        """

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if the objective cannot be trained on these views."""

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Hook of the loop, before the forward pass of a step."""

    def end_step(self, progress: float) -> None:
        """Hook of the loop, after the optimizer's step; `progress` is the share of the run that is done, 0 .. 1."""


class PairObjective(Objective):
    """An objective of exactly two views."""

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError unless there are two views."""
        names = list(views)
        if len(names) != 2:
            raise RecipeError(
                f"objective: {type(self).__name__} compares exactly 2 views, found {len(names)} ({', '.join(names)})"
            )

    def pair(self, online: Mapping[str, Embedding]) -> tuple[Tensor, Tensor]:
        """The embeddings of both views, (N, D) each."""
        self.check_views(online)
        first, second = (embedding.z for embedding in online.values())
        return first, second


def check_pair(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> None:
    """Raise BatchError (a ValueError) unless both are (N, D) of the same N and D."""
    if a.ndim != 2 or a.shape != b.shape:
        found = f"{names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)}"
        raise BatchError(f"two embeddings must be (N, D) of the same N and D, found {found}")


def named(terms: dict[str, Tensor], online: Mapping[str, Embedding]) -> dict[str, Tensor]:
    """Terms of a pure function with the names of the two views in the place of a and b."""
    first, second = online
    renamed = {"a_to_b": f"{first}_to_{second}", "b_to_a": f"{second}_to_{first}"}
    return {renamed.get(name, name): term for name, term in terms.items()}

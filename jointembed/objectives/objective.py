"""What an objective is to the model and the loop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import MLP, Embedding, Norm
from jointembed.objectives.statistics import BatchError


class ViewShape(NamedTuple):
    """What an objective is told of a view before training: its branch, and the widths of `h` and `z`."""

    branch: str
    h: int
    z: int


@dataclass(frozen=True)
class EpochEmbeddings:
    """This rank's part of the training set, embedded in evaluation mode for `start_epoch`."""

    index: Tensor  # (n,) int64 number of the sample
    h: Tensor  # (n, R) float32
    z: Tensor  # (n, D) float32


Embed = Callable[[], EpochEmbeddings]


class Objective(nn.Module, ABC):
    """Turns the embeddings of a batch into named scalars, one of them `loss`.

    What an objective owns (predictor, prototypes, queue, bank) is made in `attach`: parameters are trained with the
    branches, buffers go into the checkpoint and must stay equal on all ranks.

    Attributes:
        needs: what the model must provide besides embeddings: `target` (EMA copies of the branches), `shuffle` (rows
            are shuffled over the ranks on their way through the target), `maps` and `target_maps`, `label`.
        couples_samples: whether the loss of a sample depends on the other samples of the batch.
        constant_lr: paths of its own modules whose learning rate stays at its peak.
        remedies: what to do where a view's embeddings collapse to a point, and to a line.
    """

    needs: frozenset[str] = frozenset()
    couples_samples: bool = True
    constant_lr: tuple[str, ...] = ()
    remedies: tuple[str, str] = (
        "lower the learning rate, or add regularize: {variance: 1, covariance: 0.01}",
        "add regularize: {variance: 1, covariance: 0.01}, or lower the learning rate",
    )

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
            target: the same of the EMA branches, without gradient, for objectives that need them.
            index: (N,) number of the sample.
            item: (N,) number of the picture; equal items are never negatives of one another.
            label: (N,) class, for supervised objectives alone.

        Returns:
            `loss`, and other terms, detached; scalars of the global batch.
        """

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if the objective cannot be trained on these views."""

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError, with the reason, if it cannot be trained with this view -> branch mapping."""

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make what depends on the branches and on the number of training samples; called once, before training."""

    def online_views(self, views: Iterable[str]) -> list[str]:
        """Views that go through the branches with gradient; all of them by default."""
        return list(views)

    def target_views(self, views: Iterable[str]) -> list[str]:
        """Views that go through the EMA branches; by default all of them where `target` is needed."""
        return list(views) if "target" in self.needs else []

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA target when `progress` of the run, 0 .. 1, is done."""
        return 1.0

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Hook of the loop before the first step of an epoch; `embed` goes over the training set (k-means)."""

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Hook of the loop, before the forward pass of a step."""

    def end_step(self, progress: float) -> None:
        """Hook of the loop, after the optimizer's step; `progress` is the share of the run that is done, 0 .. 1."""


def rising_momentum(first: float, progress: float) -> float:
    """Momentum that rises from `first` to 1 on a half cosine of the run's progress, 0 .. 1 (BYOL, section 3.3)."""
    return 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2


def check_shared(views: Mapping[str, str], name: str, reason: str) -> None:
    """Raise RecipeError unless all views go through one branch: `name` cannot do otherwise for `reason`."""
    if len(set(views.values())) > 1:
        found = ", ".join(f"{view}: {branch}" for view, branch in views.items())
        raise RecipeError(f"objective: {name} needs one branch for all views ({reason}), found {found}")


def embedding_width(views: Mapping[str, ViewShape]) -> int:
    """D of all views. Raises RecipeError where they differ: no predictor or queue could serve them all."""
    widths = {view: shape.z for view, shape in views.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{view} {width}" for view, width in widths.items())
        raise RecipeError(f"objective: all views must have embeddings of one width, found {found}")
    return next(iter(widths.values()))


def make_predictor(
    views: Mapping[str, ViewShape], hidden: list[int] | None, norm: Norm, *, bias_last: bool = False
) -> nn.Module:
    """An MLP from the embeddings to their own width through these hidden layers, for all views; None: the identity."""
    width = embedding_width(views)
    return nn.Identity() if hidden is None else MLP(width, widths=[*hidden, width], norm=norm, bias_last=bias_last)


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


Pairs = list[list[str]]  # of views; `a+b` is the mean of the views a and b


def check_pairs(pairs: Pairs | None, key: str, views: Iterable[str] | None = None) -> None:
    """Raise RecipeError unless these are pairs of different views, and, where `views` are given, of these."""
    if pairs is None:
        return
    if not pairs or any(len(pair) != 2 or pair[0] == pair[1] for pair in pairs):
        raise RecipeError(f"{key}: a list of pairs of different views expected, found {pairs}")
    names = None if views is None else list(views)
    for view in {view for pair in pairs for one in pair for view in one.split("+")}.difference(names or ()):
        if names is not None:
            raise RecipeError(f"{key}: no view {view!r}; the views are {', '.join(names)}")


def paired(
    first: Mapping[str, Tensor], pairs: Pairs | None, second: Mapping[str, Tensor] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Embeddings (N, D) of pairs of views, None being all: of the one from `first`, of the other from `second`.

    Raises:
        BatchError: (a ValueError) if the shapes of a pair differ.
    """
    others = first if second is None else second
    found = []
    for a, b in pairs or combinations(first, 2):
        found.append((of_view(first, a), of_view(others, b)))
        check_pair(*found[-1], (a, b))
    return found


def of_view(rows: Mapping[str, Tensor], name: str) -> Tensor:
    """Embeddings (N, D) of a view, or the mean of those of several joined by `+`."""
    parts = [rows[view] for view in name.split("+")]
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def named(terms: dict[str, Tensor], online: Mapping[str, Embedding]) -> dict[str, Tensor]:
    """Terms of a pure function with the names of the two views in the place of a and b."""
    first, second = online
    renamed = {"a_to_b": f"{first}_to_{second}", "b_to_a": f"{second}_to_{first}"}
    return {renamed.get(name, name): term for name, term in terms.items()}

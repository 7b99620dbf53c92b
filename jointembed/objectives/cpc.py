"""CPC v2: rows of patches predict rows further on, in four directions. Henaff et al., ICML 2020."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.context import Context
from jointembed.objectives.contrast import candidates
from jointembed.objectives.objective import Objective, ViewShape
from jointembed.objectives.statistics import BatchError, batch_mean, full_precision

Direction = Literal["down", "right", "up", "left"]
TURNS: dict[Direction, int] = {"down": 0, "right": -1, "up": 2, "left": 1}  # quarters of a turn that make it "down"


def cpc_loss(tasks: Sequence[tuple[Tensor, Tensor]], target: Tensor) -> Tensor:
    """Mean over tasks, and over their predictions, of -log softmax of the own target among all patches (eq. 2).

    The candidates are the P patches of all N pictures of the global batch, those of the own picture included. Scores
    are plain products.

    Args:
        tasks: of each direction and step, predictions (n, M, D) of this rank's pictures, and the numbers (M,) of the
            patches they are of, 0 .. P-1.
        target: (n, P, D) the patches' own embeddings.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    for prediction, patch in tasks:
        if prediction.shape != (len(target), len(patch), target.shape[-1]):
            found = f"{tuple(prediction.shape)}, {tuple(patch.shape)} and {tuple(target.shape)}"
            raise BatchError(f"predictions (N, M, D) of patches (M,) out of (N, P, D) expected, found {found}")
    with full_precision(target):
        every, start = candidates(target)
        first = (torch.arange(len(target), device=target.device) + start) * target.shape[1]
        errors = [
            checkpoint(_errors, prediction, every, first[:, None] + patch, use_reentrant=False)  # scores take much room
            for prediction, patch in tasks
        ]
        return batch_mean(torch.stack(errors).mean(0))


def _errors(prediction: Tensor, every: Tensor, answer: Tensor) -> Tensor:
    """Mean cross-entropy of each picture's predictions, (n,)."""
    dtype = torch.promote_types(every.dtype, torch.float32)
    scores = prediction.flatten(0, 1).to(dtype) @ every.flatten(0, 1).to(dtype).T
    return functional.cross_entropy(scores, answer.flatten(), reduction="none").view(answer.shape).mean(1)


class CPC(Objective):
    """CPC v2 of one view, a square grid of patches (N, P, R), by a context network for each direction.

    What a row predicts, it cannot see: its context holds rows up to itself alone, and of patches that overlap by half
    those 2 `steps` ahead are new. Batch norm in the encoder would tell nevertheless: its recipe says `norm: layer`.

    Args:
        steps: how many rows ahead.
        directions: in which.
        blocks: of the context network.
        hidden: width of its blocks.
        width: D, of predictions and targets.
        scale: of the predictions.
    """

    contexts: nn.ModuleDict
    predictors: nn.ModuleDict
    projection: nn.Module

    def __init__(
        self,
        *,
        steps: tuple[int, ...] = (2, 3, 4, 5),
        directions: tuple[Direction, ...] = ("down", "right", "up", "left"),
        blocks: int = 5,
        hidden: int = 256,
        width: int = 64,
        scale: float = 0.1,
    ) -> None:
        """See the class. Raises RecipeError without a step or a direction, or if one is there twice."""
        super().__init__()
        if not steps or min(steps) < 1 or len(set(steps)) < len(steps):
            raise RecipeError(f"objective.steps: different numbers of at least 1 expected, found {list(steps)}")
        if not directions or len(set(directions)) < len(directions) or not set(directions) <= set(TURNS):
            raise RecipeError(
                f"objective.directions: some of {', '.join(TURNS)} expected, each once, found {list(directions)}"
            )
        self.steps, self.directions, self.blocks, self.hidden = steps, directions, blocks, hidden
        self.width, self.scale = width, scale

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError unless there is one view."""
        names = list(views)
        if len(names) != 1:
            raise RecipeError(
                f"objective: CPC needs one view, a grid of patches, found {len(names)} ({', '.join(names)})"
            )

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make context networks, predictors and the targets' projection. Raises RecipeError if there is an expander."""
        (shape,) = views.values()
        if shape.z != shape.h:
            raise RecipeError(f"branches.{shape.branch}.expander: CPC has its own layers on h; make it widths: []")
        self.contexts, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for direction in self.directions:
            self.contexts[direction] = Context(shape.h, blocks=self.blocks, hidden=self.hidden)
            self.predictors[direction] = nn.ModuleList(nn.Linear(shape.h, self.width) for _ in self.steps)
        self.projection = nn.Linear(shape.h, self.width)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`."""
        (embedding,) = online.values()
        tasks = [task for direction in self.directions for task in self.predictions(embedding.h, direction)]
        return {"loss": cpc_loss(tasks, self.projection(embedding.h))}

    def predictions(self, h: Tensor, direction: Direction) -> list[tuple[Tensor, Tensor]]:
        """Predictions (n, M, D) of each step in one direction, and which patches (M,) they are of."""
        side = math.isqrt(h.shape[1]) if h.ndim == 3 else 0
        if side**2 != h.shape[1] or side <= max(self.steps):
            raise BatchError(
                f"CPC: {max(self.steps)} rows ahead need a square grid of more rows of patches, found {tuple(h.shape)}"
            )
        turns = TURNS[direction]
        context = self.contexts[direction](torch.rot90(h.unflatten(1, (side, side)), turns, (1, 2)))
        patch = torch.rot90(torch.arange(side**2, device=h.device).view(side, side), turns)
        heads = cast(nn.ModuleList, self.predictors[direction])
        return [
            (self.scale * head(context[:, :-step]).flatten(1, 2), patch[step:].flatten())
            for step, head in zip(self.steps, heads, strict=True)
        ]

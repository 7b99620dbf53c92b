"""One objective for each member of a branch: an ensemble that trains in one run, without terms between its members."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import Embed, EpochEmbeddings, Objective, ViewShape
from jointembed.objectives.wrapped import Wrapped


class PerMember(Wrapped):
    """The mean of an objective over equal parts of the embeddings, each with parts (queue, predictor) of its own.

    Without it the covariance term would decorrelate members from one another, three or four times as many dimensions
    as the batch has rows for.

    Args:
        make: a new objective.
        count: of members; z is theirs side by side, and so is h.
        shared: views whose members share an encoder, so that h is one for all of them.

    Raises:
        RecipeError: an objective of feature maps, which members do not give; one of labels, whose classifiers could not
            be published as one.
    """

    def __init__(self, make: Callable[[], Objective], count: int, *, shared: Collection[str] = ()) -> None:
        """See the class."""
        super().__init__(make())
        self.shared = frozenset(shared)
        self._first = ""  # the view whose pictures `start_epoch` embeds
        self.others = nn.ModuleList([make() for _ in range(count - 1)])
        self.couples_samples = self.objective.couples_samples
        self.constant_lr += tuple(
            f"others.{number}.{path}" for number in range(count - 1) for path in self.objective.constant_lr
        )
        if {"maps", "target_maps"} & self.needs:
            raise RecipeError("branches.members: this objective reads feature maps, and members give none; set it to 1")
        if "label" in self.needs:
            raise RecipeError("branches.members: a supervised objective has one classifier for all; set it to 1")

    @property
    def objectives(self) -> list[Objective]:
        """Those of all members; the first answers for what all have in common."""
        return [self.objective, *cast(list[Objective], list(self.others))]

    def _of_each(self, view: str, h: Tensor) -> Sequence[Tensor]:
        count = len(self.objectives)
        return [h] * count if view in self.shared else h.chunk(count, -1)

    def _parts(self, views: Mapping[str, Embedding]) -> list[dict[str, Embedding]]:
        count = len(self.objectives)
        parts = {view: (self._of_each(view, one.h), one.z.chunk(count, -1)) for view, one in views.items()}
        return [{view: Embedding(h[k], z[k]) for view, (h, z) in parts.items()} for k in range(count)]

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The mean of each term over the members."""
        targets = [None] * len(self.objectives) if target is None else self._parts(target)
        terms = [
            objective(views, other, index=index, item=item, label=label)
            for objective, views, other in zip(self.objectives, self._parts(online), targets, strict=True)
        ]
        return {name: torch.stack([one[name] for one in terms]).mean(0) for name in terms[0]}

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Attach each objective to the widths of one member."""
        count = len(self.objectives)
        shapes = {
            view: ViewShape(one.branch, one.h if view in self.shared else one.h // count, one.z // count)
            for view, one in views.items()
        }
        self._first = next(iter(views))
        for objective in self.objectives:
            objective.attach(shapes, samples)

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Pass the hook on; the training set is embedded once for each member that asks."""
        count = len(self.objectives)
        for number, objective in enumerate(self.objectives):

            def part(number: int = number) -> EpochEmbeddings:
                rows = embed()
                h, z = self._of_each(self._first, rows.h), rows.z.chunk(count, -1)
                return EpochEmbeddings(rows.index, h[number], z[number])

            objective.start_epoch(epoch, part)

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Pass the hook on."""
        for objective in self.objectives:
            objective.before_step(batch)

    def end_step(self, progress: float) -> None:
        """Pass the hook on."""
        for objective in self.objectives:
            objective.end_step(progress)

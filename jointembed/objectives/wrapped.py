"""An objective around another one: what adds terms or moves coefficients, and leaves all else as it is."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from jointembed.layers import Embedding
from jointembed.objectives.objective import Embed, Objective, ViewShape


class Wrapped(Objective):
    """Another objective with all its hooks and needs passed on."""

    def __init__(self, objective: Objective) -> None:
        """Take the objective over."""
        super().__init__()
        self.objective = objective
        self.needs = objective.needs
        self.remedies = objective.remedies
        self.constant_lr = tuple(f"objective.{path}" for path in objective.constant_lr)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms."""
        return self.objective(online, target, index=index, item=item, label=label)

    def check_views(self, views: Iterable[str]) -> None:
        """What the objective checks."""
        self.objective.check_views(views)

    def check_branches(self, views: Mapping[str, str]) -> None:
        """What the objective checks."""
        self.objective.check_branches(views)

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Attach the objective."""
        self.objective.attach(views, samples)

    def online_views(self, views: Iterable[str]) -> list[str]:
        """Those of the objective."""
        return self.objective.online_views(views)

    def target_views(self, views: Iterable[str]) -> list[str]:
        """Those of the objective."""
        return self.objective.target_views(views)

    def momentum(self, progress: float) -> float:
        """That of the objective."""
        return self.objective.momentum(progress)

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Pass the hook on."""
        self.objective.start_epoch(epoch, embed)

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Pass the hook on."""
        self.objective.before_step(batch)

    def end_step(self, progress: float) -> None:
        """Pass the hook on."""
        self.objective.end_step(progress)


def looks_at_all(objective: Objective | None) -> bool:
    """Whether the objective looks at the whole training set when an epoch starts."""
    found = innermost(objective)
    return found is not None and type(found).start_epoch is not Objective.start_epoch


def innermost(objective: Objective | None) -> Objective | None:
    """The objective inside all that is wrapped around it; of an ensemble the first member's."""
    while isinstance(objective, Wrapped):
        objective = objective.objective
    return objective

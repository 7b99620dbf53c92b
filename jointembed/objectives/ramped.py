"""Coefficients of an objective that move over the run, such as a covariance weight that grows from 0."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from jointembed.errors import RecipeError
from jointembed.objectives.objective import Objective
from jointembed.objectives.wrapped import Wrapped

_DIVISORS = ("temperature", "epsilon")  # coefficients that something is divided by


class Ramp(NamedTuple):
    """A factor that is `start` up to the share `begin` of a run, 1 from `end` on, and linear between them."""

    start: float = 0.0
    begin: float = 0.0
    end: float = 0.5

    def at(self, progress: float) -> float:
        """The factor when `progress` of the run, 0 .. 1, is done."""
        if progress >= self.end:
            return 1.0
        done = max(0.0, progress - self.begin) / (self.end - self.begin)
        return self.start + (1 - self.start) * done


class Ramped(Wrapped):
    """An objective some of whose coefficients are multiplied by a ramp; all its hooks and needs are passed on.

    How far the run is belongs to the state, so that a resumed run goes on where it was.

    Args:
        objective: which one.
        ramps: name of a coefficient -> ramp. A coefficient is an argument of the objective's constructor that is a
            float, or a float for each view by name, and that the objective keeps under this name and reads in each
            step.
    """

    progress: Tensor  # () float64, share of the run that is done

    def __init__(self, objective: Objective, ramps: Mapping[str, Ramp]) -> None:
        """See the class. Raises RecipeError for a name that is no coefficient, or a ramp that ends before it begins."""
        super().__init__(objective)
        self.couples_samples = objective.couples_samples
        self.ramps = {name: Ramp(*ramp) for name, ramp in ramps.items()}
        self.whole = {name: _coefficient(objective, name) for name in ramps}
        for name, ramp in self.ramps.items():
            if ramp.start < 0 or not 0 <= ramp.begin < ramp.end <= 1:
                raise RecipeError(f"ramp.{name}: expected start >= 0 and 0 <= begin < end <= 1, found {ramp}")
            if ramp.start == 0 and name in _DIVISORS:
                raise RecipeError(f"ramp.{name}.start: scores are divided by it; expected a number above 0")
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))
        self._apply_ramps()

    def _apply_ramps(self) -> None:
        for name, ramp in self.ramps.items():
            setattr(self.objective, name, _scaled(self.whole[name], ramp.at(float(self.progress))))

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Set the coefficients of this step."""
        self._apply_ramps()
        super().before_step(batch)

    def end_step(self, progress: float) -> None:
        """Note how far the run is."""
        self.progress.fill_(progress)
        super().end_step(progress)


def _coefficient(objective: Objective, name: str) -> float | dict[str, float]:
    value = vars(objective).get(name)
    declared = get_type_hints(type(objective).__init__).get(name) in (float, float | dict[str, float])
    if not declared or not isinstance(value, int | float | dict):
        raise RecipeError(f"ramp.{name}: {type(objective).__name__} has no coefficient of this name that could move")
    return value


def _scaled(value: float | dict[str, float], factor: float) -> float | dict[str, float]:
    if isinstance(value, dict):
        return {view: factor * one for view, one in value.items()}
    return factor * value

"""What a search varies: a YAML file, checked against its recipe before any work.

`recipe` is a path from the file's folder, `overrides` fixes keys of it, and `space` says what is varied: a key, or a
name with the `keys` that get one value. A list is choices, `{low, high, log}` a range:

    space:
        objective.invariance: {low: 5.0, high: 40.0, log: true}
        branches.text.encoder.pool: [last, mean, max]
        expanders:
            keys: [branches.image.expander.widths, branches.text.expander.widths]
            choices: [[1024], [1024, 1024], [2048, 2048]]

`metric`, `direction`, `sampler`, `pruner`, `budget` and `seed` are those of `Search`.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from jointembed import build
from jointembed.errors import RecipeError
from jointembed.evaluation import EVALUATORS
from jointembed.recipe import (
    STRICT_KEYS,
    Count,
    Positive,
    Recipe,
    first_problem,
    nearest,
    parse_yaml,
    read_tree,
    recipe_from_tree,
    recipe_tree,
)

Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT_KEYS)
class Parameter:
    """What is varied: a range, or choices. Whole numbers if both ends of a range are."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None
    keys: list[str] | None = None  # of the recipe, which all get the value; by default the parameter's name

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def labels(self) -> dict[str, Any]:
        """Choices by the word that the study knows them by."""
        return {one if isinstance(one, str) else json.dumps(one): one for one in self.choices or []}

    @property
    def extremes(self) -> list[Any]:
        """Values that are checked: both ends, or all choices."""
        return [self.low, self.high] if self.choices is None else list(self.choices)

    def value(self, drawn: Any) -> Any:
        """The recipe's value for what the study drew."""
        return drawn if self.choices is None else self.labels[drawn]

    def problem(self) -> str | None:
        """What is wrong with it, if anything."""
        if (self.choices is None) == (self.low is None or self.high is None):
            return "give low and high, or choices"
        if self.choices is not None:
            if not self.choices or len(self.labels) < len(self.choices):
                return f"choices must be there and differ, found {self.choices}"
            return "choices have no low, high or log" if self.log or (self.low, self.high) != (None, None) else None
        assert self.low is not None and self.high is not None
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or not self.low < self.high:
            return f"low must be below high, found {self.low} and {self.high}"
        return f"log needs a positive low, found {self.low}" if self.log and self.low <= 0 else None


@dataclass(frozen=True, config=STRICT_KEYS)
class Pruner:
    """When a trial that does worse than the others is stopped."""

    name: Literal["median", "none"] = "median"
    startup: Whole = 5  # trials that have ended before any is stopped
    warmup: Whole = 1  # looks at the validation data that stop no trial


@dataclass(frozen=True, config=STRICT_KEYS)
class Budget:
    """What a search may spend; equal for all that are compared."""

    trials: Count = 20
    epochs: Positive | None = None  # of a trial; by default those of the recipe


@dataclass(frozen=True, config=STRICT_KEYS)
class Search:
    """Everything about a search."""

    recipe: str
    space: dict[str, Parameter]
    overrides: dict[str, Any] = field(default_factory=dict)
    metric: str = "rsum"
    direction: Literal["maximize", "minimize"] = "maximize"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Pruner = field(default_factory=Pruner)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


class Space:
    """A checked search, and the recipes of its trials.

    Attributes:
        search: what the file says.
        path: of the file.
        base: the recipe with all that is fixed.
    """

    def __init__(self, search: Search, path: Path) -> None:
        """Check every parameter against the recipe. Raises RecipeError naming the file and the key."""
        self.search, self.path = search, path
        self.recipe_path = path.parent / search.recipe
        self.base = build.check(recipe_from_tree(self.tree({}), str(path)))
        self._check_names()
        for name, parameter in search.space.items():
            for value in parameter.extremes:
                try:
                    self.recipe({name: value})
                except RecipeError as error:
                    raise RecipeError(f"{path}: space.{name}: {error}") from None

    def keys(self, name: str) -> list[str]:
        """Keys of the recipe that a parameter sets."""
        given = self.search.space[name].keys
        return [name] if given is None else given

    def tree(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's keys with what is fixed and the values of some parameters."""
        changes = dict(self.search.overrides)
        if self.search.budget.epochs is not None:
            changes["training.epochs"] = self.search.budget.epochs
        changes |= {key: value for name, value in values.items() for key in self.keys(name)}
        return read_tree(self.recipe_path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The checked recipe of a trial. Raises RecipeError for values that do not go together."""
        return build.check(recipe_from_tree(self.tree(values), str(self.recipe_path)))

    @cached_property
    def digest(self) -> str:
        """Hash of all that trials of one study must share: everything but the number of trials."""
        content = asdict(self.search) | {"recipe": recipe_tree(self.base)}
        content["budget"] = {"epochs": self.base.training.epochs}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of choices, as the study knows them."""
        names = list(self.search.space)
        for values in itertools.product(*(self.search.space[name].labels for name in names)):
            yield dict(zip(names, values, strict=True))

    def _check_names(self) -> None:
        search = self.search
        if not search.space:
            raise RecipeError(f"{self.path}: space: nothing in it to vary")
        owner: dict[str, str] = dict.fromkeys(search.overrides, "overrides")
        if search.budget.epochs is not None:
            if "training.epochs" in owner:
                raise RecipeError(f"{self.path}: overrides: training.epochs is set by budget.epochs already")
            owner["training.epochs"] = "budget.epochs"
        for name, parameter in search.space.items():
            problem = parameter.problem()
            if problem is None and search.sampler == "grid" and parameter.choices is None:
                problem = "a grid needs choices"
            if problem is not None:
                raise RecipeError(f"{self.path}: space.{name}: {problem}")
            for key in self.keys(name):
                if key in owner:
                    raise RecipeError(f"{self.path}: space.{name}: {key} is set by {owner[key]} already")
                owner[key] = f"space.{name}"
        if self.base.data.validation is None:
            raise RecipeError(f"{self.path}: recipe: {search.recipe} has no data.validation to search by")
        known = [n for one in self.base.evaluation.evaluators or [] for n in build.construct(one, EVALUATORS).numbers]
        if search.metric not in known:
            raise RecipeError(f"{self.path}: metric: no {search.metric!r}{nearest(search.metric, known)}")


def load_space(path: Path) -> Space:
    """Read a search and check it. Raises RecipeError with the file, the dotted path and the nearest valid key."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a search is a mapping of keys to values, not a {type(tree).__name__}")
    if isinstance(tree.get("space"), dict):
        tree["space"] = {name: _as_parameter(one) for name, one in tree["space"].items()}
    try:
        search = TypeAdapter(Search).validate_python(tree)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error, Search, tree)}") from None
    return Space(search, path)


def _as_parameter(given: Any) -> Any:
    return {"choices": given} if isinstance(given, Sequence) and not isinstance(given, str) else given

"""What run folders hold: recipes, evaluations, costs."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jointembed.errors import CheckpointError
from jointembed.recipe import parse_yaml
from jointembed.report import paper
from jointembed.report.methods import method_name, objective_name
from jointembed.report.tables import Number


@dataclass(frozen=True)
class Evaluation:
    """What metrics.json of one evaluation folder says."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers by name."""
        return self.document["metrics"]

    @property
    def task(self) -> str:
        """What was done: as the record says, else `retrieval` by its metrics, else `features` as they are."""
        given = self.document.get("task")
        if isinstance(given, str):
            return given
        return "retrieval" if any(f"{way}_R@1" in self.metrics for way in paper.DIRECTIONS) else "features"

    def number(self, name: str) -> Number | None:
        """A measured number with its interval, None where it was not measured."""
        if name not in self.metrics:
            return None
        low, high = (self.document.get("intervals") or {}).get(name) or (None, None)
        return Number(self.metrics[name], low, high)


@dataclass(frozen=True)
class Run:
    """A run folder: its resolved recipe and whatever else is in it."""

    folder: Path
    recipe: Mapping[str, Any]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The finished ones. Raises CheckpointError where one is broken."""
        return read_evaluations(self.folder)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Content of environment.json, empty where there is none."""
        path = self.folder / "environment.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def cost(self) -> dict[str, Any] | None:
        """Content of cost.json; a run that has not ended has none."""
        path = self.folder / "cost.json"
        return read_json(path) if path.exists() else None

    @property
    def is_detector(self) -> bool:
        """Whether it is the run of a detector; these have recipes of their own."""
        return "detector" in self.recipe


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at these paths: run folders, or folders of them at any depth, each run once, in order of their names.

    What lies inside a run folder, such as the runs of its tasks, is part of that run.

    Raises:
        CheckpointError: a path that is no folder, or holds no run; a run without objective or detector.
        RecipeError: a recipe.yaml that is not valid YAML.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such run folder")
        folders = list(_run_folders(path))
        if not folders:
            raise CheckpointError(f"{path}: no run in it (no recipe.yaml at any depth)")
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = _run(folder)
    return list(found.values())


def _run_folders(root: Path) -> Iterable[Path]:
    for place, folders, files in os.walk(root):
        if "recipe.yaml" in files:
            folders.clear()
            yield Path(place)
        folders.sort()


def _run(folder: Path) -> Run:
    recipe = read_recipe(folder) or {}
    if "detector" not in recipe and objective_name(recipe) is None:
        method_of(folder)  # says what is missing
    return Run(folder, recipe)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object. Raises CheckpointError naming the file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def read_evaluations(run: Path) -> list[Evaluation]:
    """The finished evaluations of a run folder, by name of their folder.

    Raises:
        CheckpointError: where a metrics.json is broken or its numbers are none.
    """
    evaluations = []
    for path in sorted(run.glob("evaluation/*/metrics.json")):
        document = read_json(path)
        for block in ("metrics", "intervals", "chance"):
            if not isinstance(document.get(block, None if block == "metrics" else {}), dict):
                raise CheckpointError(f"{path}: {block}: expected numbers by name, found {document.get(block)!r}")
        for name, value in (document["metrics"] | document.get("chance", {})).items():
            if not isinstance(value, int | float):
                raise CheckpointError(f"{path}: {name}: expected a number, found {value!r}")
        for name, pair in document.get("intervals", {}).items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, int | float) for one in pair)):
                raise CheckpointError(f"{path}: intervals: {name}: expected two numbers, found {pair!r}")
        evaluations.append(Evaluation(path.parent, document))
    return evaluations


def read_recipe(run: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run folder as plain mappings, None where there is none.

    Raises:
        RecipeError: where recipe.yaml is not valid YAML.
        CheckpointError: where the folder does not exist, or recipe.yaml holds no mapping.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder")
    path = run / "recipe.yaml"
    if not path.exists():
        return None
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}; expected a mapping")
    return tree


def method_of(run: Path) -> str:
    """Name of a run's method as the paper writes it, or the objective's name in its recipe where the paper has none.

    Raises:
        CheckpointError: where the run has no recipe, or its recipe no objective.
    """
    recipe = read_recipe(run) or {}
    if objective_name(recipe) is None:
        raise CheckpointError(f"{run / 'recipe.yaml'}: objective.name: missing; it says which method the run is of")
    return method_name(recipe)

"""Run folders with the recipes of plans and made-up numbers, for the tests of the tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jointembed import build
from jointembed.recipe import load_recipe, recipe_tree
from jointembed.report.plans import Command

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"command": "jointembed train it", "processor": "a CPU", "cores": 2, "accelerators": [], "world": 1}
COST = {"seconds": 300.0, "samples_per_second": 150.0, "peak_process_bytes": 2e9, "peak_device_bytes": None, "world": 1}


def write_run(folder: Path, recipe: str, *overrides: str, **tasks: Mapping[str, float]) -> Path:
    """A run of `recipes/RECIPE.yaml` with the metrics of each task; `features` as training leaves them."""
    folder.mkdir(parents=True)
    checked = build.check(load_recipe(ROOT / "recipes" / f"{recipe}.yaml", overrides))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree(checked), sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    for task, metrics in tasks.items():
        write_evaluation(folder, task, metrics)
    return folder


def write_evaluation(folder: Path, task: str, metrics: Mapping[str, float], **more: Any) -> None:
    target = folder / "evaluation" / f"validation-{task}"
    target.mkdir(parents=True)
    document: dict[str, Any] = {"split": "validation", "data": "pictures", "fingerprint": "ab", "n_images": 2000}
    document |= {"metrics": metrics, "command": f"jointembed evaluate it --task {task}"} | more
    (target / "metrics.json").write_text(json.dumps(document if task == "features" else document | {"task": task}))


def write_cost(folder: Path, recipe: str, *overrides: str, **changes: Any) -> Path:
    """A run that says what it took."""
    write_run(folder, recipe, *overrides)
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    encoders = {name: one["encoder"]["model"] for name, one in tree["branches"].items()}
    known = {"encoders": encoders, "batch": tree["loader"]["batch"], "data": tree["data"]["train"]}
    known |= {"objective": tree["objective"]["name"], "epochs": tree["training"]["epochs"]}
    (folder / "cost.json").write_text(json.dumps(COST | known | changes))
    return folder


def run_of(command: Command, folder: Path, seed: int = 0, **tasks: Mapping[str, float]) -> Path:
    """A run as a command of a plan would leave it."""
    recipe = command.recipe.removeprefix("recipes/").removesuffix(".yaml")
    return write_run(folder / command.run / f"seed{seed}", recipe, *command.overrides, f"seed={seed}", **tasks)

"""A run's branch under labels, by the loop: linear evaluation and semi-supervised fine-tuning, as the papers do them.

Each is a recipe of its own, derived from the run's: the objective is `supervised`, the branch starts from the run, and
the result is a run folder `RUN/tasks/TASK` that can be resumed. `--set` changes any key of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointembed.build import check, dataset
from jointembed.data.records import ImageData
from jointembed.errors import RecipeError
from jointembed.evaluation.linear_probe import PROTOCOLS, ProbeProtocol
from jointembed.recipe import Recipe, nearest, recipe_from_tree, recipe_tree, set_key
from jointembed.runs import train
from jointembed.runs_evaluate import run_recipe
from jointembed.training.folder import save_evaluation


@dataclass(frozen=True)
class FineTuning:
    """Semi-supervised fine-tuning: the share of the labels, the learning rates of the encoder and the classifier."""

    fraction: float
    encoder_lr: float
    head_lr: float
    epochs: int = 20
    batch: int = 256


TASKS: dict[str, ProbeProtocol | FineTuning] = {  # VICReg, ICLR 2022, appendix C; the authors' evaluate.py
    "linear": PROTOCOLS["imagenet"],
    "places205": PROTOCOLS["places205"],
    "inat18": PROTOCOLS["inat18"],
    "semi1": FineTuning(0.01, 0.03, 0.08),
    "semi10": FineTuning(0.1, 0.01, 0.1),
}
_TRANSFER = ("places205", "inat18")


def evaluate_task(
    run: Path, task: str, overrides: Sequence[str] = (), *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train and judge one task of `TASKS` on a run; written to `RUN/evaluation/validation-TASK/metrics.json`.

    The record holds the overrides as `settings`, so that what was measured in another way is no repetition.

    Args:
        run: of pictures without captions.
        task: its name.
        overrides: `a.b=c` on the derived recipe; `places205` and `inat18` need `data.train` and `data.validation`.
        resume: go on from the task's newest checkpoint.
        overwrite: start the task anew.

    Raises:
        RecipeError: an unknown task, or data without labels.
    """
    recipe = task_recipe(run, task, overrides)
    folder = run / "tasks" / task
    train(recipe, folder, resume=resume, overwrite=overwrite)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    data = dataset(recipe, "validation")
    settings: dict[str, Any] = {}
    for override in overrides:
        set_key(settings, override)
    record = {
        "task": task,
        "split": "validation",
        "data": data.name,
        "fingerprint": data.fingerprint,
        "n_images": len(data.pictures),
        "settings": settings,
        "metrics": {f"{task}_top{top}": last[f"classifier_top{top}"] for top in (1, 5)},
    }
    return save_evaluation(run / "evaluation" / f"validation-{task}", record)


def task_recipe(run: Path, task: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a task: that of the run with another objective, optimizer, schedule and view.

    Fine-tuning takes the task's share of the labels of `data.train` as the overrides leave it, unless they say which
    pictures these are.

    Raises:
        RecipeError: an unknown task, an override that does not fit, data without labels, or data that no share can be
            taken of.
    """
    if task not in TASKS:
        raise RecipeError(f"--task: no {task!r}{nearest(task, TASKS)}")
    tree = recipe_tree(run_recipe(run))
    if tree["data"]["text"] is not None:
        raise RecipeError(f"{run}: its data has captions; {task} needs classes")
    if tree["data"]["image_evaluation"] is None:
        raise RecipeError(f"{run}: its data are sounds; {task} looks at pictures")
    branch = tree["views"][tree["evaluation"]["views"][0]]
    if tree["branches"][branch]["members"] > 1:
        raise RecipeError(f"{run}: branch {branch!r} has members; {task} takes one encoder")
    if task in _TRANSFER and not any(one.startswith("data.train") for one in overrides):
        raise RecipeError(f"--task {task}: say where its pictures are: data.train.path=... data.validation.path=...")
    how = TASKS[task]
    tree = _derived(tree, run, task, how)
    for override in overrides:
        set_key(tree, override)
    if isinstance(how, FineTuning) and not _says_pictures(overrides, tree):
        tree["data"]["train"] = _share(tree["data"]["train"], how.fraction, task)
    if tree["data"]["validation"] is None:
        raise RecipeError(
            f"{run}: its recipe has no data.validation, which {task} is judged on; give data.validation...="
        )
    planes = tree["branches"][branch]["encoder"].get("channels", 3)
    if planes != 3:
        raise RecipeError(
            f"{run}: the encoder of branch {branch!r} sees {planes} of a picture's planes, {task} shows pictures of 3; "
            "evaluation.evaluators=[{name: linear}] judges the run's own views"
        )
    data = dataset(check(recipe_from_tree(tree, str(run))), "train")
    if not isinstance(data, ImageData) or data.classes is None:
        raise RecipeError(f"{run}: its training data has no labels; {task} needs them")
    tree["objective"]["classes"] = len(data.classes)
    return check(recipe_from_tree(tree, str(run)))


def _derived(tree: dict[str, Any], run: Path, task: str, how: ProbeProtocol | FineTuning) -> dict[str, Any]:
    view = tree["evaluation"]["views"][0]
    branch = tree["views"][view]
    size = tree["data"]["image_evaluation"].get("size", 224)
    frozen = isinstance(how, ProbeProtocol)
    lr = how.lr if isinstance(how, ProbeProtocol) else how.head_lr
    alone = {"expander": {"name": "mlp", "widths": []}, "train": "none" if frozen else "all", "lr_scale": 1.0}
    block = tree["branches"][branch] | alone
    if isinstance(how, FineTuning):
        block["lr_scale"] = how.encoder_lr / how.head_lr
    decay = how.weight_decay if isinstance(how, ProbeProtocol) else 0.0
    return tree | {
        "name": f"{tree['name']}_{task}",
        "views": {"image": branch},
        "branches": {branch: block},
        "objective": {"name": "supervised", "classes": 2},
        "regularize": None,
        "contrast": None,
        "ramp": {},
        "init_from": str(run / "model"),
        "data": tree["data"] | {"image": {"name": "crop", "size": size}, "cache": False},
        "loader": tree["loader"] | {"batch": how.batch, "drop_last": False},
        "optimizer": {"name": "sgd", "lr": lr, "weight_decay": decay, "momentum": 0.9},
        "parameters": {"decay_all": True},
        "schedule": _schedule(how),
        "training": tree["training"] | {"epochs": how.epochs, "micro_batch": None, "probe": False, "clip": None},
        "evaluation": tree["evaluation"]
        | {"every": how.epochs, "evaluators": [{"name": "classifier"}], "select": None, "views": ["image"]},
    }


def _schedule(how: ProbeProtocol | FineTuning) -> dict[str, Any]:
    if isinstance(how, ProbeProtocol) and how.steps:
        return {"name": "milestones", "epochs": list(how.steps)}
    return {"name": "cosine"}


def _says_pictures(overrides: Sequence[str], tree: Mapping[str, Any]) -> bool:
    """Whether overrides, applied to `tree`, say themselves which pictures a task learns from.

    `data.train.subset=null` alone does not: it leaves out the list of the run, and all labels would remain.
    """
    keys = {override.partition("=")[0] for override in overrides}
    if keys & {"data", "data.train", "data.train.fraction"}:
        return True
    return "data.train.subset" in keys and tree["data"]["train"].get("subset") is not None


def _share(block: Mapping[str, Any], fraction: float, task: str) -> dict[str, Any]:
    """The data block with a share of the labels. Raises RecipeError where it is a list of pictures, or takes none."""
    if block.get("subset") is not None:
        raise RecipeError(
            f"data.train.subset: the run was trained on the list {block['subset']}, which is no {100 * fraction:g}% of "
            f"the labels; {task} needs data.train.subset=LIST of its pictures, or data.train.subset=null for "
            f"{100 * fraction:g}% of all"
        )
    if "fraction" not in block:
        raise RecipeError(
            f"data.train: {block['name']} cannot give a share of its labels; give {task} a data.train={{name: ...}} "
            "that holds no more than those"
        )
    return dict(block) | {"fraction": fraction}

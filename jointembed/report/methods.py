"""What a resolved recipe is in the words of the paper's tables: its method, its cell of the ablation, its branches.

A recipe here is the tree of plain mappings that a run folder's recipe.yaml holds.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from jointembed.report import paper

Recipe = Mapping[str, Any]

# Keys of a recipe on which what is learnt does not depend, and the seed: runs that differ in these are of one kind.
_FREE = {
    "training": (
        "log_every", "health_every", "save_every", "keep", "trackers", "probe", "compile", "rank_timeout",
        "skip_nonfinite",
    ),
    "loader": ("workers", "timeout"),
    "evaluation": ("batch",),  # the other keys decide which model of a run is published
}  # fmt: skip


class Switches(NamedTuple):
    """A row of the ablation table: what a method is made of, each `yes` or `no`."""

    method: str
    momentum_encoder: str
    stop_gradient: str
    predictor: str
    batch_norm: str  # in expander and predictor; `partly` in one of them


ORIGINAL = {  # the unmodified method: its row, its column
    "BYOL": (Switches("BYOL", "yes", "yes", "yes", "yes"), "no reg"),
    "SimSiam": (Switches("SimSiam", "no", "yes", "yes", "yes"), "no reg"),
    "VICReg": (Switches("VICReg", "no", "no", "no", "yes"), "var + cov"),
}


def objective_name(recipe: Recipe) -> str | None:
    """The name in the objective block, None where there is none."""
    block = recipe.get("objective")
    name = block.get("name") if isinstance(block, Mapping) else None
    return name if isinstance(name, str) else None


def method_name(recipe: Recipe) -> str:
    """The method as the paper writes it, or the objective's name where the paper has none.

    MoCo v2 is MoCo with an MLP, SwAV with more than two views is multi-crop.
    """
    name = objective_name(recipe) or ""
    if name == "moco" and any(len(one["widths"]) > 1 for one in _expanders(recipe)):
        return "MoCo v2"
    if name == "swav" and len(recipe.get("views", ())) > 2:
        return "SwAV (multi-crop)"
    return next((method for method, known in paper.OBJECTIVES.items() if known == name), name)


def variant_name(recipe: Recipe, *, branches: bool = True) -> str:
    """The method, and in brackets what was changed of it, so that no published number stands beside another method.

    Args:
        recipe: of a run.
        branches: whether branches that do not share their weights are such a change.
    """
    method, changes = method_name(recipe), list[str]()
    place = ablation_place(recipe)
    if place is not None:
        (switches, column), (original, usual) = place, ORIGINAL[method]
        named = zip(Switches._fields, switches, original, strict=True)
        changes += [_change(name, found) for name, found, before in named if found != before]
        changes += [column] if column != usual else []
    elif recipe.get("regularize"):
        changes.append(_regularization(recipe["regularize"]))
    changes += ["InfoNCE added"] if recipe.get("contrast") else []
    changes += [f"{name} ramped" for name in recipe.get("ramp") or {}]
    if branches and any(row.method == method for row in paper.FLEXIBILITY.rows):
        column = flexibility_column(recipe) or ""
        changes += [] if column in ("", paper.FLEXIBILITY.columns[0]) else ["two branches"]
    return f"{method} ({', '.join(changes)})" if changes else method


def _change(switch: str, found: str) -> str:
    words = switch.replace("_", " ").replace("batch norm", "BN")
    return f"{words} in part" if found == "partly" else f"{'with' if found == 'yes' else 'without'} {words}"


def ablation_place(recipe: Recipe) -> tuple[Switches, str] | None:
    """Row and column of the ablation table; None for the methods that it has not."""
    method, objective = method_name(recipe), recipe.get("objective") or {}
    if method not in ORIGINAL:
        return None
    norms = {str(one.get("norm", "batch")) for one in _expanders(recipe)}
    if method == "VICReg":
        predictor = objective.get("predictor") is not None
        norms |= {str(objective.get("predictor_norm", "batch"))} if predictor else set()
        column = _column(float_of(objective.get("variance", 25.0)), float_of(objective.get("covariance", 1.0)))
        regularized = recipe.get("regularize")
        column = f"{column}, {_regularization(regularized)} added" if regularized else column
        return Switches(method, "no", "no", _word(predictor), _batch_norm(norms)), column
    predictor = bool(objective.get("predictor", True))
    norms |= {"batch" if objective.get("batch_norm", True) else "none"} if predictor else set()
    target = method == "BYOL" and bool(objective.get("target", True))
    stop = method == "BYOL" or bool(objective.get("stop_gradient", True))
    column = _regularization(recipe.get("regularize"))
    return Switches(method, _word(target), _word(stop), _word(predictor), _batch_norm(norms)), column


def float_of(value: Any) -> float:
    """A coefficient; the largest where there is one for each branch."""
    return max(map(float, value.values())) if isinstance(value, Mapping) else float(value)


def flexibility_column(recipe: Recipe) -> str | None:
    """Column of the flexibility table by what the branches are, of any depth; None but for two views of pictures."""
    views, branches = recipe.get("views", {}), recipe.get("branches", {})
    if len(views) != 2 or "text" in views:
        return None
    if len(set(views.values())) == 1:
        return "shared weights R50"
    encoders = [branches[name]["encoder"] for name in views.values()]
    if encoders[0] == encoders[1]:
        return "different weights R50"
    models = [str(one.get("model", one["name"])) for one in encoders]
    if sum(model.startswith("vit") for model in models) == 1:
        return "R50 + ViT-S"
    return "R50 + R101" if all(model.startswith("resnet") for model in models) and models[0] != models[1] else None


def labelled_share(recipe: Recipe) -> str | None:
    """`1%` or `10%` where the training data is that share of a data set's labels; None for all of them or others."""
    block = recipe["data"]["train"]
    shares = {0.01: "1%", 0.1: "10%"}
    if block.get("fraction") is not None:
        return shares.get(block["fraction"])
    stem = PurePath(block.get("subset") or "").stem
    return {"1percent": "1%", "10percent": "10%"}.get(stem)


def encoder_names(recipe: Recipe) -> str:
    """The encoders of the branches, as `resnet18` or `resnet18 + vit_tiny_16`; a width that is not 1 is said."""
    return " + ".join(_encoder_name(branch["encoder"]) for branch in recipe.get("branches", {}).values())


def describe(recipe: Recipe, *, encoders: bool = True) -> str:
    """What was trained, in a few words: data, encoders, batch, length."""
    if "described" in recipe:
        return str(recipe["described"])
    block = recipe["data"]["train"]
    place = block.get("path") or block.get("images") or block.get("root") or block["name"]
    split = f" {block['split']}" if block.get("split") else ""
    fraction, listed = block.get("fraction"), block.get("subset")
    share = f" {100 * fraction:g}%" if fraction is not None else f" {PurePath(listed).name}" if listed else ""
    training, batch = recipe["training"], recipe.get("loader", {}).get("batch")
    length = f"{training['epochs']:g} epochs" if "epochs" in training else f"{training['steps']} steps"
    words = [
        f"{PurePath(place).name}{split}{share}",
        encoder_names(recipe) if encoders else "",
        f"batch {batch}",
        length,
    ]
    return ", ".join(filter(None, words))


def identity(recipe: Recipe) -> str:
    """Hash of what makes a run what it is, but for the seed: runs with equal ones are repetitions."""
    kept = {key: value for key, value in recipe.items() if key not in ("seed", "name", "description")}
    for block, keys in _FREE.items():
        if isinstance(kept.get(block), Mapping):
            kept[block] = {key: value for key, value in kept[block].items() if key not in keys}
    if isinstance(kept.get("evaluation"), Mapping) and kept["evaluation"].get("evaluators"):
        kept["evaluation"] = {**kept["evaluation"], "evaluators": _picking(kept["evaluation"])}
    return _hash(kept)


def _picking(evaluation: Mapping[str, Any]) -> list[Any]:
    """The evaluators that may give the number that picks the model: those it is named after, all if after none."""
    evaluators, select = evaluation["evaluators"], str(evaluation.get("select"))
    named = [one for one in evaluators if isinstance(one, Mapping) and select.startswith(str(one.get("name")))]
    return named or list(evaluators)


def setting(recipe: Recipe) -> str:
    """Hash of data, batch and length: runs with equal ones may stand in one row of a table over methods' parts."""
    training = recipe.get("training", {})
    return _hash([recipe["data"]["train"], recipe.get("loader", {}).get("batch"), training.get("epochs")])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _expanders(recipe: Recipe) -> list[Recipe]:
    blocks = [branch.get("expander", {}) for branch in recipe.get("branches", {}).values()]
    return [{"widths": [], **block} for block in blocks]


def _encoder_name(encoder: Recipe) -> str:
    name = str(encoder.get("model", encoder["name"]))
    return name if encoder.get("widen", 1.0) == 1.0 else f"{name} x{encoder['widen']:g}"


def _regularization(block: Any) -> str:
    return _column(block.get("variance", 1.0), block.get("covariance", 0.01)) if block else "no reg"


def _column(variance: float, covariance: float) -> str:
    if covariance:
        return "var + cov" if variance else "cov"
    return "var" if variance else "no reg"


def _batch_norm(norms: set[str]) -> str:
    return "partly" if len(norms) > 1 else _word("batch" in norms)


def _word(value: bool) -> str:
    return "yes" if value else "no"

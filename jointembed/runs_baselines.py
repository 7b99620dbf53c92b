"""What a run is judged against: its evaluators on raw pixels, and on the same network with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointembed.build import SPLITS, dataset, make_evaluators, make_model, precision_of, view_pipeline
from jointembed.build_splits import check_classes
from jointembed.data.records import ImageData
from jointembed.errors import CheckpointError, EvaluationError, RecipeError
from jointembed.evaluation.evaluators import Classifier, Features
from jointembed.inference.embed import picture_batches
from jointembed.recipe import Recipe, dump_recipe, nearest
from jointembed.runs import judge_features
from jointembed.training.folder import environment, save_evaluation

_MOST_BYTES = 8 << 30  # of pixels, in float32
PREPARATION = "pixels / 255 minus the mean picture of the training data"  # the cosine of kNN depends on it


def measure_baselines(recipe: Recipe, folder: Path, split: str = "validation") -> list[dict[str, Any]]:
    """Judge raw pixels and the untrained network; written to `FOLDER/evaluation/SPLIT-{pixels,untrained}`.

    Args:
        recipe: from `build.check`; its evaluators judge, its seed draws the weights of the network.
        folder: made here; `jointembed table` finds it as it finds run folders.
        split: what is judged.

    Returns:
        Two records, as metrics.json holds them.

    Raises:
        RecipeError: data with captions, or no such split.
        CheckpointError: a folder that holds something else.
        EvaluationError: pictures too large, or too many, for their pixels to be features.
    """
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    train, test = dataset(recipe, "train"), dataset(recipe, split)
    if not isinstance(train, ImageData) or not isinstance(test, ImageData):
        raise RecipeError(f"data.train: {train.name} has captions; baselines are of pictures with classes")
    check_classes({"train": train, split: test})
    _open(folder, recipe)
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, None)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    untrained = judge_features(recipe, model, train, test, precision_of(recipe, model.device))
    return [
        _write(folder, split, "pixels", test, _of_pixels(recipe, train, test), preparation=PREPARATION),
        _write(folder, split, "untrained", test, untrained),
    ]


def _open(folder: Path, recipe: Recipe) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / "evaluation").is_dir():
        raise CheckpointError(f"{folder}: not empty and no folder of baselines; it will not be written to")
    if (folder / "metrics.jsonl").exists():
        raise CheckpointError(f"{folder}: a run folder; give baselines a folder of their own")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1), encoding="utf-8")


def _of_pixels(recipe: Recipe, train: ImageData, test: ImageData) -> dict[str, float]:
    known, asked = _pixels(recipe, train), _pixels(recipe, test)
    mean = known.mean(0)
    features = [
        Features(rows - mean, None if data.labels is None else torch.from_numpy(data.labels))
        for rows, data in ((known, train), (asked, test))
    ]
    numbers: dict[str, float] = {}
    for evaluator in make_evaluators(recipe):
        if not isinstance(evaluator, Classifier):
            numbers |= evaluator(*features)
    return numbers


def _pixels(recipe: Recipe, data: ImageData) -> Tensor:
    """(N, C H W) bytes of the evaluation view, scaled to 0 .. 1."""
    view = view_pipeline(recipe.data, evaluation=True)
    rows: Tensor | None = None
    first = 0
    for batch in picture_batches(
        view, data.pictures, range(len(data.pictures)), batch=recipe.evaluation.batch, workers=recipe.loader.workers
    ):
        part = batch[view.views[0]].flatten(1)
        if rows is None:
            size = 4 * len(data.pictures) * part.shape[1]
            if size > _MOST_BYTES:
                raise EvaluationError(
                    f"{data.name}: its pixels take {size / 1e9:.0f} GB; make image_evaluation smaller"
                )
            rows = torch.empty(len(data.pictures), part.shape[1])
        rows[first : first + len(part)] = part / 255
        first += len(part)
    assert rows is not None  # a data set has pictures
    return rows


def _write(
    folder: Path, split: str, task: str, data: ImageData, numbers: dict[str, float], **more: str
) -> dict[str, Any]:
    record = {
        "task": task,
        "split": split,
        "data": data.name,
        "fingerprint": data.fingerprint,
        **more,
        "n_images": len(data.pictures),
        "metrics": numbers,
    }
    return save_evaluation(folder / "evaluation" / f"{split}-{task}", record)

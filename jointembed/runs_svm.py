"""A run's representations under linear SVMs on VOC07, as the transfer table has it."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jointembed.build import precision_of, view_pipeline
from jointembed.data.detection import DetectionData
from jointembed.data.detection_voc import voc_devkit
from jointembed.evaluation.svm import svm_map
from jointembed.inference.embed import embed_pictures
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe
from jointembed.runs_evaluate import run_model, run_recipe
from jointembed.training.folder import save_evaluation


def evaluate_svm(run: Path, root: str, *, jobs: int = 1) -> dict[str, Any]:
    """Train SVMs on VOC2007 trainval, judge them on its test; written to `RUN/evaluation/test-voc07/metrics.json`.

    Args:
        run: of pictures without captions; what its recipe evaluates, `evaluation.embedding`, is the feature.
        root: the folder VOCdevkit, with VOC2007 in it.
        jobs: processes that fit at once.

    Returns:
        The record, with mean average precision in percent by VOC2007's rule, `svm_voc07`, and by area, `svm_area`.

    Raises:
        DataError: naming the file of VOC that is missing or broken.
        EvaluationError: a class without enough pictures.
    """
    recipe, model = run_recipe(run), run_model(run)
    train, test = (
        voc_devkit(root=root, splits=[split], degenerate="drop") for split in ("VOC2007/trainval", "VOC2007/test")
    )
    rows = {data.name: _rows(recipe, model, data).numpy() for data in (train, test)}
    numbers = svm_map(rows[train.name], presence(train), rows[test.name], presence(test), jobs=jobs)
    record = {
        "task": "voc07",
        "split": "test",
        "data": test.name,
        "fingerprint": test.fingerprint,
        "n_images": len(test.pictures),
        "metrics": numbers,
    }
    return save_evaluation(run / "evaluation" / "test-voc07", record)


def presence(data: DetectionData) -> np.ndarray:
    """(I, K) int8: 1 where a picture shows an object of a category, 0 where only difficult ones, -1 where none."""
    found = np.full((len(data.pictures), len(data.categories)), -1, dtype=np.int8)
    for row, objects in zip(found, data.objects, strict=True):
        row[objects.labels[objects.difficult] - 1] = 0
        row[objects.labels[~objects.difficult] - 1] = 1
    return found


def _rows(recipe: Recipe, model: JointEmbedding, data: DetectionData) -> Tensor:
    return embed_pictures(
        model,
        data.pictures,
        view_pipeline(recipe.data, evaluation=True),
        recipe.evaluation.views or [next(iter(recipe.views))],
        batch=recipe.evaluation.batch,
        precision=precision_of(recipe, model.device),
        workers=recipe.loader.workers,
    )

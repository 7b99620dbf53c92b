"""Raw pixels and the untrained network, judged as runs are; and the numbers of embeddings beside those of features."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from test_image_runs import RECIPE, write_pictures

from jointembed import build, runs, runs_evaluate
from jointembed.errors import CheckpointError, EvaluationError, RecipeError
from jointembed.evaluation.evaluators import Collapse, Features
from jointembed.recipe import Recipe, load_recipe
from jointembed.report.results import table_page
from jointembed.runs_baselines import measure_baselines

Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    write_pictures(tmp_path / "pictures")
    path = tmp_path / "pictures.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path / "pictures")))
    return lambda *overrides: build.check(load_recipe(path, overrides))


def test_pixels_are_centred_by_the_training_mean_and_judged_by_knn(make: Make, tmp_path: Path) -> None:
    recipe = make("evaluation.evaluators=[{name: knn, k: [1]}]", "data.image_evaluation.size=20")
    pixels, untrained = measure_baselines(recipe, tmp_path / "base")
    folders = [tmp_path / "pictures" / split / name for split in ("train", "test") for name in ("dark", "light")]
    rows = [np.stack([np.asarray(Image.open(p)).ravel() / 255 for p in sorted(f.iterdir())]) for f in folders]
    train, test = np.concatenate(rows[:2]), np.concatenate(rows[2:])
    label = [np.repeat([0, 1], [len(a), len(b)]) for a, b in (rows[:2], rows[2:])]
    mean = train.mean(0)
    known = KNeighborsClassifier(1, metric="cosine").fit(train - mean, label[0])
    assert pixels["metrics"]["knn1_top1"] == pytest.approx(100 * known.score(test - mean, label[1]))
    assert "mean picture of the training data" in pixels["preparation"]
    assert (pixels["task"], untrained["task"], pixels["n_images"]) == ("pixels", "untrained", 8)
    saved = json.loads((tmp_path / "base/evaluation/validation-untrained/metrics.json").read_text())
    assert saved == untrained
    title = [table.title for table in table_page("imagenet", [tmp_path / "base"]).tables]
    assert title[1:] == ["What runs are judged against"]


def test_the_untrained_network_depends_on_the_seed_alone(make: Make, tmp_path: Path) -> None:
    found = [measure_baselines(make(f"seed={seed}"), tmp_path / str(i))[1] for i, seed in enumerate((0, 0, 1))]
    numbers = [one["metrics"]["rankme"] for one in found]
    assert numbers[0] == numbers[1] != numbers[2]


def test_folders_and_data_that_do_not_fit_are_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Make
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other: not empty"):
        measure_baselines(make(), tmp_path / "other")
    runs.train(make("training.epochs=0.5"), tmp_path / "run")
    runs_evaluate.evaluate_features(tmp_path / "run", "validation")
    with pytest.raises(CheckpointError, match="a run folder"):
        measure_baselines(make(), tmp_path / "run")
    with pytest.raises(RecipeError, match="has captions"):
        measure_baselines(tiny_recipe(), tmp_path / "captions")
    with pytest.raises(RecipeError, match="no 'vaildation'; did you mean"):
        measure_baselines(make(), tmp_path / "x", "vaildation")
    monkeypatch.setattr("jointembed.runs_baselines._MOST_BYTES", 1000)
    with pytest.raises(EvaluationError, match="make image_evaluation smaller"):
        measure_baselines(make(), tmp_path / "large")


def test_a_run_records_the_numbers_of_its_embeddings_too(make: Make, tmp_path: Path) -> None:
    recipe = make()
    runs.train(recipe, tmp_path / "run")
    found = runs_evaluate.evaluate_features(tmp_path / "run", "validation")["metrics"]
    model = runs_evaluate.run_model(tmp_path / "run").eval()
    data = build.dataset(recipe, "validation")
    view = build.view_pipeline(recipe.data, evaluation=True)
    pictures = torch.stack([view(data.pictures.open(number))["image"] for number in range(len(data.pictures))])
    with torch.inference_mode():
        h, z = model.branch("view1")(pictures)[:2]
    wanted = Collapse()(None, Features(h, None, z=z))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    only_z = runs.judge_features(make("evaluation.embedding=z"), *_parts(make("evaluation.embedding=z"), tmp_path))
    assert "rankme" in only_z and "z_rankme" not in only_z


def _parts(recipe: Recipe, tmp_path: Path) -> tuple:
    torch.manual_seed(0)
    model = build.make_model(recipe, None)
    return model, build.dataset(recipe, "train"), build.dataset(recipe, "validation"), "fp32"

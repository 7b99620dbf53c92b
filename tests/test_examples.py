import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY, write_captions

from jointembed import branches, build, runs
from jointembed.inference.export import export_model
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent


def run(folder: Path, *command: str) -> str:
    """Run an example as a reader would, from a folder that looks like the repository; what it printed."""
    for name in ("recipes", "examples"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def lines_of(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def test_own_branch(tmp_path: Path) -> None:
    run(tmp_path, "examples/own_branch.py", "training.epochs=0.3", "evaluation.batch=64")
    assert lines_of(tmp_path / "runs/colours")[-1]["kind"] == "validation"


def test_the_branch_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A branch of your own")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(ROOT)
    trained: list[tuple[Recipe, Path]] = []
    monkeypatch.setattr(runs, "train", lambda *given: trained.append(given))
    monkeypatch.setattr(branches, "ENCODERS", dict(branches.ENCODERS))
    monkeypatch.setattr(build, "ENCODERS", branches.ENCODERS)
    exec(code, {"__name__": "readme"})
    (recipe, folder), *more = trained
    assert not more and folder == Path("runs/colours")
    assert recipe.branches["image"].encoder == {"name": "colours", "grid": 4}
    colours = branches.ENCODERS["colours"](grid=2)
    assert colours(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)).shape == (3, colours.width)


def test_own_objective(tmp_path: Path) -> None:
    small = [
        "branches.image.encoder={name: torchvision, model: squeezenet1_1}",
        "data.image.size=32",
        "data.image_evaluation.size=32",
    ]
    run(tmp_path, "examples/own_objective.py", "training.epochs=0.6", "training.log_every=1", "loader.batch=64", *small)
    train = [line for line in lines_of(tmp_path / "runs/aligned") if line["kind"] == "train"]
    assert {"alignment", "uniformity", "loss"} <= train[-1].keys()
    assert train[-1]["loss"] < train[0]["loss"]


def test_own_dataset(tmp_path: Path) -> None:
    small = [
        "branches.image.encoder={name: torchvision, model: squeezenet1_1}",
        "evaluation.every=2",
        "loader.batch=64",
    ]
    out = run(tmp_path, "examples/own_dataset.py", "training.epochs=2", *small)
    assert "'n_images': 200" in out and "i2t_R@1" in out


def test_emoji_languages_measures_each_language(tmp_path: Path) -> None:
    recipe = build.check(load_recipe(ROOT / "recipes" / "emoji_languages.yaml", [
        "branches.image.encoder={name: torchvision, model: squeezenet1_1}", "branches.text.encoder.embedding=16",
        "data.image.size=32", "data.train.languages=[en, de]", "training.epochs=1", "evaluation.every=1",
        "training.precision=fp32",
    ]))  # fmt: skip
    runs.train(recipe, tmp_path / "run")
    lines = run(tmp_path, "examples/emoji_languages.py", "run").splitlines()
    assert len(lines) == 27 and lines[0].startswith("bn ") and lines[-1].startswith("mean ")


APART = "branches.image.encoder={name: torchvision, model: squeezenet1_1}"  # untrained, it keeps pictures apart


def test_run_onnx_scores_as_the_model_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("ROOT", str(write_captions(tmp_path / "data"))))
    recipe = build.check(load_recipe(path, ["training.epochs=1", "data.image={name: center, size: 32}", APART]))
    runs.train(recipe, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "exported", form="onnx")
    names = []
    for number, size in enumerate([(32, 32), (60, 40), (33, 80)]):
        names.append(str(tmp_path / f"{number}.png"))
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(names[-1])
    printed = run(tmp_path, "examples/run_onnx.py", "exported", "a dark red photo", *names)
    found = {line.split()[1]: float(line.split()[0]) for line in printed.splitlines()}
    model = JointEmbedding.from_pretrained(tmp_path / "run")
    expected = model.similarity(model.encode_text("a dark red photo"), model.encode_image(names))[0]
    assert np.ptp(list(found.values())) > 0.02
    assert max(abs(found[name] - float(score)) for name, score in zip(names, expected, strict=True)) < 5e-3

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jointembed import runs
from jointembed.cli import main
from jointembed.errors import RecipeError
from jointembed.model import JointEmbedding
from jointembed.runs_plots import plot_run

ALL = {"curves.png", "spectrum.png", "map.png", "similarity.png"}


def test_a_run_of_pictures_and_words(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    apart = "branches.image.encoder={name: torchvision, model: squeezenet1_1}"  # untrained, it keeps pictures apart
    runs.train(tiny_recipe("training.epochs=1", apart), run)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["jointembed", "plot", str(run), "--split", "test"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code and {Path(line).name for line in capsys.readouterr().out.split()} == ALL
    assert {path.name for path in (run / "plots").iterdir()} == ALL
    with pytest.raises(RecipeError, match="--split: no 'tset'; did you mean 'test'"):
        plot_run(run, tmp_path / "plots", split="tset")

    model = JointEmbedding.from_pretrained(run)
    with torch.no_grad():
        for parameter in model.branch("text").parameters():
            parameter.zero_()
    model.save_pretrained(run / "model")
    done = plot_run(run, tmp_path / "plots")
    assert [path.name for path in done.files] == ["curves.png"]
    assert done.skipped["map.png"] == "all vectors of text are equal: the model has collapsed"


IMAGES = """
name: colours
views: VIEWS
branches:
  net:
    encoder: {name: torchvision, model: squeezenet1_1}
    expander: {name: mlp, widths: [8]}
objective: {name: vicreg}
data:
  train: {name: image_folder, path: ROOT, labels: LABELS}
  image: {name: vicreg, size: 32}
  image_evaluation: {name: resize, size: 32}
loader: {batch: 6}
optimizer: {name: adam, lr: 1e-3}
schedule: {name: constant}
training: {epochs: 1, precision: fp32}
evaluation: {evaluators: [{name: collapse}]}
"""


@pytest.mark.parametrize(
    ("labels", "classes", "missing"),
    [(True, 2, None), (False, 2, "no pair is known to match"), (True, 1, "all are of one class")],
)
def test_a_run_of_pictures_alone(tmp_path: Path, labels: bool, classes: int, missing: str | None) -> None:
    import numpy as np
    from PIL import Image

    from jointembed import build
    from jointembed.recipe import load_recipe

    for number in range(12):
        path = tmp_path / "data" / f"class{number % classes}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    text = IMAGES.replace("ROOT", str(tmp_path / "data")).replace("LABELS", str(labels).lower())
    (tmp_path / "r.yaml").write_text(text.replace("VIEWS", "{view1: net, view2: net}"))
    runs.train(build.check(load_recipe(tmp_path / "r.yaml")), tmp_path / "run")
    done = plot_run(tmp_path / "run", tmp_path / "plots")
    drawn = {path.name for path in done.files}
    assert drawn == (ALL if missing is None else ALL - {"similarity.png"})
    assert missing is None or missing in done.skipped["similarity.png"]

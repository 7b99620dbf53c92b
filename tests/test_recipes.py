"""Every recipe is checked, built at full size on the meta device, and run for two steps, shrunken, on tiny data."""

from pathlib import Path

import pytest
import torch
from tiny_runs import write_captions

from jointembed import build
from jointembed.data.tokens import words
from jointembed.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))
SMALL_ENCODER: dict[str, dict[str, str | int | None]] = {
    "torchvision": {"model": "mobilenet_v3_small", "weights": None},
    "gru": {"embedding": 8, "hidden": 16},
    "bag_of_words": {"embedding": 8},
    "text_transformer": {"width": 16, "depth": 1, "heads": 2},
}
SMALL_VIEW: dict[str, dict[str, int]] = {"resize": {"size": 32}, "center": {"size": 32}, "crop": {"size": 32}}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def shrunken(path: Path, data: Path) -> Recipe:
    """The recipe with small encoders, pictures, data and steps; objective, optimizer and schedule as written."""
    recipe = load_recipe(path)
    overrides = ["training.epochs=0.5", "loader.batch=8", "training.precision=fp32", "init_from=null"]
    overrides += ["training.log_every=1", "training.micro_batch=null", "evaluation.protocol=full", "loader.workers=0"]
    block = f"{{name: coco_captions, images: {data}/images, annotations: {data}/captions.json}}"
    overrides += [f"data.{split}={block}" for split in ("train", "validation", "test")]
    for branch, one in recipe.branches.items():
        for key, value in SMALL_ENCODER[one.encoder["name"]].items():
            overrides.append(f"branches.{branch}.encoder.{key}={'null' if value is None else value}")
        widths = one.expander.get("widths", [])
        overrides.append(f"branches.{branch}.expander.widths={[16] * len(widths)}")
    for kind in ("image", "image_evaluation"):
        view = getattr(recipe.data, kind)
        if view is not None:
            overrides += [f"data.{kind}.{key}={value}" for key, value in SMALL_VIEW[view["name"]].items()]
    return build.check(load_recipe(path, overrides))


@pytest.fixture(autouse=True)
def _data_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("JOINTEMBED_DATA", "COCO"):
        monkeypatch.setenv(variable, str(tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_builds_at_full_size_on_the_meta_device(path: Path) -> None:
    recipe = build.check(load_recipe(path))
    with torch.device("meta"):
        model = build.make_model(recipe, words(["a dog runs"] * 4), pretrained=False)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_runs_two_steps_shrunken(path: Path, tmp_path: Path) -> None:
    recipe = shrunken(path, write_captions(tmp_path / "data", pictures=32 if "random" in path.read_text() else 8))
    state = build.train(recipe, tmp_path / "run")
    assert state["step"] >= 1
    result = build.evaluate_run(tmp_path / "run", "test")
    assert 0 <= result.record["metrics"]["rsum"] <= 600


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_header_gives_command_hardware_and_result(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for part in ("# command:", "# hardware:", "# measured:"):
        assert any(line.startswith(part) for line in header), part

"""Every recipe is checked, built at full size on the meta device, and run for two steps, shrunken, on tiny data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_image_runs import write_pictures
from tiny_runs import write_captions
from tones import write_tones

from jointembed import build, runs, runs_evaluate
from jointembed.data.tokens import words
from jointembed.optim import SCHEDULES
from jointembed.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent / "recipes"
NOT_RUNS = ("accelerate", "detection", "search")  # folders of other kinds of files, with tests of their own
RECIPES = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name not in NOT_RUNS)
SMALL_ENCODER: dict[str, dict[str, Any]] = {
    "torchvision": {"model": "mobilenet_v3_small", "weights": None},
    "gru": {"embedding": 8, "hidden": 16},
    "bag_of_words": {"embedding": 8},
    "text_transformer": {"width": 16, "depth": 1, "heads": 2},
    "waveform_resnet": {"blocks": [1, 1, 1, 1], "channels": 4},
}
SMALL_RESNET = {"model": "resnet18", "widen": 0.125, "small_input": True, "small_stride": 2}
SMALL_VIT = {"model": "vit_tiny_16", "image_size": 32, "patch_size": 16}
SMALL_SOUND = {"rate": 4000, "seconds": 0.3, "mels": 16, "fft": 256, "hop": 64, "high": 2000}
SMALL_VIEW: dict[str, dict[str, Any]] = {
    "multi_crop": {"sizes": [32, 16]},
    "swav": {"sizes": [32]},
    "obow": {
        "size": 32, "crop_size": 24, "patch_size": 12, "patch_source": 40, "patch_jitter": 4,
    },
    "pirl": {"size": 32, "patch_size": 12, "patch_source": 42},
    "infomin_jigsaw": {"size": 32, "patch_size": 12, "patch_source": 42},
    "cpc": {"size": 40, "patch_size": 16, "stride": 4},
    **dict.fromkeys(("waveform_mel", "waveform_mel_center"), SMALL_SOUND),
}  # fmt: skip
SMALL_OBJECTIVE: dict[str, dict[str, Any]] = {
    "byol": {"predictor_width": 16},
    "cmc": {"negatives": 16},
    "cpc": {"hidden": 16, "width": 8, "blocks": 1},
    "deepcluster": {"clusters": 4, "components": 4},
    "deepcluster_v2": {"n_prototypes": 4},
    "infomin": {"queue": 32},
    "moco": {"queue": 32},
    "obow": {"n_words": 16},
    "pirl": {"negatives": 8, "width": 8},
    "sigreg": {"slices": 16},
    "simsiam": {"predictor_width": 8},
    "supervised": {"classes": 2},
    "swav": {"n_prototypes": 8, "freeze_steps": 1},
    "vicregl": {"matches": 1, "projector": [8, 8]},
    "wmse": {"size": 8},
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def tiny_data(recipe: Recipe, folder: Path) -> str:
    """The data block of a tiny data set of the recipe's kind, written to the folder."""
    if recipe.data.train["name"] in ("image_folder", "image_dataset", "image_shards"):
        write_pictures(folder, {"train": 16, "val": 4, "test": 4}, size=40)
        return f"{{name: image_folder, path: {folder}, split: train}}"
    if recipe.data.train["name"] == "esc50":
        return f"{{name: esc50, path: {write_tones(folder, clips=8, folds=4)}, rate: 4000}}"
    captions = max(2, recipe.data.texts)
    write_captions(folder, pictures=32 if recipe.data.captions == "random" else 16, captions=captions)
    return f"{{name: coco_captions, images: {folder}/images, annotations: {folder}/captions.json}}"


def small_encoder(encoder: dict[str, Any], pictures: bool) -> dict[str, Any]:
    if not pictures or encoder["name"] != "torchvision":
        return SMALL_ENCODER[encoder["name"]]
    return SMALL_VIT if "vit" in encoder["model"] else SMALL_RESNET


def small_expander(objective: str, widths: list[int]) -> list[int]:
    last = 4 if objective == "wmse" else 16
    return [*([16] * len(widths[:-1])), *([last] if widths else [])]


def shrunken(path: Path, data: Path) -> Recipe:
    """The recipe with small encoders, pictures, data and steps; objective, optimizer and schedule as written."""
    recipe = load_recipe(path)
    pictures = recipe.data.text is None
    overrides = ["training.epochs=0.5", "loader.batch=8", "training.precision=fp32", "init_from=null"]
    overrides += ["training.log_every=1", "training.micro_batch=null", "loader.workers=0"]
    if pictures:
        overrides += ["loader.batch=16", "training.epochs=2", "evaluation.every=2"]
        overrides += ["evaluation.evaluators=[{name: knn, k: [3]}, {name: collapse}]"]
    else:
        overrides.append("evaluation.protocol=full")
    block = tiny_data(recipe, data)
    overrides += [f"data.{split}={block}" for split in ("train", "validation", "test")]
    for branch, one in recipe.branches.items():
        if not pictures:
            overrides.append(f"branches.{branch}.encoder={{name: {one.encoder['name']}}}")
        for key, value in small_encoder(one.encoder, pictures).items():
            overrides.append(f"branches.{branch}.encoder.{key}={'null' if value is None else value}")
        if isinstance(one.train, list):  # names of layers of the large encoder
            overrides.append(f"branches.{branch}.train=[{'layer4' if pictures else 'features.12'}]")
        if pictures and "vit" in one.encoder.get("model", ""):
            overrides.append(f"branches.{branch}.expander.norm=layer")
        widths = small_expander(recipe.objective["name"], one.expander.get("widths", []))
        overrides.append(f"branches.{branch}.expander.widths={widths}")
    for key, value in SMALL_OBJECTIVE.get(recipe.objective["name"], {}).items():
        overrides.append(f"objective.{key}={value}")
    for kind in ("image", "image_evaluation", "audio", "audio_evaluation"):
        view = getattr(recipe.data, kind)
        if view is not None:
            small = SMALL_VIEW.get(view["name"], {"size": 32})
            overrides += [f"data.{kind}.{key}={value}" for key, value in small.items()]
    return build.check(load_recipe(path, overrides))


@pytest.fixture(autouse=True)
def _data_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("JOINTEMBED_DATA", "COCO", "IMAGENET", "ESC50"):
        monkeypatch.setenv(variable, str(tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_warm_up_ends_before_the_run(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.schedule.get("warmup_epochs", 0) < recipe.training.epochs


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_builds_at_full_size_on_the_meta_device(path: Path) -> None:
    recipe = build.check(load_recipe(path))
    tokens = words(["a dog runs"] * 4) if recipe.data.text else None
    with torch.device("meta"):
        model = build.make_model(recipe, tokens, pretrained=False)
        model.attach(100_000)
    assert all(parameter.is_meta for parameter in model.branches.parameters())
    assert recipe.name == path.stem


@pytest.mark.parametrize(
    ("name", "decay_all", "shares"),  # of the peak, by the epoch that begins, in the authors' code
    [
        ("swav", True, {0: 0.0625, 10: 1, 800: 0.001}),
        ("swav_multicrop", True, {0: 0.0625, 10: 1, 800: 0.001}),
        ("deepcluster_v2", True, {0: 0.0625, 10: 1, 800: 0.001}),
        ("obow", True, {0: 0, 10: 1, 200: 0.001}),
        ("pirl", False, {0: 1, 800: 0.001}),
        ("w_mse", True, {0: 0, 1: 1, 189: 1, 190: 0.2, 214: 0.2, 215: 0.04}),
        ("simclr", False, {0: 0, 10: 1, 1000: 0}),
        ("moco_v1", True, {0: 1, 119: 1, 120: 0.1, 159: 0.1, 160: 0.01}),
        ("moco_v2", True, {0: 1, 800: 0}),
        ("cmc", True, {0: 1, 119: 1, 120: 0.1, 160: 0.01, 200: 0.001}),
        ("infomin", True, {0: 1, 800: 0.001}),
    ],
)
def test_decay_and_schedule_are_the_authors(name: str, decay_all: bool, shares: dict[int, float]) -> None:
    recipe = load_recipe(ROOT / "imagenet" / f"{name}.yaml")
    assert recipe.parameters.decay_all == decay_all
    for branch in recipe.branches.values():
        assert branch.encoder.get("zero_init_residual", False) == (name == "simclr")
    schedule = {key: value for key, value in recipe.schedule.items() if key != "name"}
    steps = int(recipe.training.epochs) * 2500
    for epoch, share in shares.items():
        assert SCHEDULES[recipe.schedule["name"]](epoch * 2500, steps, 2500, 1.0, **schedule) == pytest.approx(share)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_runs_two_steps_shrunken(path: Path, tmp_path: Path) -> None:
    recipe = shrunken(path, tmp_path / "data")
    state = runs.train(recipe, tmp_path / "run")
    assert state["step"] >= 2
    if build.has_captions(recipe.data):
        assert 0 <= runs_evaluate.evaluate_run(tmp_path / "run", "test").record["metrics"]["rsum"] <= 600
    else:
        assert 0 <= runs_evaluate.evaluate_features(tmp_path / "run", "test")["metrics"]["knn3_top1"] <= 100


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_header_gives_command_hardware_and_result(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for part in ("# command:", "# hardware:", "# measured:"):
        assert any(line.startswith(part) for line in header), part

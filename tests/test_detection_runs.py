"""Whole detection runs on a tiny data set: they learn, resume to the bit, start from trained runs; and the recipes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_data import write_coco
from tiny_detection import TINY_DETECTION

from jointembed import build_detection, runs, runs_detection
from jointembed.branches.detector import Detector
from jointembed.cli import main
from jointembed.errors import CheckpointError, JointEmbedError, RecipeError, WeightsError
from jointembed.inference.detect import detect, load_detector
from jointembed.model import from_config
from jointembed.optim.schedules import milestones
from jointembed.recipe_detection import DetectionRecipe, load_detection_recipe
from jointembed.training import checkpoint as checkpoints
from jointembed.training import loop

ROOT = Path(__file__).parent.parent / "recipes" / "detection"
RECIPES = sorted(ROOT.glob("*.yaml"))
Make = Callable[..., DetectionRecipe]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    root = write_coco(tmp_path / "shapes")
    path = tmp_path / "tiny_detection.yaml"
    path.write_text(TINY_DETECTION.replace("ROOT", str(root)))
    return path


@pytest.fixture
def make(recipe_file: Path) -> Make:
    return lambda *overrides: build_detection.check(load_detection_recipe(recipe_file, overrides))


def final(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.newest(run / "checkpoints")
    assert saved is not None
    return saved.model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jointembed", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return (stop.value.code if isinstance(stop.value.code, int) else 0), out, err


def test_it_learns_to_find_rectangles_and_their_masks(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = runs_detection.train(make("training.steps=120", "training.validate_every=60"), run)
    assert state["step"] == 120 and state["best"] > 0.3
    result = runs_detection.evaluate(run)
    numbers = result.record["metrics"]
    assert numbers["bbox_AP50"] > 0.7 and numbers["segm_AP50"] > 0.7 and numbers["voc_AP50"] > 0.7
    assert numbers["bbox_AP"] == pytest.approx(state["best"])  # the saved detector is the best one
    assert set(result.record["per_category"]["segm_AP"]) == {"red", "blue"}
    assert (run / "evaluation/validation/detections.json").exists()
    card = (run / "model" / "README.md").read_text()
    assert "Categories: red, blue" in card and f"bbox_AP50 {numbers['bbox_AP50']:.4g}" in card
    detector, config = load_detector(run / "model")
    assert config["encoder"]["weights"] is None and config["categories"] == ["red", "blue"]
    found = detect(detector, result.data.pictures, size=64, max_size=96)
    assert found[0].labels.tolist() == result.found[0].labels.tolist()
    cost = json.loads((run / "cost.json").read_text())
    assert cost["seconds"] > 0 and cost["samples_per_second"] > 0 and cost["peak_process_bytes"] > 1e8


def test_a_run_leaves_its_folder(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs_detection.train(make(), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert len(train) == 6 and {"loss", "loss_mask", "loss_objectness", "lr", "gradient_norm"} <= set(train[0])
    assert {line["kind"] for line in lines} >= {"train", "validation"}
    assert {path.name for path in run.iterdir()} >= {"recipe.yaml", "environment.json", "checkpoints", "model"}
    assert not list(run.rglob("*.pt")) and not list(run.rglob("*.pkl"))
    again = build_detection.check(load_detection_recipe(run / "recipe.yaml"))
    assert again == make()


def test_stopped_and_resumed_gives_the_same_bits(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make("training.save_every=1", "training.steps=4")
    runs_detection.train(recipe, tmp_path / "whole")
    original, count = loop.set_lr, iter(range(100))

    def dying(*arguments: Any) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_lr", dying)
        with pytest.raises(KeyboardInterrupt):
            runs_detection.train(recipe, tmp_path / "broken")
    assert checkpoints.complete(tmp_path / "broken/checkpoints")[-1].name == "step-2"
    runs_detection.train(recipe, tmp_path / "broken", resume=True)
    assert same(final(tmp_path / "whole"), final(tmp_path / "broken"))
    with pytest.raises(CheckpointError, match="recipe has changed"):
        runs_detection.train(make("training.steps=5"), tmp_path / "broken", resume=True)
    with pytest.raises(CheckpointError, match="not empty"):
        runs_detection.train(recipe, tmp_path / "broken")


def test_it_starts_from_a_trained_run(make: Make, tiny_recipe: Callable, tmp_path: Path) -> None:
    encoder = "branches.image.encoder={name: torchvision, model: resnet18, widen: 0.25}"
    runs.train(tiny_recipe(encoder, "branches.image.train=all", "training.epochs=0.5"), tmp_path / "first")
    start = (f"init_from={tmp_path / 'first'}", "encoder=null")
    detector, config = build_detection.make_detector(make(*start), ("red", "blue"))
    first = {
        name.removeprefix("branches.image.encoder.model."): tensor
        for name, tensor in final(tmp_path / "first").items()
        if name.startswith("branches.image.encoder.model.")
    }
    state = detector.state_dict()
    assert torch.equal(state["features.stages.0.0.weight"], first["conv1.weight"])
    assert torch.equal(state["features.stages.4.0.1.conv2.weight"], first["layer4.1.conv2.weight"])
    assert torch.equal(state["features.stages.0.1.running_mean"], first["bn1.running_mean"])
    assert config["encoder"]["widen"] == 0.25 and all(p.requires_grad for p in detector.parameters())
    runs_detection.train(make(*start, "training.steps=2"), tmp_path / "second")
    assert 0 <= runs_detection.evaluate(tmp_path / "second").record["metrics"]["bbox_AP"] <= 1
    with pytest.raises(RecipeError, match=r"view: .* has no view 'imgae'; did you mean 'image'"):
        build_detection.make_detector(make(*start, "view=imgae"), ("red",))
    with pytest.raises(RecipeError, match="the encoder of 'text' is a GRU, not torchvision's"):
        build_detection.make_detector(make(*start, "view=text"), ("red",))
    with pytest.raises(WeightsError):
        build_detection.make_detector(make(f"init_from={tmp_path / 'nowhere'}", "encoder=null"), ("red",))


REFUSED = [
    ("encoder=null", "encoder: give either it or init_from"),
    ("init_from=somewhere", "encoder: give either it or init_from"),
    ("encoder={name: gru}", "encoder.name: no 'gru' here"),
    ("encoder={name: transformers_vision}", "encoder.name: no 'transformers_vision' here"),
    ("encoder.channels=1", "encoder.channels: 1 planes, a detector's pictures have 3"),
    ("detector.name=rcnn", "detector.name: no 'rcnn' here; did you mean 'rcnn_fpn'"),
    ("detector.norm=bach", "detector.norm"),
    ("detector.mask=true", "detector.mask: rcnn_fpn has no such argument; did you mean 'masks'"),
    ("detector.width=0", "detector.width: 0 is too small"),
    ("detector.freeze_at=-1", "detector.freeze_at: -1 is too small"),
    ("data.train.name=coco", "data.train.name: no 'coco' here"),
    ("data.train.degenerate=ignore", "data.train.degenerate"),
    ("data.size=0", "data.size"),
    ("data.sizes=[]", "data.sizes"),
    ("data.flip=2", "data.flip"),
    ("data.flipp=1", "data.flipp: unknown key; did you mean 'flip'"),
    ("training.steps=0", "training.steps"),
    ("training.epochs=3", "training.epochs: unknown key"),
    ("evaluation.rules=[pascal]", "evaluation.rules"),
    ("evaluation.select=bbox_AP95", "evaluation.select: no number 'bbox_AP95'; did you mean 'bbox_AP"),
    ("training.trackers=[tensorbord]", "no tracker 'tensorbord'"),
    ("schedule={name: milestones}", "schedule: milestones are epochs or"),
    ("optimizer.lr=fast", "optimizer.lr"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[one[0] for one in REFUSED])
def test_a_recipe_that_is_wrong_is_refused_before_any_work(make: Make, override: str, message: str) -> None:
    with pytest.raises(JointEmbedError, match=message.replace("[", r"\[")):
        make(override)


def test_an_encoder_of_other_planes_is_no_start(make: Make, tmp_path: Path) -> None:
    encoder = {"name": "torchvision", "model": "resnet18", "widen": 0.25, "channels": 1}
    branches = {"net": {"encoder": encoder, "expander": {"name": "mlp", "widths": []}}}
    from_config({"views": {"luminance": "net"}, "branches": branches}, None).save_pretrained(tmp_path / "cmc")
    recipe = make(f"init_from={tmp_path / 'cmc'}", "encoder=null", "view=luminance")
    with pytest.raises(RecipeError, match="init_from: the encoder of 'luminance' takes 1 planes, a detector 3"):
        build_detection.make_detector(recipe, ("red",))


def test_splits_of_other_categories_are_refused(make: Make, tmp_path: Path) -> None:
    tree = json.loads((tmp_path / "shapes/instances.json").read_text())
    tree["categories"][0]["name"] = "rot"
    (tmp_path / "other.json").write_text(json.dumps(tree))
    other = f"data.validation.annotations={tmp_path / 'other.json'}"
    with pytest.raises(RecipeError, match=r"data.validation: its categories are not those of data.train: .*'rot'"):
        runs_detection.train(make(other), tmp_path / "run")
    runs_detection.train(make("training.steps=1"), tmp_path / "good")
    text = (tmp_path / "good/recipe.yaml").read_text().replace("shapes/instances.json", "other.json")
    (tmp_path / "good/recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="not those that the detector was trained on"):
        runs_detection.evaluate(tmp_path / "good")


def test_a_saved_detector_that_does_not_fit_is_refused_by_name(make: Make, tmp_path: Path) -> None:
    runs_detection.train(make("training.steps=1"), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"kind": "model"}, "not the config of a detector"),
        ({"format": 99}, "format 99; this version reads up to 1"),
        ({"detector": config["detector"] | {"width": 8}}, "model.safetensors"),
        ({"detector": {"name": "yolo"}}, "it does not fit version"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            load_detector(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json: cannot be read"):
        load_detector(folder)


def test_a_loss_that_is_not_a_number_stops_by_name(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Detector.forward

    def broken(self: Detector, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        return terms | {"loss": terms["loss"] * float("nan")}

    monkeypatch.setattr(Detector, "forward", broken)
    with pytest.raises(JointEmbedError, match=r"step 1: loss is nan.*nothing was updated.*00\d.png"):
        runs_detection.train(make(), tmp_path / "run")


def test_the_command_trains_reports_and_evaluates_again(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, out, _ = say(monkeypatch, capsys, "detect", str(recipe_file), "training.steps=2", "--out", str(run))
    assert code == 0 and "bbox_AP" in out and "segm_AP50" in out and "voc07_AP50" in out and "report.html" in out
    record = json.loads((run / "evaluation/validation/metrics.json").read_text())
    assert record["command"].startswith("jointembed detect") and record["n_objects"] == 12
    page = (run / "report.html").read_text()
    assert "COCO, masks" in page and "data:image/jpeg;base64," in page
    code, out, _ = say(monkeypatch, capsys, "detect", str(run), "--split", "train")
    assert code == 0 and (run / "evaluation/train/drawings.json").exists()
    for arguments, message in (
        (["detect", str(run), "training.steps=2"], "a run folder is evaluated as it is"),
        (["detect", str(run), "--split", "test"], "data.test: the recipe names no test data"),
        (["detect", str(run), "--split", "tests"], "--split: no 'tests'; did you mean 'test'"),
        (["detect", str(run), "--resume"], "--resume is of a training; a run folder is only evaluated"),
        (["detect", str(run), "--overwrite"], "--overwrite is of a training"),
        (["detect", str(run), "--allow-changed"], "--allow-changed is of a training"),
        (["detect", str(recipe_file), "--resume", "--overwrite"], "--overwrite does not go with --resume"),
        (["detect", str(tmp_path)], "no recipe.yaml there; not a run folder"),
        (["detect", str(tmp_path / "absent.yaml")], "absent.yaml: cannot read the recipe"),
    ):
        code, _, err = say(monkeypatch, capsys, *arguments)
        assert code != 0 and message in err.replace("│", "").replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("split", "message"),
    [("tset", "--split: no 'tset'; did you mean 'test'"), ("test", "data.test: the recipe names no test data")],
)
def test_a_split_that_is_not_there_is_refused_before_the_training(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    split: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(runs_detection, "train", lambda *arguments, **options: pytest.fail("trained"))
    given = ("detect", str(recipe_file), "--out", str(tmp_path / "run"), "--split", split)
    code, _, err = say(monkeypatch, capsys, *given)
    assert code == 2 and message in err, err


@pytest.mark.ddp
@pytest.mark.timeout(1100)  # two starts of two processes, on a machine that may be shared
def test_two_processes_train_and_evaluate_together(recipe_file: Path, tmp_path: Path) -> None:
    def command(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jointembed",
            "detect", str(recipe_file), "training.steps=4", "training.save_every=2", "--out", str(out), *more,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=500)

    whole = command(tmp_path / "two")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert whole.stdout.count("report.html") == 1
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "environment.json"):
        (half / name).write_text((tmp_path / "two" / name).read_text())
    (tmp_path / "two/checkpoints/step-2").rename(half / "checkpoints/step-2")
    resumed = command(half, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert same(final(tmp_path / "two"), final(half))


# ---- the recipes


@pytest.fixture
def _data_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("JOINTEMBED_DATA", "COCO", "VOC"):
        monkeypatch.setenv(variable, str(tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_builds_at_full_size_on_the_meta_device(path: Path, _data_variables: None) -> None:
    recipe = build_detection.check(load_detection_recipe(path))
    with torch.device("meta"):
        detector, _ = build_detection.make_detector(recipe, [f"category {n}" for n in range(20)], pretrained=False)
    assert all(parameter.is_meta for parameter in detector.parameters())
    assert recipe.name == path.stem
    if "c4" in path.stem:
        assert 30e6 < sum(p.numel() for p in detector.parameters()) < 40e6  # ResNet-50 23.5 M, RPN 9.5 M


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_runs_two_steps_shrunken(path: Path, tmp_path: Path, _data_variables: None) -> None:
    root = write_coco(tmp_path / "shapes")
    masks = "true" if "mask" in path.stem else "false"
    block = f"{{name: coco_detection, images: {root}/images, annotations: {root}/instances.json, masks: {masks}}}"
    overrides = [f"data.{split}={block}" for split in ("train", "validation", "test")]
    overrides += ["encoder={name: torchvision, model: resnet18, widen: 0.25}", "training.steps=2", "loader.workers=0"]
    overrides += ["loader.batch=2", "data.sizes=[48]", "data.size=48", "training.precision=fp32"]
    overrides += ["detector.proposals=50", "detector.regions=32"]
    recipe = build_detection.check(load_detection_recipe(path, overrides))
    assert runs_detection.train(recipe, tmp_path / "run")["step"] == 2
    numbers = runs_detection.evaluate(tmp_path / "run", "test").record["metrics"]
    assert recipe.evaluation.select in numbers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_gives_command_hardware_and_result(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for part in ("# command:", "# hardware:", "# measured:"):
        assert any(line.startswith(part) for line in header), part


def test_milestones() -> None:
    voc: dict[str, Any] = {"at": [18000, 22000], "warmup_steps": 1000, "start": 0.333}
    rates = [milestones(step, 24000, 1, 0.1, **voc) for step in (0, 500, 1000, 17999, 18000, 21999, 22000, 23999)]
    assert rates == pytest.approx([0.0333, 0.06665, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert milestones(0, 10, 1, 0.5, at=[]) == 0.5
    with pytest.raises(RecipeError, match="rising numbers"):
        milestones(0, 10, 1, 0.5, at=[5, 3])
    with pytest.raises(RecipeError, match="schedule.start"):
        milestones(0, 10, 1, 0.5, at=[5], start=2)

"""Whole runs on pictures without captions: targets, hooks, labels, micro-batches."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jointembed import build, distributed, runs, runs_evaluate
from jointembed.branches import ENCODERS
from jointembed.data.loader import slice_rows
from jointembed.data.records import ImageData
from jointembed.errors import RecipeError, WeightsError
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe, dump_recipe, load_recipe
from jointembed.runs_baselines import measure_baselines
from jointembed.runs_labels import evaluate_task, task_recipe
from jointembed.training import checkpoint as checkpoints

RECIPE = """
name: pictures
views: {view1: net, view2: net}
branches:
  net:
    encoder: {name: torchvision, model: resnet18, widen: 0.125, small_input: true}
    expander: {name: mlp, widths: [16, 8], norm: none}
objective: {name: vicreg}
data:
  train: {name: image_folder, path: ROOT, split: train}
  validation: {name: image_folder, path: ROOT, split: test}
  image: {name: vicreg, size: 16}
  image_evaluation: {name: resize, size: 16}
loader: {batch: 8}
optimizer: {name: sgd, lr: 1e-3}
schedule: {name: cosine}
training: {epochs: 2, precision: fp32, log_every: 1, health_every: 2}
evaluation: {evaluators: [{name: knn, k: [3]}, {name: collapse}]}
"""
Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    write_pictures(tmp_path / "pictures")
    path = tmp_path / "pictures.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path / "pictures")))
    return lambda *overrides: build.check(load_recipe(path, overrides))


def write_pictures(root: Path, counts: dict[str, int] | None = None, size: int = 20) -> None:
    """Two classes that differ in colour."""
    rng = np.random.default_rng(0)
    for split, count in (counts or {"train": 8, "test": 4}).items():
        for number, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(100 * number, 100 * number + 120, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.newest(run / "checkpoints")
    assert saved is not None
    return saved.model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_trained_judged_and_costed(make: Make, tmp_path: Path) -> None:
    recipe = make()
    assert recipe.evaluation.select == "knn3_top1" and recipe.evaluation.embedding == "h"
    state = runs.train(recipe, tmp_path / "run")
    record = runs_evaluate.evaluate_features(tmp_path / "run", "validation")
    assert record["metrics"]["knn3_top1"] == pytest.approx(state["best"])
    assert record["metrics"]["knn3_top1"] > 50 and record["metrics"]["rankme"] > 1
    other = runs_evaluate.evaluate_features(tmp_path / "run", "train", other=recipe.data.validation)
    assert other["metrics"] == record["metrics"] and other["split"] is None
    assert [path.name for path in (tmp_path / "run" / "evaluation").glob("on-*")] == [f"on-{other['data']}-features"]
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["seconds"] > 0 and cost["samples_per_second"] > 0 and cost["peak_process_bytes"] > 1e8


@pytest.mark.parametrize("more", [[], ["regularize={variance: 1.0, covariance: 0.1}"]], ids=["bare", "wrapped"])
def test_a_supervised_run_keeps_its_classifier(make: Make, tmp_path: Path, more: list[str]) -> None:
    recipe = make(
        *more,
        "objective={name: supervised, classes: 2}", "views={image: net}", "branches.net.expander.widths=[]",
        "data.image={name: crop, size: 16}", "evaluation.select=knn3_top1",
        "evaluation.evaluators=[{name: classifier}, {name: knn, k: [3]}, {name: logistic, l2: 0.1}]",
    )  # fmt: skip
    run = tmp_path / "run"
    runs.train(recipe, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "validation"), key=lambda line: line["knn3_top1"])
    found = runs_evaluate.evaluate_features(run, "validation")["metrics"]
    assert found["classifier_top1"] == pytest.approx(best["classifier_top1"])
    assert found["logistic_top1"] == pytest.approx(best["logistic_top1"]) and found["logistic_top1"] > 50
    (run / "model" / "classifier.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match=r"classifier.safetensors: the classifier cannot be read"):
        runs_evaluate.evaluate_features(run, "validation")


def test_splits_whose_labels_mean_other_classes_are_refused(make: Make, tmp_path: Path) -> None:
    runs.train(make("training.epochs=0.5"), tmp_path / "run")
    shutil.rmtree(tmp_path / "pictures" / "test" / "dark")  # without it a light picture has the label of a dark one
    calls: list[Callable[[], object]] = [
        lambda: runs.train(make(), tmp_path / "again"),
        lambda: runs_evaluate.evaluate_features(tmp_path / "run", "validation"),
        lambda: measure_baselines(make(), tmp_path / "base"),
    ]
    for call in calls:
        with pytest.raises(
            RecipeError, match="data.validation: class 0 is 'light' in pictures-test and 'dark' in pictures-train"
        ):
            call()
    runs.train(make("data.validation.labels=false", "evaluation.evaluators=[{name: collapse}]"), tmp_path / "without")


def test_labels_do_not_reach_an_unsupervised_objective(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.train(make("training.probe=true"), tmp_path / "one")

    def permuted(recipe: Recipe, split: str) -> ImageData:
        data = build.dataset(recipe, split)
        assert isinstance(data, ImageData) and data.labels is not None
        return dataclasses.replace(data, labels=np.random.default_rng(5).permutation(data.labels))

    monkeypatch.setattr(runs, "dataset", permuted)
    runs.train(make("training.probe=true"), tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    trained = {name for name in one if name.startswith("branches.")}
    assert len(trained) > 50 and all(torch.equal(one[name], two[name]) for name in trained)
    assert any(not torch.equal(one[name], two[name]) for name in set(one) - trained)  # the probe did see them


def batch_of(recipe: Recipe, model: JointEmbedding) -> dict[str, torch.Tensor]:
    samples = build.make_samples(recipe, build.dataset(recipe, "train"), None)
    return samples.__getitems__([(0, number) for number in range(8)])


@pytest.mark.parametrize("objective", ["{name: byol, predictor_width: 8}", "{name: moco, queue: 32}", "{name: vicreg}"])
def test_micro_batches_with_a_target_give_the_gradient_of_one_pass(make: Make, objective: str) -> None:
    from accelerate import Accelerator

    from jointembed.training.loop import forward_backward

    recipe = make(f"objective={objective}", "regularize={variance: 1.0, covariance: 0.1}")
    torch.manual_seed(0)
    model = build.make_model(recipe, None, samples=16).double()
    model.train()
    for module in model.modules():  # batch norm sees a micro-batch at a time: not here
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.eval()
    batch = batch_of(recipe, model)
    model.before_step(batch)
    found = []
    for micro_batch in (None, 3):
        model.zero_grad()
        terms = forward_backward(model, model, batch, Accelerator(cpu=True), micro_batch)
        found.append((terms, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (whole, gradients), (parts, of_parts) = found
    assert len(gradients) == len(of_parts) > 10
    torch.testing.assert_close(whole["loss"], parts["loss"], rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients, of_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert distributed.world() == 1 and len(slice_rows(batch, 0, 3)["index"]) == 3


def test_the_target_follows_and_survives_a_resume(make: Make, tmp_path: Path) -> None:
    overrides = ("objective={name: byol, predictor_width: 8, momentum: 0.5}", "training.save_every=0.5")
    runs.train(make(*overrides), tmp_path / "whole")
    final = weights(tmp_path / "whole")
    names = [name for name in final if name.startswith("targets.net.encoder") and name.endswith("conv1.weight")]
    assert names and any(not torch.equal(final[name], final[name.replace("targets", "branches")]) for name in names)
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "environment.json"):
        (half / name).write_text((tmp_path / "whole" / name).read_text())
    first = checkpoints.complete(tmp_path / "whole" / "checkpoints")[0]
    first.rename(half / "checkpoints" / first.name)
    runs.train(make(*overrides), half, resume=True)
    assert same(weights(half), final)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("views={view1: net, view3: net}", "views.view3: the data gives no such view; did you mean 'view"),
        ("evaluation.evaluators=[{name: retrieval}]", "evaluation.evaluators.0: retrieval does not fit"),
        ("evaluation.evaluators=[{name: logistic, l2: 0}]", "logistic: l2 is 0"),
        ("evaluation.evaluators=[{name: knn, k: []}]", r"evaluation.evaluators: knn: k is \[\]"),
        ("evaluation.evaluators=[{name: knn, k: [5, 0]}]", r"evaluation.evaluators: knn: k is \[5, 0\]"),
        ("evaluation.evaluators=[{name: knn, temperature: 0}]", "evaluation.evaluators: knn: temperature is 0"),
        ("evaluation.evaluators=[]", "evaluation.evaluators: the list is empty"),
        ("evaluation.views=[left]", "evaluation.views: no view 'left'"),
        ("data.image_evaluation=null", "data.image_evaluation: missing"),
        ("data.image_evaluation={name: crop, size: 16}", "data.image_evaluation: crop is random"),
        ("data.validation={name: emoji, split: val}", "data.validation: emoji gives captions, unlike data.train"),
        ("data.text={name: words}", "data.text: the data set image_folder has no captions"),
        ("objective={name: byol, momentum: 2}", "objective.momentum"),
        ("evaluation.select=z_corelation", "evaluation.select: no number 'z_corelation'"),
        ("evaluation.select=correlation", "evaluation.select: the lower correlation the better"),
        ("evaluation.select=knn20_top1", "evaluation.select: no number 'knn20_top1'; did you mean 'knn3_top1'"),
    ],
)
def test_bad_recipes_are_refused_by_the_path(make: Make, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(override)


@pytest.mark.parametrize("override", ["evaluation.embedding=z", "branches.net.expander.widths=[]"])
def test_a_number_of_embeddings_that_are_not_measured_apart_selects_nothing(make: Make, override: str) -> None:
    assert make("evaluation.select=z_rankme").evaluation.select == "z_rankme"
    with pytest.raises(RecipeError, match="evaluation.select: z_rankme is not measured here"):
        make("evaluation.select=z_rankme", override)


def test_plain_accumulation_is_refused_and_names_the_exact_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(RecipeError, match=r"couples the samples of a batch.*training.micro_batch"):
        make()
    with pytest.raises(RecipeError, match=r"not summed over batches here.*training.micro_batch"):
        make("objective={name: supervised, classes: 2}")


def test_different_branches_are_refused_with_the_reason(make: Make) -> None:
    two = "branches.other={encoder: {name: torchvision, model: resnet18}}"
    with pytest.raises(RecipeError, match="BYOL needs one branch for all views"):
        make(two, "views={view1: net, view2: other}", "objective={name: byol}")


def test_tasks_with_labels_start_from_the_run_and_leave_their_records(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(make(), run)
    short = ["training.epochs=3", "evaluation.every=3", "loader.batch=8"]
    linear = evaluate_task(run, "linear", short)
    assert set(linear["metrics"]) == {"linear_top1", "linear_top5"} and 0 <= linear["metrics"]["linear_top1"] <= 100
    record = json.loads((run / "evaluation" / "validation-linear" / "metrics.json").read_text())
    assert record["task"] == "linear" and record["metrics"] == linear["metrics"]
    assert record["settings"] == {"training": {"epochs": 3}, "evaluation": {"every": 3}, "loader": {"batch": 8}}
    before = JointEmbedding.from_pretrained(run).branches["net"].get_submodule("encoder").state_dict()
    after = (
        JointEmbedding.from_pretrained(run / "tasks" / "linear").branches["net"].get_submodule("encoder").state_dict()
    )
    assert all(torch.equal(before[name], after[name]) for name in before)  # frozen, batch norm statistics too
    semi = evaluate_task(run, "semi10", [*short, "data.train.fraction=0.5"])
    tuned = (
        JointEmbedding.from_pretrained(run / "tasks" / "semi10").branches["net"].get_submodule("encoder").state_dict()
    )
    assert any(not torch.equal(before[name], tuned[name]) for name in before)
    assert "semi10_top1" in semi["metrics"]
    recipe = load_recipe(run / "tasks" / "semi10" / "recipe.yaml")
    assert recipe.branches["net"].lr_scale == pytest.approx(0.1) and recipe.optimizer["lr"] == 0.1


def saved(recipe: Recipe, run: Path) -> Path:
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    return run


def test_a_task_that_could_not_end_is_not_begun(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no data.validation, which linear is judged on"):
        task_recipe(saved(make("data.validation=null"), tmp_path / "alone"), "linear")
    planes = make(
        "branches.net.encoder.channels=1",
        "data.image={name: cmc, size: 16}",
        "views={luminance: net}",
        "objective={name: supervised, classes: 2}",
    )
    with pytest.raises(RecipeError, match="sees 1 of a picture's planes"):
        task_recipe(saved(planes, tmp_path / "planes"), "linear")


def lists_of_pictures(root: Path) -> tuple[str, str]:
    """Lists of all training pictures, and of one of each class."""
    (root / "all.txt").write_text("".join(f"{name}/{k}.png\n" for name in ("dark", "light") for k in range(8)))
    (root / "few.txt").write_text("dark/3.png\nlight/5.png\n")
    return str(root / "all.txt"), str(root / "few.txt")


def test_fine_tuning_does_not_take_the_list_of_the_run_for_a_share(make: Make, tmp_path: Path) -> None:
    whole, few = lists_of_pictures(tmp_path)
    listed = saved(make(f"data.train.subset={whole}"), tmp_path / "listed")
    with pytest.raises(RecipeError, match=r"data.train.subset: the run was trained on the list .*all.txt, .* no 1% of"):
        task_recipe(listed, "semi1")
    assert task_recipe(listed, "linear").data.train["subset"] == whole
    train = task_recipe(listed, "semi10", [f"data.train.subset={few}"]).data.train
    assert (train["subset"], train["fraction"]) == (few, None)
    train = task_recipe(listed, "semi10", ["data.train.subset=null"]).data.train
    assert (train["subset"], train["fraction"]) == (None, 0.1)


def test_overrides_say_which_labels_fine_tuning_sees(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, few = lists_of_pictures(tmp_path)
    run = saved(make("data.train.fraction=0.5"), tmp_path / "run")
    assert task_recipe(run, "semi1", ["data.train.subset_seed=3"]).data.train["fraction"] == 0.01
    assert task_recipe(run, "semi1", ["data.train.fraction=0.25"]).data.train["fraction"] == 0.25
    overrides = [f"data.train.subset={few}", "data.train.fraction=null"]
    train = task_recipe(run, "semi1", overrides).data.train
    assert (train["subset"], train["fraction"]) == (few, None)

    def plain(*, path: str) -> ImageData:
        return build.DATASETS["image_folder"](path=path, split="train")

    monkeypatch.setitem(build.DATASETS, "plain", plain)
    block = f"{{name: plain, path: {tmp_path / 'pictures'}}}"
    without = saved(make(f"data.train={block}"), tmp_path / "without")
    with pytest.raises(RecipeError, match="data.train: plain cannot give a share of its labels"):
        task_recipe(without, "semi1")
    assert task_recipe(without, "semi1", [f"data.train={block}"]).data.train["name"] == "plain"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.labels=false", r"knn needs labels, and .* \(data.train\) has none"),
        ("evaluation.evaluators=[{name: knn, k: [5000]}]", "knn of 5000 neighbours, and data.train has"),
    ],
)
def test_what_the_data_cannot_be_judged_by_is_refused_before_training(
    make: Make, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        runs.train(make(override), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_task_leaves_behind_what_belongs_to_the_training_before_it(make: Make, tmp_path: Path) -> None:
    recipe = make("ramp={covariance: {}}", "contrast={}", "branches.net.lr_scale=0.5", "regularize={covariance: 0.1}")
    derived = task_recipe(saved(recipe, tmp_path / "run"), "linear")
    assert derived.ramp == {} and derived.contrast is None and derived.regularize is None
    assert derived.branches["net"].lr_scale == 1


def test_a_task_takes_one_encoder_of_pictures(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="branch 'net' has members; linear takes one encoder"):
        task_recipe(saved(make("branches.net.members=2"), tmp_path / "members"), "linear")


def test_a_task_that_is_none_is_refused(make: Make, tmp_path: Path) -> None:
    runs.train(make(), tmp_path / "run")
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        evaluate_task(tmp_path / "run", "liner")
    with pytest.raises(RecipeError, match=r"--task places205: say where its pictures are"):
        evaluate_task(tmp_path / "run", "places205")


def test_a_profile_says_where_the_time_goes(make: Make, tmp_path: Path) -> None:
    for micro_batch in ("null", "3"):
        run = tmp_path / micro_batch
        runs.train(make(f"training.micro_batch={micro_batch}"), run, profile=True)
        found = json.loads((run / "profile.json").read_text())
        assert found["steps"] == 3  # of four: the first is warm-up
        assert [row["stage"] for row in found["stages"]] == ["data", "forward", "loss", "backward", "optimizer"]
        assert all(row["milliseconds"] > 0 for row in found["stages"])
        assert sum(row["percent"] for row in found["stages"]) == pytest.approx(100)


class Mean(torch.nn.Module):
    """A branch that compiles in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.float().mean((2, 3)) / 255


def test_compiled_branches_train_the_same_and_are_saved_under_the_same_names(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "mean", Mean)
    branch = "branches.net={encoder: {name: mean}, expander: {name: mlp, widths: [4], norm: none}}"
    runs.train(make(branch), tmp_path / "plain")
    runs.train(make(branch, "training.compile=true"), tmp_path / "compiled")
    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name].float(), compiled[name].float(), atol=1e-5) for name in plain)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{name: milestones}", "milestones are epochs or, by the name at, steps"),
        ("{name: cosine, warmup_steps: 3, warmup_epochs: 1}", "not both"),
        ("{name: cosine, final: 2}", "schedule.final"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_any_work(make: Make, schedule: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(f"schedule={schedule}")

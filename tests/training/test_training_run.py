"""Whole runs on a tiny data set: they train, resume to the bit, refuse what does not fit."""

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from jointembed import build, runs
from jointembed.data import VIEWS
from jointembed.data.samples import CaptionSamples
from jointembed.errors import CheckpointError, DataError, JointEmbedError, RecipeError
from jointembed.model import JointEmbedding
from jointembed.objectives import OBJECTIVES
from jointembed.recipe import Recipe
from jointembed.training import checkpoint as checkpoints
from jointembed.training import loop
from jointembed.training.log import collapse_warnings

Make = Callable[..., Recipe]


def final(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.newest(run / "checkpoints")
    assert saved is not None
    return saved.model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the loop die like a killed process after some steps."""

    def arrange(step: int) -> None:
        original = loop.set_lr
        count = iter(range(10_000))

        def counting(*arguments: object) -> None:
            if next(count) == step:
                raise KeyboardInterrupt
            original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "set_lr", counting)

    return arrange


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_in_an_epoch_and_resumed_gives_the_same_bits(
    tiny_recipe: Make, tmp_path: Path, workers: int, stop_after: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        f"loader.workers={workers}", "training.save_every=0.25", "data.image={name: crop, size: 32}",
        "data.image_evaluation={name: resize, size: 32}", "branches.image.train=all",
        "branches.text.expander={name: mlp, widths: [16, 16], dropout: 0.2}",
    )  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(tiny_recipe(*overrides), whole)
    with monkeypatch.context():
        stop_after(5)
        with pytest.raises(KeyboardInterrupt):
            runs.train(tiny_recipe(*overrides), broken)
    monkeypatch.undo()
    monkeypatch.setenv("JOINTEMBED_CACHE", str(tmp_path / "cache"))
    assert [p.name for p in checkpoints.complete(broken / "checkpoints")][-1] in ("step-4", "step-5")
    runs.train(tiny_recipe(*overrides), broken, resume=True)
    assert same(final(whole), final(broken))
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, broken)]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]


def test_same_seed_same_weights_other_seed_other_weights(tiny_recipe: Make, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for run, seed in zip(folders, (0, 0, 1), strict=True):
        runs.train(tiny_recipe(f"seed={seed}"), run)
    assert same(final(folders[0]), final(folders[1]))
    assert not same(final(folders[0]), final(folders[2]))


def test_runs_of_one_process_may_differ_in_precision(tiny_recipe: Make, tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):  # accelerate keeps the first one's choice for the process
        runs.train(tiny_recipe(f"training.precision={precision}", "training.epochs=0.5"), tmp_path / precision)
        assert AcceleratorState().mixed_precision == {"bf16": "bf16", "fp32": "no"}[precision]


def test_attention_is_plain_products_on_a_cpu(
    tiny_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = []
    original = loop.set_lr

    def noting(*arguments: object) -> None:
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "set_lr", noting)
    runs.train(tiny_recipe("training.epochs=0.5"), tmp_path / "run")
    assert fused and not any(fused)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_run_leaves_its_folder(tiny_recipe: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = runs.train(tiny_recipe(), run)
    kinds = {json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert kinds == {"train", "health", "validation"}
    assert state["step"] == 8 and state["best"] is not None
    assert {path.name for path in run.iterdir()} >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "model",
    }  # fmt: skip
    model = JointEmbedding.from_pretrained(run)
    assert model.encode_text(["a red photo"]).shape == (1, 16)
    assert not list(run.rglob("*.pt")) and not list(run.rglob("*.bin")) and not list(run.rglob("*.pkl"))


def test_a_frozen_encoder_is_left_alone_and_its_rows_are_cached(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    torch.manual_seed(recipe.seed)
    before = build.make_model(recipe, build.tokens_of(recipe, build.dataset(recipe, "train"))).state_dict()
    runs.train(recipe, tmp_path / "run")
    after = final(tmp_path / "run")
    for name, tensor in before.items():
        if name.startswith("branches.image.encoder"):
            assert torch.equal(after[name], tensor), name
    kept = [path for path in (tmp_path / "cache").glob("*.safetensors") if not path.name.startswith("tokens-")]
    assert len(kept) == 1  # train and validation are the same pictures


def test_cached_and_uncached_training_agree(tiny_recipe: Make, tmp_path: Path) -> None:
    runs.train(tiny_recipe(), tmp_path / "cached")
    runs.train(tiny_recipe("data.cache=false"), tmp_path / "uncached")
    a, b = final(tmp_path / "cached"), final(tmp_path / "uncached")
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), rtol=1e-3, atol=1e-5), name


@pytest.mark.fault(6, "a changed recipe is refused on resume, unless told")
def test_resume_refuses_a_changed_recipe_unless_told(tiny_recipe: Make, tmp_path: Path) -> None:
    runs.train(tiny_recipe(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="recipe has changed"):
        runs.train(tiny_recipe("training.epochs=3"), tmp_path / "run", resume=True)
    assert runs.train(tiny_recipe("training.epochs=3"), tmp_path / "run", resume=True, changed=True)["step"] == 12
    runs.train(tiny_recipe("training.epochs=3", "training.log_every=2"), tmp_path / "run", resume=True, changed=True)


def test_a_folder_that_is_not_empty_is_not_touched(tiny_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(CheckpointError, match="not empty"):
            runs.train(tiny_recipe(), tmp_path / "run", **options)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_a_run_that_was_refused_before_its_first_step_is_no_hindrance(
    tiny_recipe: Make, tiny_data: Path, tmp_path: Path
) -> None:
    captions = tiny_data / "captions.json"
    text = captions.read_text()
    captions.write_text("{")
    with pytest.raises(DataError):
        runs.train(tiny_recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").exists()
    captions.write_text(text)
    assert runs.train(tiny_recipe(), tmp_path / "run")["step"] > 0
    with pytest.raises(CheckpointError, match="not empty"):
        runs.train(tiny_recipe(), tmp_path / "run")


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("mark", ["recipe.yaml", "environment.json"])
def test_a_folder_with_one_mark_of_a_run_is_none(tiny_recipe: Make, tmp_path: Path, mark: str, options: dict) -> None:
    work = {mark: "mine", "thesis.tex": "years of work"}
    (tmp_path / "work").mkdir()
    for name, text in work.items():
        (tmp_path / "work" / name).write_text(text)
    with pytest.raises(CheckpointError, match="not a run folder"):
        runs.train(tiny_recipe(), tmp_path / "work", **options)
    assert {path.name: path.read_text() for path in (tmp_path / "work").iterdir()} == work


@pytest.mark.parametrize(
    "left", [[], [".environment.json.part"], ["environment.json"], ["environment.json", ".recipe.yaml.part"]]
)
def test_a_run_killed_at_its_start_is_resumed(tiny_recipe: Make, tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", *left):
        (tmp_path / "run" / name).write_text("")
    assert runs.train(tiny_recipe("training.epochs=0.25"), tmp_path / "run", resume=True)["step"] == 1
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world"] == 1
    assert runs.train(tiny_recipe("training.epochs=0.5"), tmp_path / "run", overwrite=True)["step"] == 2


@pytest.mark.parametrize(("value", "kept"), [(math.nan, False), (math.inf, False), (2.0, True)])
def test_a_number_that_is_not_finite_is_never_the_best(tiny_recipe: Make, value: float, kept: bool) -> None:
    model = build.make_model(tiny_recipe(), build.tokens_of(tiny_recipe(), build.dataset(tiny_recipe(), "train")))
    for best in (None, 1.0, math.nan):
        found = loop.keep_best(model, {"rsum": value}, "rsum", None, {"step": 3, "best": best, "best_step": 1})
        assert found == ({"best": value, "best_step": 3} if kept else {})


def test_a_run_without_a_best_leaves_its_last_model(
    tiny_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_validator", lambda *arguments: lambda model: {"rsum": math.nan})
    assert runs.train(tiny_recipe("training.epochs=0.5"), tmp_path / "run")["best"] is None
    assert JointEmbedding.from_pretrained(tmp_path / "run").encode_text(["a red photo"]).shape == (1, 16)


@pytest.mark.parametrize(("speeds", "median"), [([], None), ([4.0, 1.0, 2.0, 9.0], 3.0)])
def test_the_cost_of_a_run(tmp_path: Path, speeds: list[float], median: float | None) -> None:
    lines = [{"kind": "train", "seconds": 1.0, "samples_per_second": speed} for speed in speeds]
    lines.append({"kind": "skipped", "seconds": 7.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs.write_cost(tmp_path, torch.device("cpu"), batch=8)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["seconds"], cost["samples_per_second"], cost["batch"], cost["world"]) == (7.0, median, 8, 1)


@pytest.mark.parametrize("known", ['{"peak_process_bytes": 9e15, "peak_device_bytes": 5}', '{"peak_proc', "[]", None])
def test_the_cost_of_a_resumed_run_keeps_the_higher_peaks(tmp_path: Path, known: str | None) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "seconds": 1.0, "samples_per_second": 2.0}\n')
    if known is not None:
        (tmp_path / "cost.json").write_text(known)
    runs.write_cost(tmp_path, torch.device("cpu"), resumed=True)
    cost = json.loads((tmp_path / "cost.json").read_text())
    if known is not None and "5" in known:
        assert (cost["peak_process_bytes"], cost["peak_device_bytes"]) == (9e15, 5)
    else:
        assert 1e6 < cost["peak_process_bytes"] < 1e13 and cost["peak_device_bytes"] is None
    runs.write_cost(tmp_path, torch.device("cpu"))
    assert json.loads((tmp_path / "cost.json").read_text())["peak_process_bytes"] < 1e13


def test_brackets_in_a_name_or_folder_are_no_markup(
    tiny_recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tiny_recipe("name=x[/b]", "training.epochs=0.25"), tmp_path / "run[seed1][/b]"
    runs.train(recipe, run)
    runs.train(recipe, run, resume=True)
    out = capsys.readouterr().out
    assert out.count("x[/b]: vicreg") == 2 and f"resuming {run} at step 1" in out


def test_a_resume_that_does_no_step_leaves_the_cost(tiny_recipe: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(tiny_recipe("training.epochs=0.5"), run)
    known = json.loads((run / "cost.json").read_text()) | {"peak_process_bytes": 9e15}
    (run / "cost.json").write_text(json.dumps(known))
    runs.train(tiny_recipe("training.epochs=0.5"), run, resume=True)
    assert json.loads((run / "cost.json").read_text()) == known
    runs.train(tiny_recipe("training.epochs=1"), run, resume=True, changed=True)
    cost = json.loads((run / "cost.json").read_text())
    assert cost["peak_process_bytes"] == 9e15 and cost["epochs"] == 1 and cost["seconds"] > known["seconds"]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("i2t_R@50", "evaluation.select: no number 'i2t_R@50'; did you mean 'i2t_R@5'"),
        ("t2i_medr", "evaluation.select: the lower t2i_medr the better"),
    ],
)
def test_a_number_that_cannot_pick_a_model_is_refused(tiny_recipe: Make, select: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(f"evaluation.select={select}")


def test_init_from_takes_the_branches_over(tiny_recipe: Make, tmp_path: Path) -> None:
    runs.train(tiny_recipe(), tmp_path / "first")
    recipe = tiny_recipe(f"init_from={tmp_path / 'first'}", "training.epochs=0.01", "optimizer.lr=1e-12")
    runs.train(recipe, tmp_path / "second")
    first = JointEmbedding.from_pretrained(tmp_path / "first").state_dict()
    second = final(tmp_path / "second")
    name = "branches.text.encoder.words.weight"
    name = name if name in first else next(n for n in first if n.startswith("branches.text.encoder"))
    assert torch.allclose(first[name], second[name], atol=1e-6)
    with pytest.raises(RecipeError, match="init_from.*branch 'text'"):
        runs.train(tiny_recipe(f"init_from={tmp_path / 'first'}", "branches.text.encoder.hidden=10"), tmp_path / "x")


def test_init_from_refuses_the_words_of_another_tokenizer(tiny_recipe: Make, tiny_data: Path, tmp_path: Path) -> None:
    pieces = ("data.text={name: bpe, size: 40, max_length: 16}", "training.epochs=0.01")
    runs.train(tiny_recipe(*pieces), tmp_path / "first")
    runs.train(tiny_recipe(*pieces, f"init_from={tmp_path / 'first'}"), tmp_path / "same")
    captions = tiny_data / "captions.json"
    captions.write_text(captions.read_text().replace("blue", "violet"))  # as many pieces, but others
    with pytest.raises(RecipeError, match="init_from: .*branch 'text': .* of another tokenizer"):
        runs.train(tiny_recipe(*pieces, f"init_from={tmp_path / 'first'}"), tmp_path / "other")


def test_what_torch_refuses_of_an_optimizer_is_said_by_its_path(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="optimizer: Invalid learning rate: -1"):
        runs.train(tiny_recipe("optimizer.lr=-1"), tmp_path / "run")


@pytest.mark.fault(7, "a loss that overflows in a real run stops before the step, samples named")
def test_a_loss_that_is_not_a_number_stops_before_the_step(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(JointEmbedError, match=r"step \d+: .*nothing was updated.*\.jpg"):
        runs.train(tiny_recipe("optimizer.lr=1e30", "schedule={name: constant}"), tmp_path / "run")


def test_unknown_trackers_are_refused_before_any_work(tiny_recipe: Make) -> None:
    with pytest.raises(JointEmbedError, match="no tracker 'tensorbord'"):
        tiny_recipe("training.trackers=[tensorbord]")
    with pytest.raises(JointEmbedError, match="wandb is not installed"):
        tiny_recipe("training.trackers=[wandb]")


def test_tensorboard_gets_the_numbers(tiny_recipe: Make, tmp_path: Path) -> None:
    runs.train(tiny_recipe("training.trackers=[tensorboard]"), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_unequal_widths_of_h_are_refused_by_name(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unequal widths \(image 1024, text 12\)"):
        runs.train(tiny_recipe("evaluation.embedding=h"), tmp_path / "run")
    assert (
        runs.train(tiny_recipe("evaluation.embedding=h", "branches.text.encoder.hidden=1024"), tmp_path / "equal")[
            "best"
        ]
        is not None
    )


@pytest.mark.parametrize("objective", ["vicreg", "barlow_twins", "vse", "clip", "siglip"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_recipe: Make, objective: str) -> None:
    recipe = tiny_recipe(
        f"objective={{name: {objective}}}", "data.cache=false",
        "branches.image.expander={name: mlp, widths: [16, 16], norm: layer}",
        "branches.text.expander={name: mlp, widths: [16, 16], norm: none}",
    )  # fmt: skip
    data = build.caption_data(recipe, "train")
    tokens = build.tokens_of(recipe, data)
    assert tokens is not None
    torch.manual_seed(0)
    model = build.make_model(recipe, tokens, pretrained=False).double().train()
    rows = torch.randn(12, model.branch("image").width, dtype=torch.float64)
    samples = CaptionSamples(data, VIEWS["resize"](size=8), tokens, "all", 0, cached=rows)
    batch = samples.__getitems__([(0, index) for index in range(11)])
    found = []
    for micro_batch in (None, 4):
        model.zero_grad()
        terms = loop.forward_backward(model, model, batch, Accelerator(cpu=True), micro_batch)
        found.append((terms["loss"], [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert len(found[0][1]) == len(found[1][1]) > 6
    for whole, parts in zip(found[0][1], found[1][1], strict=True):
        assert (whole - parts).abs().max() <= 1e-10 * max(1.0, float(whole.abs().max()))


def test_micro_batches_draw_the_same_dropout_in_both_passes_and_move_statistics_once(tiny_recipe: Make) -> None:
    recipe = tiny_recipe("branches.text.expander={name: mlp, widths: [16, 16], dropout: 0.5}", "data.cache=false")
    data = build.caption_data(recipe, "train")
    tokens = build.tokens_of(recipe, data)
    assert tokens is not None
    model = build.make_model(recipe, tokens, pretrained=False).train()
    samples = CaptionSamples(data, VIEWS["resize"](size=8), tokens, "all", 0, cached=torch.randn(12, 1024))
    batch = samples.__getitems__([(0, index) for index in range(12)])
    seen: list[torch.Tensor] = []
    model.branch("text").expander.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    loop.forward_backward(model, model, batch, Accelerator(cpu=True), 4)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {0, 3}  # 0: the frozen encoder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_collapse_is_told_with_a_remedy_that_the_objective_has(name: str) -> None:
    """Every key that a remedy names is an argument of the objective, or of the terms that any objective takes."""
    arguments = inspect.signature(OBJECTIVES[name]).parameters
    values = {"a/relative_std": 0.01, "b/relative_std": 0.9, "b/rankme": 1.2, "c/relative_std": 0.9, "c/rankme": 30.0}
    point, line = collapse_warnings(values, OBJECTIVES[name].remedies)
    assert point.startswith("view 'a' has collapsed to a point (spread 0.010")
    assert line.startswith("view 'b' has collapsed to a line (RankMe 1.20)")
    for sentence in (point, line):
        keys = re.findall(r"objective\.(\w+)", sentence)
        assert keys or "regularize: {variance: 1, covariance: 0.01}" in sentence
        assert set(keys) <= set(arguments)

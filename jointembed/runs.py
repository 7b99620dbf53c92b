"""Runs: a checked recipe trained into a run folder."""

import hashlib
import json
import os
import resource
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from jointembed import distributed
from jointembed.build import (
    SPLITS,
    Data,
    check_correction,
    dataset,
    make_evaluators,
    make_model,
    make_samples,
    optimizer_of,
    precision_of,
    tokens_of,
    view_pipeline,
)
from jointembed.build_corrections import make_correction
from jointembed.build_frozen import FrozenRows
from jointembed.build_splits import check_classes, check_evaluators
from jointembed.data.loader import BatchPlan, Loader, steps_per_epoch
from jointembed.data.order import epoch_order
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.unreadable import write_skipped
from jointembed.errors import CheckpointError, RecipeError
from jointembed.evaluation.corrections import Correction
from jointembed.evaluation.evaluators import Collapse, Features
from jointembed.evaluation.online_probe import OnlineProbe
from jointembed.evaluation.protocols import PROTOCOLS
from jointembed.inference.card import model_card
from jointembed.inference.embed import (
    Precision,
    RetrievalEmbeddings,
    embed_captions,
    embed_epoch,
    embed_pictures,
    embed_sample,
    set_centres,
)
from jointembed.inference.files import publish_json
from jointembed.layers import convert_batch_norm
from jointembed.model import JointEmbedding, from_config
from jointembed.objectives.supervised import Supervised
from jointembed.objectives.wrapped import innermost, looks_at_all
from jointembed.optim import SCHEDULES
from jointembed.recipe import Block, Recipe, dump_recipe, recipe_tree
from jointembed.tensor_files import save_tensors
from jointembed.training import checkpoint as checkpoints
from jointembed.training.allocator import keep_freed_memory
from jointembed.training.folder import opened, record, writing
from jointembed.training.log import console
from jointembed.training.loop import fit
from jointembed.training.stages import Stages

CLASSIFIER = "classifier.safetensors"  # of a supervised run, in its model folder
_SPREAD_ROWS = 4096  # of a data set, whose embeddings stand for all: an expander may be much wider than its encoder


def train(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    changed: bool = False,
    profile: bool = False,
) -> dict[str, Any]:
    """Train a checked recipe into a run folder; returns the loop's final state.

    Args:
        recipe: from `build.check`.
        run: made here.
        resume: go on from the newest complete checkpoint.
        overwrite: empty an existing run folder first.
        changed: allow recipe, data or world size to differ from the checkpoint's.
        profile: time the stages of the steps, and write them to `profile.json`.
    """
    accelerator = make_accelerator(recipe, run)
    with opened(run, dump_recipe(recipe), resume=resume, overwrite=overwrite):
        return _train(recipe, run, accelerator, resume=resume, changed=changed, profile=profile)


def _train(
    recipe: Recipe, run: Path, accelerator: Accelerator, *, resume: bool, changed: bool, profile: bool
) -> dict[str, Any]:
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if recipe.training.trackers:
        accelerator.init_trackers("jointembed")
    torch.manual_seed(recipe.seed)
    data = {split: dataset(recipe, split) for split in SPLITS[:2] if getattr(recipe.data, split) is not None}
    check_classes(data)
    check_evaluators(recipe, data)
    if recipe.data.skip_unreadable and distributed.is_main():
        write_skipped(run / "skipped.jsonl", data["train"].skipped)
    tokens = tokens_of(recipe, data["train"])
    precision = precision_of(recipe, accelerator.device)
    count = len(make_samples(recipe, data["train"], tokens))
    model = make_model(recipe, tokens, samples=count)
    if recipe.training.probe:
        model.probe = _online_probe(data["train"], model)
    if recipe.training.batch_norm == "global":
        convert_batch_norm(model, accelerator.device.type)
    model.to(accelerator.device)
    if distributed.rank():  # else all ranks would draw the same dropout; the main one goes on as a single process does
        torch.manual_seed(recipe.seed + distributed.rank())
    if recipe.training.compile:
        for branch in model.branches.values():
            branch.compile()
    frozen = FrozenRows(recipe, model)
    rows = {split: frozen.rows(one) for split, one in data.items()}
    drawn = frozen.of_training(data["train"], rows["train"]["cached"])
    samples = make_samples(recipe, data["train"], tokens, drawn, rows["train"]["cached_text"])
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):  # set by `accelerate launch`
        if recipe.optimizer["name"] == "lars":
            raise RecipeError("optimizer.name: lars cannot run on parameters in shards (FSDP2); take adamw")
        distributed.shard(model, model.units())
    world, batch = distributed.world(), recipe.loader.batch
    per_epoch = steps_per_epoch(len(samples), batch, recipe.loader.drop_last, world)
    steps = max(1, round(recipe.training.epochs * per_epoch))
    plan = partial(
        BatchPlan,
        len(samples),
        batch,
        seed=recipe.seed,
        stop=steps,
        drop_last=recipe.loader.drop_last,
        rank=distributed.rank(),
        world=world,
        order=epoch_order(samples.layout, len(samples), recipe.seed),
    )
    schedule = {key: value for key, value in recipe.schedule.items() if key != "name"}
    identity = {"recipe": _digest(recipe), "data": data["train"].fingerprint, "world": world, "precision": precision}
    if model.objective is not None and (recipe.training.probe or "label" in model.objective.needs):
        identity["labels"] = getattr(data["train"], "label_fingerprint", None)
    saved = resumable(run, identity, changed=changed) if resume else None
    if resume:
        record(run, dump_recipe(recipe))
    if distributed.is_main():
        _announce(recipe, run, model, len(samples), steps, per_epoch, precision, frozen.active, saved)
    options = recipe.training
    stages = Stages() if profile else None
    state = fit(
        model,
        lambda start: Loader(
            samples,
            plan(start=start),
            workers=recipe.loader.workers,
            pin_memory=accelerator.device.type == "cuda",
            timeout=recipe.loader.timeout,
        ),
        optimizer_of(recipe, model),
        lambda step: SCHEDULES[recipe.schedule["name"]](step, steps, per_epoch, recipe.optimizer["lr"], **schedule),
        accelerator=accelerator,
        run=run,
        steps=steps,
        per_epoch=per_epoch,
        identity=identity,
        describe=lambda step: samples.describe(next(iter(plan(start=step)))),
        resume=saved,
        validate=_validator(recipe, data, rows, precision) if "validation" in data else None,
        select=str(recipe.evaluation.select),
        publish=partial(_publish, recipe, run),
        embed=_epoch_embedder(recipe, model, data["train"], precision),
        clip=options.clip,
        micro_batch=options.micro_batch,
        log_every=options.log_every,
        health_every=options.health_every,
        validate_every=max(1, round(recipe.evaluation.every * per_epoch)),
        save_every=max(1, round(options.save_every * per_epoch)),
        keep=options.keep,
        skip_nonfinite=options.skip_nonfinite,
        stages=stages,
    )
    if distributed.is_main() and not did_nothing(saved, state):
        encoders = {name: one.encoder.get("model") or one.encoder["name"] for name, one in recipe.branches.items()}
        write_cost(
            run, accelerator.device, resumed=saved is not None,
            objective=recipe.objective["name"], encoders=encoders, batch=recipe.loader.batch, epochs=options.epochs,
            data=recipe.data.train,
        )  # fmt: skip
    if distributed.is_main() and stages is not None:
        timed = [{"stage": one, "milliseconds": ms, "percent": share} for one, ms, share in stages.table()]
        (run / "profile.json").write_text(json.dumps({"steps": stages.steps, "stages": timed}, indent=1), "utf-8")
    return state


def _online_probe(data: Data, model: JointEmbedding) -> OnlineProbe:
    if not isinstance(data, ImageData) or data.classes is None:
        raise RecipeError("training.probe: the training data has no labels")
    return OnlineProbe(model.branch(next(iter(model.views))).width, len(data.classes))


def _epoch_embedder(recipe: Recipe, model: JointEmbedding, data: Data, precision: Precision) -> Any:
    """What `start_epoch` may call; None for an objective that does not look at the whole training set."""
    if not looks_at_all(model.objective):
        return None
    return partial(
        embed_epoch,
        model,
        data.pictures,
        view_pipeline(recipe.data, evaluation=True),
        batch=recipe.evaluation.batch,
        precision=precision,
        workers=recipe.loader.workers,
    )


def make_accelerator(recipe: Recipe, run: Path) -> Accelerator:
    """Device, precision, trackers and, where a launcher started this process, the process group."""
    cpu = not torch.cuda.is_available()
    AcceleratorState._reset_state()  # an earlier run of this process may have chosen another precision
    return Accelerator(
        cpu=cpu,
        log_with=recipe.training.trackers or None,
        project_dir=str(run),
        mixed_precision={"bf16": "bf16", "fp32": "no"}[precision_of(recipe, torch.device("cpu" if cpu else "cuda"))],
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.training.rank_timeout)),
        ],
    )


def _validator(
    recipe: Recipe,
    data: Mapping[str, Data],
    rows: Mapping[str, Mapping[str, Any]],
    precision: Precision,
) -> Callable[[JointEmbedding], dict[str, float]]:
    options = recipe.evaluation
    train, validation = data["train"], data["validation"]

    def retrieval(model: JointEmbedding) -> dict[str, float]:
        assert isinstance(train, CaptionData) and isinstance(validation, CaptionData)
        shared: dict[str, Any] = {
            "batch": options.batch, "precision": precision, "workers": recipe.loader.workers,
        }  # fmt: skip
        known = {"seed": recipe.seed, **rows["train"], **shared}
        centred = set_centres(model, train, **known) if options.centre else None
        correct = fitted_correction(options.correct, lambda: centred or embed_sample(model, train, **known))
        found = embed_captions(model, validation, **rows["validation"], **shared)
        return PROTOCOLS[options.protocol](
            found.image, found.text, validation.item, validation.text_item, picture_ids=validation.picture_ids,
            correct=correct,
        ).metrics  # fmt: skip

    def features(model: JointEmbedding) -> dict[str, float]:
        assert isinstance(train, ImageData) and isinstance(validation, ImageData)
        return judge_features(recipe, model, train, validation, precision)

    return retrieval if isinstance(validation, CaptionData) else features


def fitted_correction(given: str | Block | None, sample: Callable[[], RetrievalEmbeddings]) -> Correction | None:
    """The correction of that name or block, fitted, where it needs it, to a sample of training embeddings."""
    correction = make_correction(check_correction(given))
    if correction is not None and correction.needs_train:
        rows = sample()
        correction.fit(rows.image, rows.text)
    return correction


def judge_features(
    recipe: Recipe, model: JointEmbedding, train: ImageData, test: ImageData, precision: Precision
) -> dict[str, float]:
    """The numbers of every evaluator of the recipe for pictures without captions."""
    evaluators = make_evaluators(recipe)
    known = None
    if any(evaluator.needs_train for evaluator in evaluators):
        known = features_of(recipe, model, train, precision)
    asked = features_of(recipe, model, test, precision)
    if any(isinstance(evaluator, Collapse) for evaluator in evaluators):
        asked = asked._replace(z=_embeddings(recipe, model, asked.rows))
    numbers: dict[str, float] = {}
    for evaluator in evaluators:
        numbers |= evaluator(known, asked)
    return numbers


def features_of(recipe: Recipe, model: JointEmbedding, data: ImageData, precision: Precision) -> Features:
    """The vectors of a data set's pictures, each once, and its labels; the same on every rank."""
    rows = embed_pictures(
        model,
        data.pictures,
        view_pipeline(recipe.data, evaluation=True),
        recipe.evaluation.views or [next(iter(recipe.views))],
        batch=recipe.evaluation.batch,
        precision=precision,
        workers=recipe.loader.workers,
    )
    label = None if data.labels is None else torch.from_numpy(data.labels)
    objective = innermost(model.objective)
    if not isinstance(objective, Supervised):
        return Features(rows, label)
    with torch.inference_mode():
        return Features(rows, label, objective.classifier(rows.to(model.device)).float().cpu())


@torch.inference_mode()
def _embeddings(recipe: Recipe, model: JointEmbedding, rows: Tensor) -> Tensor | None:
    """(M, D) the expander's output for evenly spaced rows of representations; None where rows are embeddings already.

    Args:
        recipe: whose `evaluation.views` the rows are of.
        model: in any mode, which is restored.
        rows: (N, sum of widths) from `features_of`.
    """
    branches = [model.branch(view) for view in recipe.evaluation.views or [next(iter(recipe.views))]]
    expanders = [branch.get_submodule("expander") for branch in branches]
    if recipe.evaluation.embedding != "h" or not any(True for one in expanders for _ in one.parameters()):
        return None
    kept = torch.linspace(0, len(rows) - 1, min(len(rows), _SPREAD_ROWS)).round().long()
    parts = rows[kept].split([branch.width for branch in branches], dim=1)
    training = model.training
    model.eval()
    z = [expander(part.to(model.device)).float().cpu() for expander, part in zip(expanders, parts, strict=True)]
    model.train(training)
    return torch.cat(z, dim=1)


def _publish(recipe: Recipe, run: Path, model: JointEmbedding) -> None:
    weights, objective = model.state_dict(), innermost(model.objective)
    path = next((name for name, module in model.named_modules() if module is objective), "")
    if distributed.sharded_units(model):
        weights = distributed.whole(weights)
        model = from_config(model.config, model.tokens)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    if distributed.is_main():
        with writing(run / "model"):
            model.save_pretrained(run / "model", model_card(recipe.name, recipe.description, dump_recipe(recipe), run))
            if isinstance(objective, Supervised):
                parts = {name: weights[f"{path}.classifier.{name}"].contiguous() for name in ("weight", "bias")}
                save_tensors(parts, run / "model" / CLASSIFIER)


def did_nothing(saved: checkpoints.Checkpoint | None, state: Mapping[str, Any]) -> bool:
    """Whether a run that went on had already ended: what this process took says nothing of it."""
    return saved is not None and saved.state["step"] == state["step"]


def write_cost(run: Path, device: torch.device, *, resumed: bool = False, **told: Any) -> None:
    """What a run took: `cost.json`, for the cost table. Peak memory is that of this process and of its device.

    Args:
        run: its folder; a log without a line of training gives no speed.
        device: that it ran on.
        resumed: whether it went on: of the peaks in an older `cost.json` and those of this process the higher stay.
        **told: what else the file shall hold, JSON values.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["samples_per_second"] for line in lines if line["kind"] == "train"]
    cost: dict[str, Any] = {
        "seconds": lines[-1]["seconds"] if lines else 0.0,
        "samples_per_second": float(np.median(speeds)) if speeds else None,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "world": distributed.world(),
        **told,
    }
    if resumed:
        before = _cost_before(run / "cost.json")
        for key in ("peak_process_bytes", "peak_device_bytes"):
            cost[key] = max((one for one in (cost[key], before.get(key)) if one is not None), default=None)
    publish_json(run / "cost.json", cost)


def _cost_before(path: Path) -> dict[str, Any]:
    """What an earlier process of a run took; nothing where it wrote no file, or could not write it to the end."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def resumable(run: Path, identity: dict[str, Any], *, changed: bool) -> checkpoints.Checkpoint | None:
    """The newest checkpoint, None where there is none. Raises CheckpointError where it is of another run."""
    saved = checkpoints.newest(run / "checkpoints")
    if saved is None:
        return None
    for key, value in identity.items():
        if saved.state.get(key) != value and not changed:
            raise CheckpointError(
                f"{saved.folder}: {key} has changed since this checkpoint ({saved.state.get(key)} -> {value}); "
                "pass --allow-changed to go on all the same"
            )
    return saved


def _digest(recipe: Recipe) -> str:
    """Hash of all of a recipe that its result depends on."""
    tree = recipe_tree(recipe)
    for key in ("log_every", "health_every", "save_every", "keep", "trackers", "skip_nonfinite", "rank_timeout"):
        del tree["training"][key]
    del tree["description"], tree["loader"]["workers"], tree["loader"]["timeout"]
    if not tree["data"]["skip_unreadable"]:
        del tree["data"]["skip_unreadable"]  # without it a recipe is what it was before there was this key
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _announce(
    recipe: Recipe,
    run: Path,
    model: JointEmbedding,
    samples: int,
    steps: int,
    per_epoch: int,
    precision: str,
    cached: bool,
    saved: checkpoints.Checkpoint | None,
) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    console.print(
        f"{recipe.name}: {recipe.objective['name']}, {samples} samples and {per_epoch} steps an epoch, {steps} steps, "
        f"batch {recipe.loader.batch}, {precision}, {trained / 1e6:.1f} of {everything / 1e6:.1f} M parameters trained"
        + (", frozen image representations cached" if cached else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if recipe.training.micro_batch and any(
        "Norm" in type(m).__name__ and "Layer" not in type(m).__name__ for m in model.modules()
    ):
        console.print("micro-batches: batch norm sees one micro-batch at a time", highlight=False)
    if saved is not None:  # without markup: a folder may be called a[b]
        words = f"resuming {run} at step {saved.state['step']}"
        console.print(words, highlight=False, markup=False, soft_wrap=True)

"""From a recipe to a model, its data, its optimizer and its evaluators; and the runs made of them."""

import dataclasses
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from jointembed import __version__, distributed
from jointembed.branches import ENCODERS, EXPANDERS
from jointembed.data import DATASETS, TOKENS, VIEWS
from jointembed.data.loader import BatchPlan, make_loader, steps_per_epoch
from jointembed.data.records import CaptionData
from jointembed.data.samples import CaptionSamples
from jointembed.data.tokens import Tokens
from jointembed.errors import CheckpointError, EvaluationError, RecipeError
from jointembed.evaluation.collapse import diagnostics
from jointembed.evaluation.files import ground_truth, load_ranks, read_embeddings, save_ranks
from jointembed.evaluation.intervals import intervals, paired_difference
from jointembed.evaluation.protocols import PROTOCOLS, Retrieval, judged
from jointembed.evaluation.retrieval import retrieval_ranks, summarize
from jointembed.inference.card import model_card
from jointembed.inference.embed import (
    Precision,
    RetrievalEmbeddings,
    cached_rows,
    embed_captions,
    frozen_image_rows,
    set_centres,
)
from jointembed.layers import convert_batch_norm
from jointembed.model import JointEmbedding, from_config
from jointembed.objectives import OBJECTIVES
from jointembed.optim import OPTIMIZERS, SCHEDULES
from jointembed.optim.groups import parameter_groups
from jointembed.recipe import (
    Block,
    Recipe,
    check_block,
    dump_recipe,
    expand_variables,
    load_recipe,
    nearest,
    recipe_tree,
)
from jointembed.training import checkpoint as checkpoints
from jointembed.training.allocator import keep_freed_memory
from jointembed.training.log import check_trackers, console
from jointembed.training.loop import fit

SPLITS = ("train", "validation", "test")


# -- recipe -> checked recipe ---------------------------------------------------------------------------------------


def check(recipe: Recipe) -> Recipe:
    """The recipe with every named block checked against its constructor and its defaults filled in.

    Raises:
        RecipeError: with the dotted path.
    """
    branches = {
        name: dataclasses.replace(
            branch,
            encoder=check_block(branch.encoder, ENCODERS, f"branches.{name}.encoder"),
            expander=check_block(branch.expander, EXPANDERS, f"branches.{name}.expander"),
        )
        for name, branch in recipe.branches.items()
    }
    data = dataclasses.replace(
        recipe.data,
        train=check_block(recipe.data.train, DATASETS, "data.train"),
        validation=_optional(recipe.data.validation, DATASETS, "data.validation"),
        test=_optional(recipe.data.test, DATASETS, "data.test"),
        image=_optional(recipe.data.image, VIEWS, "data.image"),
        image_evaluation=_optional(recipe.data.image_evaluation, VIEWS, "data.image_evaluation"),
        text=_optional(recipe.data.text, TOKENS, "data.text"),
    )
    if data.image is None:
        raise RecipeError("data.image: missing; pictures need a view pipeline")
    if data.text is None:
        raise RecipeError("data.text: missing; captions need tokens")
    if data.image_evaluation is None:
        if _construct(data.image, VIEWS).random:
            raise RecipeError("data.image_evaluation: missing; data.image is random, evaluation is not")
        data = dataclasses.replace(data, image_evaluation=data.image)
    _construct(check_block(recipe.objective, OBJECTIVES, "objective"), OBJECTIVES).check_views(recipe.views)
    if recipe.evaluation.protocol not in PROTOCOLS:
        protocol = recipe.evaluation.protocol
        raise RecipeError(f"evaluation.protocol: no {protocol!r}{nearest(protocol, PROTOCOLS)}")
    check_trackers(recipe.training.trackers)
    return dataclasses.replace(
        recipe,
        branches=branches,
        data=data,
        objective=check_block(recipe.objective, OBJECTIVES, "objective"),
        optimizer=check_block(recipe.optimizer, OPTIMIZERS, "optimizer"),
        schedule=check_block(recipe.schedule, SCHEDULES, "schedule"),
    )


def _optional(block: Block | None, table: dict[str, Any], path: str) -> Block | None:
    return None if block is None else check_block(block, table, path)


def _construct(block: Block, table: dict[str, Any], *given: Any) -> Any:
    return table[block["name"]](*given, **{key: value for key, value in block.items() if key != "name"})


# -- recipe -> parts ------------------------------------------------------------------------------------------------


def dataset(recipe: Recipe, split: str) -> CaptionData:
    """One split's pictures and captions. Raises RecipeError where the recipe names none."""
    block = getattr(recipe.data, split)
    if block is None:
        raise RecipeError(f"data.{split}: the recipe names no {split} data")
    return _construct(expand_variables(block, f"data.{split}"), DATASETS)


def tokens_of(recipe: Recipe, train: CaptionData) -> Tokens:
    """The tokenizer, its vocabulary from the training captions."""
    assert recipe.data.text is not None  # check() saw to it
    return _construct(expand_variables(recipe.data.text, "data.text"), TOKENS, train.texts)


def model_config(recipe: Recipe, max_length: int | None) -> dict[str, Any]:
    """What rebuilds the model without the recipe: the content of `config.json`."""
    branches = expand_variables(
        {
            name: {"encoder": branch.encoder, "expander": branch.expander, "train": branch.train}
            for name, branch in recipe.branches.items()
        },
        "branches",
    )
    return {
        "name": recipe.name,
        "views": recipe.views,
        "branches": branches,
        "image": recipe.data.image_evaluation,
        "max_length": max_length,
        "embedding": recipe.evaluation.embedding,
    }


def make_model(recipe: Recipe, tokens: Tokens | None, *, pretrained: bool = True) -> JointEmbedding:
    """The model with its objective; `pretrained` loads the weights that the encoders name."""
    objective = _construct(recipe.objective, OBJECTIVES)
    config = model_config(recipe, None if tokens is None else tokens.max_length)
    model = from_config(config, tokens, objective, pretrained=pretrained)
    _check_widths(recipe, model)
    return model


def _check_widths(recipe: Recipe, model: JointEmbedding) -> None:
    kind = recipe.evaluation.embedding
    widths = {view: model.width(view) for view in recipe.views}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{view} {width}" for view, width in widths.items())
        raise RecipeError(f"evaluation.embedding: {kind!r} has unequal widths ({found}); views cannot be compared")


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware computes it."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def cache_folder() -> Path:
    """Where representations of frozen encoders are kept: `JOINTEMBED_CACHE`, else `~/.cache/jointembed`."""
    if "JOINTEMBED_CACHE" in os.environ:
        return Path(os.environ["JOINTEMBED_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "jointembed"


class FrozenRows:
    """Cached image representations of the splits, where the recipe's image encoder is frozen and its view fixed."""

    def __init__(self, recipe: Recipe, model: JointEmbedding) -> None:
        """Decide whether there is anything to cache."""
        self.recipe, self.model = recipe, model
        view = _construct(recipe.data.image, VIEWS) if recipe.data.image else None
        branch = model.branch("image") if "image" in model.views else None
        self.active = bool(recipe.data.cache and branch is not None and branch.frozen and view and not view.random)

    def __call__(self, data: CaptionData) -> Tensor | None:
        """Representations (I, R), or None where pictures go through the encoder each time."""
        if not self.active:
            return None
        inputs = {"view": self.recipe.data.image_evaluation, "data": data.fingerprint}
        compute = frozen_image_rows(
            self.model,
            _construct(self.recipe.data.image_evaluation or {}, VIEWS),
            data,
            batch=self.recipe.evaluation.batch,
            workers=self.recipe.loader.workers,
        )
        return cached_rows(self.model.branch("image").encoder, inputs, compute, cache_folder())


def optimizer_of(recipe: Recipe, model: JointEmbedding) -> torch.optim.Optimizer:
    """The optimizer over parameter groups with their own weight decay and learning-rate scale."""
    scale = {
        f"branches.{name}.encoder": branch.lr_scale for name, branch in recipe.branches.items() if branch.lr_scale != 1
    }
    groups = parameter_groups(model, weight_decay=recipe.optimizer.get("weight_decay", 0.0), scale=scale)
    return _construct(recipe.optimizer, OPTIMIZERS, groups)


# -- runs -----------------------------------------------------------------------------------------------------------


def train(recipe: Recipe, run: Path, *, resume: bool = False, overwrite: bool = False, changed: bool = False) -> dict:
    """Train a checked recipe into a run folder; returns the loop's final state.

    Args:
        recipe: from `check`.
        run: made here.
        resume: go on from the newest complete checkpoint.
        overwrite: empty an existing run folder first.
        changed: allow recipe, data or world size to differ from the checkpoint's.
    """
    accelerator = _accelerator(recipe, run)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    _open_run(run, recipe, resume=resume, overwrite=overwrite)
    if recipe.training.trackers:
        accelerator.init_trackers("jointembed")
    torch.manual_seed(recipe.seed)
    data = {split: dataset(recipe, split) for split in SPLITS[:2] if getattr(recipe.data, split) is not None}
    tokens = tokens_of(recipe, data["train"])
    model = make_model(recipe, tokens)
    if recipe.init_from is not None:
        _initialise(model, expand_variables(recipe.init_from, "init_from"))
    convert_batch_norm(model, accelerator.device.type)
    model.to(accelerator.device)
    precision = precision_of(recipe, accelerator.device)
    frozen = FrozenRows(recipe, model)
    rows = {split: frozen(one) for split, one in data.items()}
    samples = CaptionSamples(
        data["train"],
        _construct(recipe.data.image or {}, VIEWS),
        tokens,
        recipe.data.captions,
        recipe.seed,
        cached=rows["train"],
    )
    world, rank = distributed.world(), distributed.rank()
    per_epoch = steps_per_epoch(len(samples), recipe.loader.batch, recipe.loader.drop_last, world)
    steps = max(1, round(recipe.training.epochs * per_epoch))
    plan = partial(
        BatchPlan,
        len(samples),
        recipe.loader.batch,
        seed=recipe.seed,
        stop=steps,
        drop_last=recipe.loader.drop_last,
        rank=rank,
        world=world,
    )
    schedule = {key: value for key, value in recipe.schedule.items() if key != "name"}
    identity = {
        "recipe": _digest(recipe),
        "data": data["train"].fingerprint,
        "world": world,
        "precision": precision,
    }
    saved = _checkpoint(run, identity, changed=changed) if resume else None
    if distributed.is_main():
        _announce(recipe, run, model, len(samples), steps, per_epoch, precision, frozen.active, saved)
    validation = recipe.evaluation
    return fit(
        model,
        lambda start: make_loader(
            samples, plan(start=start), workers=recipe.loader.workers, pin_memory=accelerator.device.type == "cuda"
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
        select=validation.select,
        publish=partial(_publish, recipe, run),
        clip=recipe.training.clip,
        micro_batch=recipe.training.micro_batch,
        log_every=recipe.training.log_every,
        health_every=recipe.training.health_every,
        validate_every=max(1, round(validation.every * per_epoch)),
        save_every=max(1, round(recipe.training.save_every * per_epoch)),
        keep=recipe.training.keep,
    )


def _accelerator(recipe: Recipe, run: Path) -> Accelerator:
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=cpu,
        log_with=recipe.training.trackers or None,
        project_dir=str(run),
        mixed_precision={"bf16": "bf16", "fp32": "no"}[precision_of(recipe, torch.device("cpu" if cpu else "cuda"))],
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return accelerator


def _validator(
    recipe: Recipe, data: dict[str, CaptionData], rows: dict[str, Tensor | None], precision: Precision
) -> Callable[[JointEmbedding], dict[str, float]]:
    options = recipe.evaluation

    def validate(model: JointEmbedding) -> dict[str, float]:
        if options.centre:
            set_centres(
                model,
                data["train"],
                seed=recipe.seed,
                batch=options.batch,
                precision=precision,
                workers=recipe.loader.workers,
                cached=rows["train"],
            )
        found = embed_captions(
            model,
            data["validation"],
            batch=options.batch,
            precision=precision,
            workers=recipe.loader.workers,
            cached=rows["validation"],
        )
        one = data["validation"]
        return PROTOCOLS[options.protocol](
            found.image, found.text, one.item, one.text_item, picture_ids=one.picture_ids
        ).metrics

    return validate


def _publish(recipe: Recipe, run: Path, model: JointEmbedding) -> None:
    if distributed.is_main():
        model.save_pretrained(run / "model", model_card(recipe.name, recipe.description, dump_recipe(recipe), run))


def _initialise(model: JointEmbedding, source: str) -> None:
    """Copy the branches of a trained model. Raises RecipeError where their shapes differ."""
    other = JointEmbedding.from_pretrained(source)
    for name, branch in model.branches.items():
        if name not in other.branches:
            raise RecipeError(f"init_from: {source} has no branch {name!r}{nearest(name, other.branches)}")
        try:
            branch.load_state_dict(other.branches[name].state_dict())
        except RuntimeError as error:
            raise RecipeError(f"init_from: {source}, branch {name!r}: {' '.join(str(error).split())[:400]}") from None


def _checkpoint(run: Path, identity: dict[str, Any], *, changed: bool) -> checkpoints.Checkpoint | None:
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
    for key in ("log_every", "health_every", "save_every", "keep", "trackers"):
        del tree["training"][key]
    del tree["description"], tree["loader"]["workers"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _open_run(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    problem = None
    if distributed.is_main():
        problem = _prepare_folder(run, recipe, resume=resume, overwrite=overwrite)
    problem = distributed.broadcast_object(problem)
    if problem:
        raise CheckpointError(problem)


def _prepare_folder(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> str | None:
    if run.exists() and any(run.iterdir()) and not resume:
        if not overwrite:
            return f"{run}: not empty; pass --resume to go on, --overwrite to start anew, or another --out"
        if not (run / "recipe.yaml").exists():
            return f"{run}: not empty and not a run folder; it will not be overwritten"
        shutil.rmtree(run)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        (run / "environment.json").write_text(json.dumps(environment(), indent=1), encoding="utf-8")
    except OSError as error:
        return f"{run}: cannot be written ({error.strerror})"
    return None


def environment() -> dict[str, Any]:
    """What a run ran on: versions, hardware, command, date."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "jointembed": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world": distributed.world(),
    }


def command() -> str:
    """The command line as one would type it."""
    return shlex.join(["jointembed", *sys.argv[1:]])


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
        soft_wrap=True,
    )
    if recipe.training.micro_batch and any(
        "Norm" in type(m).__name__ and "Layer" not in type(m).__name__ for m in model.modules()
    ):
        console.print("micro-batches: batch norm sees one micro-batch at a time", highlight=False)
    if saved is not None:
        console.print(f"resuming {run} at step {saved.state['step']}", highlight=False, soft_wrap=True)


# -- evaluation of runs and files -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a run left behind: its folder, its record (metrics.json), and what was embedded."""

    folder: Path
    record: dict[str, Any]
    data: CaptionData
    embeddings: RetrievalEmbeddings


def run_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run folder. Raises RecipeError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise RecipeError(f"{run}: no recipe.yaml there; not a run folder")
    return check(load_recipe(run / "recipe.yaml"))


def evaluate_run(run: Path, split: str, protocol: str | None = None) -> Evaluated:
    """Embed one split with the run's model and measure retrieval; written to `RUN/evaluation/SPLIT-PROTOCOL`."""
    recipe = run_recipe(run)
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    protocol = protocol or recipe.evaluation.protocol
    model = JointEmbedding.from_pretrained(run / "model", device="cuda" if torch.cuda.is_available() else "cpu")
    data = dataset(recipe, split)
    precision = precision_of(recipe, model.device)
    embeddings = embed_captions(
        model,
        data,
        batch=recipe.evaluation.batch,
        precision=precision,
        workers=recipe.loader.workers,
        cached=FrozenRows(recipe, model)(data),
    )
    found = PROTOCOLS[protocol](
        embeddings.image, embeddings.text, data.item, data.text_item, picture_ids=data.picture_ids
    )
    folder = run / "evaluation" / f"{split}-{protocol}"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "split": split,
        "protocol": protocol,
        "embedding": recipe.evaluation.embedding,
        "centre": recipe.evaluation.centre,
        "data": data.name,
        "fingerprint": data.fingerprint,
        **measured(found),
    }
    diagnosis = diagnostics({"image": embeddings.image, "text": embeddings.text}, positives=data.positives)
    save_ranks(folder / "ranks.npz", found.ranks)
    for name, content in (("metrics.json", record), ("collapse.json", diagnosis)):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    card = model_card(recipe.name, recipe.description, dump_recipe(recipe), run)
    (run / "model" / "README.md").write_text(card, encoding="utf-8")
    return Evaluated(folder, record, data, embeddings)


def measured(found: Retrieval) -> dict[str, Any]:
    """Numbers, 95% intervals over pictures, and the chance level, with the command and the date."""
    return {
        "metrics": found.metrics,
        "intervals": {name: list(pair) for name, pair in intervals(found.ranks).items()},
        "chance": found.chance,
        "n_images": int(found.metrics["n_images"]),
        "n_texts": int(found.metrics["n_texts"]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def compare_runs(run: Path, other: Path, evaluation: str) -> list[str]:
    """One line a number: run minus other on the same queries, with the paired 95% interval."""
    paths = [one / "evaluation" / evaluation / "ranks.npz" for one in (run, other)]
    for path in paths:
        if not path.is_file():
            raise EvaluationError(f"{path}: no such evaluation; run `jointembed evaluate {path.parents[2]}` first")
    differences = paired_difference(*(load_ranks(path) for path in paths))
    return [
        f"{name}: {one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}] against {other}"
        for name, one in differences.items()
        if "R@" in name or name == "rsum"
    ]


def evaluate_file(path: Path, protocol: str, truth: Path | None = None) -> dict[str, Any]:
    """Measure embeddings made anywhere; `truth` judges them by a published ground truth of the COCO 5K test."""
    file = read_embeddings(path)
    if truth is not None:
        if file.image_ids is None or file.text_ids is None:
            raise EvaluationError(f"{path}: a published ground truth needs image_ids and text_ids in the file")
        found = judged(file.image, file.text, ground_truth(truth, file.image_ids, file.text_ids))
        protocol = truth.name
    elif file.image_of_text is not None:
        if protocol not in PROTOCOLS:
            raise RecipeError(f"--protocol: no {protocol!r}{nearest(protocol, PROTOCOLS)}")
        found = PROTOCOLS[protocol](file.image, file.text, np.arange(len(file.image)), file.image_of_text)
    else:
        if protocol != "full":
            raise RecipeError(f"--protocol: {protocol} needs image_of_text in the file; positives allow only 'full'")
        ranks = retrieval_ranks(file.image, file.text, file.positives)
        found = Retrieval(summarize(ranks), ranks)
    return {"split": path.name, "protocol": protocol, "data": str(path), **measured(found)}

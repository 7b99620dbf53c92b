"""Detection runs: a checked recipe trained by the loop of all runs, and what is measured of it afterwards."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from jointembed import distributed
from jointembed.branches.detector import Detector
from jointembed.build import precision_of
from jointembed.build_detection import (
    check,
    check_categories,
    dataset,
    make_detector,
    make_samples,
    optimizer_of,
    score,
)
from jointembed.data.detection import DetectionData
from jointembed.data.loader import BatchPlan, Loader, steps_per_epoch
from jointembed.errors import RecipeError
from jointembed.evaluation.detection import save_detections
from jointembed.inference.detect import Detections, detect, load_detector, save_detector
from jointembed.inference.detector_card import detector_card
from jointembed.layers import convert_batch_norm
from jointembed.optim import SCHEDULES
from jointembed.recipe import dump_recipe, nearest
from jointembed.recipe_detection import DetectionRecipe, load_detection_recipe
from jointembed.runs import did_nothing, make_accelerator, resumable, write_cost
from jointembed.training.allocator import keep_freed_memory
from jointembed.training.folder import opened, record, save_evaluation, writing
from jointembed.training.log import console
from jointembed.training.loop import fit

SPLITS = ("train", "validation", "test")


def train(
    recipe: DetectionRecipe, run: Path, *, resume: bool = False, overwrite: bool = False, changed: bool = False
) -> dict[str, Any]:
    """Train a checked recipe into a run folder; returns the loop's final state.

    Args:
        recipe: from `build_detection.check`.
        run: made here.
        resume: go on from the newest complete checkpoint.
        overwrite: empty an existing run folder first.
        changed: allow recipe, data or world size to differ from the checkpoint's.
    """
    accelerator = make_accelerator(cast(Any, recipe), run)
    with opened(run, dump_recipe(cast(Any, recipe)), resume=resume, overwrite=overwrite):
        return _train(recipe, run, accelerator, resume=resume, changed=changed)


def _train(
    recipe: DetectionRecipe, run: Path, accelerator: Accelerator, *, resume: bool, changed: bool
) -> dict[str, Any]:
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if recipe.training.trackers:
        accelerator.init_trackers("jointembed")
    torch.manual_seed(recipe.seed)
    data = {split: dataset(recipe, split) for split in SPLITS if getattr(recipe.data, split) is not None}
    check_categories(data)  # of the test split too: a fault in it is not to be met after days of training
    samples = make_samples(recipe, data["train"])
    detector, config = make_detector(recipe, data["train"].categories)
    convert_batch_norm(detector, accelerator.device.type)
    detector.to(accelerator.device)
    torch.manual_seed(recipe.seed + distributed.rank())  # the boxes that each rank draws for its losses
    precision = precision_of(cast(Any, recipe), accelerator.device)
    world, options = distributed.world(), recipe.training
    per_epoch = steps_per_epoch(len(samples), recipe.loader.batch, True, world)
    plan = _plan(recipe, len(samples))
    identity = {"recipe": _digest(recipe), "data": data["train"].fingerprint, "world": world, "precision": precision}
    saved = resumable(run, identity, changed=changed) if resume else None
    if resume:
        record(run, dump_recipe(cast(Any, recipe)))
    if distributed.is_main():
        _announce(recipe, detector, data["train"], len(samples), precision)
    state = fit(
        cast(Any, detector),
        lambda start: Loader(
            samples,
            plan(start),
            workers=recipe.loader.workers,
            pin_memory=accelerator.device.type == "cuda",
            timeout=recipe.loader.timeout,
        ),
        optimizer_of(recipe, detector),
        _schedule(recipe, per_epoch),
        accelerator=accelerator,
        run=run,
        steps=options.steps,
        per_epoch=per_epoch,
        identity=identity,
        describe=lambda step: samples.describe(next(iter(plan(step)))),
        resume=saved,
        validate=_validator(recipe, data, precision),
        select=str(recipe.evaluation.select),
        publish=cast(Any, partial(_publish, recipe, run, config)),
        clip=options.clip,
        log_every=options.log_every,
        health_every=0,
        validate_every=options.validate_every,
        save_every=options.save_every,
        keep=options.keep,
        skip_nonfinite=options.skip_nonfinite,
    )
    if distributed.is_main() and not did_nothing(saved, state):
        write_cost(
            run, accelerator.device, resumed=saved is not None,
            detector=recipe.detector["name"], batch=recipe.loader.batch, steps=options.steps, data=recipe.data.train,
        )  # fmt: skip
    return state


def _plan(recipe: DetectionRecipe, samples: int) -> Callable[[int], BatchPlan]:
    """From a step to this rank's batches from there on."""
    return lambda start: BatchPlan(
        samples,
        recipe.loader.batch,
        seed=recipe.seed,
        start=start,
        stop=recipe.training.steps,
        drop_last=True,
        rank=distributed.rank(),
        world=distributed.world(),
    )


def _schedule(recipe: DetectionRecipe, per_epoch: int) -> Callable[[int], float]:
    """From a step to its learning rate."""
    arguments = {key: value for key, value in recipe.schedule.items() if key != "name"}
    rate = SCHEDULES[recipe.schedule["name"]]
    return lambda step: rate(step, recipe.training.steps, per_epoch, recipe.optimizer["lr"], **arguments)


def _validator(recipe: DetectionRecipe, data: Mapping[str, DetectionData], precision: Any) -> Any:
    return partial(_validate, recipe, data["validation"], precision) if "validation" in data else None


def _validate(recipe: DetectionRecipe, data: DetectionData, precision: Any, detector: Detector) -> Mapping[str, float]:
    numbers, _ = score(recipe, data, _found(recipe, detector, data, precision))
    if distributed.is_main():
        console.print(_line(numbers), highlight=False, markup=False, soft_wrap=True)
    return numbers


def _found(recipe: DetectionRecipe, detector: Detector, data: DetectionData, precision: Any) -> list[Detections]:
    return detect(
        detector,
        data,
        size=recipe.data.size,
        max_size=recipe.data.max_size,
        batch=recipe.evaluation.batch,
        workers=recipe.loader.workers,
        precision=precision,
    )


def _line(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _publish(recipe: DetectionRecipe, run: Path, config: dict[str, Any], detector: Detector) -> None:
    if distributed.is_main():
        with writing(run / "model"):
            save_detector(detector, run / "model", config, _card(recipe, run, config["categories"]))


def _card(recipe: DetectionRecipe, run: Path, categories: list[str]) -> str:
    measured = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["metrics"]
        for path in sorted(run.glob("evaluation/*/metrics.json"))
    }
    whole = dump_recipe(cast(Any, recipe))
    return detector_card(recipe.name, recipe.description, whole, run.as_posix(), categories, measured)


def _digest(recipe: DetectionRecipe) -> str:
    """Hash of all of a recipe that its result depends on."""
    tree = copy.deepcopy(dataclasses.asdict(recipe))
    for key in ("log_every", "save_every", "keep", "trackers", "skip_nonfinite", "rank_timeout"):
        del tree["training"][key]
    del tree["description"], tree["loader"]["workers"], tree["loader"]["timeout"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _announce(recipe: DetectionRecipe, detector: Detector, data: DetectionData, samples: int, precision: str) -> None:
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in detector.parameters())
    console.print(
        f"{recipe.name}: {recipe.detector['name']}, {samples} of {len(data)} pictures with objects, "
        f"{len(data.categories)} categories, {recipe.training.steps} steps, batch {recipe.loader.batch}, {precision}, "
        f"{trained / 1e6:.1f} of {everything / 1e6:.1f} M parameters trained",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


# -- evaluation -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation left behind: its folder, its record (metrics.json), the data, and what was found in it."""

    folder: Path
    record: dict[str, Any]
    data: DetectionData
    found: list[Detections]


def split_of(recipe: DetectionRecipe, split: str | None) -> str:
    """The split to evaluate: the last that the recipe names if none is given.

    Raises:
        RecipeError: no such split, or the recipe names no data for it.
    """
    split = split or next(name for name in reversed(SPLITS) if getattr(recipe.data, name) is not None)
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    if getattr(recipe.data, split) is None:
        raise RecipeError(f"data.{split}: the recipe names no {split} data")
    return split


def evaluate(run: Path, split: str | None = None) -> Evaluated:
    """Find the objects of one split with a run's detector and score them; written to `RUN/evaluation/SPLIT`.

    The folder holds `metrics.json` and `detections.json`, the latter in COCO's results format.

    Args:
        run: folder of the run.
        split: train, validation or test; if not given, the last of them that the recipe names.

    Raises:
        RecipeError: no run folder, or no such split.
    """
    if not (run / "recipe.yaml").is_file():
        raise RecipeError(f"{run}: no recipe.yaml there; not a run folder")
    recipe = check(load_detection_recipe(run / "recipe.yaml"))
    split = split_of(recipe, split)
    data = dataset(recipe, split)
    detector, config = load_detector(run / "model")
    if list(data.categories) != config["categories"]:
        raise RecipeError(f"data.{split}: its categories are not those that the detector was trained on")
    detector.to("cuda" if torch.cuda.is_available() else "cpu")
    found = _found(recipe, detector, data, precision_of(cast(Any, recipe), detector.device))
    numbers, per_category = score(recipe, data, found)
    record = {
        "task": "detection",
        "split": split,
        "data": data.name,
        "fingerprint": data.fingerprint,
        "n_images": len(data),
        "n_objects": sum(len(one) for one in data.objects),
        "n_detections": sum(len(one) for one in found),
        "size": recipe.data.size,
        "metrics": numbers,
        "per_category": per_category,
    }
    folder = run / "evaluation" / split
    record = save_evaluation(folder, record)
    save_detections(folder / "detections.json", data, found)
    (run / "model" / "README.md").write_text(_card(recipe, run, config["categories"]), encoding="utf-8")
    return Evaluated(folder, record, data, found)

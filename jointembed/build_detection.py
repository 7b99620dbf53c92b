"""From a detection recipe to its data, detector, optimizer and scoring."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from jointembed.blocks import construct
from jointembed.branches.detector import DETECTORS, Detector
from jointembed.branches.image import TorchvisionEncoder
from jointembed.data.detection import DetectionData
from jointembed.data.detection_coco import coco_detection
from jointembed.data.detection_samples import DetectionSamples
from jointembed.data.detection_voc import voc_devkit, voc_folder
from jointembed.errors import RecipeError
from jointembed.evaluation.detection import STATS, AveragePrecision, coco_average_precision
from jointembed.evaluation.detection_voc import voc_average_precision
from jointembed.inference.detect import Detections
from jointembed.model import JointEmbedding
from jointembed.optim import OPTIMIZERS, SCHEDULES
from jointembed.optim.groups import parameter_groups
from jointembed.recipe import Block, check_block, check_schedule, expand_variables, nearest
from jointembed.recipe_detection import DetectionRecipe
from jointembed.training.log import check_trackers

DETECTION_DATASETS: dict[str, Callable[..., DetectionData]] = {
    "coco_detection": coco_detection,
    "voc_devkit": voc_devkit,
    "voc_folder": voc_folder,
}
DETECTION_ENCODERS = {"torchvision": TorchvisionEncoder}


def check(recipe: DetectionRecipe) -> DetectionRecipe:
    """The recipe with every named block checked against its constructor and its defaults filled in.

    Raises:
        RecipeError: with the dotted path.
    """
    blocks: dict[str, Any] = {
        split: None if block is None else check_block(block, DETECTION_DATASETS, f"data.{split}")
        for split in ("train", "validation", "test")
        for block in (getattr(recipe.data, split),)
    }
    encoder = None if recipe.encoder is None else check_block(recipe.encoder, DETECTION_ENCODERS, "encoder")
    if encoder is not None and encoder["channels"] != 3:
        raise RecipeError(f"encoder.channels: {encoder['channels']} planes, a detector's pictures have 3")
    detector = check_block(recipe.detector, DETECTORS, "detector")
    for key, value in detector.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < (0 if key == "freeze_at" else 1):
            raise RecipeError(f"detector.{key}: {value} is too small")
    check_trackers(recipe.training.trackers)
    rules = recipe.evaluation.rules
    select = recipe.evaluation.select or ("bbox_AP" if "coco" in rules else "voc_AP50")
    known = [name for rule in rules for name in numbers_of(rule, masks=bool(detector.get("masks")))]
    if select not in known:
        raise RecipeError(f"evaluation.select: no number {select!r}{nearest(select, known)}")
    return dataclasses.replace(
        recipe,
        encoder=encoder,
        detector=detector,
        data=dataclasses.replace(recipe.data, **blocks),
        optimizer=check_block(recipe.optimizer, OPTIMIZERS, "optimizer"),
        schedule=check_schedule(recipe.schedule, SCHEDULES),
        evaluation=dataclasses.replace(recipe.evaluation, select=select),
    )


def numbers_of(rule: str, *, masks: bool) -> list[str]:
    """Names of the numbers that a rule of scoring may give."""
    if rule == "voc":
        return ["voc_AP50", "voc07_AP50"]
    return [f"{kind}_{name}" for kind in (("bbox", "segm") if masks else ("bbox",)) for name in STATS]


def dataset(recipe: DetectionRecipe, split: str) -> DetectionData:
    """One split's pictures and objects. Raises RecipeError where the recipe names none."""
    block = getattr(recipe.data, split, None)
    if block is None:
        raise RecipeError(f"data.{split}: the recipe names no {split} data")
    return construct(expand_variables(block, f"data.{split}"), DETECTION_DATASETS)


def check_categories(data: dict[str, DetectionData]) -> None:
    """Refuse splits whose labels would mean different things."""
    train = data["train"]
    for split, one in data.items():
        if one.categories != train.categories:
            differing = sorted(set(one.categories) ^ set(train.categories)) or "their order"
            raise RecipeError(f"data.{split}: its categories are not those of data.train: {differing} differ")


def make_samples(recipe: DetectionRecipe, data: DetectionData) -> DetectionSamples:
    """The training samples of a data set."""
    return DetectionSamples(
        data,
        sizes=recipe.data.sizes,
        max_size=recipe.data.max_size,
        flip=recipe.data.flip,
        masks=bool(recipe.detector.get("masks")),
        seed=recipe.seed,
    )


def make_encoder(recipe: DetectionRecipe, *, pretrained: bool = True) -> tuple[TorchvisionEncoder, Block]:
    """What the detector starts from, and the block that rebuilds it without weights.

    Args:
        recipe: checked.
        pretrained: load the weights that the encoder names; False builds the bare architecture.

    Raises:
        RecipeError: `init_from` has no such view, or its encoder is none of torchvision's for pictures of 3 planes.
    """
    if recipe.init_from is None:
        block = cast(Block, expand_variables(recipe.encoder, "encoder"))
        given = block if pretrained or "weights" not in block else block | {"weights": None}
        return construct(given, DETECTION_ENCODERS, path="encoder"), block
    source = expand_variables(recipe.init_from, "init_from")
    model = JointEmbedding.from_pretrained(source)
    if recipe.view not in model.views:
        raise RecipeError(f"view: {source} has no view {recipe.view!r}{nearest(recipe.view, model.views)}")
    encoder = model.branch(recipe.view).encoder
    if not isinstance(encoder, TorchvisionEncoder):
        raise RecipeError(f"init_from: the encoder of {recipe.view!r} is a {type(encoder).__name__}, not torchvision's")
    if encoder.channels != 3:
        raise RecipeError(f"init_from: the encoder of {recipe.view!r} takes {encoder.channels} planes, a detector 3")
    block = dict(model.config["branches"][model.views[recipe.view]]["encoder"])
    return encoder.requires_grad_(True).train(), block


def make_detector(
    recipe: DetectionRecipe, categories: Sequence[str], *, pretrained: bool = True
) -> tuple[Detector, dict[str, Any]]:
    """The detector, and the content of its `config.json`."""
    encoder, block = make_encoder(recipe, pretrained=pretrained)
    detector = construct(recipe.detector, DETECTORS, encoder, len(categories), path="detector")
    config = {
        "name": recipe.name,
        "encoder": block | {"weights": None},
        "detector": recipe.detector,
        "categories": list(categories),
        "size": recipe.data.size,
        "max_size": recipe.data.max_size,
    }
    return detector, config


def optimizer_of(recipe: DetectionRecipe, detector: Detector) -> torch.optim.Optimizer:
    """The optimizer; biases and norms do not decay."""
    groups = parameter_groups(detector, weight_decay=recipe.optimizer.get("weight_decay", 0.0))
    return construct(recipe.optimizer, OPTIMIZERS, groups, path="optimizer")


def score(
    recipe: DetectionRecipe, data: DetectionData, found: Sequence[Detections]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The numbers of every rule of the recipe, and AP by category, by the name of the number it is a part of."""
    results: dict[str, AveragePrecision] = {}
    if "coco" in recipe.evaluation.rules:
        results["bbox_AP"] = coco_average_precision(data, found)
        if recipe.detector.get("masks"):
            results["segm_AP"] = coco_average_precision(data, found, kind="segm")
    if "voc" in recipe.evaluation.rules:
        results["voc_AP50"] = voc_average_precision(data, found)
    numbers = {name: value for one in results.values() for name, value in one.metrics.items()}
    return numbers, {name: one.per_category for name, one in results.items()}

"""Hours and memory of a command, computed from the paper's cost table or from the cost.json of runs.

No constant here was measured by us on the GPUs it speaks of; each has its source, and an estimate says what it was
computed from. Take hours as good to a factor of two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from jointembed.data import DATASETS
from jointembed.recipe import check_block, load_recipe
from jointembed.report import paper
from jointembed.report.methods import encoder_names, labelled_share, method_name
from jointembed.report.plans import Command
from jointembed.report.read import Run


class GPU(NamedTuple):
    """A kind of GPU: speed against a V100 in mixed precision on ResNet-50, memory in GB, where the speed is from."""

    speed: float
    memory: int
    source: str


GPUS = {
    "V100": GPU(1.0, 32, "the paper's cost table is of V100"),
    "A100": GPU(
        2.06, 80, "ResNet-50 training, mixed precision, 8 GPUs: 16,621 against 8,056 pictures a second on V100 32 GB "
        "(NVIDIA DeepLearningExamples, resnet50v1.5 README)",
    ),
    "H100": GPU(4.1, 80, "twice the A100 on vision models (Lambda, H100 performance analysis, 2022)"),
}  # fmt: skip


class Load(NamedTuple):
    """What one sample of a method costs at full size."""

    passes: float  # forward passes of one 224 px picture; a backward pass counts as two
    kept: float  # pictures of 224 px whose activations wait for the backward pass
    hours: float | None = None  # published: 100 epochs of ImageNet on 32 V100
    memory: float | None = None  # published: GB a GPU, taken as at 64 samples a GPU (a batch of 2048)


def _published(method: str, passes: float, kept: float) -> Load:
    hours, memory = (paper.COST.value(method, column) for column in ("hours per 100 epochs", "GB per GPU"))
    assert isinstance(hours, int | float) and isinstance(memory, int | float)
    return Load(passes, kept, hours, memory)


_PATCHES = 9 * (64 / 224) ** 2  # PIRL's, in pictures
LOADS = {
    "Supervised": Load(3, 1),
    "MoCo": Load(4, 1),  # the key goes forward alone
    "MoCo v2": Load(4, 1),
    "PIRL": Load(3 * (1 + _PATCHES), 1 + _PATCHES),
    "CPC v2": Load(3 * 49 * (64 / 224) ** 2, 49 * (64 / 224) ** 2),  # 7 x 7 patches of 64 px
    "CMC": Load(3 * 2 * 0.25, 1),  # two networks of half width
    "SimCLR": Load(6, 2),
    "SimSiam": Load(6, 2),
    "InfoMin": Load(4 + 3 * _PATCHES, 1 + _PATCHES),
    "OBoW": Load(1 + 3 * 1.94, 1.94),  # 2 x 160 and 5 x 96 px; the teacher sees 224
    "SwAV": _published("SwAV", 6, 2),
    "SwAV (multi-crop)": _published("SwAV (multi-crop)", 9.3, 3.1),  # 6 x 96 px besides
    "BYOL": _published("BYOL", 8, 2),  # the target sees both views
    "Barlow Twins": _published("Barlow Twins", 6, 2),
    "VICReg": _published("VICReg", 6, 2),
    "W-MSE": Load(6, 2),
    "DeepCluster": Load(4, 1),
    "DeepCluster v2": Load(9.3, 3.1),
    "VICRegL": Load(6, 2),
    "SIGReg": Load(6, 2),
}
HOURS_PER_PASS = 1.5  # 100 epochs on 32 V100: the median of the five published ones, which span 1.25 to 2
FIXED = 3.0  # GB: weights, gradients, momentum of ResNet-50 and an 8192-8192-8192 expander, and the context
KEPT = 0.065  # GB a picture of 224 px: what the paper's 11.3 GB leave for 2 x 64 of them
ENCODERS = {  # multiply-adds against ResNet-50's 4.09 G: 7.80, 11.51 (torchvision), 4.6 (DeiT, table 5)
    "resnet50": 1.0, "resnet101": 1.91, "resnet152": 2.82, "vit_s_16": 1.12,
}  # fmt: skip
IMAGENET = 1_281_167
PICTURES = {  # by what the path of a data set holds
    "IMAGENET": IMAGENET, "cifar10_subset": 10_000, "COCO": 113_287,
}  # fmt: skip
CAPTIONS = 5  # a picture
EPOCH_PASSES = {  # task of an evaluation: pictures, epochs, passes a picture; on one GPU
    "linear": (IMAGENET, 100, 1), "semi1": (12_811, 20, 3), "semi10": (128_116, 20, 3),
    "places205": (2_448_873, 28, 1), "inat18": (437_513, 84, 1), "voc07": (9_963, 1, 1), "retrieval": (5_000, 1, 3),
}  # fmt: skip
DETECTORS = {  # recipe -> steps of 16 pictures, seconds a step, GB a GPU; on 8 V100 (Detectron2 MODEL_ZOO.md, 2019)
    "voc07_12_c4": (24_000, 0.537, 4.8), "coco_mask_rcnn_fpn": (90_000, 0.261, 3.4),
}  # fmt: skip
TEXT_PASSES = 0.1  # of a caption through GRU and expander, forward and backward; assumed
SMALL_SPEED = 52.0  # samples a second of VICReg in recipes/small, two cores shared with other jobs, 2026-11-25


@dataclass(frozen=True)
class Estimate:
    """Of one command."""

    hours: float | None
    memory: float | None  # GB: of each GPU, at small scale of the process
    basis: str  # what it was computed from
    hint: str = ""  # what to do where it does not fit

    def __str__(self) -> str:
        """As `88 h, 36 GB a GPU, published`."""
        hours = (
            "hours unknown"
            if self.hours is None
            else f"{self.hours:.1f} h"
            if self.hours < 10
            else f"{self.hours:.0f} h"
        )
        memory = "" if self.memory is None else f", {self.memory:.0f} GB"
        return f"{hours}{memory}, {self.basis}{self.hint}"


_UNKNOWN = Estimate(None, None, "its data have no count of pictures here")


def estimate(command: Command, gpus: int, kind: str, measured: Sequence[Run] = ()) -> Estimate:
    """Hours and memory of a command at full scale.

    Args:
        command: from `plans.cells`.
        gpus: that share a training; an evaluation runs on one of them.
        kind: of `GPUS`.
        measured: runs whose cost.json counts for the same method, encoders and data, rather than the paper's table.

    Raises:
        RecipeError: a recipe that cannot be read: plans are made where `recipes` is.
    """
    if command.verb == "detect":
        steps, seconds, memory = DETECTORS[PurePath(command.recipe).stem]
        hours = steps * seconds / 3600 * 8 / gpus / GPUS[kind].speed
        return Estimate(hours, 1 + (memory - 1) * 8 / gpus, "stated by Detectron2 for 8 V100, scaled")
    if command.verb == "evaluate":
        pictures, epochs, passes = EPOCH_PASSES[command.task]
        memory = FIXED + (256 * KEPT if passes == 3 else 1)
        basis = "on one GPU, the paper's hours scaled"
        if command.task == "voc07":
            basis += "; 1,580 fits of SVMs on the CPU besides, not in the hours"
        return Estimate(_hours(pictures * epochs * passes, 1, kind), memory, basis)
    recipe = asdict(load_recipe(command.recipe, command.overrides))
    samples = _samples(recipe)
    if samples is None:
        return _UNKNOWN
    if recipe["data"]["text"] is not None:
        return _captions(recipe, samples, gpus, kind)
    found = _measured(recipe, samples, gpus, kind, measured)
    return found or _pictures(recipe, samples, gpus, kind)


def estimate_small(command: Command, measured: Sequence[Run] = ()) -> Estimate:
    """The same at small scale, on a machine like the one that the measured runs are of."""
    recipe = asdict(load_recipe(command.recipe, command.overrides))
    samples = _samples(recipe)
    if samples is None:
        return _UNKNOWN
    passes, epochs = _load(recipe).passes, recipe["training"]["epochs"]
    for method in dict.fromkeys((method_name(recipe), "VICReg")):
        costs = [run.cost for run in _like(recipe, measured, method) if run.cost]
        if costs:
            share = passes / LOADS[method].passes
            seconds = [cost["seconds"] / cost["epochs"] for cost in costs]
            memory = max(cost["peak_process_bytes"] for cost in costs) / 1e9
            word = f"measured, {len(costs)} runs" if method == method_name(recipe) else "measured VICReg, scaled"
            return Estimate(epochs * share * sum(seconds) / len(seconds) / 3600, memory, word)
    hours = samples * epochs * passes / LOADS["VICReg"].passes / SMALL_SPEED / 3600
    return Estimate(hours, None, f"stated: VICReg {SMALL_SPEED:g} samples a second on two busy cores")


def _hours(passes: float, gpus: int, kind: str) -> float:
    return passes / (100 * IMAGENET) * HOURS_PER_PASS * 32 / gpus / GPUS[kind].speed


def _load(recipe: Mapping[str, Any]) -> Load:
    return LOADS[method_name(recipe)]


def _samples(recipe: Mapping[str, Any]) -> float | None:
    """Pictures of an epoch; None for data that we have no count of."""
    share = {"1%": 0.01, "10%": 0.1, None: 1.0}[labelled_share(recipe)]
    words = str(recipe["data"]["train"])
    return next((share * count for name, count in PICTURES.items() if name in words), None)


def _work(recipe: Mapping[str, Any]) -> float:
    """Of the encoders against ResNet-50, a mean over views."""
    branches = recipe["branches"]
    works = [ENCODERS.get(str(branches[name]["encoder"].get("model")), 1.0) for name in recipe["views"].values()]
    return sum(works) / len(works)


def _pictures(recipe: Mapping[str, Any], samples: float, gpus: int, kind: str) -> Estimate:
    load, work, samples = _load(recipe), _work(recipe), samples * recipe["training"]["epochs"]
    if load.hours is None:
        hours = _hours(samples * load.passes * work, gpus, kind)
        basis = f"{load.passes:.1f} passes a sample at the paper's pace"
    else:
        hours = load.hours * work * samples / (100 * IMAGENET) * 32 / gpus / GPUS[kind].speed
        basis = f"published: {load.hours:g} h per 100 epochs on 32 V100"
    each = work * (KEPT * load.kept if load.memory is None else (load.memory - FIXED) / 64)
    memory = FIXED + each * recipe["loader"]["batch"] / gpus
    return Estimate(hours, memory, basis, _hint(memory, each, kind))


def _hint(memory: float, each: float, kind: str) -> str:
    room = GPUS[kind].memory
    if memory <= room:
        return ""
    fits = 1
    while FIXED + each * 2 * fits <= 0.9 * room:
        fits *= 2
    return (
        f"; more than a {room} GB {kind} holds: take more GPUs, or training.micro_batch={fits} "
        f"(a third slower; batch norm then sees {fits} samples)"
    )


def _captions(recipe: Mapping[str, Any], pictures: float, gpus: int, kind: str) -> Estimate:
    """Image-text: pictures once through a frozen encoder, or each caption's picture through one that trains."""
    image = recipe["branches"]["image"]
    work = ENCODERS.get(str(image["encoder"].get("model")), 1.0)
    samples = pictures * (CAPTIONS if recipe["data"]["captions"] == "all" else 1) * recipe["training"]["epochs"]
    frozen = image["train"] == "none"
    passes = samples * TEXT_PASSES + (pictures * work if frozen else samples * 3 * work)
    memory = FIXED + (1 if frozen else KEPT * work * recipe["loader"]["batch"] / gpus)
    return Estimate(_hours(passes, gpus, kind), memory, "passes at the paper's pace; the text's assumed")


def _like(recipe: Mapping[str, Any], measured: Sequence[Run], method: str) -> list[Run]:
    """Runs of a method with these encoders on this data."""
    names, data = encoder_names(recipe), check_block(recipe["data"]["train"], DATASETS, "data.train")
    return [
        run
        for run in measured
        if run.cost is not None
        and not run.is_detector
        and method_name(run.recipe) == method
        and encoder_names(run.recipe) == names
        and data | run.recipe["data"]["train"] == data
    ]


def _measured(
    recipe: Mapping[str, Any], samples: float, gpus: int, kind: str, measured: Sequence[Run]
) -> Estimate | None:
    """From runs on GPUs of a known kind; None where there is none."""
    speeds, memories = [], []
    for run in _like(recipe, measured, method_name(recipe)):
        names = run.environment.get("accelerators") or []
        known = next((one for one in GPUS if names and one in names[0]), None)
        if known is not None and run.cost and run.cost.get("samples_per_second"):
            speeds.append(run.cost["samples_per_second"] / run.cost["world"] * GPUS[kind].speed / GPUS[known].speed)
            memories.append((run.cost.get("peak_device_bytes") or 0) / 1e9)
    if not speeds:
        return None
    seconds = samples * recipe["training"]["epochs"] / (sum(speeds) / len(speeds) * gpus)
    return Estimate(seconds / 3600, max(memories) or None, f"measured, {len(speeds)} runs")

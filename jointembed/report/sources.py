"""What was measured, ready to stand in a cell: evaluations of runs that differ in the seed alone, taken together."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jointembed.report.methods import describe, encoder_names, identity, labelled_share, objective_name, variant_name
from jointembed.report.read import Evaluation, Run, read_recipe
from jointembed.report.tables import Cell, Column, Number, Table


class Measure(NamedTuple):
    """Which number of which task's metrics.json, and how it is shown."""

    task: str
    metric: str
    scale: float = 1.0
    digits: int = 1
    share: bool = False  # of pictures that are right, so that its interval follows from how many there are


# The one place that says where a cell's number comes from: the first measure that was made counts. A column of the
# paper has the paper's own protocol; `linear` is the loop with frozen encoder, `features` are cached ones.
CELLS: dict[str, dict[str, tuple[Measure, ...]]] = {
    "imagenet": {
        "top-1": (Measure("linear", "linear_top1"), Measure("supervised", "classifier_top1")),
        "top-5": (Measure("linear", "linear_top5"), Measure("supervised", "classifier_top5")),
    },
    "semi": {
        "top-1, 1%": (Measure("semi1", "semi1_top1"), Measure("supervised 1%", "classifier_top1")),
        "top-1, 10%": (Measure("semi10", "semi10_top1"), Measure("supervised 10%", "classifier_top1")),
        "top-5, 1%": (Measure("semi1", "semi1_top5"), Measure("supervised 1%", "classifier_top5")),
        "top-5, 10%": (Measure("semi10", "semi10_top5"), Measure("supervised 10%", "classifier_top5")),
    },
    "transfer": {
        "Places205": (Measure("places205", "places205_top1"),),
        "VOC07": (Measure("voc07", "svm_voc07"),),
        "iNat18": (Measure("inat18", "inat18_top1"),),
        "VOC07+12 det": (Measure("VOC detection", "voc07_AP50", 100),),
        "COCO det": (Measure("COCO detection", "bbox_AP", 100),),
        "COCO seg": (Measure("COCO detection", "segm_AP", 100),),
    },
    "flexibility": {"linear": (Measure("linear", "linear_top1"),)},
    "ablation": {"linear": (Measure("linear", "linear_top1"),)},
}
EXTRAS: dict[str, tuple[Measure, ...]] = {  # columns of our own, shown where anything was measured
    "kNN": (Measure("features", "knn20_top1"),),
    "linear, cached": (Measure("features", "linear_top1"),),
}
# What the table of sources shows of any task, where it is there.
DETAILS: dict[str, tuple[Measure, ...]] = {
    "top-1": tuple(
        Measure(task, f"{name}_top1", share=True)
        for task, name in (
            ("linear", "linear"), ("semi1", "semi1"), ("semi10", "semi10"), ("places205", "places205"),
            ("inat18", "inat18"), ("supervised", "classifier"), ("supervised 1%", "classifier"),
            ("supervised 10%", "classifier"),
        )
    ),
    "kNN 20": (Measure("features", "knn20_top1", share=True),),
    "kNN 200": (Measure("features", "knn200_top1", share=True),),
    "linear, cached": (Measure("features", "linear_top1", share=True),),
    "mAP (VOC07)": (Measure("voc07", "svm_voc07"),),
    "AP50 (VOC07)": (Measure("VOC detection", "voc07_AP50", 100), Measure("COCO detection", "voc07_AP50", 100)),
    "AP box": (Measure("COCO detection", "bbox_AP", 100), Measure("VOC detection", "bbox_AP", 100)),
    "AP mask": (Measure("COCO detection", "segm_AP", 100),),
    "std h": (Measure("features", "std", digits=3),),
    "spread h": (Measure("features", "relative_std", digits=2),),
    "RankMe h": (Measure("features", "rankme"),),
    "std z": (Measure("features", "z_std", digits=3),),
    "spread z": (Measure("features", "z_relative_std", digits=2),),
    "RankMe z": (Measure("features", "z_rankme"),),
}  # fmt: skip
BASELINES = {"pixels": "raw pixels", "untrained": "untrained network"}  # their tasks, and what rows call them
SPREAD = (
    "std: mean over dimensions. Spread: the length of all standard deviations over the mean length of a row, 0 for a "
    "point. RankMe: dimensions in use. h: representations, z: embeddings."
)


@dataclass(frozen=True)
class Source:
    """One task on one split, of runs that differ in the seed alone."""

    number: int  # 1 ..., as a table calls it
    task: str
    names: frozenset[str]  # of the task, as measures ask for it
    recipe: Mapping[str, Any]  # of the pre-training
    runs: tuple[Run, ...]  # those with the evaluations, one for each
    evaluations: tuple[Evaluation, ...]

    @property
    def split(self) -> str:
        """As the records say."""
        return str(self.evaluations[0].document.get("split") or "")

    @property
    def seeds(self) -> str:
        """Of the runs."""
        return ", ".join(str(one) for one in sorted(map(_seed, self.runs)))

    @property
    def folders(self) -> str:
        """Of the runs."""
        return " ".join(str(run.folder) for run in self.runs)

    @property
    def commands(self) -> str:
        """What was typed: the training of the first run, then the evaluations, each once."""
        typed = [self.runs[0].environment.get("command"), *(one.document.get("command") for one in self.evaluations)]
        return " ; ".join(dict.fromkeys(filter(None, typed)))

    def measure(self, wanted: Measure) -> Number | None:
        """The number, over all runs that have it: a mean with its deviation, or one value with its interval."""
        if wanted.task not in self.names:
            return None
        found = [one.number(wanted.metric) for one in self.evaluations]
        numbers = [one for one in found if one is not None]
        if not numbers:
            return None
        shown = _mean(numbers) if len(numbers) > 1 else numbers[0]
        if wanted.share and shown.low is None and len(numbers) == 1:
            low, high = _wilson(shown.value, int(self.evaluations[0].document.get("n_images") or 0))
            shown = dataclasses.replace(shown, low=low, high=high)
        return _scaled(shown, wanted.scale, wanted.digits)

    def mark(self, number: Number) -> Number:
        """The number with this source's number, without its interval: that stands in the table of sources."""
        return dataclasses.replace(number, low=None, high=None, source=self.number)

    def first_of(self, measures: Iterable[Measure]) -> Number | None:
        """The first of these that was made."""
        return next((found for one in measures if (found := self.measure(one)) is not None), None)


def find_sources(runs: Iterable[Run]) -> list[Source]:
    """Evaluations of these runs, those of runs that repeat one another with other seeds taken together.

    A detector's evaluations count for the run that it started from. A second run with the same seed is no repetition:
    it is a source of its own, as is what another correction or other settings of the task measured.
    """
    groups: dict[tuple[Any, ...], list[tuple[Run, Evaluation]]] = {}
    recipes: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        origin = _origin(run)
        key = identity(origin)
        recipes.setdefault(key, origin)
        for one in run.evaluations:
            document = one.document
            of = tuple(document.get(name) for name in ("split", "protocol", "data", "fingerprint", "embedding"))
            of = (*of, json.dumps(document.get("correct"), sort_keys=True), identity(document.get("settings") or {}))
            of = (*of, identity(run.recipe)) if run.is_detector else of
            again = 0
            while any(_seed(run) == _seed(other) for other, _ in groups.get((key, _task(run, one), again, *of), ())):
                again += 1
            groups.setdefault((key, _task(run, one), again, *of), []).append((run, one))
    return [
        Source(
            number,
            key[1],
            frozenset({key[1], _labels_seen(recipes[key[0]]), *(("features",) if key[1] in BASELINES else ())}),
            recipes[key[0]],
            tuple(run for run, _ in members),
            tuple(one for _, one in members),
        )
        for number, (key, members) in enumerate(groups.items(), 1)
    ]


def _seed(run: Run) -> int:
    return int(run.recipe.get("seed", 0))


def _origin(run: Run) -> Mapping[str, Any]:
    """The recipe of the pre-training: of a detector that of the run it started from, or what stands in for it."""
    if not run.is_detector:
        return run.recipe
    start = run.recipe.get("init_from")
    if start is not None:
        place = Path(start)
        recipe = next((read_recipe(one) for one in (place, place.parent) if (one / "recipe.yaml").is_file()), None)
        return recipe or _stand_in(f"from {start}, which is not here")
    encoder = run.recipe.get("encoder") or {}
    weights, model = encoder.get("weights"), str(encoder.get("model", encoder.get("name")))
    if weights is None:
        return _stand_in("random weights", model)
    imagenet = str(weights).startswith("IMAGENET1K")
    return _stand_in("supervised" if imagenet else f"weights {weights}", model, str(weights))


def _stand_in(method: str, model: str = "", weights: str = "") -> dict[str, Any]:
    words = ", ".join(filter(None, (weights, model)))
    return {"objective": {"name": method}, "data": {"train": {"name": "none"}}, "described": words}


def _task(run: Run, evaluation: Evaluation) -> str:
    if not run.is_detector:
        return evaluation.task
    voc = run.recipe["detector"]["name"] == "faster_rcnn_c4" or "voc" in run.recipe["data"]["train"]["name"]
    return "VOC detection" if voc else "COCO detection"


def _labels_seen(recipe: Mapping[str, Any]) -> str:
    """Of a supervised run `supervised` and the share of the labels, where it was not all of them."""
    if objective_name(recipe) != "supervised":
        return ""
    block = recipe["data"]["train"]
    if block.get("fraction") is None and block.get("subset") is None:
        return "supervised"
    return f"supervised {labelled_share(recipe) or 'on a part'}"


def _scaled(number: Number, scale: float, digits: int) -> Number:
    low, high, std = (None if one is None else one * scale for one in (number.low, number.high, number.std))
    return dataclasses.replace(number, value=number.value * scale, low=low, high=high, std=std, digits=digits)


def _mean(numbers: list[Number]) -> Number:
    values = [one.value for one in numbers]
    return Number(statistics.fmean(values), std=statistics.stdev(values))


def _wilson(percent: float, count: int, z: float = 1.959964) -> tuple[float | None, float | None]:
    """Wilson's 95% interval of a share of `count` pictures, in percent; none for an unknown count."""
    if count < 1:
        return None, None
    p, square = percent / 100, z * z / count
    middle, half = p + square / 2, z * math.sqrt(p * (1 - p) / count + square / (4 * count))
    low, high = (100 * (middle + way * half) / (1 + square) for way in (-1, 1))
    return max(0.0, low), min(100.0, high)


def sources_table(sources: Sequence[Source], title: str = "Where the measured numbers come from") -> Table:
    """The table of sources: number, what was measured, on what, by which commands."""
    shown = {label: [source.first_of(measures) for source in sources] for label, measures in DETAILS.items()}
    measured = {label: numbers for label, numbers in shown.items() if any(one is not None for one in numbers)}
    columns = (
        Column("source", "Source"),
        Column("method", "Method", kind="words"),
        Column("task", "Task"),
        *(Column(label, label, kind="measured") for label in measured),
        *(Column(key, key.capitalize(), kind="words") for key in ("trained", "data")),
        *(Column(key, key.capitalize()) for key in ("split", "pictures", "seeds")),
        Column("runs", "Runs", kind="code"),
        Column("command", "Commands", kind="code"),
    )
    rows = tuple(
        _source_row(source) | {label: numbers[place] for label, numbers in measured.items()}
        for place, source in enumerate(sources)
    )
    notes = ["± is the standard deviation over seeds, brackets are 95% intervals over pictures (Wilson)."]
    if any("RankMe" in label for label in measured):
        notes.append(SPREAD)
    return Table(title, columns, rows, tuple(notes))


def _source_row(source: Source) -> dict[str, Cell]:
    document = source.evaluations[0].document
    pictures = document.get("n_images")
    trained = {"pixels": document.get("preparation"), "untrained": encoder_names(source.recipe)}
    return {
        "source": source.number,
        "method": BASELINES.get(source.task) or variant_name(source.recipe),
        "task": source.task,
        "trained": trained.get(source.task) or describe(source.recipe),
        "data": document.get("data"),
        "split": source.split,
        "pictures": None if pictures is None else int(pictures),
        "seeds": source.seeds,
        "runs": source.folders,
        "command": source.commands,
    }

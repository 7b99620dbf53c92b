"""The paper's cost table beside what runs took, as ratios to VICReg on the same backbone, batch, data and hardware."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jointembed.report import paper
from jointembed.report.methods import describe, identity, variant_name
from jointembed.report.read import Run
from jointembed.report.sources import BASELINES
from jointembed.report.tables import Cell, Column, Number, Page, Table, published_cell

REFERENCE = "VICReg"
_NOTES = (
    "Published: 32 V100, ResNet-50. Ratios: time a sample and peak memory, VICReg 1.",
    "Measured samples a second are the median of the run's log; hours are of the whole run, validation included, "
    "scaled to 100 epochs of its own data. Memory is the peak of the device, where there is one, else of the process. "
    "Ratios are to the mean of the VICReg runs with equal encoders, batch, data, ranks and hardware, and empty without "
    "one. Times of runs that shared a machine with other work say little.",
)


@dataclass(frozen=True)
class _Cost:
    """Runs of one recipe, whatever their seeds."""

    runs: tuple[Run, ...]
    costs: tuple[Mapping[str, Any], ...]

    @property
    def method(self) -> str:
        return variant_name(self.runs[0].recipe)

    @property
    def setting(self) -> str:
        """What must be equal for a ratio."""
        cost = self.costs[0]
        encoders = sorted(set(map(str, cost.get("encoders", {}).values())))
        same = [encoders, cost.get("batch"), cost.get("data"), cost.get("world"), hardware(self.runs[0])]
        return json.dumps(same, sort_keys=True)

    def mean(self, key: str) -> float | None:
        values = [cost[key] for cost in self.costs if cost.get(key)]
        return statistics.fmean(values) if values else None

    @property
    def memory(self) -> float | None:
        """Peak in bytes."""
        return self.mean("peak_device_bytes") or self.mean("peak_process_bytes")


def hardware(run: Run) -> str:
    """The accelerators of a run, or its processor."""
    environment = run.environment
    found = environment.get("accelerators") or []
    if found:
        return f"{environment.get('world', 1)} x {found[0]}"
    return f"{environment.get('processor') or 'CPU'}, {environment.get('cores')} cores"


def cost_page(runs: Sequence[Run]) -> Page:
    """The published cost table with what these runs took beside it.

    Raises:
        CheckpointError: for a broken cost.json.
    """
    runs = [run for run in runs if not any(one.task in BASELINES for one in run.evaluations)]  # these are no runs
    costs = _costs(runs)
    references = {cost.setting: _reference(cost.setting, costs) for cost in costs if cost.method == REFERENCE}
    methods: dict[str, list[_Cost | None]] = {row.method: [] for row in paper.COST.rows}
    for cost in costs:
        methods.setdefault(cost.method, []).append(cost)
    rows = [
        _published(method) | ({} if cost is None else _measured(cost, references.get(cost.setting)))
        for method, found in methods.items()
        for cost in (found or [None])
    ]
    notes = [
        *_NOTES,
        *(f"{run.folder}: no cost.json in it: not ended, or a detector." for run in runs if not _has(run)),
    ]
    return Page((Table(f"{paper.COST.title} ({paper.PAPER})", _columns(), tuple(rows), tuple(notes)),))


def _has(run: Run) -> bool:
    return run.cost is not None and not run.is_detector


def _costs(runs: Sequence[Run]) -> list[_Cost]:
    """Runs of one recipe on one kind of hardware together."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if _has(run):
            groups.setdefault((identity(run.recipe), hardware(run)), []).append(run)
    return [_Cost(tuple(some), tuple(run.cost or {} for run in some)) for some in groups.values()]


def _reference(setting: str, costs: Sequence[_Cost]) -> _Cost:
    """All runs of the reference in one setting, whatever else their recipes say."""
    some = [one for one in costs if one.method == REFERENCE and one.setting == setting]
    return _Cost(tuple(run for one in some for run in one.runs), tuple(cost for one in some for cost in one.costs))


def _published(method: str) -> dict[str, Cell]:
    row: dict[str, Cell] = {"method": method}
    found = next((row for row in paper.COST.rows if row.method == method), None)
    if found is None:
        return row
    row |= {f"published/{key}": published_cell(cell) for key, cell in zip(paper.COST.columns, found.cells, strict=True)}
    for ratio, column in (("time", "hours per 100 epochs"), ("memory", "GB per GPU")):
        ours, theirs = (float(paper.COST.value(one, column) or 0) for one in (method, REFERENCE))
        row[f"published/{ratio}"] = Number(ours / theirs, digits=2)
    return row


def _measured(cost: _Cost, reference: _Cost | None) -> dict[str, Cell]:
    speeds = [one["samples_per_second"] for one in cost.costs if one.get("samples_per_second")]
    hours = [one["seconds"] / one["epochs"] * 100 / 3600 for one in cost.costs if one.get("epochs")]
    row: dict[str, Cell] = {
        "measured/speed": _number(speeds),
        "measured/hours": _number(hours, digits=2),
        "measured/GB": None if cost.memory is None else Number(cost.memory / 1e9),
        "trained": describe(cost.runs[0].recipe),
        "hardware": hardware(cost.runs[0]),
        "seeds": ", ".join(str(seed) for seed in sorted({int(run.recipe.get("seed", 0)) for run in cost.runs})),
        "runs": " ".join(str(run.folder) for run in cost.runs),
        "command": cost.runs[0].environment.get("command"),
    }
    if reference is not None:
        pairs = {
            "time": (reference.mean("samples_per_second"), cost.mean("samples_per_second")),
            "memory": (cost.memory, reference.memory),
        }
        row |= {f"measured/{key}": Number(a / b, digits=2) for key, (a, b) in pairs.items() if a and b}
    return row


def _number(values: Sequence[float], digits: int = 1) -> Number | None:
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Number(statistics.fmean(values), std=spread, digits=digits)


def _columns() -> tuple[Column, ...]:
    ratios = (("time", "time ratio"), ("memory", "memory ratio"))
    ours = (("speed", "samples a second"), ("hours", "hours per 100 epochs"), ("GB", "GB"), *ratios)
    return (
        Column("method", "Method"),
        *(Column(f"published/{one}", one, "published", "published") for one in paper.COST.columns),
        *(Column(f"published/{key}", label, "published", "published") for key, label in ratios),
        *(Column(f"measured/{key}", label, "measured", "measured") for key, label in ours),
        Column("trained", "Measured on", kind="words"),
        Column("hardware", "Hardware", kind="words"),
        Column("seeds", "Seeds"),
        Column("runs", "Runs", kind="code"),
        Column("command", "Command", kind="code"),
    )

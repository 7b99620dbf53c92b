"""Every trial of a search in one table, and each parameter against what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jointembed.report.curves import digits_of
from jointembed.report.plots import COLOURS, figure_of
from jointembed.report.tables import Cell, Column, Number, Page, Table

_COLUMNS = 3  # panels in a row


@dataclass(frozen=True)
class Trial:
    """One trial: what was drawn, and what came of it."""

    number: int
    state: str  # complete, pruned, failed, interrupted, running, waiting
    parameters: Mapping[str, Any]
    value: float | None = None  # the best of its looks at the validation data
    epoch: float | None = None  # of that look
    looks: int = 0
    minutes: float | None = None
    folder: str = ""
    note: str = ""


@dataclass(frozen=True)
class Trials:
    """A search: its trials, and what they were judged by."""

    name: str
    metric: str
    direction: str
    trials: Sequence[Trial]
    about: Mapping[str, str] = field(default_factory=dict)  # recipe, budget: words for the notes

    @property
    def ranked(self) -> list[Trial]:
        """The best first, those without a number last."""
        sign = -1 if self.direction == "maximize" else 1
        return sorted(self.trials, key=lambda one: (one.value is None, sign * (one.value or 0.0), one.number))

    @property
    def parameters(self) -> list[str]:
        """Names of what was varied."""
        return list(dict.fromkeys(name for one in self.trials for name in one.parameters))


def trials_page(*searches: Trials) -> Page:
    """A table of all trials for each search, the best one first."""
    return Page(tuple(map(_table, searches)))


def _table(search: Trials) -> Table:
    columns = (
        Column("trial", "Trial"),
        Column("metric", search.metric, kind="measured"),
        Column("state", "State"),
        Column("epoch", "Epoch"),
        Column("looks", "Looks"),
        *(Column(f"parameter/{name}", name) for name in search.parameters),
        Column("minutes", "Minutes"),
        Column("note", "Note", kind="words"),
        Column("folder", "Run", kind="code"),
    )
    rows = tuple(_row(one, search.metric) for one in search.ranked)
    states = [one.state for one in search.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"
    spent = sum(one.minutes or 0.0 for one in search.trials)
    notes = [
        *(f"{key}: {value}" for key, value in search.about.items()),
        f"Trials: {counts}; {spent:.1f} minutes in all. A pruned trial was stopped by the median of the others.",
        f"{search.metric} is the best of a trial's looks at the validation data that the search chooses by: the best "
        "row is optimistic, and no result of its own.",
    ]
    return Table(f"{search.name}: {len(search.trials)} trials", columns, rows, tuple(notes))


def _row(one: Trial, metric: str) -> dict[str, Cell]:
    row: dict[str, Cell] = {"trial": one.number, "state": one.state, "looks": one.looks, "note": one.note}
    row |= {f"parameter/{name}": _shown(value) for name, value in one.parameters.items()}
    row["metric"] = None if one.value is None else Number(one.value, digits=digits_of(metric, one.value))
    row["epoch"] = None if one.epoch is None else Number(one.epoch, digits=2)
    row["minutes"] = None if one.minutes is None else Number(one.minutes)
    return row | {"folder": one.folder}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_trials(search: Trials, path: Path) -> bool:
    """A panel a parameter: its values against the metric, trials that were stopped hollow; False without a number."""
    measured = [one for one in search.trials if one.value is not None]
    if not measured:
        return False
    names = search.parameters
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    with figure_of(path, (4.4 * columns, 3.2 * rows)) as figure:
        for number, name in enumerate(names, 1):
            _draw_parameter(figure.add_subplot(rows, columns, number), name, search.metric, measured)
    return True


def _draw_parameter(axes: Axes, name: str, metric: str, trials: Sequence[Trial]) -> None:
    trials = [one for one in trials if name in one.parameters]
    values = [one.parameters[name] for one in trials]
    numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    words = [] if numeric else sorted({str(one) for one in values})
    x = np.array([float(one) if numeric else words.index(str(one)) for one in values])
    y = np.array([one.value for one in trials], dtype=float)
    ended = np.array([one.state == "complete" for one in trials])
    axes.scatter(x[ended], y[ended], s=24, color=COLOURS[0], label="complete")
    axes.scatter(x[~ended], y[~ended], s=24, facecolors="none", edgecolors=COLOURS[1], label="stopped before its end")
    if numeric and len(x) and x.min() > 0 and x.max() > 20 * x.min():
        axes.set_xscale("log")
    if words:
        axes.set_xticks(range(len(words)), words, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(words) - 0.5)
    axes.set(xlabel=name, ylabel=metric)
    if not ended.all():
        axes.legend(fontsize=7.5)

"""Curves of a run as inline SVG: pure functions of the lines of metrics.jsonl, and of collapse.json."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from jointembed.errors import CheckpointError

Line = Mapping[str, Any]

_MOST_POINTS = 250  # a curve has; longer ones are drawn as means of bins, with a band from lowest to highest
_LOG_RANGE = 50.0  # positive values that span more are drawn on a logarithmic axis
_POSITION = ("kind", "step", "epoch", "seconds")
_SIZES = ("n_images", "n_texts")  # of the validation data: the same in every line
_PERCENT = re.compile(r".*(_top|R@)\d+|rsum")  # names of accuracies and recalls, and of their sum
_TITLES = {
    "std": "Standard deviation (mean)",
    "relative_std": "Spread relative to the length",
    "covariance": "Correlation (mean absolute)",
    "correlation": "Correlation (mean absolute)",
    "rankme": "RankMe (effective dimensions)",
    "medr": "Median rank",
    "meanr": "Mean rank",
    "tied_queries": "Tied queries",
}
_HEALTH = ("std", "relative_std", "covariance", "rankme")  # are drawn first, in this order

# matplotlib draws with these stand-ins, which become CSS variables, so that the page picks light or dark colours.
_INK, _MUTED, _RULE = "#000001", "#000002", "#000003"
_SERIES = ("#00000a", "#00000b", "#00000c", "#00000d", "#00000e", "#00000f")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES, 1)
}
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)), (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jointembed",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
}


class Metrics(NamedTuple):
    """What metrics.jsonl holds: its lines, and how many broken ones a kill has left at its end (0 or 1)."""

    lines: list[dict[str, Any]]
    broken: int


class Curve(NamedTuple):
    """One drawing: a title, the same in words for who cannot see it, and an `<svg>` element without any address."""

    title: str
    alt: str
    svg: str


class _Series(NamedTuple):
    label: str
    x: np.ndarray  # (P,) ascending
    y: np.ndarray  # (P,) finite


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a missing file has no lines, and a broken last line is left out and counted.

    Raises:
        CheckpointError: naming the line, where one before the last is broken, or lacks its kind or step.
    """
    if not path.exists():
        return Metrics([], 0)
    raw = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    lines: list[dict[str, Any]] = []
    for number, text in raw:
        try:
            line = json.loads(text)
        except ValueError:
            if number == raw[-1][0]:
                return Metrics(lines, 1)
            raise CheckpointError(f"{path}: line {number} is not JSON: {text[:60]!r}") from None
        if not isinstance(line, dict) or not isinstance(line.get("kind"), str) or not is_number(line.get("step")):
            raise CheckpointError(f"{path}: line {number} has no kind and step: {text[:60]!r}")
        for key in ("epoch", "seconds"):
            if not is_number(line.get(key, 0)):
                raise CheckpointError(f"{path}: line {number}: {key} is {line[key]!r}; expected a number")
        lines.append(line)
    return Metrics(lines, 0)


def of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    """Lines of one kind by step; where a resumed run wrote a step again, the later line counts."""
    by_step = {line["step"]: line for line in lines if line["kind"] == kind}
    return [by_step[step] for step in sorted(by_step)]


def loss_curves(lines: Sequence[Line]) -> list[Curve]:
    """Loss, its terms, gradient norm, learning rate and samples/s, as far as the train lines have them."""
    train = of_kind(lines, "train")
    names = _names(train)
    rates = [name for name in names if name.split("/")[0] == "lr"]
    apart = {"loss", "gradient_norm", "samples_per_second", *rates}
    return _curves(
        train,
        [
            ("Loss", "loss", [name for name in names if name == "loss"]),
            ("Terms of the loss", "terms", [name for name in names if name not in apart]),
            ("Gradient norm", "gradient", [name for name in names if name == "gradient_norm"]),
            ("Learning rate", "rate", rates),
            ("Samples per second", "speed", [name for name in names if name == "samples_per_second"]),
        ],
    )


def validation_curves(lines: Sequence[Line], *, select: str = "rsum") -> list[Curve]:
    """Every number of the validation lines: rsum, recall in both directions, accuracies, then the others by what it is.

    Args:
        lines: of metrics.jsonl.
        select: the number that picks the model; where it is highest is marked.
    """
    validation = of_kind(lines, "validation")
    names = [name for name in _names(validation) if name not in _SIZES]
    curves = _curves(validation, [("Validation rsum", "rsum", ["rsum"])], mark=select)
    drawn = {"rsum"}
    for direction, query in (("i2t", "image query → text"), ("t2i", "text query → image")):
        recalls = [name for name in names if name.startswith(f"{direction}_R@")]
        plot = (f"Recall in %, {query}", f"recall-{direction}", recalls)
        curves += _curves(validation, [plot], label=lambda name: name[4:], mark=select)
        drawn |= set(recalls)
    accuracies = [name for name in names if is_percentage(name) and name not in drawn]
    others: dict[str, list[str]] = {}
    for name in names:
        if name not in drawn and name not in accuracies:  # of both directions, of representations and embeddings
            others.setdefault(re.sub(r"^(i2t_|t2i_|z_)", "", name), []).append(name)
    groups = [(_TITLES.get(what, what), members) for what, members in others.items()]
    groups = [("Accuracy in %", accuracies), *groups]
    plots = [(f"Validation: {title}", f"validation-{number}", some) for number, (title, some) in enumerate(groups)]
    return curves + _curves(validation, plots, mark=select)


def is_percentage(metric: str) -> bool:
    """Whether a number of this name is in percent, or a sum of such."""
    return _PERCENT.fullmatch(metric) is not None


def digits_of(metric: str, value: float) -> int:
    """Digits behind the point: one of a number in percent, as many as make four in all of any other."""
    if is_percentage(metric) or value == 0 or not math.isfinite(value):
        return 1
    return max(0, 3 - math.floor(math.log10(abs(value))))


def metric_text(metric: str, value: float) -> str:
    """A validation number for reading."""
    return f"{value:.{digits_of(metric, value)}f}"


def health_curves(lines: Sequence[Line]) -> list[Curve]:
    """Collapse diagnostics of each view over training: std, covariance, RankMe and whatever else is logged."""
    health = of_kind(lines, "health")
    names = [name for name in _names(health) if "/" in name]
    statistics = dict.fromkeys([*_HEALTH, *(name.rpartition("/")[2] for name in names)])
    plots = [
        (_TITLES.get(what, what), f"health-{number}", [name for name in names if name.rpartition("/")[2] == what])
        for number, what in enumerate(statistics)
    ]
    return _curves(health, plots, label=lambda name: name.rpartition("/")[0])


def spectrum_curve(collapse: Mapping[str, Any], *, key: str = "spectrum") -> Curve | None:
    """Singular values of each view's embeddings at the end, descending, on a logarithmic axis.

    Args:
        collapse: content of collapse.json.
        key: prefix of the ids inside the drawing; one page must not use it twice.
    """
    series = []
    for view, entry in collapse.items():
        if not isinstance(entry, Mapping) or not entry.get("spectrum"):
            continue
        values = np.asarray(entry["spectrum"], dtype=float)
        seen = np.isfinite(values) & (values > 0)
        if seen.any():
            series.append(_Series(view, np.arange(1, len(values) + 1)[seen], values[seen]))
    if not series:
        return None
    title = "Singular values of the embeddings"
    return Curve(title, _alt(title, series, "rank"), _draw(key, series, x_label="rank of the singular value", log=True))


def _curves(
    lines: list[Line],
    plots: Sequence[tuple[str, str, list[str]]],
    *,
    label: Callable[[str], str] = str,
    mark: str | None = None,
) -> list[Curve]:
    """A curve for each (title, key, names) that any line has a value for; the highest point of `mark` is marked."""
    unit = "epoch" if lines and all(is_number(line.get("epoch")) for line in lines) else "step"
    curves = []
    for title, key, names in plots:
        found = {name: points for name in names if len((points := _points(lines, name, unit))[0])}
        series = [_Series(label(name), *points) for name, points in found.items()]
        if series:
            best = None if mark is None or mark not in found else (mark, series[list(found).index(mark)])
            svg = _draw(key, series, x_label=unit, best=best)
            curves.append(Curve(title, _alt(title, series, unit), svg))
    return curves


def _names(lines: Sequence[Line]) -> list[str]:
    """Names of the numbers in these lines, in the order they first appear."""
    return list(dict.fromkeys(n for line in lines for n, v in line.items() if n not in _POSITION and is_number(v)))


def is_number(value: Any) -> bool:
    """Whether a value of a line is a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(lines: Sequence[Line], name: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Position and value of each line that has a finite `name`: two (P,) arrays."""
    points = [(line[unit], line[name]) for line in lines if is_number(line.get(name)) and np.isfinite(line[name])]
    x, y = np.asarray(points, dtype=float).reshape(-1, 2).T
    return x, y


def _alt(title: str, series: Sequence[_Series], unit: str) -> str:
    parts = [
        f"{s.label}: {s.y[0]:.4g} at {unit} {s.x[0]:.4g}, {s.y[-1]:.4g} at {unit} {s.x[-1]:.4g}, "
        f"lowest {s.y.min():.4g}, highest {s.y.max():.4g}"
        for s in series
    ]
    return f"{title}. {'; '.join(parts)}."


def _draw(
    key: str,
    series: Sequence[_Series],
    *,
    x_label: str,
    log: bool = False,
    best: tuple[str, _Series] | None = None,
) -> str:
    """The drawing; its ids begin with `key`, and the highest point of `best`, a name and its series, is marked."""
    lowest, highest = min(s.y.min() for s in series), max(s.y.max() for s in series)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.7, 2.45), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for number, one in enumerate(series):
            _draw_series(axes, one, number)
        if log or (lowest > 0 and highest > _LOG_RANGE * lowest):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(which="minor", labelleft=False, left=False)
        axes.set_xlabel(x_label)
        if best is not None:
            _mark_highest(axes, *best)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=3, handlelength=2.6, columnspacing=1.2, borderpad=0.1)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), key)


def _draw_series(axes: Axes, series: _Series, number: int) -> None:
    colour, dashes = _SERIES[number % len(_SERIES)], _DASHES[number % len(_DASHES)]
    x, y = series.x, series.y
    if len(x) > _MOST_POINTS:
        bins = np.array_split(np.arange(len(x)), _MOST_POINTS)
        x = np.array([series.x[one].mean() for one in bins])
        low, high = (np.array([pick(series.y[one]) for one in bins]) for pick in (np.min, np.max))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        y = np.array([series.y[one].mean() for one in bins])
    marker = "o" if len(x) <= 12 else ""
    axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3, label=series.label)


def _mark_highest(axes: Axes, metric: str, series: _Series) -> None:
    best = int(series.y.argmax())
    axes.margins(y=0.18)
    axes.plot(series.x[best], series.y[best], marker="o", markersize=6, markerfacecolor="none", color=_INK)
    side = "right" if best > len(series.x) / 2 else "left"
    place = (series.x[best], series.y[best])
    words = f"best {metric_text(metric, series.y[best])}"
    axes.annotate(words, place, (0, 6), textcoords="offset points", ha=side, color=_INK)


def _inline(svg: str, key: str) -> str:
    """Make a drawing part of a page: no prologue, no namespaces, ids of its own, the page's colours and font.

    Only tags are changed: what stands between them are names from a log, which may hold anything.
    """
    head, _, body = svg[svg.index("<svg") :].partition(">")
    head = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", head)
    svg = head + ">" + re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda match: _inline_tag(match[0], key), svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def _inline_tag(tag: str, key: str) -> str:
    """One tag of a drawing: its font is the page's, its ids begin with `key`, its stand-ins are the page's colours."""
    tag = re.sub(r"\s*font-family: [^;\"]*;?", "", tag.replace("xlink:href=", "href="))
    tag = re.sub(r'\bid="|href="#|url\(#', lambda match: f"{match[0]}{key}-", tag)
    tag = re.sub(r"#0000[0-9a-f]{2}\b", lambda match: _variable(match[0]), tag)
    return re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), tag)  # 0.01 pt is enough


def _variable(colour: str) -> str:
    """The CSS variable of a stand-in; another colour stays."""
    name = _VARIABLES.get(colour)
    return colour if name is None else f"var({name})"

"""Pictures of what the benchmarks measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jointembed.bench.curves import smoothed

DPI = 90


def plot_curves(losses: Mapping[str, Sequence[float]], path: Path) -> None:
    """Losses by precision, each step pale and smoothed on top, as PNG."""
    figure, axes = _figure(6.4, 3.4, 1, 1)
    for number, (precision, curve) in enumerate(losses.items()):
        means = smoothed(curve)
        axes[0].plot(range(1, len(curve) + 1), curve, color=f"C{number}", alpha=0.25, linewidth=1)
        axes[0].plot(range(len(curve) - len(means) + 1, len(curve) + 1), means, color=f"C{number}", label=precision)
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].legend()
    _save(figure, path)


def plot_grid(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The time of the authors' formula over ours for each n and d, and milliseconds of both over n, as PNG."""
    theirs = {(row["n"], row["d"]): row for row in rows if row["loss"] == "authors"}
    ours = {(row["n"], row["d"]): row for row in rows if row["loss"] == "jointembed"}
    ns, ds = (sorted({size[place] for size in theirs}) for place in range(2))
    figure, axes = _figure(10, 3.8, 1, 2)
    ratios = np.array([[theirs[n, d]["cpu_ratio"] if (n, d) in theirs else np.nan for n in ns] for d in ds])
    axes[0].imshow(np.log2(ratios), origin="lower", cmap="RdYlGn", vmin=-4, vmax=4, aspect="auto")
    for place, ratio in np.ndenumerate(ratios):
        if np.isfinite(ratio):
            axes[0].text(place[1], place[0], f"{ratio:.3g}", ha="center", va="center")
    axes[0].set(xticks=range(len(ns)), xticklabels=ns, yticks=range(len(ds)), yticklabels=ds, xlabel="n", ylabel="d")
    axes[0].set_title("time of the authors' formula over ours")
    for number, d in enumerate(ds):
        sizes = [n for n in ns if (n, d) in theirs]
        for known, style in ((ours, "-"), (theirs, ":")):
            values = [known[n, d]["cpu_milliseconds"] for n in sizes]
            axes[1].loglog(sizes, values, style, color=f"C{number}", label=f"d = {d}" if style == "-" else None)
    axes[1].set(xlabel="n", ylabel="milliseconds of one core", title="ours; dotted: the authors' formula")
    axes[1].legend(fontsize=8)
    _save(figure, path)


def plot_growth(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds and memory over each size that doubles, both logarithmic, exponents in the legend, as PNG."""
    figure, axes = _figure(11, 4.2, 1, 2)
    for axis, key, label in zip(axes, ("cpu_seconds", "mb"), ("seconds of one core", "memory, MB"), strict=True):
        for number, one in enumerate(series):
            sizes = [row["size"] / one["rows"][0]["size"] for row in one["rows"]]
            power = one["exponents"][key]
            name = f"{one['what']}, {one['grows']}" + ("" if power is None else f": {power:.2f}")
            axis.loglog(sizes, [max(row[key], 0.01) for row in one["rows"]], "osv^D"[number % 5] + "-", label=name)
        axis.set(xlabel="size over the smallest", ylabel=label)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def plot_views(pipelines: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Pictures a second of one core: the authors' pipelines, ours, and ours where JPEGs are decoded whole, as PNG."""
    figure, axes = _figure(7.5, 3.6, 1, 1)
    variants = {"authors": "Pillow, torchvision", "whole": "ours, whole decode", "jointembed": "ours"}
    for number, (variant, label) in enumerate(variants.items()):
        times = [row["times"].get(variant, row["times"]["jointembed"]) for row in pipelines.values()]
        bars = axes[0].bar(
            [place + 0.27 * (number - 1) for place in range(len(times))],
            [one["images_per_second"] for one in times],
            width=0.25,
            label=label,
        )
        ours = [
            row["times"]["authors"]["cpu_seconds"] / one["cpu_seconds"]
            for row, one in zip(pipelines.values(), times, strict=True)
        ]
        axes[0].bar_label(bars, [f"{ratio:.1f}x" for ratio in ours], fontsize=8)
    axes[0].set(xticks=range(len(pipelines)), xticklabels=list(pipelines), ylabel="pictures a second of one core")
    axes[0].legend()
    _save(figure, path)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)

"""The figures of docs/image_text_recipe.md: `python scripts/recipe_figures.py SEARCH [RUNS ...] --out docs/img`.

`SEARCH` is the folder of `jointembed tune`. The first figure has the five objectives, and every run of `SEARCH` and
`RUNS` over its effective rank. The second has a panel for each question: a panel over a key shows the runs that differ
from each other in that key alone; that of the contrastive term has VICReg without it (the run called `none`) and the
best trial of InfoNCE as lines, where they are there.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from matplotlib.axes import Axes

from jointembed.report.plots import COLOURS, figure_of
from jointembed.tuning import read_trials

NAMES = {"vicreg": "VICReg", "barlow_twins": "Barlow Twins", "clip": "InfoNCE", "siglip": "SigLIP", "vse": "VSE++"}
COLOUR = dict(zip(NAMES, COLOURS, strict=False))
RATE = "optimizer.lr"
ALONE = "none"  # the run in RUNS without a contrastive term
PLAIN = "validation-full"  # the folder of an evaluation of val without correction
CHANCE = 5.0  # rsum below which a run knows nothing: chance is 3.2
SPECTRA = {  # run in RUNS: what the panel of spectra calls it
    "vicreg-0": "VICReg, two layers",
    "clip-0": "InfoNCE",
    "barlow_twins-0": "Barlow Twins",
    "linear": "VICReg, one linear layer",
}


class Run(NamedTuple):
    """An evaluated run."""

    folder: Path
    recipe: dict[str, Any]  # flat: `a.b` to its value
    rsum: float
    collapse: dict[str, Any]  # the numbers of collapse.json


def flat(tree: Any, above: str = "") -> dict[str, Any]:
    """A tree of mappings as one mapping from `a.b.c` to its leaf."""
    if not isinstance(tree, dict) or not tree:
        return {above: tree}
    return {
        key: leaf for name, one in tree.items() for key, leaf in flat(one, f"{above}.{name}" if above else name).items()
    }


def read_runs(roots: Iterable[Path]) -> list[Run]:
    """Every evaluated run under the folders that is above chance."""
    found = []
    for place in sorted({path.parent for root in roots for path in root.rglob(f"{PLAIN}/collapse.json")}):
        folder = place.parents[1]
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        recipe["data"]["share"] = recipe["data"].get("share") or {"pictures": 1.0, "captions": 1.0, "seed": 0}
        metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        if metrics["rsum"] < CHANCE:
            continue
        found.append(
            Run(folder, flat(recipe), metrics["rsum"], json.loads((place / "collapse.json").read_text("utf-8")))
        )
    return found


def log_ticks(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis with these values and no others."""
    axes.set_xscale("log")
    axes.set_xticks(places := sorted(set(values)), [f"{one:g}" for one in places])
    axes.minorticks_off()


def draw_trials(search: Path, axes: Axes) -> None:
    """Rsum of every trial over its learning rate; a line, solid and dashed, for each value of the objective's own."""
    seen = set()
    for folder, found in read_trials(search).items():
        name = folder.name.removeprefix("flickr8k_")
        if name not in NAMES:
            continue
        lines: dict[str, list[tuple[float, float]]] = {}
        for trial in found.trials:
            own = [f"{key.rpartition('.')[2]} {value}" for key, value in trial.parameters.items() if key != RATE]
            seen.add(trial.parameters[RATE])
            if trial.value is not None:
                lines.setdefault(", ".join(own), []).append((trial.parameters[RATE], trial.value))
        for style, (own_value, points) in zip(("-", "--"), lines.items(), strict=False):
            rates, values = zip(*sorted(points), strict=True)
            label = ", ".join(filter(None, (NAMES[name], own_value.replace("_", " "))))
            axes.plot(rates, values, f"o{style}", color=COLOUR[name], label=label)
    axes.set(xlabel="learning rate", ylabel="rsum on val after three epochs")
    log_ticks(axes, seen)
    axes.legend(fontsize=7)


def draw_ranks(runs: Iterable[Run], axes: Axes) -> None:
    """Rsum of every run over the effective rank of the branch that has the lower one."""
    for run in runs:
        rank = min(run.collapse[view]["rankme"] for view in ("image", "text"))
        axes.plot(rank, run.rsum, "o", alpha=0.7, color=COLOUR[run.recipe["objective.name"]])
    axes.set(xlabel="effective rank (RankMe) of the branch with less", ylabel="rsum on val")
    log_ticks(axes, (30, 100, 300))


def draw_study(search: Path, studies: Sequence[str], axes: Axes, over: str, line: str = "", name: str = "") -> None:
    """Rsum of the trials of one or more studies over one key, a line for each value of another."""
    found = {folder.name: one for folder, one in read_trials(search).items()}
    lines: dict[Any, list[tuple[float, float]]] = {}
    for trial in (trial for study in studies for trial in found[f"flickr8k_vicreg_{study}"].trials):
        if trial.value is not None:
            lines.setdefault(trial.parameters.get(line), []).append((trial.parameters[over], trial.value))
    for (value, points), colour in zip(sorted(lines.items()), COLOURS, strict=False):
        label = f"{name} {value:g}" if line else None
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=label)
    axes.set(ylabel="rsum on val")
    log_ticks(axes, [place for points in lines.values() for place, _ in points])
    if line:
        axes.legend()


def draw_contrast(search: Path, runs: Iterable[Run], axes: Axes) -> None:
    """Rsum over the weight of InfoNCE beside VICReg; the weight 0 has no place on the axis, and is a line."""
    draw_study(search, ("contrast",), axes, "contrast.weight")
    axes.set(xlabel="weight of InfoNCE beside VICReg")
    best = {folder.name: one.ranked[0].value for folder, one in read_trials(search).items() if one.trials}
    alone = next((run.rsum for run in runs if run.folder.name == ALONE), None)
    known = ((alone, "vicreg", "weight 0"), (best.get("flickr8k_clip"), "clip", "InfoNCE alone"))
    for rsum, objective, label in known:
        if rsum is not None:
            axes.axhline(rsum, linestyle="--", color=COLOUR[objective], label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def draw_over(runs: Iterable[Run], key: str, axes: Axes, other: tuple[str, ...] = ()) -> None:
    """Rsum of runs over a key, a line for those that differ in it alone; `other`, and how they are judged, may too."""
    groups: dict[str, dict[float, Run]] = {}
    for run in runs:
        free = (key, *other)
        same = {
            one: value for one, value in run.recipe.items() if one not in free and not one.startswith("evaluation.")
        }
        groups.setdefault(json.dumps(same, sort_keys=True), {})[run.recipe[key]] = run
    compared = [one for one in groups.values() if len(one) > 1]
    for group in compared:
        name = next(iter(group.values())).recipe["objective.name"]
        points = sorted((value, run.rsum) for value, run in group.items())
        axes.plot(*zip(*points, strict=True), "o-", color=COLOUR[name], label=NAMES[name])
    axes.set(ylabel="rsum on val")
    log_ticks(axes, [value for group in compared for value in group])


def draw_spectra(runs: Iterable[Run], axes: Axes) -> None:
    """The eigenvalues of the captions' covariance over the largest; `spectrum` holds their roots."""
    for run in sorted(runs, key=lambda one: list(SPECTRA).index(one.folder.name)):
        values = np.array(run.collapse["text"]["spectrum"]) ** 2
        axes.plot(1 + np.arange(len(values)), values / values[0], label=SPECTRA[run.folder.name])
    axes.set(ylim=(0, 1.02), xlabel="dimension of the captions' embeddings", ylabel="eigenvalue over the largest")
    log_ticks(axes, (1, 10, 100, 1000))
    axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("search", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    given = parser.parse_args(arguments)
    runs = read_runs([given.search, *given.runs])
    with figure_of(given.out / "image_text_recipe.png", (10, 4)) as figure:
        left, right = figure.subplots(1, 2)
        draw_trials(given.search, left)
        draw_ranks(runs, right)
    with figure_of(given.out / "image_text_questions.png", (12, 7)) as figure:
        (top, rank, spectra), (contrast, batch, captions) = figure.subplots(2, 3)
        draw_study(given.search, ("map", "ridge"), top, "objective.invariance", "objective.covariance", "covariance")
        top.set(xlabel="invariance (variance 25)")
        draw_ranks([run for run in runs if run.folder.parent.name.endswith(("_map", "_ridge"))], rank)
        draw_spectra([run for run in runs if run.folder.name in SPECTRA], spectra)
        draw_contrast(given.search, runs, contrast)
        draw_over(runs, "loader.batch", batch)
        batch.set(xlabel="batch")
        draw_over(runs, "data.share.captions", captions, ("training.epochs",))
        captions.set(xlabel="share of each picture's captions")


if __name__ == "__main__":
    main()

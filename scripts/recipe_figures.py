"""The figure of docs/image_text_recipe.md: `python scripts/recipe_figures.py SEARCH [RUNS ...] --out docs/img`.

`SEARCH` is the folder of `jointembed tune` over the five objectives; every run in it and in `RUNS` is a point of the
right half.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from matplotlib.axes import Axes

from jointembed.report.plots import COLOURS, figure_of
from jointembed.tuning import read_trials

NAMES = {"vicreg": "VICReg", "barlow_twins": "Barlow Twins", "clip": "InfoNCE", "siglip": "SigLIP", "vse": "VSE++"}
COLOUR = dict(zip(NAMES, COLOURS, strict=False))
RATE = "optimizer.lr"


def draw_trials(search: Path, axes: Axes) -> None:
    """Rsum of every trial over its learning rate; a line for each value of what is the objective's own."""
    seen = set()
    for folder, found in read_trials(search).items():
        name = folder.name.removeprefix("flickr8k_")
        lines: dict[str, list[tuple[float, float]]] = {}
        for trial in found.trials:
            own = [value for key, value in trial.parameters.items() if key != RATE]
            seen.add(trial.parameters[RATE])
            if trial.value is not None:
                lines.setdefault(str(own), []).append((trial.parameters[RATE], trial.value))
        for number, (style, points) in enumerate(zip(("-", "--"), lines.values(), strict=False)):
            rates, values = zip(*sorted(points), strict=True)
            axes.plot(rates, values, f"o{style}", color=COLOUR[name], label=None if number else NAMES[name])
    axes.set(xlabel="learning rate", ylabel="rsum on val after three epochs", xscale="log")
    axes.set_xticks(sorted(seen), [f"{rate:g}" for rate in sorted(seen)])
    axes.minorticks_off()
    axes.legend()


def draw_ranks(runs: Iterable[Path], axes: Axes) -> None:
    """Rsum of every run over the effective rank of the branch that has the lower one."""
    for place in sorted({path.parent for run in runs for path in run.rglob("validation-full/collapse.json")}):
        views = json.loads((place / "collapse.json").read_text(encoding="utf-8"))
        rsum = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["metrics"]["rsum"]
        recipe = yaml.safe_load((place.parents[1] / "recipe.yaml").read_text(encoding="utf-8"))
        rank = min(views[view]["rankme"] for view in ("image", "text"))
        axes.plot(rank, rsum, "o", alpha=0.7, color=COLOUR[recipe["objective"]["name"]])
    axes.set(xscale="log", xlabel="effective rank (RankMe) of the branch with less", ylabel="rsum on val")
    axes.set_xticks(ranks := (30, 100, 300), [str(rank) for rank in ranks])
    axes.minorticks_off()


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw both halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("search", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    given = parser.parse_args(arguments)
    with figure_of(given.out / "image_text_recipe.png", (10, 4)) as figure:
        left, right = figure.subplots(1, 2)
        draw_trials(given.search, left)
        draw_ranks([given.search, *given.runs], right)


if __name__ == "__main__":
    main()

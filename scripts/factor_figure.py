"""Draw the tables of single factors in docs/image_text_recipe.md as bars: what each change gives, beside no change.

    python scripts/factor_figure.py docs/image_text_recipe.md --out docs/img/image_text_factors.png

Numbers are read from the page, where their commands stand, so that figure and tables cannot differ.
"""

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Rows = list[list[str]]


def table(page: str, heading: str) -> Rows:
    """The first table below a heading: cells of its header and of its rows. Raises ValueError if there is none."""
    _, found, below = page.partition(f"{heading}\n")
    lines = re.split(r"\n#+ ", below)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    if not found or len(rows) < 3:
        raise ValueError(f"no table below {heading!r}")
    return [rows[0], *rows[2:]]


def number(cell: str) -> float | None:
    """The number that a cell begins with, marks left out; None where it has none."""
    match = re.match(r"-?\d*\.?\d+", cell.replace("*", "").strip())
    return float(match[0]) if match else None


def column(rows: Rows, name: str) -> list[float | None]:
    """Numbers of the column of that header. Raises ValueError if there is no such column."""
    place = rows[0].index(name)
    return [number(row[place]) for row in rows[1:]]


def bars(
    axes: Axes, labels: list[str], values: dict[str, list[float | None]], title: str, *, reference: bool = True
) -> None:
    """Horizontal bars, one colour a column, the first row on top; dotted where it ends, if it is the reference."""
    height = 0.8 / len(values)
    for place, (name, numbers) in enumerate(values.items()):
        rows = [row for row, value in enumerate(numbers) if value is not None]
        heights = [row + place * height for row in rows]
        widths = [value for value in numbers if value is not None]
        drawn = axes.barh(heights, widths, height * 0.9, label=name, color=f"C{place}")
        axes.bar_label(drawn, [f"{value:g}" for value in widths], padding=2, fontsize=7)
        if reference and numbers[0] is not None:
            axes.axvline(numbers[0], color=f"C{place}", linestyle=":", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(labels))], labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="right")
    axes.margins(x=0.12)
    if len(values) > 1:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)


def short(label: str) -> str:
    """A label without what stands in brackets or back-quotes."""
    return re.sub(r"\s*\([^)]*\)|`", "", label)


def of_branches(rows: Rows, equal: float) -> tuple[list[str], dict[str, list[float | None]]]:
    """The two-way table of coefficients as one list, `equal` coefficients first."""
    labels, values = ["equal for both"], [equal]
    for row in rows[1:]:
        for name, cell in zip(rows[0][1:], row[1:], strict=True):
            labels.append(f"{row[0]};\n{name}")
            values.append(float(cell))
    return labels, {"rsum": list(values)}


def main() -> None:
    """Read the page, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    factors = table(page, "## One factor at a time")
    recipe = table(page, "### Around the recipe itself")
    spaces = table(page, "## Where it works and where it fails")
    equal = column(recipe, "rsum")[0]
    assert equal is not None  # the row "none" has it
    branches = of_branches(table(page, "### A coefficient for each branch"), equal)
    figure, axes = plt.subplots(2, 2, figsize=(14, 11), constrained_layout=True)
    for place, rows, second, title in (
        (axes[0, 0], factors, "rsum with CSLS", "State of the GRU, crops, members (15/25/1, lr 1e-3)"),
        (axes[0, 1], recipe, "with CSLS", "Batch, expanders, norm, convention, centring, h (10/25/1)"),
    ):
        values = {"rsum": column(rows, "rsum"), "rsum with CSLS": column(rows, second)}
        bars(place, [short(row[0]) for row in rows[1:]], values, title)
    bars(axes[1, 0], *branches, "A coefficient for each branch (variance, covariance)")
    runs = [short(row[0]) for row in spaces[1:]]
    bars(axes[1, 1], runs, {"standard deviation of pictures": column(spaces, "std"), "hubs": column(spaces, "hubs")},
         "Standard deviation, and skewness of hubs", reference=False)  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()

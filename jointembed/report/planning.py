"""What `jointembed table NAME --plan` prints: the commands of a table, with hours and memory."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jointembed.recipe import read_tree
from jointembed.report.estimates import GPUS, Estimate, estimate, estimate_small
from jointembed.report.plans import Cell, Command, Scale, cells
from jointembed.report.read import Run

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_RUNS = "runs"  # the folder that run folders are made in


@dataclass(frozen=True)
class Planned:
    """One command to type, the first cell that it fills, and what it takes."""

    line: str
    cell: Cell
    estimate: Estimate


def plan(
    table: str,
    scale: Scale = "full",
    *,
    gpus: int = 8,
    kind: str = "V100",
    measured: Sequence[Run] = (),
) -> list[Planned]:
    """The commands of a table in order, each once; at small scale each cell once a seed.

    Args:
        table: its name in `paper.TABLES`.
        scale: full or small.
        gpus: that share a training.
        kind: of GPU.
        measured: runs whose cost.json makes the estimates better.

    Raises:
        KeyError: a table without this scale.
        RecipeError: a recipe that is not there; plans are made where `recipes` is.
    """
    found: dict[str, Planned] = {}
    for cell in cells(table, scale):
        for command in cell.commands:
            if scale == "small":
                lines = [command.line(_RUNS, seed=seed) for seed in range(cell.seeds)]
                takes = estimate_small(command, measured)
            else:
                lines = [command.line(_RUNS, processes=_processes(command, gpus))]
                takes = estimate(command, gpus, kind, measured)
            for line in lines:
                found.setdefault(line, Planned(line, cell, takes))
    return list(found.values())


def _processes(command: Command, gpus: int) -> int:
    return 1 if command.verb == "evaluate" else gpus


def plan_text(table: str, scale: Scale, planned: Sequence[Planned], *, gpus: int, kind: str) -> str:
    """One command a line, what it takes behind it as a comment of the shell."""
    where = "this machine" if scale == "small" else f"{gpus} {kind}"
    head = [f"# {table}, {scale} scale, on {where}; set {', '.join(_variables(planned))}"]
    if scale == "full":
        head.append(f"# {kind}: {GPUS[kind].speed:g} x V100: {GPUS[kind].source}. Hours are good to a factor of two.")
    hours = [one.estimate.hours for one in planned]
    total = sum(one for one in hours if one is not None)
    body = [f"{one.line}  # {_cell_name(one.cell)}: {one.estimate}" for one in planned]
    return "\n".join([*head, *body, f"# {len(planned)} commands, {total:,.1f} hours one after another"])


def plan_json(planned: Sequence[Planned]) -> str:
    """The same for programs."""
    rows = [
        {
            "command": one.line,
            "table": one.cell.table,
            "row": list(one.cell.row),
            "column": one.cell.column,
            "hours": one.estimate.hours,
            "memory_gb": one.estimate.memory,
            "basis": one.estimate.basis + one.estimate.hint,
        }
        for one in planned
    ]
    return json.dumps(rows, indent=1)


def _variables(planned: Sequence[Planned]) -> list[str]:
    """Variables that the commands and their recipes hold."""
    recipes = {command.recipe for one in planned for command in one.cell.commands}
    texts = [*(one.line for one in planned), *(str(read_tree(Path(recipe), ())) for recipe in recipes)]
    return sorted({name for text in texts for name in _VARIABLE.findall(text)})


def _cell_name(cell: Cell) -> str:
    return cell.row[0] if cell.column == "*" else f"{cell.row[0]}, {cell.column}"

"""The paper's tables of pictures beside what was measured: imagenet, semi, transfer, flexibility, ablation."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jointembed.report import paper
from jointembed.report.cost import cost_page
from jointembed.report.methods import (
    ablation_place,
    describe,
    encoder_names,
    flexibility_column,
    identity,
    setting,
    variant_name,
)
from jointembed.report.read import Run, find_runs
from jointembed.report.retrieval import retrieval_page
from jointembed.report.sources import BASELINES, CELLS, EXTRAS, Measure, Source, find_sources, sources_table
from jointembed.report.tables import Cell, Column, Number, Page, Table, published_cell

REGULARIZATION = ("no reg", "var", "var + cov")  # columns of the ablation table
SWITCHES = ("momentum encoder", "stop-gradient", "predictor", "BN")  # its columns before them
_BY_PARTS = ("flexibility", "ablation")  # tables whose columns are recipes of their own
_NOTES = {
    "imagenet": "Published: ImageNet. Measured: on the data named in the row; other data is no reproduction.",
    "semi": "Published: fine-tuning on 1% and 10% of ImageNet's labels. Measured: on the data named in the row.",
    "transfer": "Published: linear top-1 on Places205 and iNat18, mAP of linear SVMs on VOC07, AP50 on VOC07+12, AP on "
    "COCO. Measured: on the data of each source; other data is no reproduction.",
    "flexibility": "Published: linear top-1 on ImageNet after 100 epochs. Measured: on the data named in the row; the "
    "branches of a column may be smaller ones of the same kinds, the sources name them.",
    "ablation": "Published: linear top-1 on ImageNet after 100 epochs. Measured: on the data named in the row.",
}
_SOURCE = "In round brackets: the row of the table of sources. Empty: not run."


@dataclass(frozen=True)
class _Placed:
    """Where a source stands."""

    source: Source
    key: tuple[str, ...]  # of the row: the method, in the ablation its switches too
    merge: str  # sources with equal ones may share a line
    cells: Mapping[str, Number]


@dataclass
class _Line:
    """One line of a table."""

    merge: str = ""
    trained: str = ""
    cells: dict[str, Number] = field(default_factory=dict)


def table_page(name: str, paths: Sequence[Path]) -> Page:
    """One of the paper's tables, by its name in `paper.TABLES`, with what the runs at these paths measured beside it.

    Behind it come the baselines, if there are any, and where every measured number comes from.

    Args:
        name: imagenet, semi, transfer, flexibility, retrieval, ablation or cost.
        paths: run folders, or folders of them at any depth.

    Raises:
        CheckpointError: a path without runs, or a broken run.
    """
    runs = find_runs(paths)
    if name in ("retrieval", "cost"):
        return retrieval_page(runs) if name == "retrieval" else cost_page(runs)
    sources = [one for one in find_sources(runs) if one.task != "retrieval"]
    baselines = [one for one in sources if one.task in BASELINES]
    others = [one for one in sources if one.task not in BASELINES]
    placed, left_out = _placed(name, others), [one for one in others if _place(name, one) is None]
    notes = [*paper.TABLES[name].notes, _NOTES[name], _SOURCE, *_said(runs, left_out)]
    tables = [_table(name, placed, notes)]
    if baselines:
        baselines = [dataclasses.replace(one, number=number) for number, one in enumerate(baselines, len(placed) + 1)]
        tables.append(sources_table(baselines, "What runs are judged against"))
    if placed:
        tables.append(sources_table([one.source for one in placed]))
    return Page(tuple(tables))


def _placed(name: str, sources: Iterable[Source]) -> list[_Placed]:
    """The sources that fill cells, in the order of the table's rows, and numbered in it."""
    found = [one for source in sources if (one := _place(name, source)) is not None and one.cells]
    order = {key: number for number, key in enumerate(_keys(name))}
    ranked = sorted(found, key=lambda one: (order.get(one.key, len(order)), one.key, _column_order(name, one)))
    numbered = [dataclasses.replace(one.source, number=number) for number, one in enumerate(ranked, 1)]
    return [placed for one in numbered if (placed := _place(name, one)) is not None]


def _keys(name: str) -> list[tuple[str, ...]]:
    """Of the paper's rows."""
    count = len(SWITCHES) if name == "ablation" else 0
    return [(row.method, *(str(cell) for cell in row.cells[:count])) for row in paper.TABLES[name].rows]


def _column_order(name: str, placed: _Placed) -> int:
    """Of what a table over parts is spread over: the columns as printed."""
    columns = list(REGULARIZATION if name == "ablation" else paper.TABLES[name].columns)
    first = next(iter(placed.cells)).split("/")[0]
    return columns.index(first) if first in columns else 0


def _place(name: str, source: Source) -> _Placed | None:
    """Where a source stands in a table, without cells if it is of another task; None for a method without a place."""
    recipe = source.recipe
    if name == "ablation":
        place = ablation_place(recipe)
        shared = flexibility_column(recipe) == paper.FLEXIBILITY.columns[0]
        if place is None or place[1] not in REGULARIZATION or not shared:
            return None
        return _Placed(
            source,
            tuple(place[0]),
            f"{setting(recipe)} {encoder_names(recipe)} {source.split}",
            _cells(source, CELLS[name], f"{place[1]}/", EXTRAS),
        )
    method = variant_name(recipe, branches=name != "flexibility")
    if name == "flexibility":
        column = flexibility_column(recipe)
        known = any(row.method == method for row in paper.FLEXIBILITY.rows)
        if column is None or (column == paper.FLEXIBILITY.columns[0] and not known):
            return None
        cells = _cells(source, CELLS[name], f"{column}/", EXTRAS)
        return _Placed(source, (method,), f"{setting(recipe)} {source.split}", cells)
    merge = identity(recipe) if name == "transfer" else f"{identity(recipe)} {source.split}"
    return _Placed(
        source, (method,), merge, _cells(source, CELLS[name], "measured/", EXTRAS if name == "imagenet" else {})
    )


def _cells(
    source: Source, own: Mapping[str, Sequence[Measure]], prefix: str, extras: Mapping[str, Sequence[Measure]]
) -> dict[str, Number]:
    numbers = {label: source.first_of(measures) for label, measures in {**own, **extras}.items()}
    return {f"{prefix}{label}": source.mark(number) for label, number in numbers.items() if number is not None}


def _said(runs: Iterable[Run], left_out: Sequence[Source]) -> list[str]:
    """What was given and stands in no cell: nothing is passed over in silence."""
    said = [f"{run.folder}: no evaluation in it yet." for run in runs if not run.evaluations]
    counts = Counter(variant_name(source.recipe) for source in left_out for _ in source.runs)
    if counts:
        words = "; ".join(f"{method} ({count})" for method, count in counts.items())
        said.append(f"Left out, without a row or column here, evaluations of: {words}.")
    return said


def _table(name: str, placed: Sequence[_Placed], notes: Sequence[str]) -> Table:
    table = paper.TABLES[name]
    lines: dict[tuple[str, ...], list[_Line]] = {}
    for one in placed:
        _add(lines.setdefault(one.key, []), one, name)
    filled = {key for some in lines.values() for line in some for key in line.cells}
    rows: list[dict[str, Cell]] = []
    heads = SWITCHES if name == "ablation" else ()
    for key, row in zip(_keys(name), table.rows, strict=True):
        published = _published(name, table, row)
        rows += [_row(heads, key, line) | published for line in lines.pop(key, [_Line()])]
    rows += [_row(heads, key, line) for key, some in lines.items() for line in some]
    title = f"{table.title} ({paper.PAPER})"
    return Table(title, (*_key_columns(heads), *_columns(name, table, filled)), tuple(rows), tuple(notes))


def _add(lines: list[_Line], one: _Placed, name: str) -> None:
    """Put the cells of a source into the first line that they may share, or into a new one."""
    line = next((line for line in lines if line.merge == one.merge and not line.cells.keys() & one.cells.keys()), None)
    if line is None:
        line = _Line(one.merge, describe(one.source.recipe, encoders=name != "flexibility"))
        lines.append(line)
    line.cells.update(one.cells)


def _row(heads: Sequence[str], key: tuple[str, ...], line: _Line) -> dict[str, Cell]:
    return {**dict(zip(("method", *heads), key, strict=True)), **line.cells, "trained": line.trained}


def _published(name: str, table: paper.PaperTable, row: paper.PaperRow) -> dict[str, Cell]:
    cells = dict(zip(table.columns, map(published_cell, row.cells), strict=True))
    if name == "ablation":
        return {f"{column}/published": cells[column] for column in REGULARIZATION}
    return {f"{column}/published" if name in _BY_PARTS else f"published/{column}": cells[column] for column in cells}


def _key_columns(heads: Sequence[str]) -> tuple[Column, ...]:
    return (Column("method", "Method"), *(Column(head, head) for head in heads))


def _columns(name: str, table: paper.PaperTable, filled: set[str]) -> list[Column]:
    """The paper's columns, each with what was measured; columns of our own only where something was."""
    columns = []
    if name in _BY_PARTS:
        measured = [one for one in ("linear", *EXTRAS) if any(key.endswith(f"/{one}") for key in filled)] or ["linear"]
        for group in REGULARIZATION if name == "ablation" else table.columns:
            columns.append(Column(f"{group}/published", "published", group, "published"))
            columns += [Column(f"{group}/{one}", one, group, "measured") for one in measured]
    else:
        columns += [Column(f"published/{one}", one, "published", "published") for one in table.columns]
        columns += [Column(f"measured/{one}", one, "measured", "measured") for one in table.columns]
        columns += [
            Column(f"measured/{extra}", extra, "measured", "measured")
            for extra in EXTRAS
            if f"measured/{extra}" in filled
        ]
    return [*columns, Column("trained", "Measured on")]

"""Tables: the paper's numbers with, beside them, what was measured here; and the table the terminal shows."""

import html
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from jointembed.errors import CheckpointError
from jointembed.recipe import parse_yaml
from jointembed.report import paper

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Number:
    """A number, in the unit of its column, with its 95% interval where one was computed and a mark where one stands."""

    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""

    def __str__(self) -> str:
        """As `22.4 [20.1, 24.9]`."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f}{self.mark}{interval}"


Cell = Number | str | int | None


@dataclass(frozen=True)
class Column:
    """A column: its key in rows and JSON, what its head says, and the group of columns it belongs to."""

    key: str
    label: str
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, rendered to Markdown, JSON or HTML; a cell that is not there stays empty."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """GitHub's Markdown: title, table, notes as a list."""
        heads = [_markdown_cell(" ".join(filter(None, (column.group, column.label)))) for column in self.columns]
        numeric = [any(isinstance(row.get(c.key), Number | int) for row in self.rows) for c in self.columns]
        lines = [f"**{_markdown_cell(self.title)}**", ""]
        lines.append(f"| {' | '.join(heads)} |")
        lines.append(f"|{'|'.join('---:' if right else ':---' for right in numeric)}|")
        for row in self.rows:
            lines.append(f"| {' | '.join(_markdown_cell(_text(row.get(c.key))) for c in self.columns)} |")
        if self.notes:
            lines += ["", *(f"- {_markdown_cell(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """Title, columns, rows by key (a number as value, low, high, mark) and notes."""
        rows = [{column.key: _plain(row.get(column.key)) for column in self.columns} for row in self.rows]
        columns = [{"key": column.key, "label": column.label, "group": column.group} for column in self.columns]
        tree = {"title": self.title, "columns": columns, "rows": rows, "notes": list(self.notes)}
        return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)

    def html(self) -> str:
        """A `<table>` with caption, column and row heads, and notes below; every text escaped."""
        body = []
        for row in self.rows:
            first, *rest = (html.escape(_text(row.get(column.key))) for column in self.columns)
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n<thead>{self._html_heads()}</thead>\n<tbody>\n"
            + "\n".join(body)
            + "\n</tbody>\n</table>\n"
            + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

    def _html_heads(self) -> str:
        heads = "".join(f'<th scope="col">{html.escape(column.label)}</th>' for column in self.columns)
        if not any(column.group for column in self.columns):
            return f"<tr>{heads}</tr>"
        above = ""
        for group, members in itertools.groupby(column.group for column in self.columns):
            span = f'colspan="{len(list(members))}"'
            above += f'<th scope="colgroup" {span}>{html.escape(group)}</th>' if group else f"<td {span}></td>"
        return f"<tr>{above}</tr>\n<tr>{heads}</tr>"


def _text(cell: Cell) -> str:
    return "" if cell is None else str(cell)


def _markdown_cell(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`~]|\](?=\()|(?<!\w)_|_(?!\w))", r"\\\1", text)  # an underscore inside a word is no markup


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Number):
        return cell
    numbers = {"value": cell.value, "low": cell.low, "high": cell.high}
    finite = {key: one for key, one in numbers.items() if one is not None and math.isfinite(one)}
    return finite | ({"mark": cell.mark} if cell.mark else {})


@dataclass(frozen=True)
class Evaluation:
    """What metrics.json of one evaluation folder says."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers by name."""
        return self.document["metrics"]

    def number(self, name: str) -> Number | None:
        """A measured number with its interval, None where it was not measured."""
        if name not in self.metrics:
            return None
        low, high = (self.document.get("intervals") or {}).get(name) or (None, None)
        return Number(self.metrics[name], low, high)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object. Raises CheckpointError naming the file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def read_evaluations(run: Path) -> list[Evaluation]:
    """The finished evaluations of a run folder, by name of their folder.

    Raises:
        CheckpointError: where a metrics.json is broken or its numbers are none.
    """
    evaluations = []
    for path in sorted(run.glob("evaluation/*/metrics.json")):
        document = read_json(path)
        for block in ("metrics", "intervals", "chance"):
            if not isinstance(document.get(block, None if block == "metrics" else {}), dict):
                raise CheckpointError(f"{path}: {block}: expected numbers by name, found {document.get(block)!r}")
        for name, value in (document["metrics"] | document.get("chance", {})).items():
            if not isinstance(value, int | float):
                raise CheckpointError(f"{path}: {name}: expected a number, found {value!r}")
        evaluations.append(Evaluation(path.parent, document))
    return evaluations


def read_recipe(run: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run folder as plain mappings, None where there is none.

    Raises:
        RecipeError: where recipe.yaml is not valid YAML.
        CheckpointError: where the folder does not exist, or recipe.yaml holds no mapping.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder")
    path = run / "recipe.yaml"
    if not path.exists():
        return None
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}; expected a mapping")
    return tree


def method_of(run: Path) -> str:
    """Name of a run's method as the paper writes it, or the objective's name in its recipe where the paper has none.

    Raises:
        CheckpointError: where the run has no recipe, or its recipe no objective.
    """
    objective = (read_recipe(run) or {}).get("objective")
    name = objective.get("name") if isinstance(objective, Mapping) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{run / 'recipe.yaml'}: objective.name: missing; it says which method the run is of")
    return next((method for method, known in paper.OBJECTIVES.items() if known == name), name)


def published(name: str) -> Table:
    """One of the paper's tables (`paper.TABLES`) alone, as it is printed. Raises KeyError for an unknown name."""
    table = paper.TABLES[name]
    columns = (Column("method", "Method"), *(Column(label, label) for label in table.columns))
    rows: list[dict[str, Cell]] = []
    for row in table.rows:
        cells = {label: _published(cell) for label, cell in zip(table.columns, row.cells, strict=True)}
        rows.append({"method": row.method, **cells})
    return Table(f"{table.title} ({paper.PAPER})", columns, tuple(rows), table.notes)


def _published(cell: paper.Cell) -> Cell:
    if isinstance(cell, paper.Dagger):
        return Number(cell.value, mark="†")
    return Number(cell) if isinstance(cell, int | float) else cell


def retrieval_table(runs: Sequence[Path]) -> Table:
    """The paper's retrieval table with, beside its numbers, those of these runs' evaluations.

    A method has one pair of rows (image query, text query) for each of its evaluations, and one pair with nothing
    measured where there is none. Methods the paper has not come last, with nothing published.

    Raises:
        CheckpointError: where a run folder is missing or broken.
    """
    measured: dict[str, list[tuple[Path | None, Evaluation | None]]] = {r.method: [] for r in paper.RETRIEVAL.rows}
    notes = list(paper.RETRIEVAL.notes)
    for run in runs:
        evaluations = [one for one in read_evaluations(run) if any(f"{d}_R@1" in one.metrics for d in paper.DIRECTIONS)]
        measured.setdefault(method_of(run), []).extend((run, evaluation) for evaluation in evaluations)
        if not evaluations:
            notes.append(f"{run}: no retrieval evaluation in it yet.")
    notes.append(
        "Published: MS-COCO 5K with a ResNet-152. Measured: on the data named in the row; other data or another "
        "encoder is no reproduction. In brackets: 95% bootstrap interval."
    )
    rows = [
        _retrieval_row(method, direction, run, evaluation)
        for method, found in measured.items()
        for run, evaluation in (found or [(None, None)])
        for direction in paper.DIRECTIONS
    ]
    return Table("Image-text retrieval, R@K in %", _retrieval_columns(), tuple(rows), tuple(notes))


def _retrieval_columns() -> tuple[Column, ...]:
    return (
        Column("method", "Method"),
        Column("query", "Query modality"),
        Column("printed", "Label in the paper"),
        *(Column(f"published_R@{k}", f"R@{k}", "published") for k in RECALLS),
        *(Column(f"measured_R@{k}", f"R@{k}", "measured") for k in RECALLS),
        Column("data", "Data"),
        Column("split", "Split"),
        Column("protocol", "Protocol"),
        Column("images", "Images"),
        Column("texts", "Texts"),
        Column("run", "Run"),
        Column("command", "Command"),
    )


def _retrieval_row(method: str, direction: str, run: Path | None, evaluation: Evaluation | None) -> dict[str, Cell]:
    printed = paper.PRINTED_LABEL[direction]
    row: dict[str, Cell] = {"method": method, "query": paper.QUERY_MODALITY[direction], "printed": printed}
    if any(known.method == method for known in paper.RETRIEVAL.rows):
        for k in RECALLS:
            value = paper.RETRIEVAL.value(method, f"{printed} R@{k}")
            row[f"published_R@{k}"] = Number(value) if isinstance(value, int | float) else value
    if evaluation is None:
        return row
    for k in RECALLS:
        row[f"measured_R@{k}"] = evaluation.number(f"{direction}_R@{k}")
    document = evaluation.document
    row |= {key: document.get(key) for key in ("data", "split", "protocol", "command")}
    for key, name in (("images", "n_images"), ("texts", "n_texts")):
        count = document.get(name, evaluation.metrics.get(name))
        row[key] = None if count is None else int(count)
    return row | {"run": str(run)}


def print_retrieval(metrics: Mapping[str, Any]) -> RichTable:
    """The table the terminal shows for the content of one metrics.json: one row a direction.

    A cell holds the recall in %, its 95% interval and the chance level; below stand rsum, sizes and ties.
    """
    values, intervals = metrics["metrics"], metrics.get("intervals") or {}
    chance = metrics.get("chance") or {}
    title = " · ".join(str(metrics[key]) for key in ("data", "split", "protocol") if metrics.get(key))
    table = RichTable(title=Text(title), caption=Text(_below(metrics)), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("query")
    for k in RECALLS:
        table.add_column(f"R@{k} (%)", justify="right")
    table.add_column("medr", justify="right")
    for direction in paper.DIRECTIONS:
        cells = []
        for name in (f"{direction}_R@{k}" for k in RECALLS):
            parts = [f"{values[name]:.1f}" if name in values else "not measured"]
            if name in intervals:
                parts.append(f"[{intervals[name][0]:.1f}, {intervals[name][1]:.1f}]")
            if name in chance:
                parts.append(f"chance {chance[name]:.2g}")
            cells.append(Text("\n".join(parts)))
        query = paper.QUERY_MODALITY[direction].replace(" (", "\n(")
        query += f'\npaper: "{paper.PRINTED_LABEL[direction]}"'
        medr = values.get(f"{direction}_medr")
        table.add_row(Text(query), *cells, "" if medr is None else f"{medr:g}", end_section=direction == "i2t")
    return table


def _below(document: Mapping[str, Any]) -> str:
    values = document["metrics"]
    parts = [f"rsum {values['rsum']:.1f}"] if "rsum" in values else []
    if parts and "rsum" in (document.get("chance") or {}):
        parts[0] += f" (chance {document['chance']['rsum']:.1f})"
    for key, words in (("n_images", "images"), ("n_texts", "texts"), ("tied_queries", "tied queries")):
        count = document.get(key, values.get(key))
        if count is not None:
            parts.append(f"{count:,.0f} {words}")
    return ", ".join(parts)

"""Tables as data, and their rendering to Markdown, JSON and HTML."""

import html
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jointembed.report import paper
from jointembed.report.rendering import render


@dataclass(frozen=True)
class Number:
    """A number in the unit of its column: of one run, with its 95% interval where there is one, or a mean of several.

    `std` is the unbiased standard deviation over the runs; `source` the row of the table of sources that it is from.
    """

    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""
    std: float | None = None
    digits: int = 1
    source: int | None = None

    def __str__(self) -> str:
        """As `22.4 [20.1, 24.9]`, or `22.4 ± 0.3 (2)` with a standard deviation and a source."""

        def text(value: float) -> str:
            return f"{value:.{self.digits}f}"

        interval = "" if self.low is None or self.high is None else f" [{text(self.low)}, {text(self.high)}]"
        spread = "" if self.std is None else f" ± {text(self.std)}"
        return f"{text(self.value)}{self.mark}{spread or interval}" + (
            "" if self.source is None else f" ({self.source})"
        )


Cell = Number | str | int | None


@dataclass(frozen=True)
class Column:
    """A column: its key in rows and JSON, what its head says, the group of columns it belongs to, how a page shows it.

    `kind` is a CSS class: `published` and `measured` numbers, `words`, `code` for commands and folders.
    """

    key: str
    label: str
    group: str = ""
    kind: str = ""


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

    def tree(self) -> dict[str, Any]:
        """Title, columns, rows by key (a number as value, low, high, mark, std, source) and notes, for JSON."""
        rows = [{column.key: _plain(row.get(column.key)) for column in self.columns} for row in self.rows]
        columns = [{"key": column.key, "label": column.label, "group": column.group} for column in self.columns]
        return {"title": self.title, "columns": columns, "rows": rows, "notes": list(self.notes)}

    def json(self) -> str:
        """The tree as JSON."""
        return json.dumps(self.tree(), indent=1, ensure_ascii=False, allow_nan=False)

    def html(self) -> str:
        """A `<table>` with caption, column and row heads, and notes below; every text escaped."""
        body = []
        for row in self.rows:
            first, *rest = (html.escape(_text(row.get(column.key))) for column in self.columns)
            cells = "".join(_html_cell(column.kind, cell) for column, cell in zip(self.columns[1:], rest, strict=True))
            body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n<thead>{self._html_heads()}</thead>\n<tbody>\n"
            + "\n".join(body)
            + "\n</tbody>\n</table>\n"
            + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

    def _html_heads(self) -> str:
        kinds = [f' class="{column.kind}"' if column.kind else "" for column in self.columns]
        labels = zip(kinds, (html.escape(column.label) for column in self.columns), strict=True)
        heads = "".join(f'<th scope="col"{kind}>{label}</th>' for kind, label in labels)
        if not any(column.group for column in self.columns):
            return f"<tr>{heads}</tr>"
        above = ""
        for group, members in itertools.groupby(column.group for column in self.columns):
            span = f'colspan="{len(list(members))}"'
            above += f'<th scope="colgroup" {span}>{html.escape(group)}</th>' if group else f"<td {span}></td>"
        return f"<tr>{above}</tr>\n<tr>{heads}</tr>"


@dataclass(frozen=True)
class Page:
    """Tables that belong together, the first one the one that was asked for."""

    tables: tuple[Table, ...]

    def markdown(self) -> str:
        """One below the other."""
        return "\n".join(table.markdown() for table in self.tables)

    def json(self) -> str:
        """`{"tables": [...]}`."""
        trees = [table.tree() for table in self.tables]
        return json.dumps({"tables": trees}, indent=1, ensure_ascii=False, allow_nan=False)

    def html(self) -> str:
        """A whole page that loads nothing and runs no script."""
        tables = [Markup(table.html()) for table in self.tables]  # every text in them is escaped
        return render("tables.html.j2", {"title": self.tables[0].title, "tables": tables})


def _html_cell(kind: str, text: str) -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _text(cell: Cell) -> str:
    return "" if cell is None else str(cell)


def _markdown_cell(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`~]|\](?=\()|(?<!\w)_|_(?!\w))", r"\\\1", text)  # an underscore inside a word is no markup


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Number):
        return cell
    numbers = {"value": cell.value, "low": cell.low, "high": cell.high, "std": cell.std, "source": cell.source}
    finite = {key: one for key, one in numbers.items() if one is not None and math.isfinite(one)}
    return finite | ({"mark": cell.mark} if cell.mark else {})


def published_cell(cell: paper.Cell) -> Cell:
    """A cell of the paper as a table shows it."""
    if isinstance(cell, paper.Dagger):
        return Number(cell.value, mark="†")
    return Number(cell) if isinstance(cell, int | float) else cell

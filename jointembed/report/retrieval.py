"""The paper's retrieval table beside what was measured, and the table that the terminal shows of one evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from jointembed.report import paper
from jointembed.report.methods import variant_name
from jointembed.report.read import Run
from jointembed.report.sources import Measure, Source, find_sources
from jointembed.report.tables import Cell, Column, Number, Page, Table

RECALLS = (1, 5, 10)


def retrieval_page(runs: Sequence[Run]) -> Page:
    """The paper's retrieval table with, beside its numbers, those of these runs' evaluations.

    A method has one pair of rows (image query, text query) for each of its evaluations, and one pair with nothing
    measured where there is none; runs that differ in the seed alone are one, with mean and standard deviation. Methods
    the paper has not come last, with nothing published.

    Raises:
        CheckpointError: where a run is broken.
    """
    measured: dict[str, list[Source | None]] = {row.method: [] for row in paper.RETRIEVAL.rows}
    for source in find_sources(runs):
        if source.task == "retrieval":
            measured.setdefault(variant_name(source.recipe), []).append(source)
    notes = [*paper.RETRIEVAL.notes]
    notes += [
        f"{run.folder}: no retrieval evaluation in it yet."
        for run in runs
        if not any(one.task == "retrieval" for one in run.evaluations)
    ]
    notes.append(
        "Published: MS-COCO 5K with a ResNet-152. Measured: on the data named in the row; other data or another "
        "encoder is no reproduction. In brackets: 95% bootstrap interval; ±: standard deviation over seeds."
    )
    rows = [
        _retrieval_row(method, direction, source)
        for method, found in measured.items()
        for source in (found or [None])
        for direction in paper.DIRECTIONS
    ]
    return Page((Table("Image-text retrieval, R@K in %", _retrieval_columns(), tuple(rows), tuple(notes)),))


def _retrieval_columns() -> tuple[Column, ...]:
    return (
        Column("method", "Method"),
        Column("query", "Query modality"),
        Column("printed", "Label in the paper"),
        *(Column(f"published_R@{k}", f"R@{k}", "published", "published") for k in RECALLS),
        *(Column(f"measured_R@{k}", f"R@{k}", "measured", "measured") for k in RECALLS),
        Column("data", "Data"),
        Column("split", "Split"),
        Column("protocol", "Protocol"),
        Column("images", "Images"),
        Column("texts", "Texts"),
        Column("seeds", "Seeds"),
        Column("run", "Runs", kind="code"),
        Column("command", "Commands", kind="code"),
    )


def _retrieval_row(method: str, direction: str, source: Source | None) -> dict[str, Cell]:
    printed = paper.PRINTED_LABEL[direction]
    row: dict[str, Cell] = {"method": method, "query": paper.QUERY_MODALITY[direction], "printed": printed}
    if any(known.method == method for known in paper.RETRIEVAL.rows):
        for k in RECALLS:
            value = paper.RETRIEVAL.value(method, f"{printed} R@{k}")
            row[f"published_R@{k}"] = Number(value) if isinstance(value, int | float) else value
    if source is None:
        return row
    for k in RECALLS:
        row[f"measured_R@{k}"] = source.measure(Measure("retrieval", f"{direction}_R@{k}"))
    evaluation = source.evaluations[0]
    row |= {key: evaluation.document.get(key) for key in ("data", "split", "protocol")}
    for key, name in (("images", "n_images"), ("texts", "n_texts")):
        count = evaluation.document.get(name, evaluation.metrics.get(name))
        row[key] = None if count is None else int(count)
    return row | {"seeds": source.seeds, "run": source.folders, "command": source.commands}


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
                parts.append(f"chance {chance_text(chance[name])}")
            cells.append(Text("\n".join(parts)))
        query = paper.QUERY_MODALITY[direction].replace(" (", "\n(")
        query += f'\npaper: "{paper.PRINTED_LABEL[direction]}"'
        medr = values.get(f"{direction}_medr")
        table.add_row(Text(query), *cells, "" if medr is None else f"{medr:g}", end_section=direction == "i2t")
    return table


def chance_text(percent: float) -> str:
    """A chance level: two digits where it is low, one behind the point where that would be `1e+02`."""
    return f"{percent:.1f}" if percent >= 10 else f"{percent:.2g}"


def _below(document: Mapping[str, Any]) -> str:
    values = document["metrics"]
    parts = [f"rsum {values['rsum']:.1f}"] if "rsum" in values else []
    if parts and "rsum" in (document.get("chance") or {}):
        parts[0] += f" (chance {chance_text(document['chance']['rsum'])})"
    for key, words in (("n_images", "images"), ("n_texts", "texts"), ("tied_queries", "tied queries")):
        count = document.get(key, values.get(key))
        if count is not None:
            parts.append(f"{count:,.0f} {words}")
    return ", ".join(parts)


def print_space(diagnosis: Mapping[str, Any]) -> RichTable:
    """What the terminal shows of the embeddings, the content of one collapse.json: a row a view, and a row a number.

    Spread and rank of each view's embeddings, how far the views' means lie apart (the modality gap), and hubs.
    """
    views = [view for view, one in diagnosis.items() if isinstance(one, Mapping) and "rankme" in one]
    below = Text(_between(diagnosis))
    table = RichTable(title=Text("embeddings"), caption=below, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("view")
    for head in ("std, mean", "std, least", "correlation", "RankMe", "of D", "largest axis", "uniformity"):
        table.add_column(head, justify="right")
    for view in views:
        one = diagnosis[view]
        spectrum = [value**2 for value in one.get("spectrum") or ()]
        share = f"{100 * spectrum[0] / sum(spectrum):.1f}%" if sum(spectrum) > 0 else ""
        numbers = (one["std_mean"], one["std_min"], one["covariance"])
        uniformity = diagnosis.get(f"uniformity/{view}")
        table.add_row(
            Text(view), *(f"{value:.3f}" for value in numbers), f"{one['rankme']:.1f}", f"{one['dimension']:,}", share,
            "" if uniformity is None else f"{uniformity:.2f}",
        )  # fmt: skip
    return table


def _between(diagnosis: Mapping[str, Any]) -> str:
    parts = [f"{name} {diagnosis[name]:.3f}" for name in ("gap", "alignment") if name in diagnosis]
    for name, value in diagnosis.items():
        number, _, way = name.partition("/")
        if number == "hubness_skewness":
            never = diagnosis.get(f"hubness_never/{way}", 0.0)
            parts.append(f"hubness {way} {value:.2f} ({100 * never:.0f}% never among the 10 nearest)")
    return ", ".join(parts)

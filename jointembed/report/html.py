"""The report of a run: one self-contained HTML page in the run folder."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jointembed.data.pictures import inside
from jointembed.errors import CheckpointError
from jointembed.report import curves, paper
from jointembed.report.read import Evaluation, method_of, read_evaluations, read_json, read_recipe
from jointembed.report.rendering import format_number, write_page
from jointembed.report.retrieval import chance_text
from jointembed.report.tables import Number

_RECALL = re.compile(r"i2t_R@(\d+)")
_FEW_DIRECTIONS = 0.1  # of the dimensions
_NO_SPREAD = {"relative_std": 0.1, "std_mean": 1e-3}  # below: a point; std_mean decides where the other is not given
_STATISTICS = {
    "std_mean": "standard deviation, mean",
    "std_min": "standard deviation, lowest",
    "relative_std": "spread, relative to the length",
    "covariance": "correlation, mean absolute",
    "rankme": "RankMe",
    "dimension": "dimensions",
}
_KNOWN = re.compile(r"(?:[it]2[it]_(?:R@\d+|medr|meanr)|rsum|tied_queries|n_images|n_texts)")


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what is there; a part that is missing is said in a sentence.

    The page holds its styles, drawings and pictures itself, runs no script, and the same run gives the same bytes.

    Raises:
        CheckpointError: where the folder does not exist, or one of its files is broken, by its name and line.
        RecipeError: where recipe.yaml is not valid YAML.
    """
    path = run / "report.html"
    write_page(path, "report.html.j2", _content(run))
    return path


def _content(run: Path) -> dict[str, Any]:
    recipe = read_recipe(run)
    metrics = curves.read_metrics(run / "metrics.jsonl")
    environment = read_json(run / "environment.json") if (run / "environment.json").exists() else None
    evaluations = read_evaluations(run)
    finished = {evaluation.folder.name for evaluation in evaluations}
    folders = sorted(path.name for path in run.glob("evaluation/*") if path.is_dir())
    select = _select(recipe or {})
    return {
        "name": (recipe or {}).get("name") or run.resolve().name,
        "description": (recipe or {}).get("description") or "",
        "method": _method(run, recipe),
        "summary": _summary(recipe or {}),
        "recipe": None if recipe is None else yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "tiles": tiles_of(metrics.lines, select),
        "broken": metrics.broken,
        "has_lines": bool(metrics.lines),
        "loss_curves": curves.loss_curves(metrics.lines),
        "has_validation": any(line["kind"] == "validation" for line in metrics.lines),
        "validation_curves": curves.validation_curves(metrics.lines, select=select),
        "health_curves": curves.health_curves(metrics.lines),
        "evaluations": [_evaluation(evaluation, number) for number, evaluation in enumerate(evaluations)],
        "unfinished": [name for name in folders if name not in finished],
        "command": (environment or {}).get("command"),
        "environment": None if environment is None else _flat({k: v for k, v in environment.items() if k != "command"}),
    }


def _method(run: Path, recipe: Mapping[str, Any] | None) -> str | None:
    objective = (recipe or {}).get("objective")
    return method_of(run) if isinstance(objective, Mapping) and "name" in objective else None


def _select(recipe: Mapping[str, Any]) -> str:
    """The validation number that picks the model: of retrieval where a recipe names none."""
    evaluation = recipe.get("evaluation")
    return str((evaluation.get("select") if isinstance(evaluation, Mapping) else None) or "rsum")


def _summary(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of a recipe that one looks for first: (what, words)."""
    rows = []
    branches = recipe.get("branches")
    for name, branch in (branches if isinstance(branches, Mapping) else {}).items():
        if isinstance(branch, Mapping):
            train = branch.get("train", "all")
            trained = "" if train == "all" else ", encoder frozen" if train == "none" else ", encoder partly frozen"
            parts = [_block(branch[key]) for key in ("encoder", "expander") if branch.get(key)]
            rows.append((f"Branch {name}", " → ".join(parts) + trained))
    for key in ("objective", "optimizer", "schedule"):
        if recipe.get(key):
            rows.append((key.capitalize(), _block(recipe[key])))
    for block, keys in (
        ("loader", ("batch",)),
        ("training", ("epochs", "precision", "clip")),
        ("evaluation", ("embedding", "centre")),
    ):
        values = recipe.get(block)
        if isinstance(values, Mapping):
            words = ", ".join(f"{key} {_words(values[key])}" for key in keys if values.get(key) is not None)
            rows.append((block.capitalize(), words))
    if "seed" in recipe:
        rows.append(("Seed", str(recipe["seed"])))
    return [(what, words) for what, words in rows if words]


def _block(block: Any) -> str:
    if not isinstance(block, Mapping):
        return _words(block)
    given = ", ".join(f"{k} {_words(v)}" for k, v in block.items() if k != "name" and v is not None)
    return " ".join(filter(None, (str(block.get("name", "")), f"({given})" if given else "")))


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "–".join(_words(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def tiles_of(lines: Sequence[Mapping[str, Any]], select: str = "rsum") -> list[tuple[str, str, str]]:
    """What the log of any run says at a glance, (label, value, remark); `select` is what picks its model."""
    if not lines:
        return []
    last = max(lines, key=lambda line: line["step"])
    tiles = [("steps", format_number(last["step"]), f"epoch {last['epoch']:g}" if "epoch" in last else "")]
    if "seconds" in last:
        tiles.append(("time", duration(last["seconds"]), ""))
    train = [line for line in curves.of_kind(lines, "train") if curves.is_number(line.get("loss"))]
    if train:
        tiles.append(("last loss", format_number(train[-1]["loss"]), f"first {format_number(train[0]['loss'])}"))
    validation = curves.of_kind(lines, "validation")
    looks = [line for line in validation if curves.is_number(line.get(select)) and math.isfinite(line[select])]
    if looks:
        best = max(looks, key=lambda line: line[select])
        value = curves.metric_text(select, best[select])
        tiles.append((f"best validation {select}", value, f"at step {format_number(best['step'])}"))
    return tiles


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `6 min 12 s` or `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _evaluation(evaluation: Evaluation, number: int) -> dict[str, Any]:
    folder, document = evaluation.folder, evaluation.document
    collapse = read_json(folder / "collapse.json") if (folder / "collapse.json").exists() else None
    gallery = read_json(folder / "gallery.json") if (folder / "gallery.json").exists() else None
    about = {key: document.get(key) for key in ("data", "split", "protocol", "embedding", "date")}
    if about["date"]:
        about["date"] = str(about["date"]).replace("T", " ").replace("+00:00", " UTC")
    about["centred"] = None if "centre" not in document else "yes" if document["centre"] else "no"
    return {
        "key": f"evaluation-{number}",
        "title": " · ".join(str(about[key]) for key in ("data", "split", "protocol") if about[key]) or folder.name,
        "about": [(key, value) for key, value in about.items() if value is not None],
        "command": document.get("command"),
        "directions": _directions(evaluation),
        "totals": _totals(evaluation),
        "others": [(k, evaluation.number(k)) for k in evaluation.metrics if not _KNOWN.fullmatch(k)],
        "views": _views(collapse or {}),
        "geometry": [(k, v) for k, v in (collapse or {}).items() if isinstance(v, int | float)],
        "spectrum": curves.spectrum_curve(collapse or {}, key=f"spectrum-{number}"),
        "has_collapse": collapse is not None,
        "gallery": None if gallery is None else _gallery(folder, gallery),
        "scores": (gallery or {}).get("scores", "cosines"),  # of a gallery from before it said so: always these
    }


def _directions(evaluation: Evaluation) -> dict[str, Any] | None:
    """Rows R@K, median and mean rank; a cell a direction. None where this is no retrieval."""
    ks = sorted(int(match[1]) for name in evaluation.metrics if (match := _RECALL.fullmatch(name)))
    if not ks:
        return None
    chance = evaluation.document.get("chance") or {}
    rows = []
    for k in ks:
        names = [f"{direction}_R@{k}" for direction in paper.DIRECTIONS]
        rows.append((f"R@{k}", [_recall(evaluation.number(name), chance.get(name)) for name in names]))
    ranks = []
    for key, words in (("medr", "median rank"), ("meanr", "mean rank")):
        values = [evaluation.metrics.get(f"{direction}_{key}") for direction in paper.DIRECTIONS]
        if any(value is not None for value in values):
            ranks.append((words, values))
    heads = [
        (paper.QUERY_MODALITY[direction].replace("->", "→"), paper.PRINTED_LABEL[direction])
        for direction in paper.DIRECTIONS
    ]
    return {
        "heads": heads,
        "recalls": rows,
        "ranks": ranks,
        "rsum": _recall(evaluation.number("rsum"), chance.get("rsum")),
    }


def _recall(number: Number | None, chance: float | None) -> dict[str, Any] | None:
    if number is None:
        return None
    told = None if chance is None else chance_text(chance)
    return {"value": number.value, "low": number.low, "high": number.high, "chance": told}


def _totals(evaluation: Evaluation) -> list[tuple[str, str]]:
    totals = []
    for key, words in (("n_images", "images"), ("n_texts", "texts"), ("tied_queries", "tied queries")):
        value = evaluation.document.get(key, evaluation.metrics.get(key))
        if value is not None:
            totals.append((words, format_number(value)))
    return totals


def _views(collapse: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What collapse.json says of each view: its numbers under readable names, and the verdict in words."""
    views = []
    for view, entry in collapse.items():
        if isinstance(entry, Mapping):
            numbers = [(_STATISTICS.get(key, key), one) for key, one in entry.items() if isinstance(one, int | float)]
            views.append({"view": view, "numbers": numbers, "verdict": _verdict(entry)})
    return views


def _verdict(entry: Mapping[str, Any]) -> tuple[str, str]:
    """A class for the colour and the words that say the same."""
    rank, dimension = entry.get("rankme"), entry.get("dimension")
    measure = "relative_std" if "relative_std" in entry else "std_mean"
    spread = entry.get(measure)
    if rank is None or not dimension:
        return "unknown", "not measured"
    if spread is not None and spread < _NO_SPREAD[measure]:
        return "bad", f"collapsed to a point: spread {spread:.2g}"
    used = f"{rank:.1f} of {dimension:,} dimensions in use"
    if rank < 2:
        return "bad", f"collapsed to a line: {used}"
    return ("warning", f"few directions: {used}") if rank < _FEW_DIRECTIONS * dimension else ("good", f"spread: {used}")


def _gallery(folder: Path, gallery: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Queries of each direction, with their pictures as data addresses."""
    groups = []
    for direction in paper.DIRECTIONS:
        queries = [_query(folder, query) for query in gallery.get("queries", []) if query.get("direction") == direction]
        if queries:
            groups.append((paper.QUERY_MODALITY[direction].replace("->", "→"), queries))
    return groups


def _query(folder: Path, query: Mapping[str, Any]) -> dict[str, Any]:
    for key, kind in (("query", dict), ("answers", list)):
        if not isinstance(query.get(key), kind):
            raise CheckpointError(f"{folder / 'gallery.json'}: a query without {key}: {str(dict(query))[:80]}")
    answers = [_shown(folder, answer) for answer in query["answers"]]
    rank = query.get("rank")
    return {
        "query": _shown(folder, query["query"]),
        "answers": answers,
        "right": bool(answers) and answers[0]["correct"],
        "rank": None if rank is None else format_number(round(rank, 1)),
    }


def _shown(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One query or answer; `source` is None where a thumb is named but not there."""
    shown = {"text": None, "score": None, "correct": False} | dict(entry)
    shown["picture"] = "thumb" in entry
    shown["source"] = None
    shown["alt"] = entry.get("caption") or entry.get("text") or entry.get("name") or "picture"
    if shown["picture"]:
        path = inside(folder, entry["thumb"])
        if path.is_file():
            shown["source"] = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    return shown


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", words or "none"))
    return rows

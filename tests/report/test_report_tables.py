import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import RECIPE
from rich.console import Console

from jointembed.errors import CheckpointError, RecipeError
from jointembed.report import paper
from jointembed.report.tables import (
    Column,
    Number,
    Table,
    method_of,
    print_retrieval,
    published,
    read_evaluations,
    read_json,
    retrieval_table,
)


def find(table: Table, method: str, direction: str) -> list[dict[str, Any]]:
    query = paper.QUERY_MODALITY[direction]
    return [dict(row) for row in table.rows if row["method"] == method and row["query"] == query]


def set_objective(run: Path, name: str) -> None:
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"objective": {"name": name}}))


def test_measured_stands_beside_published(run: Path) -> None:
    table = retrieval_table([run])
    assert len(table.rows) == 6
    (row,) = find(table, "VICReg", "i2t")
    assert row["printed"] == "text-to-image"
    assert [row[f"published_R@{k}"] for k in (1, 5, 10)] == [Number(45.2), Number(76.1), Number(84.2)]
    assert row["measured_R@1"] == Number(22.5, 20.25, 25.25)
    assert (row["data"], row["split"], row["protocol"], row["images"], row["texts"]) == (
        "shapes",
        "test",
        "full",
        20,
        40,
    )
    assert row["command"] == "jointembed evaluate runs/shapes --split test" and row["run"] == str(run)
    (row,) = find(table, "VICReg", "t2i")
    assert row["printed"] == "image-to-text" and row["published_R@1"] == Number(33.6)
    assert row["measured_R@10"] == Number(56.0, 53.75, 58.75)


def test_nothing_measured_stays_empty(run: Path) -> None:
    for table in (retrieval_table([]), retrieval_table([run])):
        for direction in paper.DIRECTIONS:
            (row,) = find(table, "VSE++", direction)
            assert not [key for key in row if key.startswith("measured")]
            assert row["published_R@1"] == Number({"i2t": 41.3, "t2i": 30.3}[direction])
    assert (
        "| VSE++ | image query -> text (i2t) | text-to-image | 41.3 | 71.1 | 81.2 |  |  |"
        in retrieval_table([]).markdown()
    )


def test_method_the_paper_has_not_comes_last_with_nothing_published(run: Path) -> None:
    set_objective(run, "clip")
    table = retrieval_table([run])
    assert [row["method"] for row in table.rows][-2:] == ["clip", "clip"]
    (row,) = find(table, "clip", "i2t")
    assert row["measured_R@5"] == Number(50.0, 47.75, 52.75) and "published_R@5" not in row


def test_every_evaluation_of_every_run_has_its_rows(run: Path, tmp_path: Path) -> None:
    other = run / "evaluation" / "validation-full"
    other.mkdir()
    document = read_json(run / "evaluation/test-full/metrics.json")
    document |= {"split": "validation", "intervals": {}}
    (other / "metrics.json").write_text(json.dumps(document))
    table = retrieval_table([run, run])
    rows = find(table, "VICReg", "i2t")
    assert [row["split"] for row in rows] == ["test", "validation", "test", "validation"]
    assert rows[1]["measured_R@1"] == Number(22.5)


def test_run_without_evaluation_is_said(run: Path) -> None:
    (run / "evaluation/test-full/metrics.json").unlink()
    table = retrieval_table([run])
    assert f"{run}: no retrieval evaluation in it yet." in table.notes and len(table.rows) == 6


@pytest.mark.parametrize(
    ("name", "method"),
    [("vicreg", "VICReg"), ("barlow_twins", "Barlow Twins"), ("vse", "VSE++"), ("siglip", "siglip")],
)
def test_method_is_read_from_the_recipe(run: Path, name: str, method: str) -> None:
    set_objective(run, name)
    assert method_of(run) == method


def test_broken_runs_are_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such run folder"):
        retrieval_table([run / "absent"])
    (run / "recipe.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: not valid YAML"):
        method_of(run)
    (run / "recipe.yaml").write_text("- a")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: holds a list"):
        method_of(run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"objective\.name: missing"):
        method_of(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list; expected an object"),
        ("{}", "metrics: expected numbers by name, found None"),
        ('{"metrics": {"rsum": "9"}}', "rsum: expected a number, found '9'"),
        ('{"metrics": {"rsum": 9}, "chance": 3}', "chance: expected numbers by name, found 3"),
    ],
)
def test_broken_metrics_are_named(run: Path, content: str, message: str) -> None:
    (run / "evaluation/test-full/metrics.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"metrics.json: {message}"):
        read_evaluations(run)


TABLE = Table(
    "A | title",
    (Column("a", "Name"), Column("b", "R@1", "measured"), Column("c", "R@5", "measured"), Column("d", "Note")),
    (
        {"a": "<b>|x|</b>", "b": Number(22.44, 20.0, 25.05), "c": Number(40.0, mark="†"), "d": "*_y_* coco_1k"},
        {"a": "empty", "b": None, "d": ""},
    ),
    ("a <note>",),
)


def test_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        r"**A \| title**",
        "",
        "| Name | measured R@1 | measured R@5 | Note |",
        "|:---|---:|---:|:---|",
        r"| &lt;b>\|x\|&lt;/b> | 22.4 [20.0, 25.1] | 40.0† | \*\_y\_\* coco_1k |",
        "| empty |  |  |  |",
        "",
        "- a &lt;note>",
    ]


def test_json() -> None:
    tree = json.loads(TABLE.json())
    assert tree["rows"][0] == {
        "a": "<b>|x|</b>",
        "b": {"value": 22.44, "low": 20.0, "high": 25.05},
        "c": {"value": 40.0, "mark": "†"},
        "d": "*_y_* coco_1k",
    }
    assert tree["rows"][1] == {"a": "empty", "b": None, "c": None, "d": ""}
    assert tree["columns"][1] == {"key": "b", "label": "R@1", "group": "measured"} and tree["notes"] == ["a <note>"]
    assert "NaN" not in Table("t", (Column("a", "A"),), ({"a": Number(float("nan"))},)).json()


def test_html() -> None:
    page = TABLE.html()
    assert "<b>" not in page and "&lt;b&gt;|x|&lt;/b&gt;" in page and "<li>a &lt;note&gt;</li>" in page
    assert '<th scope="colgroup" colspan="2">measured</th>' in page and page.count('<th scope="row">') == 2
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    assert [len(re.findall(r"<t[hd][ >]", row)) for row in rows] == [3, 4, 4, 4]
    assert "colgroup" not in Table("t", (Column("a", "A"),), ()).html()


def test_published_tables_keep_daggers_and_words() -> None:
    assert "| BYOL | 54.0 | 86.6 | 47.6 |  | 40.4† | 37.0† |" in published("transfer").markdown()
    assert "| BYOL | 69.3 | x | x | x |" in published("flexibility").markdown()
    for name in paper.TABLES:
        assert len(json.loads(published(name).json())["rows"]) == len(paper.TABLES[name].rows)


def terminal(document: dict[str, Any], width: int = 80) -> str:
    shown = io.StringIO()
    Console(width=width, file=shown).print(print_retrieval(document))
    return shown.getvalue()


def test_terminal_table(run: Path) -> None:
    text = terminal(read_json(run / "evaluation/test-full/metrics.json"))
    assert "shapes · test · full" in text and "rsum 248.5" in text
    assert "20 images, 40 texts, 3 tied queries" in " ".join(text.split())
    assert "[20.2, 25.2]" in text and text.count("chance 5.1") == 6
    above, below = text.split("text query -> image")
    assert "image query -> text" in above and 'paper: "text-to-image"' in above and 'paper: "image-to-text"' in below
    assert "22.5" in above and "15.0" in below and max(map(len, text.splitlines())) <= 80


def test_terminal_table_of_bare_metrics(run: Path) -> None:
    values = read_json(run / "evaluation/test-full/metrics.json")["metrics"]
    text = terminal({"metrics": values, "data": "[red]x[/red]"})
    assert "[red]x[/red]" in text and "chance" not in text and "22.5" in text
    assert "not measured" in terminal({"metrics": {"i2t_R@1": 3.0}}, width=120)

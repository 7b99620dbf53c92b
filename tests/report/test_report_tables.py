import json
import re

from jointembed.report.tables import Column, Number, Page, Table

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


def test_a_mean_shows_its_deviation_and_its_source() -> None:
    number = Number(41.26, mark="†", std=0.449, source=3)
    assert str(number) == "41.3† ± 0.4 (3)"
    assert str(Number(0.01234, 0.01, 0.02, digits=3)) == "0.012 [0.010, 0.020]"
    tree = Table("t", (Column("a", "A"),), ({"a": number},)).tree()
    assert tree["rows"][0]["a"] == {"value": 41.26, "std": 0.449, "source": 3, "mark": "†"}


def test_a_page_holds_its_tables_in_every_format() -> None:
    page = Page((TABLE, Table("second & last", (Column("n", "n", kind="code"),), ({"n": "x"},))))
    assert page.markdown().count("**") == 4
    assert [one["title"] for one in json.loads(page.json())["tables"]] == ["A | title", "second & last"]
    html = page.html()
    assert html.startswith("<!doctype html>") and html.count("<table>") == 2 and "second &amp; last" in html
    assert "<b>" not in html and "<script" not in html and "http" not in html.replace("http-equiv", "")

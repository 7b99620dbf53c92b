import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from report_runs import RECIPE
from rich.console import Console

from jointembed.evaluation.collapse import diagnostics
from jointembed.report import paper
from jointembed.report.methods import variant_name
from jointembed.report.read import find_runs, read_json
from jointembed.report.retrieval import print_retrieval, print_space, retrieval_page
from jointembed.report.tables import Number, Table


def retrieval_table(runs: list[Path]) -> Table:
    return retrieval_page(find_runs(runs)).tables[0]


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
    assert row["command"].endswith("; jointembed evaluate runs/shapes --split test") and row["run"] == str(run)
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


def test_every_evaluation_has_its_rows(run: Path) -> None:
    other = run / "evaluation" / "validation-full"
    other.mkdir()
    document = read_json(run / "evaluation/test-full/metrics.json")
    document |= {"split": "validation", "intervals": {}}
    (other / "metrics.json").write_text(json.dumps(document))
    rows = find(retrieval_table([run, run]), "VICReg", "i2t")  # a run that is given twice is one
    assert [row["split"] for row in rows] == ["test", "validation"]
    assert rows[1]["measured_R@1"] == Number(22.5)


def test_runs_that_differ_in_the_seed_are_one_row_with_mean_and_deviation(run: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "again")
    (again / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"seed": 4}))
    path = again / "evaluation/test-full/metrics.json"
    document = read_json(path)
    document["metrics"]["i2t_R@1"] = 26.5
    path.write_text(json.dumps(document))
    (row,) = find(retrieval_table([run, again]), "VICReg", "i2t")
    assert row["seeds"] == "3, 4" and row["run"] == f"{run} {again}"
    found = row["measured_R@1"]
    assert (found.value, found.low) == (24.5, None) and found.std == pytest.approx(8**0.5)


def test_run_without_evaluation_is_said(run: Path) -> None:
    (run / "evaluation/test-full/metrics.json").unlink()
    table = retrieval_table([run])
    assert f"{run}: no retrieval evaluation in it yet." in table.notes and len(table.rows) == 6


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


def test_a_chance_level_of_all_is_no_power_of_ten() -> None:
    names = {f"{way}_R@{k}": 50.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
    chance = dict.fromkeys(names, 99.97) | {"i2t_R@1": 0.125, "i2t_R@5": 10.0, "rsum": 400.0}
    text = terminal({"metrics": names | {"rsum": 300.0}, "chance": chance})
    assert "e+" not in text and "chance 100.0" in text and "chance 0.12" in text and "chance 10.0" in text
    assert "(chance 400.0)" in text


def test_the_terminal_shows_gap_hubness_and_spread_of_each_view() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(40, 6, generator=generator) for _ in range(2))
    diagnosis = diagnostics({"image": image, "text": text})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(print_space(diagnosis))
    shown = " ".join(console.export_text().split())
    for view in ("image", "text"):
        assert f"{view} {diagnosis[view]['std_mean']:.3f}" in shown and f"{diagnosis[view]['rankme']:.1f} 6" in shown
    assert f"gap {diagnosis['gap']:.3f}" in shown
    assert f"hubness text_to_image {diagnosis['hubness_skewness/text_to_image']:.2f}" in shown


def test_what_was_added_to_a_method_stands_in_its_name() -> None:
    recipe = RECIPE | {"objective": {"name": "vicreg"}}
    changed = recipe | {"contrast": {"weight": 0.1}, "ramp": {"covariance": {"end": 1}}}
    assert variant_name(changed) == "VICReg (InfoNCE added, covariance ramped)"
    assert variant_name(recipe | {"contrast": None, "ramp": {}}) == variant_name(recipe) == "VICReg"

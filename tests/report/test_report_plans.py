"""The plans: every cell of the paper has commands, and each command makes the run that its cell is about."""

import json
import shlex
from collections.abc import Iterator

import pytest
from measured_runs import ROOT

from jointembed import build
from jointembed.build_detection import check as check_detection
from jointembed.recipe import load_recipe, recipe_tree
from jointembed.recipe_detection import load_detection_recipe
from jointembed.report import paper
from jointembed.report.methods import ablation_place, flexibility_column, labelled_share, method_name, variant_name
from jointembed.report.planning import plan, plan_json, plan_text
from jointembed.report.plans import BEYOND, SCALES, Command, cells
from jointembed.report.results import SWITCHES
from jointembed.runs_labels import TASKS

ALL = [(name, scale) for name, scales in SCALES.items() for scale in scales]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def commands(name: str, scale: str) -> Iterator[Command]:
    for cell in cells(name, scale):  # type: ignore[arg-type]
        yield from cell.commands


def tree(command: Command) -> dict:
    start = [f"init_from=runs/{command.start}"] if command.start else []
    return recipe_tree(build.check(load_recipe(command.recipe, [*start, *command.overrides])))


@pytest.mark.parametrize("name", SCALES)
def test_every_cell_that_the_paper_fills_is_planned(name: str) -> None:
    skip = len(SWITCHES) if name == "ablation" else 0
    table = paper.TABLES[name]
    wanted, whole = set(), {cell.row for cell in cells(name) if cell.column == "*"}
    for row in table.rows:
        key = (row.method, *map(str, row.cells[:skip]))
        for column, value in zip(table.columns[skip:], row.cells[skip:], strict=True):
            if value not in (None, "x") and key not in whole:
                wanted.add((key, column.removeprefix("top-1, ").removeprefix("top-5, ")))
    assert {(cell.row, cell.column) for cell in cells(name) if cell.column != "*"} == wanted
    assert len(whole) == (len(table.rows) if whole else 0)


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_every_command_is_valid(name: str, scale: str) -> None:
    runs = dict[str, tuple[str, tuple[str, ...]]]()
    for command in commands(name, scale):
        if command.verb == "train":
            tree(command)
            assert runs.setdefault(command.run, (command.recipe, command.overrides)) == (
                command.recipe,
                command.overrides,
            )
        elif command.verb == "detect":
            start = [f"init_from=runs/{command.start}"]
            check_detection(load_detection_recipe(command.recipe, [*start, *command.overrides]))
        else:
            assert command.task in (*TASKS, "voc07", "retrieval")


@pytest.mark.parametrize("scale", ["full", "small"])
def test_an_ablation_cell_is_the_recipe_of_its_row_and_column(scale: str) -> None:
    found = cells("ablation", scale)  # type: ignore[arg-type]
    assert len(found) == 24
    for cell in found:
        place = ablation_place(tree(cell.commands[0]))
        assert place == (cell.row, cell.column)


@pytest.mark.parametrize("scale", ["full", "small"])
def test_a_flexibility_cell_is_the_recipe_of_its_row_and_column(scale: str) -> None:
    found = cells("flexibility", scale)  # type: ignore[arg-type]
    assert len(found) == 13
    for cell in found:
        recipe = tree(cell.commands[0])
        assert (method_name(recipe),) == cell.row and flexibility_column(recipe) == cell.column


@pytest.mark.parametrize("scale", ["full", "small"])
def test_an_imagenet_row_is_the_recipe_of_its_method(scale: str) -> None:
    rows = [row.method for row in paper.IMAGENET.rows] + (list(BEYOND) if scale == "small" else [])
    found = cells("imagenet", scale)  # type: ignore[arg-type]
    assert [cell.row for cell in found] == [(row,) for row in rows]
    assert [variant_name(tree(cell.commands[0])) for cell in found] == rows


def test_the_supervised_row_of_semi_trains_on_a_share() -> None:
    shares = [labelled_share(tree(cell.commands[0])) for cell in cells("semi") if cell.row == ("Supervised",)]
    assert shares == ["1%", "10%"]


def test_seeds_at_small_scale_are_three_where_the_issue_turns_on_them() -> None:
    three = {cell.commands[0].run.split("/")[1] for cell in cells("ablation", "small") if cell.seeds == 3}
    assert three == {"simsiam-sg", "vicreg-bn", "vicreg-none"}


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_a_plan_is_one_command_a_line_that_a_shell_reads(name: str, scale: str) -> None:
    planned = plan(name, scale, gpus=4, kind="A100")  # type: ignore[arg-type]
    text = plan_text(name, scale, planned, gpus=4, kind="A100")  # type: ignore[arg-type]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(planned) == len({one.line for one in planned})
    for line, one in zip(lines, planned, strict=True):
        words = shlex.split(line, comments=True)
        assert words == shlex.split(one.line) and "jointembed" in words and " h" in line
        assert ("--num_processes" in words) == (scale == "full" and "evaluate" not in words)
    assert [row["command"] for row in json.loads(plan_json(planned))] == [one.line for one in planned]
    if scale == "small":
        assert len(planned) == sum(cell.seeds for cell in cells(name, "small"))
        assert all(f"seed={line.split('/seed')[1].split()[0]}" in line for line in lines)


def test_variables_are_left_to_the_shell() -> None:
    lines = [one.line for one in plan("transfer")]
    assert any('"--set=data.train.path=${PLACES205}"' in line for line in lines)


@pytest.mark.parametrize(
    ("name", "scale", "variables"),
    [
        ("imagenet", "full", "IMAGENET"),
        ("transfer", "full", "COCO, IMAGENET, INAT18, PLACES205, VOC"),
        ("retrieval", "full", "COCO"),
        ("ablation", "small", "JOINTEMBED_DATA"),
    ],
)
def test_the_first_line_names_the_variables_to_set(name: str, scale: str, variables: str) -> None:
    text = plan_text(name, scale, plan(name, scale), gpus=8, kind="V100")  # type: ignore[arg-type]
    assert text.splitlines()[0].endswith(f"; set {variables}")

from pathlib import Path

import pytest
import yaml
from report_runs import RECIPE

from jointembed.errors import CheckpointError, RecipeError
from jointembed.report.read import find_runs, method_of, read_evaluations


def set_objective(run: Path, name: str) -> None:
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"objective": {"name": name}}))


@pytest.mark.parametrize(
    ("name", "method"),
    [("vicreg", "VICReg"), ("barlow_twins", "Barlow Twins"), ("vse", "VSE++"), ("siglip", "siglip")],
)
def test_method_is_read_from_the_recipe(run: Path, name: str, method: str) -> None:
    set_objective(run, name)
    assert method_of(run) == method


def test_broken_runs_are_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such run folder"):
        find_runs([run / "absent"])
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
        ('{"metrics": {}, "intervals": {"i2t_R@1": 5}}', "intervals: i2t_R@1: expected two numbers, found 5"),
        ('{"metrics": {}, "intervals": {"rsum": ["9"]}}', r"intervals: rsum: expected two numbers, found \['9'\]"),
    ],
)
def test_broken_metrics_are_named(run: Path, content: str, message: str) -> None:
    (run / "evaluation/test-full/metrics.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"metrics.json: {message}"):
        read_evaluations(run)


def test_runs_are_found_at_any_depth_once_and_not_inside_runs(run: Path, tmp_path: Path) -> None:
    inner = run / "tasks" / "linear"  # a task of the run, with a recipe of its own
    inner.mkdir(parents=True)
    (inner / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"objective": {"name": "supervised"}}))
    deep = tmp_path / "group" / "a" / "seed1"
    deep.mkdir(parents=True)
    (deep / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    found = find_runs([tmp_path, run, tmp_path / "group"])
    assert [one.folder for one in found] == [deep, run]
    assert found[0].evaluations == [] and found[0].cost is None and found[0].environment == {}


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run in it"):
        find_runs([tmp_path])


def test_a_run_without_objective_is_refused(run: Path) -> None:
    (run / "recipe.yaml").write_text("name: x")
    with pytest.raises(CheckpointError, match=r"objective\.name: missing"):
        find_runs([run])

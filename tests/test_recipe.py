from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from jointembed.errors import RecipeError
from jointembed.recipe import (
    check_block,
    dump_recipe,
    expand_variables,
    load_recipe,
    parse_yaml,
    recipe_from_tree,
    recipe_tree,
)

GOOD = """
name: tiny
views: {image: image, text: text}
branches:
  image: {encoder: {name: torchvision, model: resnet18}}
  text: {encoder: {name: gru}, lr_scale: 1e-1}
objective: {name: vicreg}
data: {train: {name: emoji}, captions: all}
optimizer: {name: adam, lr: 1e-3}
schedule: {name: cosine}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def test_reads_numbers_that_yaml_1_1_takes_for_words(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.optimizer["lr"] == 1e-3
    assert recipe.branches["text"].lr_scale == 0.1


def test_words_that_yaml_1_1_takes_for_booleans() -> None:
    assert parse_yaml("{a: no, b: on, c: true, d: 2026-11-22}", "x") == {
        "a": "no", "b": "on", "c": True, "d": "2026-11-22",
    }  # fmt: skip


def test_round_trip(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, ["seed=3", "training.trackers=[tensorboard]"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert recipe_from_tree(recipe_tree(recipe), "tree") == recipe


@pytest.mark.parametrize(
    "name", ["1e3", "1.e2", "no", "TRUE", "tRue", "010", "1:30", "0x1f", "7", "2026-11-22", "~", "="]
)
def test_words_that_look_like_something_else_come_back(file: Path, tmp_path: Path, name: str) -> None:
    recipe = replace(load_recipe(file), name=name)
    text = dump_recipe(recipe)
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert yaml.safe_load(text)["name"] == name  # other readers of a run's folder


def test_whole_numbers_are_plain_decimals() -> None:
    assert parse_yaml("{a: 010, b: 1:30, c: 0x1f, d: 1_000, e: -12, f: 0, g: +3}", "x") == {
        "a": "010", "b": "1:30", "c": "0x1f", "d": "1_000", "e": -12, "f": 0, "g": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("traning.epochs=4", ["traning", "did you mean 'training'"]),
        ("training.epoch=4", ["training.epoch", "did you mean 'epochs'"]),
        ("branches.text.trian=none", ["branches.text.trian", "did you mean 'train'"]),
        ("training.epochs=many", ["training.epochs", "valid number", "'many'"]),
        ("training.epochs=0", ["training.epochs", "greater than 0"]),
        ("loader.batch=-1", ["loader.batch", "greater than 0"]),
        ("loader.batch=true", ["loader.batch", "a number expected, found true"]),
        ("training.clip=true", ["training.clip", "a number expected, found true"]),
        ("ramp={covariance: {start: true, end: 1}}", ["ramp.covariance.start", "a number expected"]),
        ("data.captions=some", ["data.captions", "'random' or 'all'"]),
        ("views.image=picture", ["views.image", "no branch 'picture'"]),
        ("name.first=x", ["name is a value"]),
        ("no-equals-sign", ["an override looks like"]),
    ],
)
def test_bad_overrides_name_the_dotted_path(file: Path, override: str, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(file, [override])
    for part in expected:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2", "line 2: key 'a' is given twice"),
        ("a: [1", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("1: x", "is not a word"),
        ("", "a recipe is a mapping"),
        ("name: x", "missing"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=str(path)) as error:
        load_recipe(path)
    assert expected in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_unused_branch(file: Path) -> None:
    with pytest.raises(RecipeError, match="branches.third: no view uses"):
        load_recipe(file, ["branches.third={encoder: {name: gru}}"])


class Thing:
    def __init__(self, given: int, *, size: int, kind: Literal["a", "b"] = "a", rate: float | None = None) -> None:
        self.size = size


def test_a_constructors_signature_is_the_schema() -> None:
    table = {"thing": Thing}
    assert check_block({"name": "thing", "size": "3"}, table, "x") == {
        "name": "thing", "size": 3, "kind": "a", "rate": None,
    }  # fmt: skip
    cases: list[tuple[dict[str, object], str]] = [
        ({"size": 3}, "x.name: missing"),
        ({"name": "thin", "size": 3}, "x.name: no 'thin' here; did you mean 'thing'"),
        ({"name": "thing"}, "x.size: missing; thing needs it"),
        ({"name": "thing", "size": 3, "kin": "a"}, "x.kin: thing has no such argument; did you mean 'kind'"),
        ({"name": "thing", "size": 3, "given": 1}, "x.given: thing has no such argument"),
        ({"name": "thing", "size": 3, "kind": "c"}, "x.kind: Input should be 'a' or 'b'"),
        ({"name": "thing", "size": 2.5}, "x.size: Input should be a valid integer"),
    ]
    for block, expected in cases:
        with pytest.raises(RecipeError) as error:
            check_block(block, table, "x")
        assert expected in str(error.value)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOINTEMBED_TEST_ROOT", "/photos")
    monkeypatch.delenv("JOINTEMBED_TEST_UNSET", raising=False)
    assert expand_variables({"images": "${JOINTEMBED_TEST_ROOT}/a", "n": [1, "b"]}, "data.train") == {
        "images": "/photos/a", "n": [1, "b"],
    }  # fmt: skip
    with pytest.raises(RecipeError, match="data.train.images: environment variable JOINTEMBED_TEST_UNSET is not set"):
        expand_variables({"images": "${JOINTEMBED_TEST_UNSET}/a"}, "data.train")

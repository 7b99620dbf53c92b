import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_runs import TINY, write_captions

import jointembed
from jointembed import environment, runs, runs_evaluate
from jointembed.build import cache_folder
from jointembed.errors import DataError
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe

PACKAGE = Path(jointembed.__file__).parent
SHORT = ["training.epochs=1", "evaluation.centre=false"]
PATIENCE = 500.0  # seconds for all commands of a test, on a machine that does much else
pytestmark = pytest.mark.timeout(PATIENCE + 60)

COMMANDS = """
import json, sys
from jointembed.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["jointembed", *arguments]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    print(f"@{code}@", file=sys.stderr, flush=True)
"""


class Said(NamedTuple):
    code: int
    error: str
    out: str  # of all commands


def say(
    *commands: Sequence[str], before: Sequence[str] = (), variables: Mapping[str, str | None] | None = None
) -> list[Said]:
    """Command lines one after another in a process of their own; a variable of None is taken out of its environment."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent), **(variables or {})}
    done = subprocess.run(
        [*before, sys.executable, "-P", "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        timeout=PATIENCE,
        env={name: value for name, value in given.items() if value is not None},
        encoding="utf-8",
        errors="backslashreplace",
    )
    parts = re.split(r"@(\d+)@\n", done.stderr)
    assert len(parts) == 2 * len(commands) + 1, (done.returncode, done.stderr[-3000:])
    return [Said(int(code), error, done.stdout) for error, code in zip(parts[::2], parts[1::2], strict=False)]


def well(found: list[Said]) -> None:
    for number, one in enumerate(found):
        assert one.code == 0, (number, one.error[-3000:])


def written(root: Path) -> Path:
    """A data set whose captions are not ASCII, and its recipe."""
    data = write_captions(root / "data")
    document = json.loads((data / "captions.json").read_text())
    document["annotations"][0]["caption"] = "ein Hündchen 🐕"
    (data / "captions.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    recipe = root / "tiny.yaml"
    recipe.write_text(
        TINY.replace("ROOT", f"{data}").replace("name: tiny", "name: tiny\ndescription: Hündchen 🐕"), "utf-8"
    )
    return recipe


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.fault(19, "clock set back an hour at every look, file times in the year 2100")
def test_a_clock_that_runs_backwards(tmp_path: Path) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "start, looks = time.time(), itertools.count(1)\n"
        "time.time = lambda: start - 3600.0 * next(looks)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    recipe = written(tmp_path)
    for path in (tmp_path / "data").rglob("*"):
        os.utime(path, (4102444800, 4102444800))
    search = f"{tmp_path / 'clock'}{os.pathsep}{PACKAGE.parent}"
    well(
        say(
            ["train", str(recipe), *SHORT, "--out", str(tmp_path / "run")],
            [
                "train",
                str(recipe),
                *SHORT,
                "training.epochs=2",
                "--resume",
                "--allow-changed",
                "--out",
                str(tmp_path / "run"),
            ],
            variables={"PYTHONPATH": search},
        )
    )
    found = losses(tmp_path / "run")
    seconds = [line["seconds"] for line in found]
    assert len(found) == 8 and seconds == sorted(seconds) and seconds[0] >= 0
    assert all(line["samples_per_second"] > 0 for line in found)


@pytest.mark.fault(19, "run folder renamed between train, resume, evaluate and use; a path with spaces and emoji")
def test_a_run_folder_that_is_moved(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    first = tmp_path / "first place"
    runs.train(tiny_recipe("training.epochs=1"), first)
    second = tmp_path / "second 🐕 plâce"
    first.rename(second)
    runs.train(tiny_recipe("training.epochs=2"), second, resume=True, changed=True)
    assert len(losses(second)) == 8
    third = tmp_path / "third 🐕 plâce" / "run"
    third.parent.mkdir()
    second.rename(third)
    assert runs_evaluate.evaluate_run(third, "test").record["metrics"]["rsum"] > 0
    assert JointEmbedding.from_pretrained(third).encode_text("a dog").ndim == 1
    assert not first.exists() and not second.exists()


@pytest.mark.fault(19, "path with spaces and emoji: train, evaluate, embed, index, search")
def test_a_path_with_spaces_and_emoji(tmp_path: Path) -> None:
    root = tmp_path / "my pictures 🐕 ü"
    root.mkdir()
    recipe, run = written(root), root / "the run 🐈"
    found = say(
        ["train", str(recipe), *SHORT, "--out", str(run)],
        ["evaluate", str(run), "--split", "test"],
        ["embed", str(run), str(root / "data" / "images"), "--out", str(root / "e 🐕")],
        ["index", str(root / "e 🐕"), "--out", str(root / "i 🐕")],
        ["search", str(root / "i 🐕"), "ein Hündchen 🐕"],
    )
    well(found)
    assert ".jpg" in found[-1].out


@pytest.mark.fault(19, "non-UTF-8 locale: LC_ALL=C, Python's UTF-8 mode off; every file names its encoding")
def test_a_locale_that_knows_ascii_alone(tmp_path: Path) -> None:
    recipe, run = written(tmp_path), tmp_path / "run"
    ascii_only: dict[str, str | None] = {
        "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None,
    }  # fmt: skip
    document = json.loads((tmp_path / "data" / "captions.json").read_text(encoding="utf-8"))
    document["images"][0]["file_name"] = "hündchen.jpg"
    (tmp_path / "data" / "other.json").write_text(json.dumps(document), encoding="utf-8")
    *good, bad = say(
        ["train", str(recipe), *SHORT, "--out", str(run)],
        ["evaluate", str(run), "--split", "test"],
        ["train", str(recipe), f"data.train.annotations={tmp_path}/data/other.json", "--out", str(tmp_path / "other")],
        variables=ascii_only,
    )
    well(good)
    assert bad.code == 1 and "set PYTHONUTF8=1" in bad.error and bad.error.count("\n") == 1, bad.error
    assert "Hündchen 🐕" in (run / "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.fault(19, "no file is opened as text without its encoding")
def test_every_text_file_names_its_encoding() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found, found


def _opens_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a text file and says no encoding."""
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return len(call.args) < (1 if call.func.attr == "read_text" else 2)
    if not (isinstance(call.func, ast.Name) and call.func.id == "open" and call.args):
        return False
    modes = (*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode"))
    words = [one.value for mode in modes for one in ast.walk(mode) if isinstance(one, ast.Constant)]
    return not any("b" in str(word) for word in words)


@pytest.mark.fault(19, "PYTHONOPTIMIZE=1: no check is an `assert`")
def test_no_check_is_an_assert() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert) and not _narrows(node.test):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found, found


def _narrows(test: ast.expr) -> bool:
    """Whether an assertion only tells a type checker what is so: `x is not None`, `isinstance(x, T)`."""
    if isinstance(test, ast.BoolOp):
        return all(_narrows(one) for one in test.values)
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id in ("isinstance", "issubclass")
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.IsNot)
        and ast.unparse(test.comparators[0]) == "None"
    )


@pytest.mark.fault(19, "PYTHONOPTIMIZE=1: trains, evaluates, and refuses what it refused")
def test_without_asserts_it_is_the_same(tmp_path: Path) -> None:
    recipe, run = written(tmp_path), tmp_path / "run"
    faults: list[tuple[list[str], int, str]] = [
        (["train", str(recipe), *SHORT, "--out", str(run)], 0, ""),
        (["evaluate", str(run), "--split", "test"], 0, ""),
        (["train", str(recipe), "loader.bach=3", "--out", str(tmp_path / "x")], 2, "did you mean 'batch'"),
        (["train", str(recipe), "loader.batch=99", "--out", str(tmp_path / "y")], 1, "do not fill one batch of 99"),
        (["evaluate", str(tmp_path / "none")], 2, "none"),
    ]
    found = say(*(arguments for arguments, _, _ in faults), variables={"PYTHONOPTIMIZE": "1"})
    for one, (arguments, code, words) in zip(found, faults, strict=True):
        assert one.code == code and words in one.error, (arguments, one.code, one.error)


@pytest.mark.fault(19, "no home folder: HOME unset for a user without one, or not to be made")
def test_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(tmp_path)
    nowhere: dict[str, str | None] = {
        "HOME": "/dev/null", "XDG_CACHE_HOME": None, "JOINTEMBED_CACHE": None, "HF_HOME": None, "TORCH_HOME": None,
    }  # fmt: skip
    command = ["train", str(recipe), *SHORT, "--out"]
    [done] = say([*command, str(tmp_path / "run")], variables=nowhere)
    assert done.code == 1 and "/dev/null/.cache/jointembed: the cache cannot be made" in done.error, done.error
    assert done.error.count("\n") == 1
    well(say([*command, str(tmp_path / "run2")], variables=nowhere | {"JOINTEMBED_CACHE": str(tmp_path / "cache")}))

    def nobody(*arguments: object) -> object:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME", "JOINTEMBED_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(DataError, match="no home folder to keep a cache in; set JOINTEMBED_CACHE"):
        cache_folder()
    assert environment.report()["python"]


@pytest.mark.fault(19, "read-only package folder: a read-only mount of it; nothing is written there")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
def test_a_read_only_package(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    copy = tmp_path / "site" / "jointembed"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    mount = f"mount --bind {copy} {copy} && mount -o remount,ro,bind {copy} && ! touch {copy}/x 2>/dev/null"
    mount += ' && exec "$@"'
    before = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no one mount")
    where = "import jointembed; print(jointembed.__file__)"
    path: dict[str, str | None] = {"PYTHONPATH": str(copy.parent)}
    found = subprocess.run(
        [*before, sys.executable, "-P", "-c", where],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
    )
    assert found.stdout.strip() == str(copy / "__init__.py"), found.stderr
    well(
        say(
            ["train", str(recipe), *SHORT, "--out", str(tmp_path / "run")],
            ["evaluate", str(tmp_path / "run"), "--split", "test"],
            before=before,
            variables=path,
        )
    )
    assert not list(copy.rglob("__pycache__")) and not list(copy.rglob("*.part"))

"""The script that runs the cells of a table: what it runs, what it skips, and what it says of failures."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from jointembed import build
from jointembed.recipe import dump_recipe, load_recipe, recipe_tree

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_table.py"
# stands in for `python -m jointembed`: writes what a run leaves, but for the runs whose name says otherwise
WORKER = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out / "calls").open("a") as file: file.write(" ".join(sys.argv[3:]) + "\\n")
(out / "recipe.yaml").write_text(sys.argv[1])
if "FAIL" in str(out): sys.exit("jointembed: it broke")
record = out / sys.argv[2]
record.parent.mkdir(parents=True, exist_ok=True)
record.write_text(json.dumps({"metrics": {"knn20_top1": 41.25}}))
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_table", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def say(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple]:
    def command(job: object, out: Path) -> list[str]:
        real = original(job, out)
        tree = recipe_tree(build.check(load_recipe(script.ROOT / job.recipe, job.overrides)))  # type: ignore[attr-defined]
        return [sys.executable, "-c", WORKER, yaml.safe_dump(tree), job.record, *real[3:]]  # type: ignore[attr-defined]

    original = script.Job.command
    monkeypatch.setattr(script.Job, "command", command)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run_table.py", *arguments])
        code = script.main()
        return code, *capsys.readouterr()

    return run


def test_names_seeds_and_shards(script: ModuleType) -> None:
    names = [job.name for job in script.jobs_of("ablation", None, [])]
    assert names[:4] == ["baselines/seed0", "baselines/seed1", "baselines/seed2", "byol-me-sg-pr-bn/none/seed0"]
    assert len(names) == len(set(names)) == 3 + 24 + 2 * 9 and "simsiam-sg/var/seed2" in names
    assert len(script.jobs_of("flexibility", [5, 6], [])) == 2 * (1 + 13)
    jobs = script.jobs_of("imagenet", None, [])
    parts = [script.shard(jobs, f"{i}/3") for i in range(3)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    assert all("seed=0" in job.overrides for job in jobs)
    for wrong in ("3/3", "a/2", "1"):
        with pytest.raises(SystemExit, match="expected i/n"):
            script.shard(jobs, wrong)


def test_what_is_finished_is_skipped_and_what_was_interrupted_goes_on(
    script: ModuleType, say: Callable, tmp_path: Path
) -> None:
    given = ("ablation", "--out", str(tmp_path), "--only", "vicreg-none/*/seed0")
    code, out, _ = say(*given)
    assert code == 0 and "3 of 3 runs finished" in out and "[2/3] vicreg-none/var/seed0: knn20_top1 41.2" in out
    run = tmp_path / "vicreg-none" / "var" / "seed0"
    assert "--resume" not in (run / "calls").read_text()
    (run / "evaluation/validation-features/metrics.json").unlink()
    (run / "evaluation/validation-features").rmdir()
    code, out, _ = say(*given)
    assert code == 0 and out.count("finished before") == 2
    calls = (run / "calls").read_text().splitlines()
    assert len(calls) == 2 and calls[1].endswith("--resume") and "objective.covariance=0" in calls[1]


@pytest.mark.parametrize("left", ["", '{"metrics": {"knn20_to'])
def test_a_record_cut_short_is_not_finished(say: Callable, tmp_path: Path, left: str) -> None:
    given = ("ablation", "--out", str(tmp_path), "--only", "vicreg-none/var/seed0")
    assert say(*given)[0] == 0
    run = tmp_path / "vicreg-none" / "var" / "seed0"
    (run / "evaluation/validation-features/metrics.json").write_text(left)
    code, out, _ = say(*given)
    assert code == 0 and "finished before" not in out and "knn20_top1 41.2" in out
    assert (run / "calls").read_text().splitlines()[1].endswith("--resume")


def test_a_failure_stops_no_other_and_is_named(say: Callable, tmp_path: Path) -> None:
    out_folder = tmp_path / "FAIL"
    code, out, err = say("ablation", "--out", str(out_folder), "--only", "simsiam-sg/none/*")
    assert code == 1 and "0 of 3 runs finished" in out and "exit code 1: jointembed: it broke" in out
    assert err.splitlines() == [f"failed: simsiam-sg/none/seed{seed}" for seed in range(3)]
    assert "it broke" in (out_folder / "simsiam-sg/none/seed0.log").read_text()


def test_a_run_of_another_recipe_is_not_taken_for_finished(say: Callable, tmp_path: Path) -> None:
    given = ("ablation", "--out", str(tmp_path), "--only", "vicreg-none/var/seed0")
    assert say(*given)[0] == 0
    code, out, _ = say(*given, "--set", "training.epochs=2")
    assert code == 1 and "holds a run of another recipe" in out
    record = tmp_path / "vicreg-none/var/seed0/evaluation/validation-features/metrics.json"
    assert json.loads(record.read_text())["metrics"] == {"knn20_top1": 41.25}  # untouched


def test_names_are_listed_and_a_glob_that_fits_none_is_refused(say: Callable, tmp_path: Path) -> None:
    code, out, _ = say("flexibility", "--out", str(tmp_path), "--list", "--only", "vicreg/*")
    assert code == 0 and out.split() == [
        f"vicreg/{one}/seed0" for one in ("shared", "different", "r18_r34", "r18_vit_tiny")
    ]
    with pytest.raises(SystemExit):
        say("flexibility", "--out", str(tmp_path), "--only", "vicregg/*")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_known_by_its_file(script: ModuleType, tmp_path: Path) -> None:
    # CPC's objective.steps are a tuple in the recipe, a list in the file
    for job in script.jobs_of("imagenet", [0], []):
        recipe = build.check(load_recipe(script.ROOT / job.recipe, job.overrides))
        record = tmp_path / job.name / job.record
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        (tmp_path / job.name / "recipe.yaml").write_text(dump_recipe(recipe))
        assert job.finished(tmp_path), job.name

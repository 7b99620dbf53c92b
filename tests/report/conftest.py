import json
import shutil
from pathlib import Path

import pytest
import yaml
from report_runs import ENVIRONMENT, RECIPE, metrics_lines, write_evaluation


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder, with one evaluation; only to be read."""
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics_lines()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    write_evaluation(folder / "evaluation" / "test-full")
    return folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "shapes")


@pytest.fixture
def short_run(run: Path) -> Path:
    """The same with three numbers in its log, for tests that draw it often."""
    lines = [
        {"kind": "train", "step": 1, "loss": 3.0},
        {"kind": "health", "step": 1, "image/std": 0.9},
        {"kind": "validation", "step": 2, "rsum": 31.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture(scope="session")
def written_report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the finished run."""
    from jointembed.report.html import write_report

    return write_report(shutil.copytree(finished_run, tmp_path_factory.mktemp("reports") / "shapes"))

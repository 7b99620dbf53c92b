"""The whole quickstart recipe, as the script runs it: the one long test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(2400)
def test_the_quickstart_finds_unseen_concepts(tmp_path: Path) -> None:
    """R@10 of chance is 5; the mean of five seeds is in the recipe's header, one seed may lie 7 below it."""
    run = tmp_path / "run"
    for arguments in (
        ["train", "recipes/quickstart.yaml", "--out", str(run)],
        ["evaluate", str(run), "--split", "test"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "jointembed", *arguments],
            cwd=ROOT, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert "chance" in done.stdout and "report.html" in done.stdout
    metrics = json.loads((run / "evaluation" / "test-full" / "metrics.json").read_text())["metrics"]
    assert metrics["i2t_R@10"] >= 20 and metrics["t2i_R@10"] >= 20, metrics
    assert (run / "report.html").stat().st_size > 100_000

"""The quickstart recipe from pictures to report: shortened in CI, whole by command (-m slow)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ["training.epochs=8", "evaluation.every=8", "branches.image.members=2", "branches.text.members=2"]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("overrides", "floor"),
    [
        pytest.param(SHORT, 20, id="two members, 8 epochs"),  # 27.5 and 26.0 on 2026-11-27
        pytest.param([], 30, id="whole", marks=pytest.mark.slow),
    ],
)
def test_the_quickstart_finds_unseen_concepts(tmp_path: Path, overrides: list[str], floor: float) -> None:
    """R@10 of chance is 5; the mean of five seeds is in the recipe's header, one seed may lie 7 below it."""
    run = tmp_path / "run"
    for arguments in (
        ["train", "recipes/quickstart.yaml", *overrides, "--out", str(run)],
        ["evaluate", str(run), "--split", "test"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "jointembed", *arguments],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert "chance" in done.stdout and "report.html" in done.stdout
    metrics = json.loads((run / "evaluation" / "test-full" / "metrics.json").read_text())["metrics"]
    assert metrics["i2t_R@10"] >= floor and metrics["t2i_R@10"] >= floor, metrics
    assert (run / "report.html").stat().st_size > 100_000

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_own_branch(tmp_path: Path) -> None:
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "examples/own_branch.py", "training.epochs=0.3", "evaluation.batch=64"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "runs/colours/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "validation"

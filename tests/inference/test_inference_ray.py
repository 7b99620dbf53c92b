"""The Ray recipe, on one machine: the rows of `jointembed embed`, one by one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding_runs import make_embeddings

from jointembed.inference.embeddings import mark_path, parquet_path, read_header, read_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed_ray.py"


@pytest.mark.slow
def test_ray_makes_the_rows_of_the_command(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    whole = make_embeddings(model_path, pictures, tmp_path / "whole", shard_size=2)
    out = tmp_path / "ray"
    command = [sys.executable, str(EXAMPLE), str(model_path), str(pictures), str(out), "--shard-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0 and "11 rows" in done.stdout, done.stderr[-2000:]
    for (one, vectors), (two, expected) in zip(*(read_rows(f, read_header(f)) for f in (out, whole)), strict=True):
        assert one.to_pylist() == two.to_pylist()
        np.testing.assert_array_equal(vectors, expected)
    mark_path(out, 3).unlink()
    before = parquet_path(out, 2).stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert again.returncode == 0 and "2 rows" in again.stdout, again.stderr[-2000:]
    assert parquet_path(out, 2).stat().st_mtime_ns == before

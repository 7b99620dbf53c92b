import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from jointembed.bench import exactness
from jointembed.bench.covariance import bench_covariance
from jointembed.bench.exactness import bench_exactness, largest_error, markdown, train, write_report
from jointembed.bench.micro_batch import bench_micro_batch, plot
from jointembed.errors import JointEmbedError, RecipeError
from jointembed.objectives import OBJECTIVES

LIMIT = {"float64": 1e-10, "float32": 1e-5}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_and_a_resume_are_exact_for_every_objective(name: str) -> None:
    run = partial(train, name, torch.float64)
    one = run()
    assert max(float(tensor.abs().max()) for key, tensor in one.items() if key.startswith("0 ")) > 1e-5
    assert largest_error(run(micro_batch=exactness.MICRO), one) < LIMIT["float64"]
    assert largest_error(run(steps=4, stop=3), run(steps=4)) == 0


def test_what_a_run_keeps_to_itself_would_show() -> None:
    """The measure sees a state that is lost: other rows, another precision, a step less."""
    run = partial(train, "moco", torch.float64)
    one = run()
    assert largest_error(train("moco", torch.float32), one) > 1e-9
    altered = {key: tensor.clone() for key, tensor in one.items()}
    key = next(key for key in altered if key.startswith("end ") and "queue" in key)
    altered[key].view(-1)[0] += 1
    assert largest_error(altered, one) > 1e-3
    with pytest.raises(JointEmbedError, match="different tensors"):
        largest_error(run(steps=1), one)
    key = next(iter(one))
    with pytest.raises(JointEmbedError, match="not finite"):
        largest_error(one | {key: one[key] * math.nan}, one)


@pytest.mark.ddp
def test_ranks_equal_one_process() -> None:
    rows = bench_exactness(objectives=["vicreg", "moco", "swav"], dtypes=("float64",))
    assert [row["objective"] for row in rows] == ["vicreg", "moco", "swav"]
    for row in rows:
        assert 0 < row["2 ranks"] < LIMIT["float64"] and 0 < row["4 ranks"] < LIMIT["float64"]
    text = markdown(rows)
    assert text.splitlines()[0].startswith("| objective | 2 ranks, float64 |") and "| `swav` |" in text


@pytest.mark.slow
@pytest.mark.ddp
def test_the_whole_table() -> None:
    rows = bench_exactness()
    assert len(rows) == 2 * len(OBJECTIVES)
    for row in rows:
        for kind in ("2 ranks", "4 ranks", "micro-batch"):
            assert row[kind] < LIMIT[row["dtype"]], (row["objective"], kind)
        assert row["resume"] == 0


@pytest.mark.ddp
def test_covariance_over_ranks_costs_and_gives_the_same() -> None:
    rows = bench_covariance(worlds=[1, 2], batch=16, width=24, repeats=1)
    assert [row["world"] for row in rows] == [1, 2]
    for row in rows:
        assert row["gradient_error"] < 1e-5 and row["ratio"] > 0
    assert rows[0]["received_mb"] == 0 and rows[1]["received_mb"] == pytest.approx(8 * 24 * 4 / 1e6)
    assert rows[1]["matrix_mb"] < rows[0]["matrix_mb"] < rows[0]["gather_all_matrix_mb"]


def test_memory_is_measured_for_each_micro_batch(tmp_path: Path) -> None:
    rows = bench_micro_batch(batches=[8], micro_batches=[2, 8, 16], size=32)
    assert [row["micro_batch"] for row in rows] == [2, 8]
    assert all(row["seconds"] > 0 and row["peak_mb"] >= 0 for row in rows)
    plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_holds_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "objective": "vicreg",
        "dtype": "float64",
        "2 ranks": 1e-16,
        "4 ranks": 2e-16,
        "micro-batch": "no",
        "resume": 0.0,
    }
    monkeypatch.setattr(exactness, "bench_exactness", lambda **_: [row])
    monkeypatch.setattr(exactness, "bench_covariance", lambda: [{"world": 2.0, "seconds": 9.0, "ratio": 3.5}])
    memory = [{"batch": 8.0, "micro_batch": float(k), "peak_mb": 3.0 * k, "seconds": 1.0} for k in (2, 4)]
    monkeypatch.setattr(exactness, "bench_micro_batch", lambda: memory)
    text = write_report(tmp_path / "out")
    assert "| `vicreg` | 1.0e-16 | 2.0e-16 | refused: no | 0 |" in text and "| 2 | 3.5 |" in text
    assert (tmp_path / "out" / "exactness.md").read_text() == text
    found = json.loads((tmp_path / "out" / "exactness.json").read_text())
    assert found["rows"] == [row] and found["environment"]["torch"] == torch.__version__
    assert (tmp_path / "out" / "micro_batch.png").is_file()


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(RecipeError, match="no objective 'vicregg'"):
        bench_exactness(objectives=["vicregg"])

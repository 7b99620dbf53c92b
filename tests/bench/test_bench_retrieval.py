import pytest

from jointembed.bench.retrieval import bench_retrieval
from jointembed.errors import EvaluationError


def test_the_benchmark_runs_and_the_loop_finds_the_same_ranks() -> None:
    found = bench_retrieval(images=30, texts=90, dimension=16, repeats=2)
    assert found["loop_agrees"] == 1
    assert found["times_product"] == pytest.approx(found["seconds"] / found["product_seconds"])
    assert found["loop_over_ours"] == pytest.approx(found["loop_seconds"] / found["seconds"])
    assert 0 <= found["above_inputs_mb"] < found["peak_mb"]


def test_texts_must_be_shared_out_evenly() -> None:
    with pytest.raises(EvaluationError, match="texts must be a multiple of images"):
        bench_retrieval(images=30, texts=100)

import pytest

from jointembed.bench.retrieval import bench_retrieval
from jointembed.errors import EvaluationError


def test_the_benchmark_runs_and_the_others_find_the_same() -> None:
    found = bench_retrieval(images=30, texts=90, dimension=16, repeats=2)
    assert found["loop_agrees"] == 1
    assert found["clip_benchmark_apart"] < 1e-4
    for name in ("times_product", "loop_over_ours", "clip_benchmark_over_ours", "product_cpu_seconds"):
        assert found[name] > 0
    assert 0 <= found["above_inputs_mb"] < found["peak_mb"]


def test_texts_must_be_shared_out_evenly() -> None:
    with pytest.raises(EvaluationError, match="texts must be a multiple of images"):
        bench_retrieval(images=30, texts=100)

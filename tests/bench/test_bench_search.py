import pytest

from jointembed.bench.search import bench_search
from jointembed.errors import EvaluationError


def test_every_size_is_measured() -> None:
    found = bench_search(rows=[100, 2000], width=8, repeats=1)
    assert [one["rows"] for one in found] == [100, 2000]
    assert all(one["exact"]["milliseconds"] > 0 and one["exact"]["queries_per_second"] > 0 for one in found)
    assert all(one["exact"]["cpu_milliseconds"] > 0 and one["exact"]["cpu_queries_per_second"] > 0 for one in found)
    assert "ivf_pq" not in found[0]


def test_ivf_pq_brings_its_recall() -> None:
    pytest.importorskip("faiss")
    found = bench_search(rows=[9984], width=8, repeats=1, ivf_pq=True)[0]["ivf_pq"]
    assert 0 < found["recall"] <= 100 and found["queries_per_second"] > 0


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"rows \[0\]"):
        bench_search(rows=[0])

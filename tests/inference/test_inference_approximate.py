import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from embedding_runs import make_embeddings
from pyarrow import parquet
from torch import Tensor

from jointembed.errors import EmbeddingsError, JointEmbedError
from jointembed.inference import approximate
from jointembed.inference.approximate import FEWEST, build_ivf_pq, measure_recall, open_faiss, search_faiss, write_faiss
from jointembed.inference.embeddings import mark_path, parquet_path, read_header, schema
from jointembed.inference.files import sha256_of
from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.inference.nearest import Vectors, nearest

faiss = pytest.importorskip("faiss", reason="the extra faiss is not installed")


def clustered(rows: int, width: int, seed: int) -> Tensor:
    """Vectors around 200 centres, as embeddings are."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(200, width, generator=generator)
    generator.manual_seed(seed)
    chosen = torch.randint(0, 200, (rows,), generator=generator)
    return torch.nn.functional.normalize(centres[chosen] + 0.5 * torch.randn(rows, width, generator=generator))


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors(list(clustered(FEWEST + 16, 16, seed=1).split(6000)), 16)


@pytest.fixture(scope="module")
def ivf_pq(vectors: Vectors) -> Any:
    faiss.omp_set_num_threads(1)
    return build_ivf_pq(vectors)


def test_flat_gives_the_exact_answer(vectors: Vectors) -> None:
    queries = clustered(20, 16, seed=2)
    flat = open_faiss(Path("unused"), "flat", vectors)
    for one, two in zip(search_faiss(flat, queries, vectors, 10), nearest(queries, vectors, 10), strict=True):
        np.testing.assert_array_equal(one, two)


def test_flat_keeps_equal_rows_in_order() -> None:
    row = clustered(1, 16, seed=2)
    equal = Vectors([row.repeat(3, 1), row.repeat(203, 1), -row], 16)
    flat = open_faiss(Path("unused"), "flat", equal)
    flat.search = lambda queries, count: (None, np.arange(206 - count, 206)[None])  # the last of the equal rows
    assert search_faiss(flat, row, equal, 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_recall_is_that_of_the_answers(vectors: Vectors, ivf_pq: Any) -> None:
    queries = clustered(100, 16, seed=3)
    found, exact = search_faiss(ivf_pq, queries, vectors, 10), nearest(queries, vectors, 10)
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found[1], exact[1], strict=True)])
    measured = measure_recall(ivf_pq, vectors, queries, ks=(1, 10))
    assert measured["recall@10"] == pytest.approx(100 * expected) and measured["n_queries"] == 100
    assert measured["recall@10"] > 95


def test_more_probes_find_more_and_all_of_them_nearly_all(vectors: Vectors, ivf_pq: Any) -> None:
    queries, recalls, before = clustered(100, 16, seed=3), [], ivf_pq.nprobe
    for probes in (1, ivf_pq.nlist):
        ivf_pq.nprobe = probes
        recalls.append(measure_recall(ivf_pq, vectors, queries, ks=(10,))["recall@10"])
    ivf_pq.nprobe = before
    assert recalls[0] < 96 and recalls[1] > 99  # an approximation, and a useful one


def test_scores_are_true_cosines_in_order(vectors: Vectors, ivf_pq: Any) -> None:
    queries = clustered(10, 16, seed=4)
    scores, rows = search_faiss(ivf_pq, queries, vectors, 7)
    for number, query in enumerate(queries):
        np.testing.assert_allclose(scores[number], vectors.take(rows[number]) @ query, atol=1e-6)
    assert np.all(np.diff(scores, axis=1) <= 0) and rows.min() >= 0


def test_rows_as_queries_are_measured_without_themselves(vectors: Vectors, ivf_pq: Any) -> None:
    measured = measure_recall(ivf_pq, vectors, None, ks=(1,), count=50)
    assert measured["n_queries"] == 50 and "themselves excluded" in measured["queries"]
    assert measured["recall@1"] < 100  # finding itself would be no feat
    kept = approximate._without(np.array([[4, 7, 9], [7, 8, 9]]), np.array([7, 1]))
    assert kept.tolist() == [[4, 9], [7, 8]]


def test_a_query_with_too_few_candidates_gets_the_exact_answer(vectors: Vectors) -> None:
    index = build_ivf_pq(vectors, lists=200, probes=1)
    queries = clustered(5, 16, seed=5)
    for one, two in zip(search_faiss(index, queries, vectors, 5000), nearest(queries, vectors, 5000), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lists": 0}, "0 lists for"),
        ({"lists": 300}, r"300 lists for \d+ rows; expected 1 to 256"),
        ({"code_bytes": 5}, "codes of 5 bytes for a width of 16; expected a divisor"),
        ({"lists": 8, "probes": 9}, "9 probes of 8 lists"),
    ],
)
def test_numbers_that_do_not_fit_are_named(vectors: Vectors, options: dict, message: str) -> None:
    with pytest.raises(EmbeddingsError, match=message):
        build_ivf_pq(vectors, **options)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(EmbeddingsError, match=r"ivf_pq needs 9984 rows, here are 50"):
        build_ivf_pq(Vectors([clustered(50, 16, seed=0)], 16))


def test_a_damaged_file_and_one_of_other_vectors_are_named(vectors: Vectors, ivf_pq: Any, tmp_path: Path) -> None:
    write_faiss(ivf_pq, tmp_path / "good.faiss")
    assert open_faiss(tmp_path / "good.faiss", "ivf_pq", vectors).nprobe == ivf_pq.nprobe
    with pytest.raises(EmbeddingsError, match="good.faiss: no IVF-PQ of 10 vectors of width 16"):
        open_faiss(tmp_path / "good.faiss", "ivf_pq", Vectors([clustered(10, 16, seed=0)], 16))
    (tmp_path / "cut.faiss").write_bytes((tmp_path / "good.faiss").read_bytes()[:1000])
    with pytest.raises(EmbeddingsError, match="cut.faiss: cannot be read"):
        open_faiss(tmp_path / "cut.faiss", "ivf_pq", vectors)


def test_without_faiss_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(JointEmbedError, match=r"pip install 'jointembed\[faiss\]'"):
        approximate.import_faiss()


def swap_vectors(folder: Path, rows: Tensor) -> None:
    """Put other vectors in the place of those of the one shard, with their mark."""
    table = pyarrow.table(
        {
            "id": [str(number) for number in range(len(rows))],
            "path": [None] * len(rows),
            "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.numpy().reshape(-1)), 16),
        },
        schema=schema(read_header(folder)),
    )
    path = parquet_path(folder, 0)
    parquet.write_table(table, path)
    mark = json.loads(mark_path(folder, 0).read_text())
    mark |= {"rows": len(rows), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    mark_path(folder, 0).write_text(json.dumps(mark))


def test_an_index_of_each_kind_is_built_opened_and_searched(
    model_path: Path, pictures: Path, tmp_path: Path, vectors: Vectors
) -> None:
    embeddings = make_embeddings(model_path, pictures, tmp_path / "embeddings", shard_size=100)
    swap_vectors(embeddings, torch.cat(vectors.parts))
    queries, answers = clustered(30, 16, seed=6), {}
    for kind in ("exact", "flat", "ivf_pq"):
        build_index(embeddings, tmp_path / kind, kind=kind)
        index = Index.open(tmp_path / kind)
        assert index.kind == kind and len(index) == len(vectors)
        answers[kind] = index.search(queries, 10)[1]
    assert np.array_equal(answers["exact"], answers["flat"])
    info = json.loads((tmp_path / "ivf_pq" / "index.json").read_text())
    assert info["ivf_pq"]["code_bytes"] == 4 and {"recall@1", "recall@10", "recall@100"} < set(info["recall"])
    assert np.mean(answers["ivf_pq"] == answers["exact"]) > 0.5
    by_words = build_index(embeddings, tmp_path / "words", kind="ivf_pq", queries=["a red photo", "noise"], lists=50)
    assert by_words.info["recall"]["n_queries"] == 2 and by_words.info["recall"]["queries"] == "queries given"
    assert by_words.info["ivf_pq"]["lists"] == 50

"""FAISS (an extra): `flat`, exact by its own code, and `ivf_pq`, approximate, its recall measured when it is built.

IVF-PQ (Jégou et al. 2011) keeps a few bytes a vector and looks into some of its inverted lists. Its answers here are
candidates only: they are scored again with the vectors themselves, so scores are true cosines and ties in order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EmbeddingsError, JointEmbedError
from jointembed.inference.nearest import SPARE, Vectors, nearest, rescored, settled

BITS = 8  # of a code, so 256 centroids a part
FEWEST = 39 * 2**BITS  # rows that FAISS wants for that many centroids
_TRAINED_ON = 100_000  # rows at most, but 39 a list
_CANDIDATES = 10  # for each answer that is asked for
_ROWS = 65536  # added at once


def import_faiss() -> Any:
    """The module. Raises JointEmbedError saying how to get it."""
    try:
        import faiss
    except ImportError:
        raise JointEmbedError("the kinds flat and ivf_pq need FAISS: pip install 'jointembed[faiss]'") from None
    return faiss


def build_ivf_pq(
    vectors: Vectors, *, lists: int | None = None, code_bytes: int | None = None, probes: int | None = None
) -> Any:
    """Train and fill a `faiss.IndexIVFPQ` over inner products; the same rows give the same index.

    Args:
        vectors: N rows, N at least 39 * 256.
        lists: inverted lists; 4 sqrt(N) where it is not given, and at most N / 39.
        code_bytes: bytes a vector, a divisor of the width; a byte for 4 numbers if None, or the nearest there is.
        probes: lists looked into for a query; an eighth of them if None.

    Raises:
        EmbeddingsError: for too few rows, or numbers that do not fit them.
    """
    faiss = import_faiss()
    count, width = len(vectors), vectors.width
    if count < FEWEST:
        raise EmbeddingsError(f"ivf_pq needs {FEWEST} rows, here are {count}; the kind exact is fast enough for them")
    lists = min(round(4 * count**0.5), count // 39) if lists is None else lists
    if not 1 <= lists <= count // 39:
        raise EmbeddingsError(f"{lists} lists for {count} rows; expected 1 to {count // 39}")
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    code_bytes = min(divisors, key=lambda number: abs(number - width / 4)) if code_bytes is None else code_bytes
    if code_bytes not in divisors:
        raise EmbeddingsError(f"codes of {code_bytes} bytes for a width of {width}; expected a divisor of it")
    probes = max(1, lists // 8) if probes is None else probes
    if not 1 <= probes <= lists:
        raise EmbeddingsError(f"{probes} probes of {lists} lists; expected 1 to {lists}")
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, code_bytes, BITS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.take(sample_rows(count, max(_TRAINED_ON, 39 * lists), seed=0)).numpy())
    for _, block in vectors.blocks(_ROWS):
        index.add(block.numpy())
    index.nprobe = probes
    return index


def sample_rows(count: int, at_most: int, *, seed: int) -> np.ndarray:
    """Different row numbers, ascending, int64; all of them where they are few."""
    if count <= at_most:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False)).astype(np.int64)


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index to a file."""
    import_faiss().write_index(index, str(path))


def open_faiss(path: Path, kind: str, vectors: Vectors) -> Any:
    """The FAISS index of a kind: read for `ivf_pq`, filled from the vectors for `flat`.

    Raises:
        EmbeddingsError: naming the file, where it is no such index of these vectors.
    """
    faiss = import_faiss()
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.width)
        for _, block in vectors.blocks(_ROWS):
            index.add(block.numpy())
        return index
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise EmbeddingsError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(index, faiss.IndexIVFPQ) or (index.d, index.ntotal) != (vectors.width, len(vectors)):
        raise EmbeddingsError(f"{path}: no IVF-PQ of {len(vectors)} vectors of width {vectors.width}")
    return index


def search_faiss(index: Any, queries: Tensor, vectors: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, with candidates from a FAISS index; where it finds fewer than k of them the answer is exact."""
    count = min(k, len(vectors))
    flat = type(index).__name__ == "IndexFlatIP"
    best, wanted = (settled, count + SPARE) if flat else (rescored, count * _CANDIDATES)
    _, found = index.search(queries.contiguous().numpy(), min(wanted, len(vectors)))
    scores = np.empty((len(queries), count), dtype=np.float32)
    rows = np.empty((len(queries), count), dtype=np.int64)
    for number, query in enumerate(queries):
        candidates = found[number][found[number] >= 0]
        if len(candidates) < count:
            exact = nearest(query[None], vectors, count)
            scores[number], rows[number] = exact[0][0], exact[1][0]
        else:
            scores[number], rows[number] = best(query, vectors, candidates, count)
    return scores, rows


def measure_recall(
    index: Any, vectors: Vectors, queries: Tensor | None, *, ks: tuple[int, ...] = (1, 10, 100), count: int = 256
) -> dict[str, Any]:
    """Share of the exact k best that the index finds, mean over queries.

    Args:
        index: from `build_ivf_pq`.
        vectors: what it was built of.
        queries: (Q, D) of length 1; None takes rows of the index, each without itself among its answers.
        ks: depths; those that the rows do not reach are left out.
        count: rows to take where there are no queries.

    Returns:
        `queries`, what they were, `n_queries`, and `recall@k` in percent.
    """
    own = None if queries is not None else sample_rows(len(vectors), count, seed=1)
    asked = vectors.take(own) if own is not None else torch.as_tensor(queries)
    depth = max((k for k in ks if k < len(vectors)), default=1)
    exact = nearest(asked, vectors, depth + (own is not None))[1]
    found = search_faiss(index, asked, vectors, depth + (own is not None))[1]
    if own is not None:
        exact, found = (_without(rows, own) for rows in (exact, found))
    recalls = {
        f"recall@{k}": 100 * float(np.mean([np.isin(a[:k], b[:k]).mean() for a, b in zip(exact, found, strict=True)]))
        for k in ks
        if k <= depth
    }
    kind = "rows of the index, themselves excluded" if own is not None else "queries given"
    return {"queries": kind, "n_queries": len(asked), **recalls}


def _without(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rows (Q, K) with each query's own row taken out, or the last one where it is not among them: (Q, K - 1)."""
    kept = rows != own[:, None]
    kept[kept.all(axis=1), -1] = False
    return rows[kept].reshape(len(rows), -1)

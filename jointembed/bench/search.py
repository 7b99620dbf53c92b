"""Searching an index: seconds to open it, latency of one query, queries a second of many, at several sizes."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from jointembed.errors import EvaluationError
from jointembed.inference.approximate import build_ivf_pq, measure_recall, search_faiss
from jointembed.inference.index import read_vectors
from jointembed.inference.nearest import Vectors, nearest

_PART = 1 << 18  # rows a file
_BATCH = 64  # queries at once


def bench_search(
    *, rows: Sequence[int] = (10_000, 100_000, 1_000_000), width: int = 128, k: int = 10, repeats: int = 5,
    ivf_pq: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure exact search on this machine, with memory-mapped random vectors of length 1, as an index holds them.

    Args:
        rows: sizes N.
        width: D.
        k: answers a query.
        repeats: runs of each, of which the median counts; the first run, which reads the disk, is not counted.
        ivf_pq: measure FAISS's IVF-PQ too, built with its defaults. Random vectors have no clusters: its recall on
            them is far below that on embeddings.

    Returns:
        For each N and kind: `milliseconds` of one query alone and `queries_per_second` of 64 at once; the same of
        processor time, `cpu_...`, which other work on the machine does not lengthen; `recall` of IVF-PQ; `threads`.

    Raises:
        EvaluationError: for sizes below 1.
    """
    if min([*rows, width, k, repeats]) < 1:
        raise EvaluationError(f"rows {list(rows)}, width {width}, k {k}, repeats {repeats}; expected 1 or more")
    return [_measure(count, width, k, repeats, ivf_pq) for count in rows]


def _measure(count: int, width: int, k: int, repeats: int, ivf_pq: bool) -> dict[str, Any]:
    queries = functional.normalize(torch.randn(_BATCH, width, generator=torch.Generator().manual_seed(1)))
    found: dict[str, Any] = {"rows": count, "width": width, "k": k, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        vectors = _stored(Path(folder), count, width)
        found["exact"] = _speed(lambda some: nearest(some, vectors, k), queries, repeats)
        if ivf_pq:
            start = time.perf_counter()
            index = build_ivf_pq(vectors)
            found["ivf_pq"] = {"build_seconds": round(time.perf_counter() - start, 2), "probes": index.nprobe}
            found["ivf_pq"] |= _speed(lambda some: search_faiss(index, some, vectors, k), queries, repeats)
            found["ivf_pq"]["recall"] = measure_recall(index, vectors, queries, ks=(k,))[f"recall@{k}"]
    return found


def _stored(folder: Path, count: int, width: int) -> Vectors:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, count, _PART):
        path = folder / f"{start}.safetensors"
        part = torch.randn(min(_PART, count - start), width, generator=generator)
        save_file({"vectors": functional.normalize(part)}, path)
        parts.append(read_vectors(path, width))
    return Vectors(parts, width)


def _speed(answer: Callable[[torch.Tensor], object], queries: torch.Tensor, repeats: int) -> dict[str, float]:
    found = {}
    for clock, times in zip(("", "cpu_"), _medians(answer, queries, repeats), strict=True):
        found[f"{clock}milliseconds"] = round(1000 * times[0], 3)
        found[f"{clock}queries_per_second"] = round(len(queries) / times[1], 1)
    return found


def _medians(answer: Callable[[torch.Tensor], object], queries: torch.Tensor, repeats: int) -> np.ndarray:
    """Seconds of one query and of all at once, by the clock and of the processor: (2, 2)."""
    times = np.empty((repeats, 2, 2))
    for number, some in enumerate((queries[:1], queries)):
        answer(some)
        for repeat in range(repeats):
            start = time.perf_counter(), time.process_time()
            answer(some)
            times[repeat, :, number] = time.perf_counter() - start[0], time.process_time() - start[1]
    return np.maximum(np.median(times, axis=0), 1e-9)  # a processor's clock may be coarse

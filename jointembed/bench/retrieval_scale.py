"""Retrieval over sharded files as the number of texts grows: seconds and memory, and what they say of a billion."""

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow.parquet import ParquetWriter

from jointembed.bench.retrieval import peak_mb, reset_peak
from jointembed.errors import EvaluationError
from jointembed.evaluation.parts import EmbeddingParts
from jointembed.evaluation.retrieval import summarize
from jointembed.evaluation.sharded import sharded_ranks

CAPTIONS = 5  # texts of each image; all others are distractors
_PART = 65_536  # rows of a file
_GROUP = 8_192  # rows written at a time

Row = dict[str, float]


def bench_retrieval_scale(
    *,
    texts: Sequence[int] = (10_000, 100_000, 1_000_000),
    images: int = 1_000,
    dimension: int = 128,
    repeats: int = 1,
    target: int = 1_000_000_000,
) -> dict[str, Any]:
    """Measure `sharded_ranks` on parquet files, one process a size, and extrapolate.

    Every image is a query against all texts; five texts of each are its captions, and these are queries against all
    images; the other texts are only candidates. So the queries are the same at every size; the work is I x T scores.

    Args:
        texts: T of each measurement, rising, at least two.
        images: I.
        dimension: D.
        repeats: measurements of each; the fastest counts.
        target: T to extrapolate to.

    Returns:
        `rows`, one a size (`texts`, `images`, `seconds`, `peak_mb` of the process, `added_mb` above what it had after
        its imports, `i2t_R@1`); `formula` in words and numbers, from the last two sizes: both grow linearly in T at
        a fixed I; and `extrapolated`, to the target.

    Raises:
        EvaluationError: for sizes that do not rise, or are too small for the captions.
    """
    sizes = list(texts)
    if len(sizes) < 2 or sorted(set(sizes)) != sizes or sizes[0] < CAPTIONS * images:
        raise EvaluationError(
            f"texts {sizes}: expected two or more rising sizes, the first at least {CAPTIONS * images}"
        )
    rows = []
    for size in sizes:
        with TemporaryDirectory() as folder:
            write_parts(Path(folder), images, size, dimension)
            rows.append(min((_measured(folder, images, size) for _ in range(repeats)), key=lambda row: row["seconds"]))
    return {"rows": rows, "threads": torch.get_num_threads()} | extrapolate(rows, images, dimension, target)


def extrapolate(rows: Sequence[Row], images: int, dimension: int, target: int) -> dict[str, Any]:
    """Lines through the last two measurements, and their values at `target` texts."""
    one, two = rows[-2:]
    span = two["texts"] - one["texts"]
    slopes = {name: (two[name] - one[name]) / span for name in ("seconds", "peak_mb")}
    starts = {name: two[name] - slope * two["texts"] for name, slope in slopes.items()}
    at = {name: starts[name] + slopes[name] * target for name in slopes}
    return {
        "formula": (
            f"T texts of width {dimension}, {images} images: "
            f"seconds = {starts['seconds']:.3g} + {slopes['seconds']:.3g} T, "
            f"peak MB = {starts['peak_mb']:.4g} + {slopes['peak_mb']:.3g} T"
        ),
        "extrapolated": {"texts": target, "seconds": at["seconds"], "peak_mb": at["peak_mb"]},
    }


def _measured(folder: str, images: int, texts: int) -> Row:
    """One measurement, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once, and nothing of this process's memory
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, folder, images, texts, torch.get_num_threads()))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise EvaluationError(f"the measurement of {texts} texts died") from None
    finally:
        process.join()


def _work(connection: Connection, folder: str, images: int, texts: int, threads: int) -> None:
    torch.set_num_threads(threads)
    before = reset_peak()
    start = time.perf_counter()
    owner = np.arange(CAPTIONS * images) // CAPTIONS
    pairs = np.stack([owner, np.arange(CAPTIONS * images)], axis=1)
    parts = EmbeddingParts(Path(folder) / "image"), EmbeddingParts(Path(folder) / "text")
    ranks = sharded_ranks(*parts, pairs, missing="ignore")
    seconds, peak = time.perf_counter() - start, peak_mb()
    row = {"texts": texts, "images": images, "seconds": seconds, "peak_mb": peak, "added_mb": peak - before}
    connection.send(row | {"i2t_R@1": summarize(ranks)["i2t_R@1"]})


def write_parts(folder: Path, images: int, texts: int, dimension: int) -> None:
    """Embeddings as `jointembed embed` writes them; the first texts are the captions, image by image."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, dimension), dtype=np.float32)
    _write(folder / "image", images, dimension, lambda start, stop: image[start:stop])

    def text(start: int, stop: int) -> np.ndarray:
        rows = rng.standard_normal((stop - start, dimension), dtype=np.float32)
        captions = max(0, min(stop, CAPTIONS * images) - start)
        rows[:captions] = rows[:captions] + 0.35 * image[np.arange(start, start + captions) // CAPTIONS]
        return rows

    _write(folder / "text", texts, dimension, text)


def _write(folder: Path, count: int, dimension: int, rows: Any) -> None:
    folder.mkdir()
    schema = pyarrow.schema({"id": pyarrow.string(), "vector": pyarrow.list_(pyarrow.float32(), dimension)})
    for number, first in enumerate(range(0, count, _PART)):
        last = min(first + _PART, count)
        with ParquetWriter(folder / f"part-{number:06d}.parquet", schema) as file:
            for start in range(first, last, _GROUP):
                stop = min(start + _GROUP, last)
                vectors = pyarrow.FixedSizeListArray.from_arrays(rows(start, stop).ravel(), dimension)
                file.write_table(pyarrow.table([[str(one) for one in range(start, stop)], vectors], schema=schema))

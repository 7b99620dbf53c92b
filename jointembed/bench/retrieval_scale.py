"""Retrieval over sharded files as the number of texts grows: seconds and memory, and what they say of a billion."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyarrow.parquet import ParquetWriter

from jointembed.bench.processes import Tensors, run_processes
from jointembed.bench.retrieval import peak_mb, reset_peak
from jointembed.errors import EvaluationError
from jointembed.evaluation.parts import EmbeddingParts
from jointembed.evaluation.retrieval import retrieval_ranks, summarize

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
    """Measure `retrieval_ranks` on parquet files, one process of one thread a size, and extrapolate.

    Every image is a query against all texts; five texts of each are its captions, and these are queries against all
    images; the other texts are only candidates. So the queries are the same at every size; the work is I x T scores.

    Args:
        texts: T of each measurement, rising, at least two.
        images: I.
        dimension: D.
        repeats: measurements of each; the fastest counts.
        target: T to extrapolate to.

    Returns:
        `rows`, one a size (`texts`, `images`, `seconds`, `cpu_seconds` of the process, its `peak_mb`, `added_mb` above
        what it had after its imports, `i2t_R@1`); `formula` in words and numbers, from the last two sizes: both grow
        linearly in T at a fixed I; and `extrapolated`, to the target.

    Raises:
        EvaluationError: for sizes that do not rise, or are too small for the captions.
    """
    sizes = list(texts)
    if len(sizes) < 2 or sorted(set(sizes)) != sizes or sizes[0] < CAPTIONS * images:
        raise EvaluationError(
            f"texts {sizes}: expected two or more rising sizes, the first at least {CAPTIONS * images}"
        )
    rows: list[Row] = []
    for size in sizes:
        with TemporaryDirectory() as folder:
            write_parts(Path(folder), images, size, dimension)
            found = [run_processes(1, work, folder, images, size)[0] for _ in range(repeats)]
        best = min(found, key=lambda one: float(one["seconds"]))
        names = ("seconds", "cpu_seconds", "peak_mb", "added_mb", "i2t_R@1")
        rows.append({"texts": float(size), "images": float(images)} | {name: float(best[name]) for name in names})
    return {"rows": rows} | extrapolate(rows, images, dimension, target)


def extrapolate(rows: Sequence[Row], images: int, dimension: int, target: int) -> dict[str, Any]:
    """Lines through the last two measurements, and their values at `target` texts."""
    one, two = rows[-2:]
    span = two["texts"] - one["texts"]
    slopes = {name: (two[name] - one[name]) / span for name in ("seconds", "cpu_seconds", "peak_mb")}
    starts = {name: two[name] - slope * two["texts"] for name, slope in slopes.items()}
    at = {name: starts[name] + slopes[name] * target for name in slopes}
    return {
        "formula": f"T texts of width {dimension}, {images} images: "
        + ", ".join(f"{name} = {starts[name]:.4g} + {slope:.3g} T" for name, slope in slopes.items()),
        "extrapolated": {"texts": target, **at},
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """CPU seconds and peak memory over the number of texts, as PNG; both from 0, else small growth looks large.

    The folder is made where need be.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 2)
    for axis, key, label in zip(axes, ("cpu_seconds", "peak_mb"), ("CPU seconds", "peak memory, MB"), strict=True):
        axis.plot([row["texts"] for row in rows], [row[key] for row in rows], marker="o")
        axis.set(xscale="log", xlabel="texts", ylabel=label, ylim=(0, 1.1 * max(row[key] for row in rows)))
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def work(folder: str, images: int, texts: int) -> Tensors:
    """One measurement, in a process of its own and on one thread."""
    before = reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    owner = np.arange(CAPTIONS * images) // CAPTIONS
    pairs = np.stack([owner, np.arange(CAPTIONS * images)], axis=1)
    parts = EmbeddingParts(Path(folder) / "image"), EmbeddingParts(Path(folder) / "text")
    ranks = retrieval_ranks(*parts, pairs, missing="ignore")
    row = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    row |= {"peak_mb": peak_mb(), "added_mb": peak_mb() - before, "i2t_R@1": summarize(ranks)["i2t_R@1"]}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()}


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

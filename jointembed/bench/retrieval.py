"""Retrieval ranks: time and memory, beside the bare matrix product and a loop over queries."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import retrieval_ranks

_SAMPLE = 50  # images whose queries the loop is timed on

Report = dict[str, float]


def bench_retrieval(*, images: int = 5000, texts: int = 25000, dimension: int = 1024, repeats: int = 3) -> Report:
    """Measure `retrieval_ranks` in both directions, on this machine, with random embeddings of equally many texts each.

    The competitors take turns, and the best of the repeats counts. The product is one call that writes all scores to
    memory held before. The loop is the evaluation of VSE++: for each query one product, one sort, and a search for
    the positives; it is timed on a sample of queries, and the time of all of them follows.

    Args:
        images: I.
        texts: T, a multiple of I.
        dimension: D.
        repeats: rounds.

    Returns:
        `seconds`, `product_seconds`, `loop_seconds`; `times_product` and `loop_over_ours`, their ratios;
        `peak_mb`, the process's resident peak during `retrieval_ranks`, and `above_inputs_mb`, what it added to the
        embeddings; `loop_agrees`, the share of sampled queries that both give the same rank; and `threads`.

    Raises:
        EvaluationError: if texts is not a multiple of images, or there are no repeats.
    """
    if images < 1 or texts < 1 or texts % images or repeats < 1:
        raise EvaluationError(f"images {images}, texts {texts}, repeats {repeats}: texts must be a multiple of images")
    captions = texts // images
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, dimension, generator=generator))
    text = torch.randn(texts, dimension, generator=generator)
    for row in range(captions):  # in place: the peak of making the inputs must not hide that of using them
        text[row::captions].mul_(0.1).add_(image, alpha=0.5)
    torch.nn.functional.normalize(text, out=text)
    pairs = np.stack([np.arange(texts) // captions, np.arange(texts)], axis=1)
    before = reset_peak()
    ranks = retrieval_ranks(image, text, pairs)
    peak = peak_mb()
    scores = torch.empty(images, texts)
    sample = np.unique(np.linspace(0, images - 1, min(_SAMPLE, images)).astype(int))
    turns: dict[str, Callable[[], object]] = {
        "seconds": lambda: retrieval_ranks(image, text, pairs),
        "product_seconds": lambda: torch.mm(image, text.T, out=scores),
        "loop_seconds": lambda: _loop(image.numpy(), text.numpy(), sample, captions),
    }
    best = {name: min(times) for name, times in _alternate(turns, repeats).items()}
    best["loop_seconds"] *= images / len(sample)
    ours = np.concatenate([ranks.i2t.rank[sample], ranks.t2i.rank.reshape(-1, captions)[sample].ravel()])
    return best | {
        "times_product": best["seconds"] / best["product_seconds"],
        "loop_over_ours": best["loop_seconds"] / best["seconds"],
        "peak_mb": peak,
        "above_inputs_mb": peak - before,
        "loop_agrees": float(np.mean(ours == _loop(image.numpy(), text.numpy(), sample, captions))),
        "threads": float(torch.get_num_threads()),
    }


def _alternate(turns: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            times[name].append(time.perf_counter() - start)
    return times


def _loop(image: np.ndarray, text: np.ndarray, sample: np.ndarray, captions: int) -> np.ndarray:
    """Ranks of the sampled images, then of their captions, one query at a time."""
    i2t, t2i = [], []
    for i in sample:
        order = np.argsort(image[i] @ text.T)[::-1]
        own = range(captions * i, captions * i + captions)
        i2t.append(min(int(np.flatnonzero(order == t)[0]) for t in own) + 1)
        for row in text[own.start : own.stop] @ image.T:
            t2i.append(int(np.flatnonzero(np.argsort(row)[::-1] == i)[0]) + 1)
    return np.array(i2t + t2i)


def reset_peak() -> float:
    """Forget the peak so far, where Linux lets us, and return the resident size in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux: the peak is that of the whole process
        return peak_mb()
    return _status("VmRSS")


def peak_mb() -> float:
    """Largest resident size since `reset_peak`, in MB."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

"""Retrieval ranks: time and memory, beside the bare product, CLIP-benchmark's formula and a loop over queries."""

import resource
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jointembed.bench.measure import Turn, take_turns
from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import retrieval_ranks, summarize

_SAMPLE = 50  # images whose queries the loop is timed on
_QUERIES = 64  # at once, in CLIP-benchmark's formula
_K = (1, 5, 10)

Report = dict[str, float]


def bench_retrieval(*, images: int = 5000, texts: int = 25000, dimension: int = 1024, repeats: int = 3) -> Report:
    """Measure `retrieval_ranks` in both directions, on this machine, with random embeddings of equally many texts each.

    The competitors take turns; medians of their processor time count. The product is one call that writes all scores to
    memory held before. The loop is the evaluation of VSE++: for each query one product, one sort, and a search for
    the positives; it is timed on a sample of queries, and the time of all of them follows. CLIP-benchmark's formula is
    written plainly: the product, then for R@1, R@5 and R@10 the best K of each query as one-hot rows, times the truth.

    Args:
        images: I.
        texts: T, a multiple of I.
        dimension: D.
        repeats: rounds.

    Returns:
        `cpu_seconds` of `retrieval_ranks` and of each competitor (`product_cpu_seconds`, `loop_`, `clip_benchmark_`);
        `times_product`, `loop_over_ours` and `clip_benchmark_over_ours`, the medians of their ratios, round by round;
        `peak_mb`, the process's resident peak during `retrieval_ranks`, and `above_inputs_mb`, what it added to the
        embeddings; `loop_agrees`, the share of sampled queries that both give the same rank;
        `clip_benchmark_apart`, the largest difference of an R@K in percent; and `threads`.

    Raises:
        EvaluationError: if texts is not a multiple of images, or there are no repeats.
    """
    if images < 1 or texts < 1 or texts % images or repeats < 1:
        raise EvaluationError(f"images {images}, texts {texts}, repeats {repeats}: texts must be a multiple of images")
    captions = texts // images
    image, text = made_up(images, texts, dimension)
    pairs = np.stack([np.arange(texts) // captions, np.arange(texts)], axis=1)
    before = reset_peak()
    ranks = retrieval_ranks(image, text, pairs)
    peak = peak_mb()
    scores = torch.empty(images, texts)
    sample = np.unique(np.linspace(0, images - 1, min(_SAMPLE, images)).astype(int))
    turns: dict[str, Turn] = {
        "": lambda: retrieval_ranks(image, text, pairs),
        "product_": lambda: torch.mm(image, text.T, out=scores),
        "loop_": lambda: _loop(image.numpy(), text.numpy(), sample, captions),
        "clip_benchmark_": lambda: clip_benchmark_recalls(image, text, captions),
    }
    times = {name: [one.cpu for one in own] for name, own in take_turns(turns, repeats).items()}
    times["loop_"] = [one * images / len(sample) for one in times["loop_"]]
    over = {
        name: statistics.median(other / ours for other, ours in zip(own, times[""], strict=True))
        for name, own in times.items()
    }
    ours = np.concatenate([ranks.i2t.rank[sample], ranks.t2i.rank.reshape(-1, captions)[sample].ravel()])
    numbers, theirs = summarize(ranks), clip_benchmark_recalls(image, text, captions)
    return {f"{name}cpu_seconds": statistics.median(own) for name, own in times.items()} | {
        "times_product": 1 / over["product_"],
        "loop_over_ours": over["loop_"],
        "clip_benchmark_over_ours": over["clip_benchmark_"],
        "peak_mb": peak,
        "above_inputs_mb": peak - before,
        "loop_agrees": float(np.mean(ours == _loop(image.numpy(), text.numpy(), sample, captions))),
        "clip_benchmark_apart": max(abs(numbers[name] - value) for name, value in theirs.items()),
        "threads": float(torch.get_num_threads()),
    }


def made_up(images: int, texts: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Unit rows (I, D) and (T, D), T / I texts near each image, image by image."""
    captions = texts // images
    generator = torch.Generator().manual_seed(0)
    image = functional.normalize(torch.randn(images, dimension, generator=generator))
    text = torch.randn(texts, dimension, generator=generator)
    for row in range(captions):  # in place: the peak of making the inputs must not hide that of using them
        text[row::captions].mul_(0.1).add_(image, alpha=0.5)
    functional.normalize(text, out=text)
    return image, text


def clip_benchmark_recalls(image: Tensor, text: Tensor, captions: int) -> dict[str, float]:
    """R@K in percent as CLIP-benchmark's zero-shot retrieval defines it: whether the best K hold a positive.

    Args:
        image: (I, D) unit rows.
        text: (T, D) unit rows, `captions` of each image, image by image.
        captions: T / I.
    """
    scores = text @ image.T
    owner = torch.arange(len(text)) // captions
    truth = torch.zeros(scores.shape, dtype=torch.bool)
    truth[torch.arange(len(text)), owner] = True
    found = {}
    for k in _K:
        for name, own, positive in (("t2i", scores, truth), ("i2t", scores.T, truth.T)):
            parts = zip(own.split(_QUERIES), positive.split(_QUERIES), strict=True)
            hits = torch.cat([_recall(*part, min(k, own.shape[1])) > 0 for part in parts])
            found[f"{name}_R@{k}"] = 100 * hits.float().mean().item()
    return found


def _recall(scores: Tensor, positive: Tensor, k: int) -> Tensor:
    """Share of each query's positives among its best k: (Q, C) twice to (Q,)."""
    best = functional.one_hot(scores.topk(k, dim=1).indices, scores.shape[1])
    return (best * positive[:, None]).sum((1, 2)) / positive.sum(1)


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

"""Top-1 and top-5 accuracy from the rank of each row's true class."""

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError

TOP = (1, 5)


def true_ranks(scores: Tensor, label: Tensor) -> np.ndarray:
    """How many classes come before the true one; of equal scores the class with the smaller number comes first.

    So a constant score is right for class 0 alone, which is chance where classes are equally frequent.

    Args:
        scores: (N, C) of each class, higher is better.
        label: (N,) int64, 0 .. C-1.

    Returns:
        (N,) int64, 0 for a right top-1 answer.
    """
    own = scores.gather(1, label[:, None])
    smaller = torch.arange(scores.shape[1], device=scores.device) < label[:, None]
    before = (scores > own) | ((scores == own) & smaller)
    return before.sum(1).cpu().numpy()


def accuracies(name: str, rank: np.ndarray) -> dict[str, float]:
    """Percent of rows whose true class is the first, and among the first five: `<name>_top1`, `<name>_top5`."""
    return {f"{name}_top{top}": 100 * float(np.mean(rank < top)) for top in TOP}


def check_labelled(side: str, rows: Tensor, label: Tensor) -> None:
    """Raise EvaluationError, naming the side, unless rows are finite (N, R) with N > 0 and labels (N,) int64 from 0."""
    if rows.ndim != 2 or not len(rows):
        raise EvaluationError(f"{side} features have shape {tuple(rows.shape)}; expected rows x dimensions")
    if label.dtype != torch.int64 or label.shape != (len(rows),):
        raise EvaluationError(f"{side}: {len(rows)} rows, but labels are {label.dtype} of shape {tuple(label.shape)}")
    if int(label.min()) < 0:
        raise EvaluationError(f"{side}: row {int(label.argmin())} has label {int(label.min())}; expected 0 or more")
    finite = torch.isfinite(rows.sum(1, dtype=torch.float64))  # a sum of finite float32 is finite in float64
    if not bool(finite.all()):
        raise EvaluationError(f"{side} features: row {int((~finite).nonzero()[0])} holds a value that is not finite")

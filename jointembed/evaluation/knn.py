"""Weighted k-nearest-neighbour classification of features (Wu et al., CVPR 2018, section 3.4).

Letters: N train rows, U different ones, M test rows, R dimensions, C classes, K the largest k.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.accuracy import TOP, accuracies, check_labelled, true_ranks
from jointembed.evaluation.rows import Rows, full_precision, read_rows

_SCORES = 1 << 24  # of a block: 64 MB
_TRAIN_ROWS = 1 << 16  # of a block


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, `knn<k>_top1` and `knn<k>_top5` for each k; see `knn_ranks`."""
    ranks = knn_ranks(train, train_labels, test, test_labels, k=k, temperature=temperature)
    return {name: value for one, rank in ranks.items() for name, value in accuracies(f"knn{one}", rank).items()}


def knn_ranks(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[int, np.ndarray]:
    """Classify each test row by its k neighbours of highest cosine, each voting exp(cosine / temperature).

    Of equally near train rows the earlier ones are neighbours, of classes with equal votes the smaller number wins;
    equal rows are equally near to the bit. A class without a vote is no answer, not even among the first five.

    Args:
        train: (N, R) of any floating type, on one device with `test`.
        train_labels: (N,) int64.
        test: (M, R).
        test_labels: (M,) int64.
        k: numbers of neighbours.
        temperature: of the votes.

    Returns:
        k -> (M,) int64: how many classes come before the true one; where that has no vote, C or 5, whichever is more.

    Raises:
        EvaluationError: for more neighbours than train rows, rows and labels that do not fit, or values that are not
            finite.
    """
    check_labelled("train", train, train_labels)
    check_labelled("test", test, test_labels)
    if train.shape[1] != test.shape[1]:
        raise EvaluationError(f"train features have {train.shape[1]} dimensions, test features {test.shape[1]}")
    if not k or min(k) < 1 or max(k) > len(train):
        raise EvaluationError(f"k is {list(k)}; expected numbers of neighbours from 1 to the {len(train)} train rows")
    if not temperature > 0:
        raise EvaluationError(f"temperature is {temperature}; expected a number above 0")
    device = train.device
    with full_precision(device):
        known = read_rows("train", train, normalize=True, device=device)
        asked = read_rows("test", test, normalize=True, device=device)
        cosine, neighbour = _neighbours(asked.values, known, max(k))
    row = torch.from_numpy(asked.row)
    labels, true = train_labels.cpu(), test_labels.cpu()
    classes = 1 + int(max(labels.max(), true.max()))
    return {one: _vote(cosine[:, :one] / temperature, labels[neighbour[:, :one]], row, true, classes) for one in k}


def _neighbours(test: Tensor, train: Rows, k: int) -> tuple[Tensor, Tensor]:
    """Cosines, descending, and numbers of the k nearest train rows: (M, k) float64 and int64, on the CPU."""
    height = max(1, _SCORES // min(_TRAIN_ROWS, len(train.values)))
    parts = [_nearest(block, train.values, k) for block in test.split(height)]
    cosine, different = (torch.cat(part) for part in zip(*parts, strict=True))  # (M, min(k, U))
    start, members = torch.from_numpy(train.start), torch.from_numpy(train.members)
    count = (start[1:] - start[:-1])[different]  # rows that share these values
    last = count.cumsum(1)
    place = torch.arange(k).expand(len(test), k).contiguous()
    slot = torch.searchsorted(last, place, right=True)
    left = last.gather(1, slot) - place  # of the rows of the slot, this one counted
    neighbour = members[start[different.gather(1, slot) + 1] - left]
    mixed = (cosine[:, 1:] == cosine[:, :-1]) & ((count[:, 1:] > 1) | (count[:, :-1] > 1))
    for row in mixed.any(1).nonzero()[:, 0]:  # different values, equally near, each of several rows: rare
        neighbour[row] = _in_order(cosine[row], different[row], train, k)
    return cosine.gather(1, slot).double(), neighbour


def _in_order(cosine: Tensor, different: Tensor, train: Rows, k: int) -> Tensor:
    """The k nearest rows of one test row by cosine, then number; the cosines in their order stay what they were."""
    shares = [train.members[train.start[one] : train.start[one + 1]][:k] for one in different]
    number = np.concatenate(shares)
    near = cosine.numpy().repeat([len(share) for share in shares])
    return torch.from_numpy(number[np.lexsort((number, -near))[:k]])


def _nearest(test: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the different train rows, the earlier one where two are equally near: on the CPU."""
    best, number = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for first in range(0, len(train), _TRAIN_ROWS):
        scores = test @ train[first : first + _TRAIN_ROWS].T
        value, index = _top(scores, k)
        best, index = torch.cat([best, value], 1), torch.cat([number, index + first], 1)
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, number = best[:, :k], index.gather(1, order)[:, :k]
    return best.cpu(), number.cpu()


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `topk`, in descending order, the smaller column first where two are equal."""
    k = min(k, scores.shape[1])
    value, index = scores.topk(k, dim=1)
    level = value[:, -1:]
    unsure = (scores == level).sum(1) > (value == level).sum(1)  # `topk` left out some that equal its last
    if bool(unsure.any()):
        whole = scores[unsure].sort(dim=1, descending=True, stable=True)
        value[unsure], index[unsure] = whole.values[:, :k], whole.indices[:, :k]
    index, order = index.sort(dim=1)
    value, again = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    return value, index.gather(1, again)


def _vote(logits: Tensor, labels: Tensor, row: Tensor, true: Tensor, classes: int) -> np.ndarray:
    """Ranks of the true classes.

    Args:
        logits: (V, k) of the different test rows; their exponentials are the votes.
        labels: (V, k) classes of the neighbours.
        row: (M,) the different row that each test row is.
        true: (M,) classes of the test rows.
        classes: C.
    """
    found = np.empty(len(row), dtype=np.int64)
    nowhere = max(classes, *TOP)  # outside the first five, however few classes there are
    step = max(1, _SCORES // classes)
    for first in range(0, len(row), step):
        some = row[first : first + step]
        weight = torch.exp(logits[some] - logits[some, :1])  # a common factor of a row changes no order
        votes = torch.zeros(len(some), classes, dtype=torch.float64).scatter_add_(1, labels[some], weight)
        own = true[first : first + step]
        rank = true_ranks(votes, own)
        found[first : first + step] = np.where(votes.gather(1, own[:, None])[:, 0].numpy() > 0, rank, nowhere)
    return found

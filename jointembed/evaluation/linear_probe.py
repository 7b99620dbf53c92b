"""Linear classifiers on cached features: a fast sweep, a converged one, and the published protocols.

Letters: N rows, R dimensions, C classes, P probes that are trained at once. All gradients are written out, so nothing
can flow into an encoder. Training with augmentation, through the frozen encoder, is a run of the loop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jointembed.errors import EvaluationError
from jointembed.evaluation.accuracy import accuracies, check_labelled, true_ranks
from jointembed.evaluation.rows import full_precision

_AT_ONCE = 1 << 24  # numbers of a block: 64 MB in float32


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of classes: rows @ weight + bias."""

    weight: Tensor  # (R, C)
    bias: Tensor  # (C,)

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, R) to (N, C)."""
        with full_precision(rows.device):
            blocks = rows.split(max(1, _AT_ONCE // max(self.weight.shape)))
            return torch.cat([block.to(self.weight.dtype) @ self.weight + self.bias for block in blocks])

    def accuracies(self, name: str, test: Tensor, test_labels: Tensor) -> dict[str, float]:
        """Percent: `<name>_top1`, `<name>_top5`."""
        return accuracies(name, true_ranks(self(test), test_labels))


@dataclass(frozen=True)
class ProbeProtocol:
    """How a paper trains its linear classifier, on each epoch's batches in random order, by SGD."""

    lr: float
    epochs: int
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-6  # of the bias, too
    steps: tuple[int, ...] = ()  # epochs from which the rate is a tenth of what it was; where empty, half a cosine to 0

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, the same in all its steps."""
        if self.steps:
            return self.lr * 0.1 ** sum(epoch >= step for step in self.steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


# VICReg (Bardes et al., ICLR 2022): the authors' evaluate.py on ImageNet, learning rates and epochs of the paper on the
# other two. What the paper leaves open there, tenfold steps and decay, is as in VISSL's benchmark, which it names.
PROTOCOLS = {
    "imagenet": ProbeProtocol(lr=0.02, epochs=100),
    "places205": ProbeProtocol(lr=0.003, epochs=28, weight_decay=1e-4, steps=(7, 14, 21)),
    "inat18": ProbeProtocol(lr=0.005, epochs=84, weight_decay=1e-4, steps=(24, 48, 72)),
}


# -- by a published protocol ------------------------------------------------------------------------------------------


def protocol_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    protocol: ProbeProtocol = PROTOCOLS["imagenet"],
    seed: int = 0,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, `protocol_top1` and `protocol_top5`, on features without augmentation.

    The published numbers are trained with random crops and flips; these are a little lower, or higher where the
    training set is large.

    Args:
        train: (N, R) on one device with `test`.
        train_labels: (N,) int64.
        test: (M, R).
        test_labels: (M,) int64.
        protocol: one of `PROTOCOLS`, or another.
        seed: of the start and of the order.

    Raises:
        EvaluationError: for rows and labels that do not fit, values that are not finite, or training that diverges.
    """
    classes = _check(train, train_labels, test, test_labels)
    given = train.new_tensor([1.0]), train.new_tensor([protocol.weight_decay])
    weight = _sgd(_with_one(train.float()), train_labels, classes, *given, protocol, seed)[:, 0]
    if not bool(weight.isfinite().all()):
        raise EvaluationError(f"the linear classifier diverged at learning rate {protocol.lr}")
    return LinearClassifier(weight[:-1], weight[-1]).accuracies("protocol", test, test_labels)


# -- fast: a sweep ----------------------------------------------------------------------------------------------------


def fast_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    rates: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    l2: Sequence[float] = (0.0, 1e-4, 1e-3, 1e-2),
    epochs: int = 30,
    batch: int = 256,
    held_out: float = 0.1,
    seed: int = 0,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, `linear_top1` and `linear_top5`; the choice `linear_lr` and `linear_l2`.

    See `fit_fast`.
    """
    classes = _check(train, train_labels, test, test_labels)
    classifier, choice = fit_fast(
        train, train_labels, classes, rates=rates, l2=l2, epochs=epochs, batch=batch, held_out=held_out, seed=seed
    )
    return classifier.accuracies("linear", test, test_labels) | {f"linear_{name}": one for name, one in choice.items()}


def fit_fast(
    train: Tensor,
    train_labels: Tensor,
    classes: int,
    *,
    rates: Sequence[float],
    l2: Sequence[float],
    epochs: int,
    batch: int,
    held_out: float,
    seed: int,
) -> tuple[LinearClassifier, dict[str, float]]:
    """Train a classifier for every rate and L2 at once, choose by accuracy on rows held out, train it on all rows.

    Features are centred and divided by their standard deviation, or by a thousandth of their root mean square where
    that is larger, so that one grid of rates serves any encoder and rounding noise is not blown up to a feature. SGD
    with momentum .9 and half a cosine. The test rows have no part in it.

    Args:
        train: (N, R).
        train_labels: (N,) int64, 0 .. C-1.
        classes: C.
        rates: peak learning rates times R: with R features of unit variance the largest stable one goes as 1 / R.
        l2: weight decays; every pair of both is tried.
        epochs: of each training.
        batch: rows a step.
        held_out: share of the rows that chooses, spread evenly over the classes; above 0 and below 1.
        seed: of the choice of these rows, of the start and of the order.

    Returns:
        The classifier, and the `lr` and `l2` that were chosen.

    Raises:
        EvaluationError: for fewer than two rows, a share that is none, an empty grid, or if every rate diverges.
    """
    if len(train) < 2 or not 0 < held_out < 1 or not rates or not l2:
        raise EvaluationError(
            f"{len(train)} train rows, {held_out} of them held out, {len(rates)} rates and {len(l2)} L2: no sweep"
        )
    rows = train.float()
    centre = rows.mean(0)
    scale = rows.std(0).clamp_min(1e-3 * float(rows.square().mean().sqrt()) + 1e-30)
    x = _with_one((rows - centre) / scale)
    chosen_by, trained_on = _held_out(train_labels.cpu().numpy(), held_out, seed)
    lr = x.new_tensor([rate / rows.shape[1] for rate in rates for _ in l2])
    decay = x.new_tensor([one for _ in rates for one in l2])
    protocol = ProbeProtocol(lr=1.0, epochs=epochs, batch=batch)
    weight = _sgd(x[trained_on], train_labels[trained_on], classes, lr, decay, protocol, seed)  # (R + 1, P, C)
    right = _right(x[chosen_by], train_labels[chosen_by], weight)
    best = int(right.argmax())
    if float(right[best]) < 0:
        raise EvaluationError(f"every learning rate of {list(rates)} diverged")
    final = _sgd(x, train_labels, classes, lr[best : best + 1], decay[best : best + 1], protocol, seed)[:, 0]
    slope = final[:-1] / scale[:, None]
    classifier = LinearClassifier(slope, final[-1] - centre @ slope)
    return classifier, {"lr": rates[best // len(l2)], "l2": l2[best % len(l2)]}


def _held_out(label: np.ndarray, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the rows held out, every so-many-th where they are shuffled within classes, and of the others."""
    order = np.random.default_rng([seed, 1]).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    place = np.arange(len(label))
    is_out = np.floor((place + 1) * share) > np.floor(place * share)
    if not is_out.any() or is_out.all():
        is_out = place == 0
    return torch.from_numpy(np.sort(order[is_out])), torch.from_numpy(np.sort(order[~is_out]))


def _right(x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """(P,) right answers; -1 where a probe diverged."""
    counts = [
        int((true_ranks(LinearClassifier(one[:-1], one[-1])(x[:, :-1]), label) == 0).sum())
        if bool(one.isfinite().all())
        else -1
        for one in weight.unbind(1)
    ]
    return torch.tensor(counts)


# -- SGD of many probes -----------------------------------------------------------------------------------------------


def _sgd(
    x: Tensor, label: Tensor, classes: int, lr: Tensor, decay: Tensor, protocol: ProbeProtocol, seed: int
) -> Tensor:
    """Weights of P probes, (R + 1, P, C), the bias last, trained on the same batches.

    As `torch.optim.SGD`: decay joins the gradient, momentum the sum of both, and the rate multiplies at the end.

    Args:
        x: (N, R + 1), the last column 1.
        label: (N,).
        classes: C.
        lr: (P,) factors of the protocol's rate.
        decay: (P,), in place of the protocol's.
        protocol: the rest.
        seed: of start and order.
    """
    start = 0.01 * torch.randn(x.shape[1] - 1, 1, classes, generator=torch.Generator().manual_seed(seed))
    weight = torch.cat([start, torch.zeros(1, 1, classes)]).to(x).repeat(1, len(lr), 1)
    momentum = torch.zeros_like(weight)
    with full_precision(x.device):
        for epoch in range(protocol.epochs):
            rate = (lr * protocol.rate(epoch))[:, None]
            order = torch.from_numpy(np.random.default_rng([seed, 0, epoch]).permutation(len(x))).to(x.device)
            for some in order.split(protocol.batch):
                gradient = _gradient(x[some], label[some], weight)
                momentum.mul_(protocol.momentum).add_(gradient.addcmul_(weight, decay[:, None]))
                weight.addcmul_(momentum, rate, value=-1)
    return weight


def _gradient(x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Of the mean cross-entropy in weights (R + 1, P, C)."""
    logits = (x @ weight.flatten(1)).view(len(x), *weight.shape[1:])
    error = logits.softmax(2)
    error.scatter_add_(
        2, label[:, None, None].expand(-1, error.shape[1], 1), error.new_full(error.shape[:2], -1)[..., None]
    )
    return (x.T @ error.flatten(1).div_(len(x))).view_as(weight)


# -- converged --------------------------------------------------------------------------------------------------------


def logistic_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, l2: float, max_steps: int = 2000
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, `logistic_top1` and `logistic_top5`; see `fit_logistic`."""
    classes = _check(train, train_labels, test, test_labels)
    classifier = fit_logistic(train, train_labels, classes, l2=l2, max_steps=max_steps)
    return classifier.accuracies("logistic", test, test_labels)


def fit_logistic(
    train: Tensor, train_labels: Tensor, classes: int, *, l2: float, max_steps: int = 2000, tolerance: float = 1e-6
) -> LinearClassifier:
    """Multinomial logistic regression at its optimum: mean cross-entropy + l2 / 2 ||weight||^2, the bias free.

    scikit-learn's `LogisticRegression` has the same optimum at C = 1 / (l2 N). In float64 and in blocks, by L-BFGS, on
    centred rows (which moves the bias alone) and on L^T weight with L L^T = covariance / 2 + l2, an upper bound of
    every class's Hessian (Boehning 1992), so that neither scale nor correlation of the features slows it down.

    Args:
        train: (N, R).
        train_labels: (N,) int64, 0 .. C-1.
        classes: C.
        l2: above 0; without it features that can be separated have no optimum.
        max_steps: of L-BFGS.
        tolerance: largest entry of the gradient, in these coordinates, at the optimum.

    Raises:
        EvaluationError: for an L2 of 0 or below, or where the tolerance was not reached.
    """
    if not l2 > 0:
        raise EvaluationError(f"l2 is {l2}; expected a number above 0")
    block = max(1, _AT_ONCE // max(train.shape[1], classes))
    with full_precision(train.device):
        centre, root = _centre_and_root(train, l2, block)
        point = torch.zeros(train.shape[1] + 1, classes, dtype=torch.float64, device=train.device)
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=max_steps,
            max_eval=4 * max_steps,
            tolerance_grad=tolerance,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def loss() -> float:
            slope = torch.linalg.solve_triangular(root.T, point[:-1], upper=True)
            value, gradient = _penalised(slope, point[-1], train, train_labels, centre, l2, block)
            inner = torch.linalg.solve_triangular(root, gradient[:-1], upper=False)
            point.grad = torch.cat([inner, gradient[-1:]])
            return value

        optimizer.step(loss)
        loss()
        slope = torch.linalg.solve_triangular(root.T, point[:-1], upper=True)
    assert point.grad is not None
    left = float(point.grad.abs().max())
    if not left <= tolerance:
        raise EvaluationError(
            f"logistic regression did not converge in {max_steps} steps at l2 {l2} (largest gradient {left:.2g}); "
            "raise l2 or max_steps"
        )
    return LinearClassifier(slope, point[-1] - centre @ slope)


def _penalised(
    slope: Tensor, bias: Tensor, rows: Tensor, label: Tensor, centre: Tensor, l2: float, block: int
) -> tuple[float, Tensor]:
    """Mean cross-entropy of the centred rows + l2 / 2 ||slope||^2, and its gradient (R + 1, C)."""
    weight = torch.cat([slope, bias[None]])[:, None]
    value, gradient = 0.5 * l2 * float(slope.square().sum()), torch.zeros_like(weight)
    for some, true in zip(rows.split(block), label.split(block), strict=True):
        x, share = _with_one(some.double() - centre), len(some) / len(rows)
        value += share * float(functional.cross_entropy(x @ weight[:, 0], true))
        gradient += share * _gradient(x, true, weight)
    gradient[:-1, 0] += l2 * slope
    return value, gradient[:, 0]


def _centre_and_root(rows: Tensor, l2: float, block: int) -> tuple[Tensor, Tensor]:
    """Mean (R,) of the rows, and the lower triangular root (R, R) of half their covariance plus l2, in float64."""
    centre = rows.mean(0, dtype=torch.float64)
    bound = l2 * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    for some in rows.split(block):
        x = some.double() - centre
        bound.addmm_(x.T, x, alpha=0.5 / len(rows))
    return centre, torch.linalg.cholesky(bound)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> int:
    """Number of classes; raises EvaluationError where rows and labels do not fit."""
    check_labelled("train", train, train_labels)
    check_labelled("test", test, test_labels)
    if train.shape[1] != test.shape[1]:
        raise EvaluationError(f"train features have {train.shape[1]} dimensions, test features {test.shape[1]}")
    return 1 + int(max(train_labels.max(), test_labels.max()))

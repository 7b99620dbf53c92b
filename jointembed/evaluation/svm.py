"""Linear SVMs on features of pictures that show several classes, as on VOC07; two rules of average precision."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jointembed.errors import EvaluationError
from jointembed.evaluation.rows import Matrix

log = logging.getLogger(__name__)

# Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019: 26 costs
COSTS = tuple(sorted([*(10.0**power for power in range(-7, 3)), *(2.0**-power for power in range(4, 20))]))

Rule = Literal["voc07", "area"]


@dataclass(frozen=True, eq=False)
class SVMResult:
    """One SVM a class."""

    cost: np.ndarray  # (C,) chosen by cross-validation
    voc07: np.ndarray  # (C,) average precision by VOC2007's rule, 0 to 1
    area: np.ndarray  # (C,) by the area rule
    scores: np.ndarray  # (M, C) of the test rows


def svm_map(
    train: Matrix,
    train_presence: np.ndarray,
    test: Matrix,
    test_presence: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    jobs: int = 1,
) -> dict[str, float]:
    """Mean average precision in percent by both rules, `svm_voc07` and `svm_area`; see `fit_svms`."""
    found = fit_svms(train, train_presence, test, test_presence, costs=costs, jobs=jobs)
    return {"svm_voc07": 100 * float(found.voc07.mean()), "svm_area": 100 * float(found.area.mean())}


def fit_svms(
    train: Matrix,
    train_presence: np.ndarray,
    test: Matrix,
    test_presence: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    jobs: int = 1,
) -> SVMResult:
    """Train and judge one linear SVM a class, by the protocol of Goyal et al. 2019.

    Rows of length 1; squared hinge, positives counted twice; the cost with the best mean average precision
    (scikit-learn's) in 3-fold cross-validation, then trained on all rows. A picture whose presence is 0 has no part in
    that class, neither in training nor in judgement.

    Args:
        train: (N, R) features.
        train_presence: (N, C) of 1 present, -1 absent, 0 difficult.
        test: (M, R).
        test_presence: (M, C).
        costs: to choose from; of equally good ones the smallest.
        jobs: processes that fit at once.

    Raises:
        EvaluationError: for arrays that do not fit, values that are not finite, or a class with fewer than 3 positives
            or negatives to train on, or none to judge.
    """
    x, y = _checked("train", train, train_presence, 3)
    x_test, y_test = _checked("test", test, test_presence, 1)
    if x.shape[1] != x_test.shape[1] or y.shape[1] != y_test.shape[1]:
        raise EvaluationError(f"train is {x.shape}, {y.shape[1]} classes, test {x_test.shape}, {y_test.shape[1]}")
    if not costs or min(costs) <= 0:
        raise EvaluationError(f"costs are {list(costs)}; expected numbers above 0")
    chosen, scores, short = [], [], 0
    for number in range(y.shape[1]):
        known = y[:, number] != 0
        cost, score, converged = _fit(x[known], y[known, number], x_test, sorted(costs), jobs)
        chosen.append(cost)
        scores.append(score)
        short += not converged
    if short:
        log.warning(
            "%d of %d SVMs stopped at 2000 steps, as the protocol has it, before they converged", short, len(chosen)
        )
    score = np.stack(scores, axis=1)
    return SVMResult(
        np.array(chosen), mean_precisions(score, y_test, "voc07"), mean_precisions(score, y_test, "area"), score
    )


def _fit(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, costs: list[float], jobs: int
) -> tuple[float, np.ndarray, bool]:
    """Cost, scores of the test rows, and whether the last fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    svm = LinearSVC(class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)
    search = GridSearchCV(svm, {"C": costs}, scoring="average_precision", cv=3, n_jobs=jobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted by the caller, for the fits that are used
        search.fit(x, y)
    best = search.best_estimator_
    return float(search.best_params_["C"]), best.decision_function(x_test), bool(best.n_iter_ < 2000)


def _checked(side: str, rows: Matrix, presence: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, R) float64 of length 1 and presence (N, C)."""
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2 or presence.ndim != 2 or len(x) != len(presence) or not presence.size:
        raise EvaluationError(f"{side}: features are {x.shape}, presence {presence.shape}; expected (N, R) and (N, C)")
    if not np.isin(presence, (-1, 0, 1)).all():
        raise EvaluationError(
            f"{side}: presence holds {presence[~np.isin(presence, (-1, 0, 1))][0]}; expected -1, 0, 1"
        )
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise EvaluationError(f"{side} features: row {row} holds a value that is not finite")
    for number, column in enumerate(presence.T):
        for value, kind in ((1, "positive"), (-1, "negative")):
            count = int((column == value).sum())
            if count < least:
                raise EvaluationError(f"{side}: class {number} has {count} {kind} rows; {least} are needed")
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5), presence


# -- average precision ------------------------------------------------------------------------------------------------


def mean_precisions(scores: np.ndarray, presence: np.ndarray, rule: Rule) -> np.ndarray:
    """Average precision of each class, (C,), from scores (N, C) and presence (N, C); rows with presence 0 left out."""
    return np.array(
        [
            average_precision(score[known != 0], known[known != 0] > 0, rule=rule)
            for score, known in zip(scores.T, presence.T, strict=True)
        ]
    )


def average_precision(scores: np.ndarray, positive: np.ndarray, *, rule: Rule) -> float:
    """Average precision of a ranking, 0 to 1.

    A cut of the ranking takes rows of equal score together, so the order in which rows are given tells nothing. The
    precision at a recall is the best at that recall or a higher one.

    Args:
        scores: (N,), higher is better.
        positive: (N,) bool.
        rule: `voc07`, the mean precision at recalls 0, .1, ..., 1 (Everingham et al. 2010, section 3.4.1; used up to
            2009), or `area` under precision over recall (VOC 2010 and later).

    Raises:
        EvaluationError: without a positive, or for scores that are NaN.
    """
    positive = np.asarray(positive, dtype=bool)
    if not positive.any() or np.isnan(scores).any():
        raise EvaluationError("average precision needs a positive, and scores that are numbers")
    order = np.argsort(-scores, kind="stable")
    cut = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last row of each score
    found = np.cumsum(positive[order])[cut]
    best = np.maximum.accumulate((found / (cut + 1))[::-1])[::-1]  # of this recall or a higher one
    if rule == "area":
        return float(np.sum(np.diff(found, prepend=0) / found[-1] * best))
    # tenths of the positives as whole numbers: .1 + .2 > .3 in floating point
    first = [int(np.searchsorted(10 * found, tenth * found[-1])) for tenth in range(11)]
    return float(np.mean(best[first]))

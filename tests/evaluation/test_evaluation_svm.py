import logging

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from jointembed.errors import EvaluationError
from jointembed.evaluation.svm import COSTS, average_precision, fit_svms, mean_precisions, svm_map

RNG = np.random.default_rng


def ranked(signs: str) -> tuple[np.ndarray, np.ndarray]:
    return -np.arange(len(signs), dtype=np.float64), np.array([sign == "+" for sign in signs])


# average precision, by hand


@pytest.mark.parametrize(
    "signs, voc07, area",
    [
        ("++--", 1.0, 1.0),
        ("--+", 1 / 3, 1 / 3),
        # precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1: four, three and four of the eleven recalls
        ("+-+--+", (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11, (1 + 2 / 3 + 1 / 2) / 3),
        # precision 1/2 and 2/3: the second is the best at every recall
        ("-++", 2 / 3, 2 / 3),
        # 1, 2/4, 3/5, 4/6 at quarters: beyond the first quarter (recalls 0, .1, .2) the best is 4/6
        ("+--+++--", (3 + 8 * 4 / 6) / 11, (1 + 3 * 4 / 6) / 4),
        # ten positives: recall .3 is reached by the third exactly, precision 3/3; the others stand last, 10/20
        ("+++" + "-" * 10 + "+" * 7, (4 * 1 + 7 * 10 / 20) / 11, (3 * 1 + 7 * 10 / 20) / 10),
    ],
)
def test_both_rules_by_hand(signs: str, voc07: float, area: float) -> None:
    scores, positive = ranked(signs)
    assert average_precision(scores, positive, rule="voc07") == pytest.approx(voc07, abs=1e-12)
    assert average_precision(scores, positive, rule="area") == pytest.approx(area, abs=1e-12)
    mixed = RNG(0).permutation(len(signs))
    assert average_precision(3 * scores[mixed] + 7, positive[mixed], rule="area") == pytest.approx(area, abs=1e-12)


def test_equal_scores_tell_nothing() -> None:
    positive = np.array([True, False, False, True, False])
    for order in (positive, positive[::-1], ~positive[::-1] & False | positive):
        for rule in ("voc07", "area"):
            assert average_precision(np.zeros(5), order, rule=rule) == pytest.approx(2 / 5)
    tied = np.array([2.0, 1.0, 1.0, 0.0])  # + {-, +} -: precision 1, then 2/3 with both of the tie
    assert average_precision(tied, np.array([1, 0, 1, 0]), rule="area") == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_area_lies_above_the_curve_that_scikit_learn_does_not_round_up(seed: int) -> None:
    rng = RNG(seed)
    scores, positive = rng.integers(0, 30, 200) / 7, rng.random(200) < 0.2
    area = average_precision(scores, positive, rule="area")
    known = average_precision_score(positive, scores)
    assert known <= area < known + 0.1
    plain = [
        max(
            (positive[scores >= cut].mean() for cut in np.unique(scores) if positive[scores >= cut].sum() >= least),
            default=0.0,
        )
        for least in np.arange(1, positive.sum() + 1)
    ]
    assert area == pytest.approx(np.mean(plain))


def test_no_positive_or_no_number_is_no_precision() -> None:
    with pytest.raises(EvaluationError, match="needs a positive"):
        average_precision(np.zeros(3), np.zeros(3), rule="area")
    with pytest.raises(EvaluationError, match="scores that are numbers"):
        average_precision(np.array([0, np.nan]), np.ones(2), rule="area")


def test_difficult_rows_are_left_out() -> None:
    scores = np.array([[3.0], [2.0], [1.0]])
    assert mean_precisions(scores, np.array([[0], [1], [-1]]), "area").tolist() == [1.0]
    assert mean_precisions(scores, np.array([[-1], [1], [-1]]), "area").tolist() == [0.5]


# SVMs


def features(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes, several or none of which a row may show."""
    rng = RNG(seed)
    shown = rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.4]
    direction = RNG(99).standard_normal((4, 12))
    return shown @ direction + 1.2 * rng.standard_normal((rows, 12)), np.where(shown, 1, -1)


def test_the_cost_is_chosen_as_scikit_learn_would() -> None:
    (train, shown), (test, truth) = features(150, 0), features(200, 1)
    costs = [1e-3, 1e-1, 10.0]
    found = fit_svms(train, shown, test, truth, costs=costs)
    unit = train / (np.linalg.norm(train, axis=1, keepdims=True) + 1e-5)
    for number in range(4):
        made = [
            LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0) for cost in costs
        ]
        scored = [
            cross_val_score(one, unit, shown[:, number], cv=3, scoring="average_precision").mean() for one in made
        ]
        best = int(np.argmax(scored))
        assert found.cost[number] == costs[best]
        score = (
            made[best]
            .fit(unit, shown[:, number])
            .decision_function(test / (np.linalg.norm(test, axis=1, keepdims=True) + 1e-5))
        )
        assert np.allclose(score, found.scores[:, number])
    means = svm_map(train, shown, test, truth, costs=costs)
    assert means == {
        "svm_voc07": pytest.approx(100 * found.voc07.mean()),
        "svm_area": pytest.approx(100 * found.area.mean()),
    }
    assert means["svm_area"] > 100 * (truth > 0).mean() + 20


def test_difficult_rows_change_nothing() -> None:
    (train, shown), (test, truth) = features(100, 0), features(80, 1)
    more = np.concatenate([train, 50 * np.ones((30, 12))])
    presence = np.concatenate([shown, np.zeros((30, 4), dtype=int)])
    one = fit_svms(train, shown, test, truth, costs=[0.1])
    other = fit_svms(
        more, presence, np.concatenate([test, test[:5]]), np.concatenate([truth, truth[:5] * 0]), costs=[0.1]
    )
    assert np.array_equal(one.area, other.area) and np.array_equal(one.scores, other.scores[:80])


def test_the_grid_is_that_of_the_benchmark() -> None:
    assert len(COSTS) == 26 and min(COSTS) == 1e-7 and max(COSTS) == 100 and 2.0**-19 in COSTS and 2.0**-4 in COSTS


def test_fits_that_stopped_early_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    (train, shown), (test, truth) = features(60, 0), features(40, 1)
    with caplog.at_level(logging.WARNING):
        fit_svms(train, shown, test, truth, costs=[1e5])
    assert "of 4 SVMs stopped at 2000 steps" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_presence": np.ones((60, 4), dtype=int)}, "train: class 0 has 0 negative rows; 3 are needed"),
        ({"test_presence": -np.ones((40, 4), dtype=int)}, "test: class 0 has 0 positive rows; 1 are needed"),
        ({"train_presence": np.full((60, 4), 2)}, "train: presence holds 2; expected -1, 0, 1"),
        ({"train_presence": np.ones((59, 4), dtype=int)}, r"train: features are \(60, 12\), presence \(59, 4\)"),
        ({"test": np.ones((40, 3))}, r"train is \(60, 12\), 4 classes, test \(40, 3\), 4"),
        ({"test": np.full((40, 12), np.nan)}, "test features: row 0 holds"),
        ({"costs": []}, "costs are "),
    ],
)
def test_misfits_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    (train, shown), (test, truth) = features(60, 0), features(40, 1)
    given = {"train": train, "train_presence": shown, "test": test, "test_presence": truth, "costs": [0.1]} | change
    with pytest.raises(EvaluationError, match=message):
        fit_svms(**given)  # type: ignore[arg-type]

"""Evaluators as a recipe names them: features of a trained model in, named numbers out."""

from typing import NamedTuple

from torch import Tensor

from jointembed.errors import EvaluationError, RecipeError
from jointembed.evaluation.accuracy import accuracies, true_ranks
from jointembed.evaluation.knn import knn_accuracy
from jointembed.evaluation.linear_probe import fast_probe, logistic_probe
from jointembed.objectives.statistics import mean_absolute_correlation, rankme, std_per_dimension

# the other numbers are the better the higher they are, so that the highest value may pick the model
LOWER_IS_BETTER = frozenset(
    ("i2t_medr", "i2t_meanr", "t2i_medr", "t2i_meanr", "tied_queries", "correlation", "z_correlation")
)


class Features(NamedTuple):
    """Vectors of a data set, row by row, and its labels."""

    rows: Tensor  # (N, R) float32
    label: Tensor | None  # (N,) int64
    scores: Tensor | None = None  # (N, C) of a model that was trained with labels
    z: Tensor | None = None  # (M, D) embeddings of M <= N of them, where `rows` are representations


class Retrieval:
    """Retrieval between pictures and captions; the protocol is `evaluation.protocol`."""

    numbers = ("rsum", *(f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)))


class KNN:
    """Weighted k-nearest-neighbour accuracy; see `evaluation.knn`.

    Args:
        k: neighbours, each of which gives its own numbers.
        temperature: of the votes.
    """

    needs_train = True

    def __init__(self, *, k: list[int] = [20, 200], temperature: float = 0.07) -> None:  # noqa: B006 - never changed
        """See the class. Raises RecipeError for no k, a k below 1, or a temperature that is not above 0."""
        if not k or min(k) < 1:
            raise RecipeError(f"evaluation.evaluators: knn: k is {k}; expected numbers of neighbours from 1 up")
        if not temperature > 0:
            raise RecipeError(f"evaluation.evaluators: knn: temperature is {temperature}; expected a number above 0")
        self.k, self.temperature = tuple(k), temperature
        self.numbers = tuple(f"knn{one}_{top}" for one in self.k for top in ("top1", "top5"))

    def __call__(self, train: Features | None, test: Features) -> dict[str, float]:
        """Accuracies in percent, of `test` against the rows of `train`."""
        return knn_accuracy(*_labelled(train), *_labelled(test), k=self.k, temperature=self.temperature)


class Linear:
    """A linear classifier on cached features; see `evaluation.linear_probe.fast_probe`."""

    numbers = ("linear_top1", "linear_top5")
    needs_train = True

    def __call__(self, train: Features | None, test: Features) -> dict[str, float]:
        """Accuracies in percent."""
        return fast_probe(*_labelled(train), *_labelled(test))


class Logistic:
    """Logistic regression on cached features, at its optimum; see `evaluation.linear_probe.fit_logistic`.

    Args:
        l2: of the weights; scikit-learn's C is 1 / (l2 N).
    """

    numbers = ("logistic_top1", "logistic_top5")
    needs_train = True

    def __init__(self, *, l2: float = 1e-3) -> None:
        """See the class. Raises RecipeError for an L2 of 0 or below."""
        if not l2 > 0:
            raise RecipeError(f"evaluation.evaluators: logistic: l2 is {l2}; expected a number above 0")
        self.l2 = l2

    def __call__(self, train: Features | None, test: Features) -> dict[str, float]:
        """Accuracies in percent. Raises EvaluationError where the optimum was not reached."""
        return logistic_probe(*_labelled(train), *_labelled(test), l2=self.l2)


class Classifier:
    """The classifier that a supervised objective trained: a linear evaluation, or fine-tuning, by the loop."""

    numbers = ("classifier_top1", "classifier_top5")
    needs_train = False

    def __call__(self, train: Features | None, test: Features) -> dict[str, float]:
        """Accuracies in percent. Raises EvaluationError for a model without a classifier."""
        if test.scores is None:
            raise EvaluationError("evaluation.evaluators: classifier needs the objective supervised")
        return accuracies("classifier", true_ranks(test.scores, _labelled(test)[1]))


class Collapse:
    """Is the space of `test` used: of the features, and under `z_...` of the embeddings where they are there too.

    `std` is the mean over dimensions; `relative_std` the length of all standard deviations over the mean length of a
    row, 0 for a point and 1 for rows around the origin, whatever their scale; `correlation` the mean absolute one of
    different dimensions; `rankme` the number of dimensions in use (Garrido et al. 2023).
    """

    numbers = tuple(f"{of}{name}" for of in ("", "z_") for name in ("std", "relative_std", "correlation", "rankme"))
    needs_train = False

    def __call__(self, train: Features | None, test: Features) -> dict[str, float]:
        """The numbers."""
        return _spread(test.rows, "") | ({} if test.z is None else _spread(test.z, "z_"))


def _spread(rows: Tensor, prefix: str) -> dict[str, float]:
    std = std_per_dimension(rows)
    return {
        f"{prefix}std": float(std.mean()),
        f"{prefix}relative_std": float(std.norm() / rows.norm(dim=1).mean().clamp_min(1e-12)),
        f"{prefix}correlation": mean_absolute_correlation(rows),
        f"{prefix}rankme": rankme(rows),
    }


def _labelled(features: Features | None) -> tuple[Tensor, Tensor]:
    if features is None or features.label is None:
        raise EvaluationError("this data set has no labels; take knn, linear and logistic out of evaluation.evaluators")
    return features.rows, features.label

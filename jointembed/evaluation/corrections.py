"""Corrections of retrieval scores at test time, and other scores, by the names that `evaluation.correct` gives them.

Training stays as it is. A correction that looks at the other queries of the test (`transductive`) answers another
question than one that takes each query alone: its numbers are no comparison to published ones, and every record says
which correction it was made with.

CSLS and the inverted softmax are written as inner products of longer rows, [f x, -o(x), 1] . [y, 1, -o(y)] =
f x.y - o(x) - o(y): what a query subtracts is the same for all of its candidates, so that one matrix serves both
directions, and ranks are counted as those of any embeddings, exactly and in bounded memory. Rows that are equal to the
bit are corrected once, so that they still tie.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.errors import EvaluationError, RecipeError
from jointembed.evaluation.rows import Matrix, Rows, full_precision, read_rows

_BLOCK = 1 << 21  # scores at a time
_CHUNK = 4096  # rows at a time


class Scored(NamedTuple):
    """Embeddings whose cosines, or inner products where `normalize` is False, are the corrected scores."""

    image: Matrix  # (I, E)
    text: Matrix  # (T, E)
    normalize: bool


class Correction(ABC):
    """What a correction does to the embeddings that search one another.

    Attributes:
        transductive: whether it looks at the queries and candidates of the test together.
        needs_train: whether `fit` must see training embeddings first.
    """

    transductive = False
    needs_train = False

    def fit(self, image: Tensor, text: Tensor) -> None:  # noqa: B027 - most have nothing to estimate
        """Take what is estimated of training embeddings, (N, D) and (M, D)."""

    @abstractmethod
    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Correct.

        Args:
            image: (I, D) embeddings.
            text: (T, D) embeddings.
        """


class CSLS(Correction):
    """2 cos(x, y) - r(x) - r(y), r the mean cosine to the k nearest rows of the other side (Conneau et al. 2018).

    A candidate that is near to everything, a hub, loses what it is near to by.

    Args:
        k: nearest rows; all where there are fewer.
        bank: whose rows r is taken over: those of the test (transductive), or training embeddings, of which each test
            query sees the same whatever else is asked (as querybank normalisation does, Bogolin et al. 2022).
    """

    def __init__(self, *, k: int = 10, bank: Literal["test", "train"] = "test") -> None:
        """See the class. Raises RecipeError for k below 1."""
        if k < 1:
            raise RecipeError(f"evaluation.correct.k: at least 1 expected, found {k}")
        self.k, self.bank = k, bank
        self.transductive, self.needs_train = bank == "test", bank == "train"
        self.rows: tuple[Tensor, Tensor] | None = None

    def fit(self, image: Tensor, text: Tensor) -> None:
        """Keep the training embeddings, scaled to length 1."""
        self.rows = functional.normalize(image.float(), dim=1), functional.normalize(text.float(), dim=1)

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Rows of D + 2 numbers. Raises EvaluationError before `fit` where the bank is of training."""
        if self.needs_train and self.rows is None:
            raise EvaluationError("csls: bank train needs training embeddings; a file of embeddings has none")
        return _with_offsets(
            image,
            text,
            2.0,
            lambda scores: scores.topk(min(self.k, scores.shape[1])).values.mean(1),
            bank=self.rows if self.needs_train else None,
        )


class InvertedSoftmax(Correction):
    """cos(x, y) less temperature * log sum over the queries q of exp(cos(q, y) / temperature) (Smith et al. 2017).

    The probability of the query given the candidate, and not the other way round. Transductive: the sum is over all
    queries.

    Args:
        temperature: that divides the cosines.
    """

    transductive = True

    def __init__(self, *, temperature: float = 0.05) -> None:
        """See the class. Raises RecipeError if the temperature is not positive."""
        if temperature <= 0:
            raise RecipeError(f"evaluation.correct.temperature: a positive number expected, found {temperature}")
        self.temperature = temperature

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Rows of D + 2 numbers."""
        heat = self.temperature
        return _with_offsets(image, text, 1.0, lambda scores: heat * torch.logsumexp(scores / heat, dim=1))


class Euclidean(Correction):
    """Minus the squared distance -||x - y||^2 of the rows as they are: no correction, another score than the cosine."""

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Rows of D + 2 numbers: [2 x, -||x||^2, 1] . [y, 1, -||y||^2]."""
        device = _device(image)
        x = read_rows("image", image, normalize=False, device=device)
        y = read_rows("text", text, normalize=False, device=device)
        of_x, of_y = (rows.values.double().square().sum(1, keepdim=True).float() for rows in (x, y))
        long_x = torch.cat([2 * x.values, -of_x, torch.ones_like(of_x)], dim=1)
        long_y = torch.cat([y.values, torch.ones_like(of_y), -of_y], dim=1)
        return Scored(_expanded(x, long_x), _expanded(y, long_y), False)


class MeanRemoval(Correction):
    """Cosine of rows of length 1 less the mean of their side (Suzuki et al. 2013): a hub lies near the mean.

    Transductive: the mean is that of the embeddings that are searched. `evaluation.centre` takes the mean of the
    training embeddings instead, which is not transductive.
    """

    transductive = True

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Rows of D numbers."""
        parts = []
        for side, given in (("image", image), ("text", text)):
            rows = read_rows(side, given, normalize=True, device=_device(given))
            mean = rows.values[torch.from_numpy(rows.row).to(rows.values.device)].mean(0, dtype=torch.float64)
            parts.append(_expanded(rows, rows.values - mean.float()))
        return Scored(parts[0], parts[1], True)


class Whiten(Correction):
    """Cosine after one linear map, for both sides, that whitens the training embeddings.

    With S the mean of both sides' covariances of training embeddings, each around its own mean, S' = (1 - shrink) S +
    shrink tr(S) / D I and S' = L L^T, a row x becomes L^-1 (x - its side's mean). Not transductive: nothing of the
    test is looked at.

    Args:
        shrink: towards a multiple of the identity; 1 only removes the means.
    """

    needs_train = True

    def __init__(self, *, shrink: float = 0.1) -> None:
        """See the class. Raises RecipeError for a share outside 0 to 1."""
        if not 0 <= shrink <= 1:
            raise RecipeError(f"evaluation.correct.shrink: a share from 0 to 1 expected, found {shrink}")
        self.shrink = shrink
        self.means: tuple[Tensor, Tensor] | None = None
        self.factor = torch.empty(0)

    def fit(self, image: Tensor, text: Tensor) -> None:
        """Means and L. Raises EvaluationError where the covariance cannot be inverted: more rows, or more `shrink`."""
        image, text = image.double(), text.double()
        covariance = (torch.cov(image.T) + torch.cov(text.T)).reshape(image.shape[1], -1) / 2
        level = covariance.diagonal().mean()
        identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        # embeddings that are one point have no directions: any multiple of the identity leaves them one point
        mixed = (1 - self.shrink) * covariance + self.shrink * level * identity if level > 0 else identity
        self.factor, failed = torch.linalg.cholesky_ex(mixed)
        if int(failed):
            raise EvaluationError(
                f"whiten: the covariance of {len(image)} + {len(text)} training embeddings of width {len(mixed)} "
                f"cannot be inverted; raise evaluation.correct.shrink ({self.shrink})"
            )
        self.means = image.mean(0), text.mean(0)

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        """Rows of D numbers. Raises EvaluationError before `fit`."""
        if self.means is None:
            raise EvaluationError("whiten: needs training embeddings; a file of embeddings has none")
        parts = []
        for side, given, mean in (("image", image, self.means[0]), ("text", text, self.means[1])):
            rows = read_rows(side, given, normalize=False, device=self.factor.device)
            moved = [
                torch.linalg.solve_triangular(self.factor, (some.double() - mean).T, upper=False).T.float()
                for some in rows.values.split(_CHUNK)
            ]
            parts.append(_expanded(rows, torch.cat(moved)))
        return Scored(parts[0], parts[1], True)


CORRECTIONS: dict[str, type[Correction]] = {
    "whiten": Whiten,
    "csls": CSLS,
    "inverted_softmax": InvertedSoftmax,
    "mean_removal": MeanRemoval,
    "euclidean": Euclidean,
}


def _with_offsets(
    image: Matrix,
    text: Matrix,
    factor: float,
    offset: Callable[[Tensor], Tensor],
    bank: tuple[Tensor, Tensor] | None = None,
) -> Scored:
    """Rows whose inner products are factor * cosine - o(x) - o(y).

    o is a function of a row's cosines (n, N) with all rows of the other side, or with those of the other side's `bank`.
    """
    device = _device(image)
    with full_precision(device):
        x = read_rows("image", image, normalize=True, device=device)
        y = read_rows("text", text, normalize=True, device=device)
        of_x = _offsets(x, _all(y) if bank is None else bank[1].to(device), offset)
        of_y = _offsets(y, _all(x) if bank is None else bank[0].to(device), offset)
        one_x, one_y = (torch.ones_like(offsets) for offsets in (of_x, of_y))
        long_x = torch.cat([factor * x.values, -of_x[:, None], one_x[:, None]], dim=1)
        long_y = torch.cat([y.values, one_y[:, None], -of_y[:, None]], dim=1)
    return Scored(_expanded(x, long_x), _expanded(y, long_y), False)


def _all(rows: Rows) -> tuple[Tensor, Tensor]:
    """The different rows, and which of them each given row is: equal ones count as often as they are given."""
    return rows.values, torch.from_numpy(rows.row).to(rows.values.device)


def _offsets(query: Rows, answers: Tensor | tuple[Tensor, Tensor], offset: Callable[[Tensor], Tensor]) -> Tensor:
    """`offset` of every different query row over all answers: (U,)."""
    different, row = answers if isinstance(answers, tuple) else (answers, torch.arange(len(answers)))
    step = max(1, _BLOCK // len(row))
    return torch.cat([offset((some @ different.T)[:, row]) for some in query.values.split(step)])


def _expanded(rows: Rows, values: Tensor) -> Tensor:
    """Values of the different rows, (U, E), as values of the given rows, (N, E)."""
    return values[torch.from_numpy(rows.row).to(values.device)]


def _device(given: Matrix) -> torch.device:
    return given.device if isinstance(given, Tensor) else torch.device("cpu")

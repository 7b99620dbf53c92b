"""BYOL: each view predicts the target's embedding of the other. Grill et al., NeurIPS 2020."""

from collections.abc import Mapping

from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import (
    PairObjective,
    ViewShape,
    check_pair,
    check_shared,
    make_predictor,
    named,
    rising_momentum,
)
from jointembed.objectives.statistics import mean_cosine


def prediction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the global batch of || q / ||q|| - z / ||z|| ||^2 = 2 - 2 cos(q, z) (eq. 2); no gradient goes to z.

    Args:
        prediction: (N, D) q, the predictor's output for one view.
        target: (N, D) z, the target's embeddings of the other view.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(prediction, target, ("prediction", "target"))
    return 2 - 2 * mean_cosine(prediction, target.detach())


class BYOL(PairObjective):
    """BYOL of two views of one branch.

    The loss is the sum of `prediction_error` over both directions. The momentum of the target rises from its start to 1
    on a half cosine: 1 - (1 - momentum) (cos(pi t) + 1) / 2 after a share t of the run (section 3.3).

    Args:
        predictor: whether q is an MLP of the online embedding, or that embedding itself.
        predictor_width: of the predictor's hidden layer.
        batch_norm: in the predictor.
        target: predict the embeddings of the EMA target; False: those of the branch itself, without gradient.
        momentum: its start; .996 for 1000 epochs, .99 for 100 and 300.
    """

    predictor: nn.Module

    def __init__(
        self,
        *,
        predictor: bool = True,
        predictor_width: int = 4096,
        batch_norm: bool = True,
        target: bool = True,
        momentum: float = 0.996,
    ) -> None:
        """See the class. Raises RecipeError if the momentum is not within 0 and 1."""
        super().__init__()
        if not 0 <= momentum <= 1:
            raise RecipeError(f"objective.momentum: must be within 0 and 1, found {momentum}")
        self.predicts, self.predictor_width, self.batch_norm = predictor, predictor_width, batch_norm
        self.first_momentum = momentum
        self.needs = frozenset({"target"} if target else ())
        self.couples_samples = predictor and batch_norm

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless both views go through one branch."""
        check_shared(views, "BYOL", "its target is a moving average of the branch that predicts it")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the predictor."""
        hidden = [self.predictor_width] if self.predicts else None
        self.predictor = make_predictor(views, hidden, "batch" if self.batch_norm else "none")

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA target when `progress` of the run is done."""
        return rising_momentum(self.first_momentum, progress)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, and its two parts by the names of the views, the predicting one first."""
        a, b = self.pair(online)
        of_a, of_b = self.pair(target if target is not None else online)
        a_to_b = prediction_error(self.predictor(a), of_b)
        b_to_a = prediction_error(self.predictor(b), of_a)
        terms = {"loss": a_to_b + b_to_a, "a_to_b": a_to_b.detach(), "b_to_a": b_to_a.detach()}
        return named(terms, online)

"""SimSiam: each view predicts the other, whose gradient is stopped. Chen, He, CVPR 2021."""

from collections.abc import Mapping

from torch import Tensor, nn

from jointembed.layers import Embedding
from jointembed.objectives.objective import PairObjective, ViewShape, check_pair, check_shared, make_predictor, named
from jointembed.objectives.statistics import mean_cosine


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean of cos(p, z) over the global batch (eq. 1).

    Args:
        prediction: (N, D) p, the predictor's output for one view.
        target: (N, D) z, the embeddings of the other view; detach them to stop their gradient.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    check_pair(prediction, target, ("prediction", "target"))
    return -mean_cosine(prediction, target)


class SimSiam(PairObjective):
    """SimSiam of two views of one branch: the mean of `negative_cosine` over both directions (eq. 2 and 4).

    Args:
        predictor: whether p is an MLP of the embedding z, or z itself.
        predictor_width: of the predictor's hidden layer, a bottleneck.
        batch_norm: in the predictor.
        stop_gradient: of what is predicted.
    """

    predictor: nn.Module
    constant_lr: tuple[str, ...] = ("predictor",)

    def __init__(
        self,
        *,
        predictor: bool = True,
        predictor_width: int = 512,
        batch_norm: bool = True,
        stop_gradient: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        self.predicts, self.predictor_width = predictor, predictor_width
        self.batch_norm, self.stop_gradient = batch_norm, stop_gradient
        self.couples_samples = predictor and batch_norm
        if not predictor:
            self.constant_lr = ()

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless both views go through one branch."""
        check_shared(views, "SimSiam", "it is defined for a branch that predicts its own embedding of the other view")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the predictor."""
        hidden = [self.predictor_width] if self.predicts else None
        self.predictor = make_predictor(views, hidden, "batch" if self.batch_norm else "none", bias_last=True)

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
        of_a, of_b = (a.detach(), b.detach()) if self.stop_gradient else (a, b)
        a_to_b = negative_cosine(self.predictor(a), of_b)
        b_to_a = negative_cosine(self.predictor(b), of_a)
        terms = {"loss": (a_to_b + b_to_a) / 2, "a_to_b": a_to_b.detach(), "b_to_a": b_to_a.detach()}
        return named(terms, online)

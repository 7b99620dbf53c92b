"""OBoW: predict a picture's bag of visual words. Gidaris, Bursuc, Puy, Komodakis, Cord, Perez, CVPR 2021."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import Objective, ViewShape, check_shared, embedding_width, rising_momentum
from jointembed.objectives.statistics import batch_mean, full_precision, wide
from jointembed.objectives.words import Vocabulary, perplexity

TEACHER = "image"  # the view that the teacher sees


def bag_prediction_loss(z: Tensor, weight: Tensor, bag: Tensor, *, kappa: float = 8.0) -> Tensor:
    """Mean over the global batch of KL(bag || softmax(kappa z W^T)).

    Args:
        z: (N, D) embeddings of the student.
        weight: (K, D) W, of length 1.
        bag: (N, K) of the teacher, rows of sum 1.
        kappa: scale of the predictions.
    """
    with full_precision(z):
        logs = functional.log_softmax(kappa * wide(z) @ wide(weight).T, dim=1)
        return batch_mean((torch.xlogy(bag, bag) - bag * logs).sum(1))


class _Generator(nn.Sequential):
    """Makes the weights (K, D) that predict the words (K, C); these come and go, so none has weights of its own."""

    def __init__(self, channels: int, width: int) -> None:
        norm = nn.BatchNorm1d(2 * width, track_running_stats=False)  # over the words, of which every rank has all
        super().__init__(nn.Linear(channels, 2 * width, bias=False), norm, nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, words: Tensor) -> Tensor:
        with full_precision(words):
            return functional.normalize(super().forward(functional.normalize(words, dim=1)), dim=1)


class OBoW(Objective):
    """OBoW: the teacher, an EMA of the branch, sees `image`; the other views predict its bags of words from their z.

    Each level of the teacher's maps has a `Vocabulary`. The loss is the mean over levels and views, summed over the
    kinds of views (`view1`, `view2` are one, `crop1` ... another), as in the authors' code. In the paper z is the
    representation itself: an expander with `widths: []`.

    Args:
        n_words: K of each level.
        inverse_delta: of the soft assignment.
        kappa: scale of the predictions.
        momentum: of the teacher at the start; it rises to 1 on a half cosine.
        channels: of the teacher's last maps, the coarsest last; None: those of the last two stages of a ResNet.
    """

    needs = frozenset({"target", "target_maps"})
    generators: nn.ModuleList
    vocabularies: nn.ModuleList

    def __init__(
        self,
        *,
        n_words: int = 8192,
        inverse_delta: float = 15.0,
        kappa: float = 8.0,
        momentum: float = 0.99,
        channels: list[int] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.n_words, self.kappa, self.first_momentum, self.channels = n_words, kappa, momentum, channels
        self.sharpness = inverse_delta  # by another name: the vocabularies hold it, a ramp could not move it here

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError unless there is `image` for the teacher, and another view."""
        names = list(views)
        if TEACHER not in names or len(names) < 2:
            raise RecipeError(f"objective: OBoW needs the view {TEACHER!r} and others, found {', '.join(names)}")

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless all views go through one branch."""
        check_shared(views, "OBoW", "its teacher is a moving average of the branch that predicts")

    def online_views(self, views: Iterable[str]) -> list[str]:
        """All but the teacher's."""
        return [view for view in views if view != TEACHER]

    def target_views(self, views: Iterable[str]) -> list[str]:
        """The teacher's."""
        return [TEACHER]

    def momentum(self, progress: float) -> float:
        """Momentum of the teacher when `progress` of the run is done."""
        return rising_momentum(self.first_momentum, progress)

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make vocabularies and generators."""
        width, h = embedding_width(views), views[TEACHER].h
        channels = self.channels or [h // 2, h]
        self.generators = nn.ModuleList(_Generator(each, width) for each in channels)
        self.vocabularies = nn.ModuleList(
            Vocabulary(self.n_words, each, inverse_delta=self.sharpness) for each in channels
        )

    def end_step(self, progress: float) -> None:
        """Take the step's features into the vocabularies."""
        for vocabulary in self.vocabularies:
            cast(Vocabulary, vocabulary).commit()

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`; and detached the mean of each kind of view, and the `perplexity` of the bags, mean over levels."""
        assert target is not None  # as `needs` says
        vocabularies = [cast(Vocabulary, each) for each in self.vocabularies]
        levels = (target[TEACHER].levels or ())[-len(vocabularies) :]
        wanted, found = ([each.words.shape[1] for each in vocabularies], [maps.shape[1] for maps in levels])
        if found != wanted:
            raise RecipeError(f"objective.channels: maps of {wanted} channels expected, the encoder gives {found}")
        bags = [vocabulary(maps) for vocabulary, maps in zip(vocabularies, levels, strict=True)]
        weights = [generate(each.words) for generate, each in zip(self.generators, vocabularies, strict=True)]
        parts: dict[str, list[Tensor]] = {}
        for view, embedding in online.items():
            for weight, bag in zip(weights, bags, strict=True):
                part = bag_prediction_loss(embedding.z, weight, bag, kappa=self.kappa)
                parts.setdefault(view.rstrip("0123456789"), []).append(part)
        kinds = {kind: torch.stack(part).mean() for kind, part in parts.items()}
        terms = {kind: part.detach() for kind, part in kinds.items()}
        spread = torch.stack([perplexity(bag) for bag in bags]).mean()
        return {"loss": torch.stack(list(kinds.values())).sum(), "perplexity": spread} | terms

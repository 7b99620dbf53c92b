"""Cross-entropy with the labels: the supervised reference row."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import Objective, ViewShape
from jointembed.objectives.statistics import BatchError, batch_mean, full_precision, wide


def supervised_loss(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Mean over the global batch of -log softmax(logits)_label.

    Args:
        logits: (N, C).
        label: (N,) int64, 0 .. C - 1.

    Returns:
        `loss`, and detached `top1`, the percentage of samples whose largest logit is their label's.

    Raises:
        BatchError: (a ValueError) for a label out of range.
    """
    outside = (label < 0) | (label >= logits.shape[1])
    if bool(outside.any()):
        raise BatchError(f"label {int(label[outside][0])} is not one of {logits.shape[1]} classes")
    with full_precision(logits):
        logits = wide(logits)
        loss = batch_mean(functional.cross_entropy(logits, label, reduction="none"))
        top1 = batch_mean((logits.argmax(1) == label).to(logits.dtype)) * 100
    return {"loss": loss, "top1": top1.detach()}


class Supervised(Objective):
    """A linear classifier of the representation h, of one view or the mean over several.

    The embeddings take no part: an expander with `widths: []` has nothing to train.

    Args:
        classes: C.
    """

    needs = frozenset({"label"})
    couples_samples = False
    classifier: nn.Linear

    def __init__(self, *, classes: int = 1000) -> None:
        """See the class."""
        super().__init__()
        self.classes = classes

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the classifier. Raises RecipeError if the views' representations have different widths."""
        widths = {shape.h for shape in views.values()}
        if len(widths) > 1:
            raise RecipeError(f"objective: one classifier cannot serve representations of widths {sorted(widths)}")
        self.classifier = nn.Linear(widths.pop(), self.classes)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `supervised_loss`, each the mean over the views."""
        if label is None:
            raise BatchError("the supervised objective needs labels, and the batch has none")
        views = [supervised_loss(self.classifier(embedding.h), label) for embedding in online.values()]
        return {name: torch.stack([terms[name] for terms in views]).mean() for name in ("loss", "top1")}

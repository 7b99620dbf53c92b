"""A contrastive term on top of any objective: InfoNCE of the same embeddings."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.clip import clip_loss
from jointembed.objectives.objective import Objective, Pairs, check_pairs, paired
from jointembed.objectives.wrapped import Wrapped, innermost


class Contrasted(Wrapped):
    """Any objective plus `weight` times InfoNCE of its online embeddings z, the mean over pairs of views.

    Args:
        objective: which one.
        weight: of InfoNCE (`clip_loss`); that of the objective stays 1.
        temperature: that divides the cosines.
        pairs: pairs of views that are contrasted, `a+b` being the mean of views a and b; None: all.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        weight: float = 0.1,
        temperature: float = 0.07,
        pairs: Pairs | None = None,
    ) -> None:
        """See the class. Raises RecipeError if `pairs` is empty or holds anything but pairs of different views."""
        super().__init__(objective)
        check_pairs(pairs, "contrast.pairs")
        self.weight, self.temperature, self.pairs = weight, temperature, pairs

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if there are fewer than two views, or a name in `pairs` is none of them."""
        views = list(views)
        self.objective.check_views(views)
        names = self.objective.online_views(views)
        if len(names) < 2:
            raise RecipeError(
                f"contrast: it compares 2 views or more that the branches embed, found {', '.join(names) or 'none'} "
                f"({type(innermost(self.objective)).__name__})"
            )
        if "patches" in names:
            raise RecipeError("contrast: it compares embeddings of whole views, and patches have one each")
        check_pairs(self.pairs, "contrast.pairs", names)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms with InfoNCE in `loss`, and `uncontrasted` and `contrast` (unweighted) besides."""
        terms = super().forward(online, target, index=index, item=item, label=label)
        z = {view: embedding.z for view, embedding in online.items()}
        losses = [clip_loss(a, b, temperature=self.temperature, item=item)["loss"] for a, b in paired(z, self.pairs)]
        added = torch.stack(losses).mean()
        return terms | {
            "loss": terms["loss"] + self.weight * added,
            "uncontrasted": terms["loss"].detach(),
            "contrast": added.detach(),
        }

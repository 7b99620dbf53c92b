"""InfoMin's objective: MoCo with a jigsaw as a second query. Tian et al., NeurIPS 2020; the authors' PyContrast."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.contrast import PatchHead, info_nce, scores
from jointembed.objectives.memory import Queue
from jointembed.objectives.objective import Objective, ViewShape, check_shared
from jointembed.objectives.statistics import BatchError

VIEWS = ("view1", "view2", "patches")


def infomin_loss(
    query: Tensor,
    jigsaw: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    weight: float = 0.5,
    temperature: float = 0.15,
) -> dict[str, Tensor]:
    """InfoNCE of both queries against one key and one queue: (1 - weight) L(q, k) + weight L(q', k).

    L is the mean of -log(exp(q k / tau) / (exp(q k / tau) + sum over the queue of exp(q k' / tau))), of cosines (He et
    al., CVPR 2020, eq. 1).

    Args:
        query: (N, D) q, of the first view.
        jigsaw: (N, D) q', of its patches.
        key: (N, D) k, the target's embeddings of the second view; no gradient goes there.
        queue: (K, D) k', keys of earlier batches.
        weight: beta, of the jigsaw's loss.
        temperature: tau.

    Returns:
        `loss`, and detached its two parts `picture` and `jigsaw`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    of_picture, of_jigsaw = (info_nce(scores(one, key.detach(), queue, temperature)) for one in (query, jigsaw))
    loss = (1 - weight) * of_picture + weight * of_jigsaw
    return {"loss": loss, "picture": of_picture.detach(), "jigsaw": of_jigsaw.detach()}


class InfoMin(Objective):
    """InfoMin of the views `view1`, `view2` (through the target) and `patches` (through a head of its own on h).

    Args:
        queue: K, keys that are kept.
        temperature: tau.
        momentum: of the target.
        weight: beta, of the jigsaw's loss.
        patches: of a jigsaw.
    """

    needs = frozenset({"target", "shuffle"})
    jigsaw_head: nn.Module
    queue: Queue

    def __init__(
        self,
        *,
        queue: int = 65536,
        temperature: float = 0.15,
        momentum: float = 0.999,
        weight: float = 0.5,
        patches: int = 9,
    ) -> None:
        """See the class. Raises RecipeError for a number out of range."""
        super().__init__()
        if min(temperature, queue, patches) <= 0 or not (0 <= weight <= 1 and 0 <= momentum <= 1):
            raise RecipeError(
                "objective: temperature, queue and patches must be positive, weight and momentum within 0 and 1, "
                f"found {temperature}, {queue}, {patches}, {weight} and {momentum}"
            )
        self.queue_size, self.temperature, self.weight, self.patches = queue, temperature, weight, patches
        self.momentum_of_target = momentum

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError unless the views are `view1`, `view2` and `patches`."""
        if set(views) != set(VIEWS):
            raise RecipeError(f"objective: InfoMin needs the views {', '.join(VIEWS)}, found {', '.join(views)}")

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless all views go through one branch."""
        check_shared(views, "InfoMin", "its keys come from a moving average of the branch that embeds the queries")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the jigsaw's head and the queue."""
        shape = views["patches"]
        self.jigsaw_head = PatchHead(shape.h, self.patches, shape.z, hidden=True)
        self.queue = Queue(self.queue_size, shape.z)

    def online_views(self, views: Iterable[str]) -> list[str]:
        """The two queries."""
        return ["view1", "patches"]

    def target_views(self, views: Iterable[str]) -> list[str]:
        """The key."""
        return ["view2"]

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA target, the same throughout."""
        return self.momentum_of_target

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `infomin_loss`."""
        if target is None:
            raise BatchError("InfoMin needs the embeddings of the EMA target")
        key = nn.functional.normalize(target["view2"].z, dim=1)
        self.queue.hold(key)
        jigsaw = self.jigsaw_head(online["patches"].h)
        options = {"weight": self.weight, "temperature": self.temperature}
        return infomin_loss(online["view1"].z, jigsaw, key, self.queue.rows, **options)

    def end_step(self, progress: float) -> None:
        """Put the keys into the queue."""
        self.queue.commit()

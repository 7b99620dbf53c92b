"""MoCo: a query against the key of the other view and a queue of earlier keys. He et al., CVPR 2020.

Chen, Fan, Girshick, He, 2020 (v2) change the recipe alone: an MLP expander, blur, a cosine schedule, temperature .2.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.contrast import info_nce, scores
from jointembed.objectives.memory import Queue
from jointembed.objectives.objective import PairObjective, ViewShape, check_shared, embedding_width
from jointembed.objectives.statistics import wide


class MoCo(PairObjective):
    """MoCo of two views of one branch: queries from the first view, keys from the EMA target's second.

    The loss is the mean over the global batch of -log softmax of the own key's cosine among it and those of the queue
    (eq. 1). A step's keys, of length 1, enter the queue when the step is done.

    Args:
        queue: number K of earlier keys.
        temperature: .07 in v1, .2 in v2.
        momentum: of the EMA target.
        symmetric: also the other way round, as the sum of both losses, and the keys of both views enter the queue.
        shuffle_batch_norm: shuffle the keys' rows over the ranks, so that batch norm gives no hint (section 3.3).
    """

    queue: Queue

    def __init__(
        self,
        *,
        queue: int = 65536,
        temperature: float = 0.07,
        momentum: float = 0.999,
        symmetric: bool = False,
        shuffle_batch_norm: bool = True,
    ) -> None:
        """See the class. Raises RecipeError for a queue below 1, a temperature of 0, a momentum outside 0 .. 1."""
        super().__init__()
        if queue < 1 or temperature <= 0 or not 0 <= momentum <= 1:
            raise RecipeError(
                "objective: queue must be at least 1, temperature positive, momentum within 0 and 1, found "
                f"{queue}, {temperature} and {momentum}"
            )
        self.size, self.temperature, self.fixed_momentum, self.symmetric = queue, temperature, momentum, symmetric
        self.needs = frozenset({"target", "shuffle"} if shuffle_batch_norm else {"target"})

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless both views go through one branch."""
        check_shared(views, "MoCo", "keys come from a moving average of the branch that makes the queries")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the queue."""
        self.queue = Queue(self.size, embedding_width(views))

    def online_views(self, views: Iterable[str]) -> list[str]:
        """The view of the queries: the first one, where not symmetric."""
        return list(views) if self.symmetric else list(views)[:1]

    def target_views(self, views: Iterable[str]) -> list[str]:
        """The view of the keys: the second one, where not symmetric."""
        return list(views) if self.symmetric else list(views)[1:]

    def momentum(self, progress: float) -> float:
        """Momentum of the EMA target, the same all the time."""
        return self.fixed_momentum

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`; in the symmetric form also its two parts by the names of the views, the query's first."""
        keys = {view: embedding.z.detach() for view, embedding in (target or {}).items()}
        terms = {
            f"{of_query}_to_{of_key}": info_nce(scores(query.z, key, self.queue.rows, self.temperature))
            for of_query, query in online.items()
            for of_key, key in keys.items()
            if of_query != of_key
        }
        if self.training:
            rows = torch.stack([functional.normalize(wide(key), dim=1) for key in keys.values()], dim=1)
            self.queue.hold(rows.flatten(0, 1))  # sample by sample, so that the order is that of one process
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss} | ({name: term.detach() for name, term in terms.items()} if self.symmetric else {})

    def end_step(self, progress: float) -> None:
        """Put the keys of the step into the queue."""
        self.queue.commit()

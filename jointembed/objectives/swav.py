"""SwAV: views predict each other's cluster codes. Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import rank, world
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.memory import Queue
from jointembed.objectives.objective import Objective, ViewShape, check_pair, embedding_width
from jointembed.objectives.statistics import batch_mean, full_precision, sinkhorn, wide


def swav_loss(
    views: Mapping[str, Tensor],
    prototypes: Tensor,
    *,
    assigned: Iterable[str],
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queues: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy of every view's prediction with the codes of the assigned views, its own left out (eq. 1-2).

    With cosines s_v = z_v C^T, an assigned view a has codes q_a = `sinkhorn`(s_a), and another view v predicts them by
    p_v = softmax(s_v / temperature). The part of a is the mean over v != a and samples of -sum_k q_ak log p_vk.

    Args:
        views: (N, D) embeddings of each view, of any length.
        prototypes: (K, D) C, of length 1.
        assigned: views that get codes.
        temperature: of the predictions.
        epsilon: of `sinkhorn`.
        iterations: of `sinkhorn`.
        queues: assigned view -> (Q, D) rows of earlier batches, equal on all ranks, that only balance its codes.

    Returns:
        `loss`, the mean of the parts, and detached the parts themselves: `codes/VIEW`.

    Raises:
        BatchError: (a ValueError) if the views' shapes differ.
    """
    (first, a), *rest = views.items()
    for view, z in rest:
        check_pair(a, z, (first, view))
    with full_precision(a):
        scaled = wide(prototypes).T / temperature  # here, where it is fewer divisions than of the scores
        scores = {view: functional.normalize(wide(z), dim=1) @ scaled for view, z in views.items()}
        logs = {view: functional.log_softmax(score, dim=1) for view, score in scores.items()}
        parts = {}
        for view in assigned:
            earlier = [wide(queues[view][rank() :: world()]) @ scaled.detach()] if queues else []  # each row once
            rows = torch.cat([scores[view].detach(), *earlier])
            codes = sinkhorn(rows, epsilon=epsilon / temperature, iterations=iterations)[: len(scores[view])]
            others = [log for other, log in logs.items() if other != view]
            parts[view] = batch_mean(-(codes * sum(others[1:], others[0])).sum(1)) / len(others)
    return {"loss": torch.stack(list(parts.values())).mean(), **{f"codes/{v}": p.detach() for v, p in parts.items()}}


class SwAV(Objective):
    """SwAV of two views or more, with and without multi-crop.

    Args:
        n_prototypes: K, learned.
        temperature, epsilon, iterations: as in `swav_loss`.
        freeze_steps: steps at the start in which the prototypes stay as they are, whatever the optimizer decays.
        queue: rows of earlier batches kept for each assigned view, 0 for none; the authors take 3840 at batch 256.
        queue_start: share of the run after which the queue is filled; it is used as soon as it is full.
        assigned: views that get codes; None: all but those named `crop1`, `crop2`, ...
    """

    prototypes: nn.Linear
    step: Tensor  # () int64, steps begun
    progress: Tensor  # ()

    def __init__(
        self,
        *,
        n_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_steps: int = 313,
        queue: int = 0,
        queue_start: float = 0.075,
        assigned: list[str] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.options: dict[str, Any] = {"temperature": temperature, "epsilon": epsilon, "iterations": iterations}
        self.n_prototypes, self.freeze_steps, self.assigned = n_prototypes, freeze_steps, assigned
        self.queue, self.queue_start, self.queues = queue, queue_start, nn.ModuleDict()
        self.frozen: Tensor | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros(()))

    def _coded(self, views: Iterable[str]) -> list[str]:
        return self.assigned or [view for view in views if not view.startswith("crop")]

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError if there are fewer than two views, or none of them is assigned."""
        names = list(views)
        coded = self._coded(names)
        if len(names) < 2 or not coded or not set(coded) <= set(names):
            found = f"{', '.join(names)}, assigned: {', '.join(coded) or 'none'}"
            raise RecipeError(f"objective: SwAV needs 2 views or more, and codes for some of them; found {found}")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make prototypes and queues."""
        self.prototypes = nn.Linear(embedding_width(views), self.n_prototypes, bias=False)
        self.queues.update({v: Queue(self.queue, embedding_width(views)) for v in self._coded(views) if self.queue})

    @torch.no_grad()
    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Count the step, and scale the prototypes to length 1."""
        self.step += 1
        weight = self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))
        self.frozen = weight.clone() if int(self.step) <= self.freeze_steps else None

    @torch.no_grad()
    def end_step(self, progress: float) -> None:
        """Put the step's embeddings into the queues, and frozen prototypes back where they were."""
        self.prototypes.weight.copy_(self.prototypes.weight if self.frozen is None else self.frozen)
        self.progress.fill_(progress)
        for queue in self.queues.values():
            cast(Queue, queue).commit()

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `swav_loss`."""
        views = {view: embedding.z for view, embedding in online.items()}
        weight = self.prototypes.weight  # where frozen with a gradient of zeros; none at all is taken for a fault
        weight = weight if self.frozen is None else self.frozen + 0 * weight
        queues = {view: cast(Queue, queue) for view, queue in self.queues.items()}
        full = {view: queue.rows for view, queue in queues.items() if queue.full}
        if float(self.progress) >= self.queue_start:
            for view, queue in queues.items():
                queue.hold(functional.normalize(wide(views[view]), dim=1))
        return swav_loss(views, weight, assigned=self._coded(views), queues=full, **self.options)

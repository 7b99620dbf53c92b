"""DeepCluster v2: predict the clusters of the last epoch. Caron, Misra, Mairal et al., NeurIPS 2020."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.clustering import Assignments, kmeans
from jointembed.objectives.objective import Embed, Objective, ViewShape, embedding_width
from jointembed.objectives.statistics import batch_mean, full_precision, wide


def deepcluster_v2_loss(
    views: Sequence[Tensor], prototypes: Tensor, cluster: Tensor, *, temperature: float = 0.1
) -> dict[str, Tensor]:
    """Mean over heads, views and the global batch of -log softmax_k(cos(z, c_k) / temperature) at the sample's cluster.

    Args:
        views: (N, D) embeddings of each view, of any length.
        prototypes: (H, K, D) c of each head, of length 1.
        cluster: (H, N) int64, of each sample by each head.
        temperature: of the softmax.

    Returns:
        `loss`, and detached `accuracy`, the share of samples whose nearest prototype is their cluster's.
    """
    with full_precision(views[0]):
        losses, hits = [], []
        for z in views:
            unit = functional.normalize(wide(z), dim=1)
            for centroids, own in zip(prototypes.to(unit.dtype), cluster, strict=True):
                scores = unit @ centroids.T
                losses.append(functional.cross_entropy(scores / temperature, own, reduction="none"))
                hits.append((scores.argmax(1) == own).to(scores.dtype))
        loss, accuracy = (batch_mean(torch.stack(each).mean(0)) for each in (losses, hits))
    return {"loss": loss, "accuracy": accuracy.detach()}


class DeepClusterV2(Objective):
    """DeepCluster v2 of any number of views: each predicts the clusters of its sample.

    Before an epoch the embeddings z of the training set are clustered by spherical k-means (the authors cluster those
    of crops that they remember from the last epoch); its centroids are the epoch's prototypes, which do not learn.

    Args:
        heads: independent clusterings; they differ by their start.
        n_prototypes: clusters of each.
        temperature: of the predictions.
        iterations: of k-means.
    """

    couples_samples = False
    assignments: Assignments
    prototypes: Tensor  # (heads, K, D)

    def __init__(
        self, *, heads: int = 3, n_prototypes: int = 3000, temperature: float = 0.1, iterations: int = 10
    ) -> None:
        """See the class."""
        super().__init__()
        self.heads, self.n_prototypes, self.temperature, self.iterations = heads, n_prototypes, temperature, iterations

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make room for clusters and prototypes. Raises RecipeError if there are fewer samples than prototypes."""
        if samples < self.n_prototypes:
            raise RecipeError(f"objective.n_prototypes: {self.n_prototypes} clusters of only {samples} samples")
        self.assignments = Assignments(self.heads, samples)
        self.register_buffer("prototypes", torch.zeros(self.heads, self.n_prototypes, embedding_width(views)))

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Cluster the training set, once for each head."""
        found = embed()
        for head in range(self.heads):
            seed = epoch * self.heads + head
            clusters = kmeans(found.z, found.index, self.n_prototypes, iterations=self.iterations, seed=seed)
            self.prototypes[head].copy_(clusters.centroids)
            self.assignments.put(head, found.index, clusters.assignment)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `deepcluster_v2_loss`."""
        views = [embedding.z for embedding in online.values()]
        return deepcluster_v2_loss(views, self.prototypes, self.assignments.of(index), temperature=self.temperature)

"""DeepCluster: clusters of the last epoch are this epoch's classes. Caron, Bojanowski, Joulin, Douze, ECCV 2018."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.clustering import Assignments, kmeans, pca_whiten
from jointembed.objectives.objective import Embed, Objective, ViewShape, embedding_width
from jointembed.objectives.statistics import batch_mean, full_precision, wide


class DeepCluster(Objective):
    """DeepCluster of any number of views: a linear classifier of ReLU(z) learns the pseudo-labels of the epoch.

    Before an epoch the embeddings z of the training set are reduced by PCA, whitened, scaled to length 1 and clustered
    by k-means, and the classifier starts anew, with N(0, .01) weights; the optimizer's momentum of it is kept. A sample
    in a cluster of n weighs N / (K n), for N samples in K clusters: in expectation what the authors' sampler, uniform
    over clusters, does (section 3.3).

    Args:
        clusters: k-means; those that end up empty are no classes of any sample.
        components: kept by PCA.
        iterations: of k-means.
    """

    couples_samples = False
    assignments: Assignments
    classifier: nn.Linear
    weight: Tensor  # (clusters,) of a sample of each

    def __init__(self, *, clusters: int = 10000, components: int = 256, iterations: int = 20) -> None:
        """See the class."""
        super().__init__()
        self.clusters, self.components, self.iterations = clusters, components, iterations

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the classifier, and room for clusters. Raises RecipeError if there are fewer samples than clusters."""
        if samples < self.clusters:
            raise RecipeError(f"objective.clusters: {self.clusters} clusters of only {samples} samples")
        self.assignments = Assignments(1, samples)
        self.classifier = nn.Linear(embedding_width(views), self.clusters)
        self.register_buffer("weight", torch.ones(self.clusters))

    @torch.no_grad()
    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Cluster the training set, and start the classifier anew."""
        found = embed()
        rows = functional.normalize(pca_whiten(found.z, self.components), dim=1)
        clusters = kmeans(rows, found.index, self.clusters, iterations=self.iterations, seed=epoch, spherical=False)
        self.assignments.put(0, found.index, clusters.assignment)
        known = self.assignments.cluster[0]
        counts = known[known >= 0].bincount(minlength=self.clusters).to(self.weight.dtype)
        self.weight.copy_(torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts), 0))
        start = torch.randn(self.classifier.weight.shape, generator=torch.Generator().manual_seed(epoch))
        self.classifier.weight.copy_(0.01 * start)
        self.classifier.bias.zero_()

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, and detached `accuracy`, the share of samples that are classified as their cluster."""
        (cluster,) = self.assignments.of(index)
        losses, hits = [], []
        for embedding in online.values():
            with full_precision(embedding.z):
                logits = self.classifier(functional.relu(wide(embedding.z)))
            losses.append(functional.cross_entropy(logits, cluster, reduction="none") * self.weight[cluster])
            hits.append((logits.argmax(1) == cluster).to(logits.dtype))
        loss, accuracy = (batch_mean(torch.stack(each).mean(0)) for each in (losses, hits))
        return {"loss": loss, "accuracy": accuracy.detach()}

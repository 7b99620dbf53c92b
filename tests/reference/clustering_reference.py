"""k-means row by row, and the losses of both DeepClusters."""

import torch
from torch import Tensor


def nearest(rows: Tensor, centroids: Tensor) -> list[int]:
    """The closest centroid of each row."""
    return [min(range(len(centroids)), key=lambda k: float((row - centroids[k]).square().sum())) for row in rows]


def lloyd(rows: Tensor, centroids: Tensor, iterations: int, spherical: bool) -> tuple[Tensor, list[int]]:
    """Lloyd's iterations of clusters that never get empty."""
    if spherical:
        rows = torch.stack([row / row.norm() for row in rows])
    for _ in range(iterations):
        own = nearest(rows, centroids)
        means = []
        for k in range(len(centroids)):
            members = [row for row, cluster in zip(rows, own, strict=True) if cluster == k]
            mean = torch.stack(members).mean(0)
            means.append(mean / mean.norm() if spherical else mean)
        centroids = torch.stack(means)
    return centroids, nearest(rows, centroids)


def deepcluster_v2(views: list[Tensor], prototypes: Tensor, cluster: Tensor, temperature: float = 0.1) -> Tensor:
    """The mean over heads, views and samples of -log of the softmax of the scaled cosines at the sample's cluster."""
    losses = []
    for head in range(len(prototypes)):
        for z in views:
            for i in range(len(z)):
                exponentials = torch.stack([torch.exp(c @ z[i] / z[i].norm() / temperature) for c in prototypes[head]])
                losses.append(-torch.log(exponentials[cluster[head, i]] / exponentials.sum()))
    return torch.stack(losses).mean()


def deepcluster(views: list[Tensor], weight: Tensor, bias: Tensor, cluster: Tensor, known: Tensor) -> Tensor:
    """The mean over views and samples of the cross-entropy, divided by the relative size of the sample's cluster."""
    sizes = [int((known == k).sum()) for k in range(len(bias))]
    used = sum(size > 0 for size in sizes)
    losses = []
    for z in views:
        for i in range(len(z)):
            logits = torch.stack([weight[k] @ z[i].clamp(min=0) + bias[k] for k in range(len(bias))])
            share = sizes[int(cluster[i])] / len(known) * used
            losses.append(-torch.log(torch.exp(logits)[cluster[i]] / torch.exp(logits).sum()) / share)
    return torch.stack(losses).mean()

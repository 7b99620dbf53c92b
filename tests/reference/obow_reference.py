"""OBoW location by location and word by word."""

import torch
from torch import Tensor


def locations(maps: Tensor) -> Tensor:
    """The feature vectors (L, C) of one picture's maps (C, H, W) without the border."""
    return torch.stack([maps[:, y, x] for y in range(1, maps.shape[1] - 1) for x in range(1, maps.shape[2] - 1)])


def nearest_distance(maps: Tensor, words: Tensor) -> Tensor:
    """The mean over pictures and locations of the squared distance to the nearest word."""
    found = []
    for picture in maps:
        for feature in locations(picture):
            found.append(torch.stack([(feature - word).square().sum() for word in words]).min())
    return torch.stack(found).mean()


def bag(picture: Tensor, words: Tensor, delta: float) -> Tensor:
    """A picture's bag: the best soft assignment of each word, scaled to sum 1."""
    assigned = []
    for feature in locations(picture):
        exponentials = torch.stack([torch.exp(-(feature - word).square().sum() / delta) for word in words])
        assigned.append(exponentials / exponentials.sum())
    best = torch.stack(assigned).max(0).values
    return best / best.sum()


def divergence(z: Tensor, weight: Tensor, bags: Tensor, kappa: float) -> Tensor:
    """The mean over pictures of KL(bag || softmax of the scaled products with the weights)."""
    loss = z.new_zeros(())
    for i in range(len(z)):
        exponentials = torch.stack([torch.exp(kappa * (z[i] @ w)) for w in weight])
        for k in range(len(weight)):
            if bags[i, k] > 0:
                loss = loss + bags[i, k] * (torch.log(bags[i, k]) - torch.log(exponentials[k] / exponentials.sum()))
    return loss / len(z)

"""Visual words: local features that describe a picture by the words it holds (OBoW, Gidaris et al., CVPR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import rank, row_counts, sum_over_ranks
from jointembed.objectives.memory import Queue
from jointembed.objectives.statistics import batch_mean, full_precision

DECAY = 0.99  # of the mean distance to the nearest word


def inner(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) without their border, which sees padding, where they are at least 5 wide."""
    return maps[..., 1:-1, 1:-1] if min(maps.shape[-2:]) >= 5 else maps


def word_distances(maps: Tensor, words: Tensor) -> Tensor:
    """Squared distances of the L inner locations of maps (N, C, H, W) to words (K, C): (N, L, K)."""
    features = inner(maps).flatten(2).mT
    squares = features.square().sum(-1, keepdim=True) + words.square().sum(-1)
    return (squares - 2 * features @ words.T).clamp_min(0)


def bag_of_words(distance: Tensor, inverse_delta: Tensor | float) -> Tensor:
    """Maximum over locations l of softmax_k(-distance_lk / delta), scaled to sum 1: (N, L, K) to (N, K)."""
    return functional.normalize(functional.softmax(-distance * inverse_delta, dim=-1).amax(1), p=1, dim=1)


def sampled_features(maps: Tensor, seed: int) -> Tensor:
    """The mean of 3 x 3 inner locations at a random place of each picture: (N, C), whatever the number of ranks."""
    means = functional.avg_pool2d(inner(maps), [min(3, side) for side in inner(maps).shape[-2:]], stride=1).flatten(2)
    counts = row_counts(maps)
    generator = torch.Generator("cpu").manual_seed(seed)
    places = torch.randint(means.shape[-1], (sum(counts),), generator=generator, device="cpu").to(maps.device)
    rows = torch.arange(len(maps), device=maps.device)
    return means[rows, :, places[rows + sum(counts[: rank()])]]


class Vocabulary(nn.Module):
    """The newest local features of the teacher, one a picture, are the words; they start at random.

    Args:
        size: K.
        channels: C.
        inverse_delta: sharpness of the assignment: 1 / delta is this, divided by the running mean of the squared
            distance to the nearest word.
    """

    distance: Tensor  # () running mean of the squared distance to the nearest word

    def __init__(self, size: int, channels: int, *, inverse_delta: float = 15.0) -> None:
        """See the class."""
        super().__init__()
        self.queue, self.inverse_delta = Queue(size, channels), inverse_delta
        self.queue.rows.mul_(channels**0.5).clamp_(min=0)  # as large as normal numbers after a ReLU
        self.register_buffer("distance", torch.tensor(0.5))
        self._held: Tensor | None = None

    @property
    def words(self) -> Tensor:
        """(K, C)."""
        return self.queue.rows

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """Bags of words (N, K) of the teacher's maps (N, C, H, W), of which some go into the words at `commit`."""
        with full_precision(maps):
            maps = maps.to(self.words.dtype)
            distance = word_distances(maps, self.words)
            nearest = batch_mean(distance.amin(-1).flatten())
            self._held = self.distance.lerp(nearest, 1 - DECAY)
            self.queue.hold(sampled_features(maps, int(self.queue.count)))
            return bag_of_words(distance, self.inverse_delta / self._held)

    def commit(self) -> None:
        """Take in the step's features. Every rank must call it."""
        self.queue.commit()
        if self._held is not None:
            self.distance.copy_(self._held)


def perplexity(bag: Tensor) -> Tensor:
    """Effective number of words in the bags (N, K) of the global batch: 1 (collapsed) to K."""
    share = sum_over_ranks(bag.sum(0))
    share = share / share.sum()
    return torch.exp(-torch.xlogy(share, share).sum())

"""As record_lightly.py, for the objectives on clusters and for SIGReg.

    pip install lightly==1.6.0
    python tests/objectives/record_lightly_b.py

The views are both embeddings and, where there are crops, their product; prototypes and directions are the same rows.
"""

from importlib.metadata import version

import torch
from lightly.loss import LeJEPALoss, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from record_lightly import SHAPES, Loss, differences
from torch import Tensor
from torch.nn import functional

from jointembed.objectives.deepcluster_v2 import deepcluster_v2_loss
from jointembed.objectives.sigreg import directions, lejepa_loss
from jointembed.objectives.statistics import sinkhorn
from jointembed.objectives.swav import swav_loss

PROTOTYPES, QUEUE = 7, 20


def unit_rows(count: int, width: int) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return functional.normalize(rows, dim=1)


def scores(z: Tensor) -> Tensor:
    return functional.normalize(z, dim=1) @ unit_rows(PROTOTYPES, z.shape[1]).T


def swav(a: Tensor, b: Tensor) -> Tensor:
    return swav_loss({"a": a, "b": b}, unit_rows(PROTOTYPES, a.shape[1]), assigned=["a", "b"])["loss"]


def swav_crops(a: Tensor, b: Tensor) -> Tensor:
    rows = unit_rows(PROTOTYPES + QUEUE, a.shape[1])
    queues = {"a": rows[PROTOTYPES:], "b": -rows[PROTOTYPES:]}
    views = {"a": a, "b": b, "crop1": a * b, "crop2": a - b}
    return swav_loss(views, unit_rows(PROTOTYPES, a.shape[1]), assigned=["a", "b"], queues=queues)["loss"]


def lightly_swav_crops(a: Tensor, b: Tensor) -> Tensor:
    rows = unit_rows(PROTOTYPES + QUEUE, a.shape[1])[PROTOTYPES:]
    large, small = [scores(a), scores(b)], [scores(a * b), scores(a - b)]
    return SwaVLoss()(large, small, [scores(rows), scores(-rows)])[0]


def lejepa(a: Tensor, b: Tensor) -> Tensor:
    views = {"a": a, "b": b, "crop1": a * b}
    return lejepa_loss(views, directions(a.shape[1], 64, seed=5), centres=["a", "b"])["loss"]


class _OurDirections(LeJEPALoss):
    def __init__(self) -> None:
        super().__init__(sigreg_num_vectors=64)
        t = self.sigreg.t = self.sigreg.t.double()  # its buffers are rounded to float32
        self.sigreg.phi = torch.exp(-t.square() / 2)
        self.sigreg.weights = 2 * t[1] * self.sigreg.phi
        self.sigreg.weights[[0, -1]] /= 2
        self.sigreg._generate_unit_vectors = lambda device, dtype, width: directions(width, 64, seed=5).to(dtype)


def lightly_lejepa(a: Tensor, b: Tensor) -> Tensor:
    return _OurDirections()(global_proj=torch.stack([a, b]), local_proj=(a * b)[None])


def solo_swav(a: Tensor, b: Tensor) -> Tensor:
    """Two views, codes by scaling exp(s / eps) in place."""
    losses = []
    for coded, predicting in ((a, b), (b, a)):
        q = (scores(coded).detach() / 0.05).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / PROTOTYPES
            q = q / q.sum(0, keepdim=True) / len(a)
        losses.append(-((q * len(a)).T * functional.log_softmax(scores(predicting) / 0.1, dim=1)).sum(1).mean())
    return torch.stack(losses).mean()


def heads(a: Tensor) -> tuple[Tensor, Tensor]:
    prototypes = unit_rows(3 * PROTOTYPES, a.shape[1]).view(3, PROTOTYPES, -1)
    return prototypes, torch.arange(3 * len(a)).view(3, -1) % PROTOTYPES


def deepcluster(a: Tensor, b: Tensor) -> Tensor:
    return deepcluster_v2_loss([a, b], *heads(a))["loss"]


def solo_deepcluster(a: Tensor, b: Tensor) -> Tensor:
    prototypes, cluster = heads(a)
    rows = functional.normalize(torch.cat([a, b]), dim=1)
    losses = [
        functional.cross_entropy(rows @ centroids.T / 0.1, own.repeat(2))
        for centroids, own in zip(prototypes, cluster, strict=True)
    ]
    return torch.stack(losses).mean()


LIGHTLY: dict[str, tuple[Loss, Loss, str]] = {
    "Sinkhorn": (
        lambda a, b: (sinkhorn(scores(a)) * scores(b)).sum(),
        lambda a, b: (lightly_sinkhorn(scores(a)) * scores(b)).sum(),
        "sum of codes times scores of the other view; the codes are made of logarithms here",
    ),
    "SwAV": (
        swav,
        lambda a, b: SwaVLoss()([scores(a), scores(b)], [])[0],
        "its prototypes have a bias, which its loss does not see; ours have none, as the authors'",
    ),
    "SwAV, 2 + 2 crops, queue": (swav_crops, lightly_swav_crops, "the same"),
    "SIGReg (LeJEPA)": (lejepa, lightly_lejepa, "the same directions and its buffers in float64; it draws others"),
}
SOLO: dict[str, tuple[Loss, Loss, str]] = {
    "SwAV": (swav, solo_swav, "the same"),
    "DeepCluster v2": (deepcluster, solo_deepcluster, "samples without a cluster are left out there, an error here"),
}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    for title, table in ((f"lightly {version('lightly')}", LIGHTLY), ("solo-learn's formulas", SOLO)):
        print(f"| {title} | N x D | our value | value apart | gradient apart | convention |")
        print("|---|---|---|---|---|---|")
        for name, (ours, theirs, convention) in table.items():
            for n, d in SHAPES:
                value, apart, gradient = differences(ours, theirs, n, d)
                print(f"| {name} | {n} x {d} | {value:.9f} | {apart:.0e} | {gradient:.0e} | {convention} |")
        print()


if __name__ == "__main__":
    main()

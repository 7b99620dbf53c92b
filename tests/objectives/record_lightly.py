"""Print how far our losses are from lightly's, and from solo-learn's formulas written again, as a table for LOG.md.

    pip install lightly==1.6.0
    python tests/objectives/record_lightly.py

Value and gradient in the embeddings, float64, 48 samples of 12 dimensions and 10 of 64; the gradient's difference is
relative to its largest entry. solo-learn's release pins an old torch, so its formulas stand here in our own words.
"""

from collections.abc import Callable
from importlib.metadata import version

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss, WMSELoss
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional

from jointembed.layers import Embedding
from jointembed.objectives.barlow_twins import barlow_twins_loss
from jointembed.objectives.byol import prediction_error
from jointembed.objectives.moco import MoCo
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.simclr import nt_xent_loss
from jointembed.objectives.simsiam import negative_cosine
from jointembed.objectives.vicreg import vicreg_loss
from jointembed.objectives.wmse import w_mse_loss

SHAPES = [(48, 12), (10, 64)]
Loss = Callable[[Tensor, Tensor], Tensor]


def pair(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3
    b = a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def moco(a: Tensor, b: Tensor) -> Tensor:
    """Three steps with a queue of two batches; the loss of the third."""
    module = MoCo(queue=2 * len(a), temperature=0.2)
    module.attach({view: ViewShape("net", 1, a.shape[1]) for view in ("a", "b")}, samples=1)
    for shift in (2, 1, 0):
        query, key = a.roll(shift, 1), b.roll(shift, 1)
        loss = module.double()({"a": Embedding(query, query)}, {"b": Embedding(key, key)})["loss"]
        module.end_step(0.0)
    return loss


def lightly_moco(a: Tensor, b: Tensor) -> Tensor:
    loss = NTXentLoss(temperature=0.2, memory_bank_size=(2 * len(a), a.shape[1])).double()
    return [loss(a.roll(shift, 1), b.detach().roll(shift, 1)) for shift in (2, 1, 0)][-1]


def w_mse(a: Tensor, b: Tensor) -> Tensor:
    return w_mse_loss(a, b, size=len(a) // 2, eps=0.1, seed=3)["loss"]


def lightly_w_mse(a: Tensor, b: Tensor) -> Tensor:
    loss = WMSELoss(embedding_dim=a.shape[1], w_size=2 * a.shape[1], eps=0.1, track_running_stats=False).double()
    loss.w_size = len(a) // 2  # past the constructor's check, which an eps makes needless
    torch.manual_seed(3)
    return loss(torch.cat([a, b]))


def both_ways(one: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda a, b: one(a, b.detach()) + one(b, a.detach())


LIGHTLY: dict[str, tuple[Loss, Loss, str]] = {
    "VICReg": (lambda a, b: vicreg_loss(a, b)["loss"], VICRegLoss(), "`official`: v halved, as in the authors' code"),
    "Barlow Twins": (
        lambda a, b: barlow_twins_loss(a, b, off_diagonal=5e-3)["loss"],
        BarlowTwinsLoss(lambda_param=5e-3),
        "lambda .005 there; the authors' .0051 here",
    ),
    "SimCLR": (lambda a, b: nt_xent_loss(a, b)["loss"], NTXentLoss(temperature=0.1), "eq. 1, the mean of 2N rows"),
    "MoCo": (moco, lightly_moco, "third step, full queue; a batch that wraps round is cut off there, kept here"),
    "BYOL": (
        both_ways(prediction_error),
        both_ways(lambda p, z: 2 + 2 * NegativeCosineSimilarity()(p, z)),
        "sum of both directions; its examples take the mean of -cos, a quarter of the gradient",
    ),
    "SimSiam": (
        lambda a, b: both_ways(negative_cosine)(a, b) / 2,
        lambda a, b: both_ways(NegativeCosineSimilarity())(a, b) / 2,
        "mean of both directions",
    ),
    "W-MSE": (w_mse, lightly_w_mse, "the same shuffle, eps .1; its size must be at least 2 D, ours above D"),
}


def solo_vicreg(a: Tensor, b: Tensor) -> Tensor:
    loss = 25 * functional.mse_loss(a, b)
    for z in (a, b):
        matrix = torch.cov(z.T)
        loss = loss + 25 * functional.relu(1 - (matrix.diagonal() + 1e-4).sqrt()).mean()
        loss = loss + (matrix - matrix.diag().diag()).square().sum() / z.shape[1]
    return loss


def solo_barlow(a: Tensor, b: Tensor) -> Tensor:
    a, b = (functional.batch_norm(z, None, None, training=True) for z in (a, b))
    difference = (a.T @ b / len(a) - torch.eye(a.shape[1])).square()
    return 0.025 * (5e-3 * difference.sum() + (1 - 5e-3) * difference.trace())


def solo_simclr(a: Tensor, b: Tensor) -> Tensor:
    rows = functional.normalize(torch.cat([a, b]), dim=1)
    scores = (rows @ rows.T / 0.1).exp()
    partner = torch.arange(len(rows)).roll(len(a))
    return -(scores[torch.arange(len(rows)), partner] / (scores.sum(1) - scores.diagonal())).log().mean()


def solo_moco(a: Tensor, b: Tensor) -> Tensor:
    """One direction against a queue that holds the keys of the two steps before."""
    q, *keys = (functional.normalize(z, dim=1) for z in (a, b, b.roll(2, 1), b.roll(1, 1)))
    own, *earlier = (key.detach() for key in keys)
    logits = torch.cat([(q * own).sum(1, keepdim=True), q @ torch.cat(earlier).T], dim=1) / 0.2
    return functional.cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64))


def solo_w_mse(a: Tensor, b: Tensor) -> Tensor:
    """The same shuffle; covariance (1 - eps) C + eps I."""
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(3)).view(2, -1)
    losses = []
    for part in order:
        white = []
        for z in (a[part], b[part]):
            matrix = 0.9 * torch.cov(z.T) + 0.1 * torch.eye(z.shape[1], dtype=z.dtype)
            white.append((z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(matrix)).T)
        losses.append(2 - 2 * functional.cosine_similarity(white[0], white[1], dim=1).mean())
    return torch.stack(losses).mean()


def solo_cosine(p: Tensor, z: Tensor) -> Tensor:
    return functional.cosine_similarity(p, z, dim=1).mean()


SOLO: dict[str, tuple[Loss, Loss, str]] = {
    "VICReg": (
        lambda a, b: vicreg_loss(a, b, variance=50)["loss"],
        solo_vicreg,
        "v is not halved there: variance 25 there is 50 here",
    ),
    "Barlow Twins": (
        lambda a, b: barlow_twins_loss(a, b, off_diagonal=5e-3, scale=0.025)["loss"],
        solo_barlow,
        "lambda .005 and scale .025 there; the authors' .0051 and 1 (ImageNet .024) here",
    ),
    "SimCLR": (lambda a, b: nt_xent_loss(a, b)["loss"], solo_simclr, "the same"),
    "MoCo": (moco, solo_moco, "v2+ there: both directions, halved, with a queue for each"),
    "BYOL": (both_ways(prediction_error), both_ways(lambda p, z: 2 - 2 * solo_cosine(p, z)), "the same"),
    "SimSiam": (
        lambda a, b: both_ways(negative_cosine)(a, b) / 2,
        lambda a, b: -both_ways(solo_cosine)(a, b) / 2,
        "the same",
    ),
    "W-MSE": (
        w_mse,
        solo_w_mse,
        "value the same; its default form stops the gradient of the second view, ours does not",
    ),
}


def differences(ours: Loss, theirs: Loss, n: int, d: int) -> tuple[float, float, float]:
    """Our value, and the differences of value and gradient."""
    a, b = pair(n, d)
    found, expected = ours(a, b), theirs(a, b)
    of_ours, of_theirs = (
        torch.cat([part if part is not None else torch.zeros(n, d) for part in grad(loss, (a, b), allow_unused=True)])
        for loss in (found, expected)
    )
    apart = float((of_ours - of_theirs).abs().max() / of_theirs.abs().max())
    return float(found.detach()), float((found - expected).detach().abs()), apart


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

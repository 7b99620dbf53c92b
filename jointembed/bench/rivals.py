"""Losses side by side: ours, the authors' formula written plainly, and lightly's where it is installed."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from jointembed.objectives.barlow_twins import barlow_twins_loss
from jointembed.objectives.simclr import nt_xent_loss
from jointembed.objectives.swav import swav_loss
from jointembed.objectives.vicreg import vicreg_loss
from jointembed.objectives.wmse import w_mse_loss

Loss = Callable[[Tensor, Tensor], Tensor]
OBJECTIVES = ("vicreg", "barlow_twins", "w_mse", "simclr", "swav")
PROTOTYPES = 3000


def known_losses(rivals: Sequence[str], objective: str = "vicreg", width: int = 0) -> dict[str, Loss]:
    """`jointembed` and the named rivals that there are: `authors`, `lightly`.

    Args:
        rivals: names; lightly is left out where it is not installed.
        objective: one of `OBJECTIVES`.
        width: D, which whitening and prototypes have to know.
    """
    losses = {"jointembed": _ours(objective, width)}
    if "authors" in rivals and objective in PLAIN:
        losses["authors"] = PLAIN[objective]
    if "lightly" in rivals and find_spec("lightly") is not None:
        losses["lightly"] = _lightly(objective, width)
    return losses


def plain_vicreg(a: Tensor, b: Tensor) -> Tensor:
    """VICReg 25/25/1 as its official convention is written down, with both D x D covariance matrices."""
    variance = covariance = torch.zeros((), dtype=a.dtype, device=a.device)
    for z in (a, b):
        z = z - z.mean(0)
        variance = variance + functional.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2
        matrix = z.T @ z / (len(z) - 1)
        covariance = covariance + _off_diagonal(matrix).pow(2).sum() / z.shape[1]
    return 25 * functional.mse_loss(a, b) + 25 * variance + covariance


def plain_barlow_twins(a: Tensor, b: Tensor) -> Tensor:
    """Barlow Twins, lambda .005, with the D x D cross-correlation matrix (Zbontar et al. 2021, eq. 1-2)."""
    a, b = (functional.batch_norm(z, None, None, training=True) for z in (a, b))
    matrix = a.T @ b / len(a)
    return (matrix.diagonal() - 1).pow(2).sum() + 5e-3 * _off_diagonal(matrix).pow(2).sum()


PLAIN: dict[str, Loss] = {"vicreg": plain_vicreg, "barlow_twins": plain_barlow_twins}


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.flatten()[1:].view(len(matrix) - 1, len(matrix) + 1)[:, :-1]


def _prototypes(width: int) -> Tensor:
    return functional.normalize(torch.randn(PROTOTYPES, width, generator=torch.Generator().manual_seed(0)), dim=1)


def _ours(objective: str, width: int) -> Loss:
    if objective == "swav":
        prototypes = _prototypes(width)
        return lambda a, b: swav_loss({"a": a, "b": b}, prototypes, assigned=["a", "b"])["loss"]
    return {
        "vicreg": lambda a, b: vicreg_loss(a, b)["loss"],
        "barlow_twins": lambda a, b: barlow_twins_loss(a, b, off_diagonal=5e-3)["loss"],
        "w_mse": lambda a, b: w_mse_loss(a, b, size=min(2 * width, len(a)), seed=0)["loss"],
        "simclr": lambda a, b: nt_xent_loss(a, b)["loss"],
    }[objective]


def _lightly(objective: str, width: int) -> Loss:
    from lightly.loss import BarlowTwinsLoss, NTXentLoss, SwaVLoss, VICRegLoss, WMSELoss

    if objective == "swav":
        prototypes, swav = _prototypes(width), SwaVLoss()
        return lambda a, b: swav([functional.normalize(z, dim=1) @ prototypes.T for z in (a, b)], []).sum()
    if objective == "w_mse":
        whitened = WMSELoss(embedding_dim=width, w_size=2 * width)

        def w_mse(a: Tensor, b: Tensor) -> Tensor:
            torch.manual_seed(0)  # its shuffle is ours then
            return whitened(torch.cat([a, b]))

        return w_mse
    return {
        "vicreg": VICRegLoss(),
        "barlow_twins": BarlowTwinsLoss(),
        "simclr": NTXentLoss(temperature=0.1),
    }[objective]

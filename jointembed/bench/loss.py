"""Cost of VICReg's loss beside the authors' formula: forward and backward, time and memory."""

import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jointembed.objectives.vicreg import vicreg_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def plain_vicreg(a: Tensor, b: Tensor) -> Tensor:
    """VICReg 25/25/1 as its official convention is written down, with both D x D covariance matrices."""
    variance = covariance = torch.zeros((), dtype=a.dtype, device=a.device)
    for z in (a, b):
        z = z - z.mean(0)
        variance = variance + functional.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2
        matrix = z.T @ z / (len(z) - 1)
        off_diagonal = matrix.flatten()[1:].view(z.shape[1] - 1, z.shape[1] + 1)[:, :-1]
        covariance = covariance + off_diagonal.pow(2).sum() / z.shape[1]
    return 25 * functional.mse_loss(a, b) + 25 * variance + covariance


def known_losses(rivals: Sequence[str]) -> dict[str, Loss]:
    """`jointembed` and the named rivals: `authors`, and `lightly` where it is installed."""
    losses: dict[str, Loss] = {"jointembed": lambda a, b: vicreg_loss(a, b)["loss"]}
    if "authors" in rivals:
        losses["authors"] = plain_vicreg
    if "lightly" in rivals and find_spec("lightly") is not None:
        from lightly.loss import VICRegLoss

        losses["lightly"] = VICRegLoss()
    return losses


def bench_loss(
    *,
    ns: Sequence[int] = (64, 256, 1024),
    ds: Sequence[int] = (8192,),
    repeats: int = 5,
    rivals: Sequence[str] = ("authors", "lightly"),
) -> list[dict[str, float | str]]:
    """Measure VICReg's loss, forward and backward, on the CPU: all losses in turn in one process, after one warm-up.

    Args:
        ns: batch sizes.
        ds: dimensions.
        repeats: measurements of each.
        rivals: `authors` (their formula, plainly), `lightly` (left out where it is not installed).

    Returns:
        One row for each size and loss: `n`, `d`, `loss`, `milliseconds` (median), `ratio` (median of the loss's time
        over ours, pair by pair), `peak_mb` (most memory live beyond the embeddings), `value`, `gradient_error` (largest
        difference from our gradient, relative to its largest entry).
    """
    losses = known_losses(rivals)
    rows: list[dict[str, float | str]] = []
    for n, d in ((n, d) for d in ds for n in ns):
        generator = torch.Generator().manual_seed(n)
        a = torch.randn(n, d, generator=generator)
        b = a + 0.1 * torch.randn(n, d, generator=generator)
        outcome = {name: step(loss, a, b) for name, loss in losses.items()}
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(repeats):
            for name, loss in losses.items():
                start = perf_counter()
                step(loss, a, b)
                seconds[name].append(perf_counter() - start)
        ours = outcome["jointembed"][1]
        for name, loss in losses.items():
            ratios = [own / other for own, other in zip(seconds[name], seconds["jointembed"], strict=True)]
            value, gradient = outcome[name]
            row: dict[str, float | str] = {"n": n, "d": d, "loss": name, "value": value}
            row |= {"milliseconds": 1e3 * statistics.median(seconds[name]), "ratio": statistics.median(ratios)}
            row |= {"peak_mb": peak_bytes(loss, a, b) / 1e6}
            rows.append(row | {"gradient_error": float((gradient - ours).abs().max() / ours.abs().max())})
    return rows


def step(loss: Loss, a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """One forward and backward pass: the value, and the gradient in a."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    value = loss(a, b)
    value.backward()
    assert a.grad is not None
    return float(value.detach()) if not value.is_meta else 0.0, a.grad


def peak_bytes(loss: Loss, a: Tensor, b: Tensor) -> int:
    """Most bytes of tensors that a forward and backward pass has live at once, beyond the embeddings.

    Counted by storage, so that it is exact on any device; on the meta device nothing is computed.
    """
    with _LiveBytes() as live:
        step(loss, a, b)
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations return and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in inputs
            ):  # neither view nor in place
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result

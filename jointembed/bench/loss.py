"""Cost of losses beside the authors' formulas and lightly's: forward and backward, time and memory."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jointembed.bench.measure import Seconds, Stopwatch, Turn, compared, take_turns
from jointembed.bench.rivals import OBJECTIVES, PLAIN, Loss, known_losses
from jointembed.errors import RecipeError
from jointembed.recipe import nearest

Row = dict[str, float | str]
SIZES = {  # (n, d) that an objective is used at
    "vicreg": [(256, 2048), (64, 8192), (256, 8192), (1024, 8192), (2048, 8192)],
    "barlow_twins": [(256, 2048), (256, 8192), (1024, 8192)],
    "w_mse": [(256, 64), (512, 128), (1024, 64)],
    "simclr": [(256, 128), (1024, 128), (256, 2048)],
    "swav": [(64, 128), (256, 128), (1024, 128)],
}
GRID_N = (16, 64, 256, 1024, 4096)
GRID_D = (64, 256, 1024, 4096, 16384)


def bench_loss(
    *,
    ns: Sequence[int] | None = None,
    ds: Sequence[int] | None = None,
    repeats: int = 5,
    rivals: Sequence[str] = ("authors", "lightly"),
    objective: str = "vicreg",
    budget: float = math.inf,
) -> list[Row]:
    """Measure a loss, forward and backward, on the CPU: all alternatives in turn in one process, after one warm-up.

    Args:
        ns: batch sizes; the sizes that the objective is used at where neither these nor `ds` are given.
        ds: dimensions.
        repeats: measurements of each.
        rivals: `authors` (their formula, plainly, of VICReg and Barlow Twins), `lightly` (left out where it is not
            installed).
        objective: one of vicreg, barlow_twins, w_mse, simclr, swav.
        budget: seconds of one size after which no further round begins.

    Returns:
        One row for each size and loss: `objective`, `n`, `d`, `loss`, `milliseconds` and `cpu_milliseconds` (medians),
        `ratio` and `cpu_ratio` (median of the loss's time over ours, round by round), `rounds`, `peak_mb` (most memory
        live beyond the embeddings), `value`, `gradient_error` (largest difference from our gradient, relative to its
        largest entry).

    Raises:
        RecipeError: no such objective.
    """
    if objective not in OBJECTIVES:
        raise RecipeError(f"no objective {objective!r}{nearest(objective, OBJECTIVES)}")
    sizes = SIZES[objective] if ns is None and ds is None else [(n, d) for d in ds or [8192] for n in ns or [256]]
    return [row for n, d in sizes for row in _size(n, d, repeats, rivals, objective, budget)]


def bench_grid(
    *, ns: Sequence[int] = GRID_N, ds: Sequence[int] = GRID_D, repeats: int = 9, budget: float = 20.0
) -> list[Row]:
    """VICReg against the authors' formula over all sizes, from the smallest on; the rows of `bench_loss`."""
    sizes = sorted(((n, d) for n in ns for d in ds), key=lambda one: (one[1] * min(one), one))
    return [row for n, d in sizes for row in _size(n, d, repeats, ("authors",), "vicreg", budget)]


def _size(n: int, d: int, repeats: int, rivals: Sequence[str], objective: str, budget: float) -> list[Row]:
    losses = known_losses(rivals, objective, d)
    a, b = embeddings(n, d)
    outcome, warm = dict[str, tuple[float, Tensor]](), dict[str, Seconds]()
    for name, loss in losses.items():
        for _ in range(2):  # the first call of a short one is all warming up
            watch = Stopwatch()
            outcome[name] = step(loss, a, b)
            warm[name] = watch.seconds()
            if warm[name].wall > 0.5:
                break
    turns = {name: lambda loss=loss: step(loss, a, b) for name, loss in losses.items()}
    ours = outcome["jointembed"][1]
    shapes = (a.to("meta"), b.to("meta")) if objective in PLAIN else (a, b)  # counted without computing
    rows: list[Row] = []
    for name, row in compared(take_turns(turns, repeats, budget=budget, warm=warm)).items():
        value, gradient = outcome[name]
        one: Row = {"objective": objective, "n": n, "d": d, "loss": name, "value": value}
        one |= {"milliseconds": 1e3 * row.pop("seconds"), "cpu_milliseconds": 1e3 * row.pop("cpu_seconds")} | row
        one["peak_mb"] = peak_bytes(losses[name], *((a, b) if name == "lightly" else shapes)) / 1e6
        rows.append(one | {"gradient_error": float((gradient - ours).abs().max() / ours.abs().max())})
    return rows


def embeddings(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two branches' random rows (n, d), which resemble each other."""
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, d, generator=generator)
    return a, a + 0.1 * torch.randn(n, d, generator=generator)


def step(loss: Loss, a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """One forward and backward pass: the value, and the gradient in a."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    value = loss(a, b)
    value.backward()
    assert a.grad is not None
    return float(value.detach()) if not value.is_meta else 0.0, a.grad


def peak_bytes(loss: Loss, a: Tensor, b: Tensor) -> int:
    """`live_bytes` of a forward and backward pass; on the meta device nothing is computed."""
    return live_bytes(lambda: step(loss, a, b))


def live_bytes(turn: Turn) -> int:
    """Most bytes of tensors made in a call that are live at once, by storage, which is exact on any device."""
    with _LiveBytes() as live:
        turn()
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

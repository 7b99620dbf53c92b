"""What a rank pays for the covariance term: its own rows of the global Gram matrix, against all rows and D x D."""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from jointembed import distributed
from jointembed.bench.processes import Tensors, run_processes
from jointembed.objectives.statistics import covariance_term


class _GatherAll(torch.autograd.Function):
    """As VICReg's authors gather: all rows forward, the sum of all ranks' gradients of all rows backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.rows = len(z)
        return distributed.gather_without_grad(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = distributed.rank() * ctx.rows
        return distributed.sum_over_ranks(gradients[0])[start : start + ctx.rows]


def gathered_covariance(z: Tensor) -> Tensor:
    """The same term as every rank would compute it alone: D x D, from all rows. z: (n, D), equal n on all ranks."""
    rows = _GatherAll.apply(z)
    rows = rows - rows.mean(0)
    matrix = rows.T @ rows / (len(rows) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]


def work(batch: int, width: int, repeats: int) -> Tensors:
    """Seconds of both, in turn, forward and backward, on one of W ranks; and their gradients."""
    generator = torch.Generator().manual_seed(distributed.rank())
    z = torch.randn(batch // distributed.world(), width, generator=generator)
    found: Tensors = {}
    seconds: dict[str, list[float]] = {"own_rows": [], "gather_all": []}
    terms: dict[str, Callable[[Tensor], Tensor]] = {"own_rows": covariance_term, "gather_all": gathered_covariance}
    for _ in range(repeats + 1):
        for name, term in terms.items():
            own = z.clone().requires_grad_()
            distributed.barrier()
            start = perf_counter()
            term(own).backward()
            seconds[name].append(perf_counter() - start)
            assert own.grad is not None
            found[f"{name} gradient"] = own.grad
    return found | {name: torch.tensor(times[1:], dtype=torch.float64) for name, times in seconds.items()}


def bench_covariance(
    *, worlds: Sequence[int] = (1, 2, 4), batch: int = 512, width: int = 2048, repeats: int = 7
) -> list[dict[str, float]]:
    """Measure both forms on each of W processes on this machine, in turn.

    Args:
        worlds: each W.
        batch: N, rows of all ranks; a multiple of every W.
        width: D.
        repeats: measurements of each; medians count.

    Returns:
        One row for each W: `world`, `seconds` and `gather_all_seconds` (of the slowest rank), `ratio` (median of the
        other's time over ours, measurement by measurement), `received_mb` and `gather_all_received_mb` a rank and
        step (from the shapes: (W - 1) n D numbers forward; the other's all-reduce of N D numbers backward, in a ring,
        is 2 (W - 1) / W of N D more), `matrix_mb` and `gather_all_matrix_mb` (n x N against D x D), and
        `gradient_error`, the largest difference relative to the largest entry.
    """
    rows = []
    for world in worlds:
        ranks = run_processes(world, work, batch, width, repeats)
        slowest = {name: torch.stack([one[name] for one in ranks]).amax(0) for name in ("own_rows", "gather_all")}
        own, other = (torch.cat([one[f"{name} gradient"] for one in ranks]) for name in slowest)
        numbers = (world - 1) * batch / world * width * 4 / 1e6
        ratios = (slowest["gather_all"] / slowest["own_rows"]).tolist()
        rows.append(
            {
                "world": float(world),
                "seconds": statistics.median(slowest["own_rows"].tolist()),
                "gather_all_seconds": statistics.median(slowest["gather_all"].tolist()),
                "ratio": statistics.median(ratios),
                "received_mb": numbers,
                "gather_all_received_mb": 3 * numbers,
                "matrix_mb": batch / world * batch * 4 / 1e6,
                "gather_all_matrix_mb": width * width * 4 / 1e6,
                "gradient_error": float((own - other).abs().max() / own.abs().max()),
            }
        )
    return rows

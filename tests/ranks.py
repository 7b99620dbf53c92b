"""W processes on gloo that run a function together; and the checks that all of our rank tests share one spawn for."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from jointembed import distributed
from jointembed.layers import Embedding
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.barlow_twins import barlow_twins_loss
from jointembed.objectives.clip import clip_loss
from jointembed.objectives.siglip import siglip_loss
from jointembed.objectives.vicreg import VICReg, vicreg_loss
from jointembed.objectives.vse import vse_loss

COUNTS = {1: [11], 2: [7, 4], 4: [4, 1, 0, 6]}  # rows of each rank: uneven, and one without any
WIDTHS = {"n<d": 31, "n~d": 12, "n>d": 5}
DTYPES = {"float64": torch.float64, "float32": torch.float32}

Loss = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
LOSSES: dict[str, Loss] = {
    "vicreg": lambda a, b, item: vicreg_loss(a, b),
    "vicreg_paper": lambda a, b, item: vicreg_loss(a, b, variance=(9, 4), covariance=(2, 5), convention="paper"),
    "vicreg_views": lambda a, b, item: VICReg(pairs=[["a", "c"], ["b", "c"]])(views(a=a, b=b, c=a * b)),
    "barlow_twins": lambda a, b, item: barlow_twins_loss(a, b),
    "vse": lambda a, b, item: vse_loss(a, b, item=item),
    "vse_sum": lambda a, b, item: vse_loss(a, b, hardest=False),
    "clip": lambda a, b, item: clip_loss(a, b, item=item),
    "siglip": lambda a, b, item: siglip_loss(a, b, item=item, temperature=0.5, bias=-1.0),
}


def views(**embeddings: Tensor) -> dict[str, Embedding]:
    return {view: Embedding(z, z) for view, z in embeddings.items()}


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns on each of W processes; it must be importable and what it returns picklable."""
    get_context("forkserver").set_forkserver_preload(["torch"])  # imported once, not W times
    with TemporaryDirectory() as folder:
        start_processes(_work, (world, folder, function, args), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _work(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    distributed.shut_down()


@cache
def results(world: int) -> list[dict[str, Any]]:
    """Every check on each of W processes, spawned once a session."""
    return run_ranks(world, run_checks)


def run_checks() -> dict[str, Any]:
    found: dict[str, Any] = {"objects": objects(), "gathers": gathers(), "averages": averages()}
    for dtype in DTYPES:
        for shape in WIDTHS:
            found |= {f"{name} {shape} {dtype}": loss_of(name, shape, dtype) for name in LOSSES}
    return found | {f"ddp {name}": trained(name) for name in OBJECTIVES}


def own_rows(x: Tensor) -> Tensor:
    counts = COUNTS[distributed.world()]
    start = sum(counts[: distributed.rank()])
    return x[start : start + counts[distributed.rank()]]


def batch(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The global batch: correlated pairs with means, and items that repeat across ranks."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(11, width, generator=generator, dtype=torch.float64) * 0.7 + 0.3
    b = a + 1.5 * torch.randn(11, width, generator=generator, dtype=torch.float64)
    return a.to(dtype), b.to(dtype), torch.tensor([0, 1, 2, 3, 0, 4, 5, 1, 6, 7, 0])


def loss_of(name: str, shape: str, dtype: str) -> dict[str, Any]:
    """Terms, and the gradients of the own rows after DDP's averaging."""
    a, b, item = (own_rows(x).clone() for x in batch(WIDTHS[shape], DTYPES[dtype]))
    a.requires_grad_(), b.requires_grad_()
    terms = LOSSES[name](a, b, item)
    terms["loss"].backward()
    assert a.grad is not None and b.grad is not None
    return {
        "terms": {key: term.detach() for key, term in terms.items()},
        "gradient": torch.cat([a.grad, b.grad], dim=1) / distributed.world(),
    }


class Two(nn.Module):
    """Two linear branches and an objective, as DDP sees them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 9), nn.Linear(6, 9)
        self.objective = OBJECTIVES[name](**({"learn_temperature": True} if name == "clip" else {}))

    def forward(self, a: Tensor, b: Tensor, item: Tensor) -> dict[str, Tensor]:
        return self.objective(views(left=self.left(a), right=self.right(b)), item=item)


def trained(name: str) -> dict[str, Any]:
    """Gradients of the parameters under DDP, and by hand with `average_gradients`."""
    torch.manual_seed(3)
    model = Two(name).double()
    a, b, item = (own_rows(x) for x in batch(6, torch.float64))
    parallel = DistributedDataParallel(model) if distributed.world() > 1 else model
    parallel(a, b, item)["loss"].backward()
    ddp = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model(a, b, item)["loss"].backward()
    distributed.average_gradients(model.parameters())
    return {"ddp": ddp, "by_hand": [parameter.grad for parameter in model.parameters()]}


def gathers() -> dict[str, Any]:
    """Rows of several types and shapes; and the gradient of a weighted sum of all rows."""
    full = torch.arange(44).view(11, 2, 2)
    x = own_rows(full.double()).requires_grad_()
    rows = distributed.gather(x.transpose(1, 2))
    (rows * torch.arange(11.0).view(11, 1, 1)).sum().backward()
    part = torch.tensor([2.0 + distributed.rank()], requires_grad=True)
    total = distributed.total(part**2)
    total.sum().backward()
    return {
        "rows": rows.detach(),
        "gradient": x.grad,
        "item": distributed.gather_without_grad(own_rows(torch.arange(11))),
        "bfloat16": distributed.gather_without_grad(own_rows(full.bfloat16())),
        "bool": distributed.gather_without_grad(own_rows(full % 3 == 0)),
        "counts": distributed.row_counts(x),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, distributed.rank()])),
        "total": total.detach(),
        "total_gradient": part.grad,
    }


def averages() -> list[Tensor | None]:
    """Averaged gradients: on all ranks, on the first alone, on none, of another type, and frozen."""
    rank = distributed.rank()
    parameters = [nn.Parameter(torch.zeros(3, 2)) for _ in range(4)] + [nn.Parameter(torch.zeros(2).double())]
    parameters[0].grad = torch.full((3, 2), rank + 1.0).t().contiguous().t()
    if rank == 0:
        parameters[1].grad = torch.ones(3, 2)
    parameters[3].requires_grad_(False)
    parameters[4].grad = torch.full((2,), 10.0 * rank).double()
    distributed.average_gradients(parameters, bucket_bytes=30)
    return [parameter.grad for parameter in parameters]


def objects() -> dict[str, Any]:
    rank = distributed.rank()
    found = {
        "world": distributed.world(),
        "rank": rank,
        "main": distributed.is_main(),
        "gathered": distributed.gather_objects({"rank": rank}),
        "broadcast": distributed.broadcast_object(f"from {rank}"),
        "agree": (distributed.all_agree("same"), distributed.all_agree(rank)),
        "any": (distributed.any_rank(False), distributed.any_rank(rank == distributed.world() - 1)),
    }
    distributed.barrier()
    return found

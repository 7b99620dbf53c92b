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
from jointembed.errors import RecipeError
from jointembed.layers import Embedding, convert_batch_norm
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.barlow_twins import barlow_twins_loss
from jointembed.objectives.clip import clip_loss
from jointembed.objectives.clustering import Assignments, kmeans, pca_whiten
from jointembed.objectives.cmc import cmc_loss
from jointembed.objectives.cpc import cpc_loss
from jointembed.objectives.deepcluster_v2 import deepcluster_v2_loss
from jointembed.objectives.infomin import infomin_loss
from jointembed.objectives.memory import Bank, Queue
from jointembed.objectives.objective import EpochEmbeddings, ViewShape
from jointembed.objectives.obow import bag_prediction_loss
from jointembed.objectives.pirl import pirl_loss
from jointembed.objectives.regularized import Regularized
from jointembed.objectives.siglip import siglip_loss
from jointembed.objectives.sigreg import directions, lejepa_loss
from jointembed.objectives.simclr import nt_xent_loss
from jointembed.objectives.supervised import supervised_loss
from jointembed.objectives.swav import swav_loss
from jointembed.objectives.vicreg import VICReg, vicreg_loss
from jointembed.objectives.vicregl import local_loss
from jointembed.objectives.vse import vse_loss
from jointembed.objectives.wmse import w_mse_loss

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
    "simclr": lambda a, b, item: nt_xent_loss(a, b),
    "simclr_item": lambda a, b, item: nt_xent_loss(a, b, temperature=0.5, item=item),
    "pirl": lambda a, b, item: pirl_loss(a, b, a * b, fixed(7, b), temperature=0.3),
    "cmc": lambda a, b, item: cmc_loss(a, b, (a * b, b), (fixed(7, a), -fixed(7, b)), temperature=0.3),
    "infomin": lambda a, b, item: infomin_loss(a, a * b, b, fixed(7, b), temperature=0.3),
    "cpc": lambda a, b, item: {"loss": cpc_loss([(patches(a, 2) / 9, torch.tensor([0, 2]))], patches(b, 3))},
    "vicregl": lambda a, b, item: local_loss(
        patches(a, 5), patches(b, 4), patches(a, 5)[:, :, :2], patches(b, 4)[:, :, :2], matches=3, feature_matches=2
    ),
    "wmse": lambda a, b, item: w_mse_loss(two_rows(a, a * b), two_rows(b, b * b), size=11, iterations=2, eps=0.3),
    "siglip": lambda a, b, item: siglip_loss(a, b, item=item, temperature=0.5, bias=-1.0),
    "swav": lambda a, b, item: swav_loss({"a": a, "b": b, "c": a * b}, unit_rows(5, a), assigned=["a", "b"]),
    "swav_queue": lambda a, b, item: swav_loss(
        {"a": a, "b": b}, unit_rows(5, a), assigned=["a", "b"], queues={"a": unit_rows(9, a), "b": -unit_rows(6, b)}
    ),
    "sigreg": lambda a, b, item: lejepa_loss(
        {"a": a, "b": b, "c": a * b}, directions(a.shape[1], 6, seed=1), centres=["a", "b"]
    ),
    "deepcluster_v2": lambda a, b, item: deepcluster_v2_loss([a, b], unit_rows(8, a).unflatten(0, (1, 8)), item[None]),
    "obow": lambda a, b, item: {
        "loss": bag_prediction_loss(a * b, unit_rows(6, a), (a.detach() @ unit_rows(6, a).T).softmax(1))
    },
    "supervised": lambda a, b, item: supervised_loss(torch.cat([a, b], 1), item),
}

ARGUMENTS: dict[str, dict[str, Any]] = {  # small ones for 11 samples; and further cases, "objective case"
    "clip": {"learn_temperature": True},
    "byol": {"predictor_width": 7},
    "byol without target": {"target": False, "predictor_width": 7, "batch_norm": False},
    "byol regularized": {"predictor_width": 7, "regularize": {"variance": 2.0, "covariance": 0.5}},
    "simsiam": {"predictor_width": 5},
    "simsiam bare": {"predictor": False, "stop_gradient": False},
    "vicreg predictor": {"predictor": [7]},
    "moco": {"queue": 13, "temperature": 0.2},
    "moco symmetric": {"queue": 13, "symmetric": True},
    "wmse": {"size": 11, "eps": 0.2},
    "swav": {"n_prototypes": 5, "freeze_steps": 0},
    "swav frozen": {"n_prototypes": 5, "queue": 9, "queue_start": 0.0},
    "deepcluster": {"clusters": 4, "components": 5},
    "deepcluster_v2": {"heads": 2, "n_prototypes": 4},
    "obow": {"n_words": 16, "channels": [9, 9]},
    "sigreg": {"slices": 16},
    "supervised": {"classes": 8},
    "pirl": {"width": 5, "negatives": 8},
    "pirl paper": {"width": 5, "negatives": 8, "convention": "paper"},
    "cpc": {"steps": (1, 2), "blocks": 2, "hidden": 4, "width": 3, "scale": 1.0},
    "cmc": {"negatives": 8},
    "cmc infonce": {"negatives": 8, "loss": "infonce"},
    "infomin": {"queue": 13},
    "vicregl": {"projector": (7, 5), "matches": 3},
}
INPUTS: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {  # of objectives with other views than two
    "swav": lambda a, b: {"view1": a, "view2": b, "crop1": a * b},
    "obow": lambda a, b: {"image": a, "view1": b, "crop1": a * b},
    "pirl": lambda a, b: {"view1": a, "patches": patches(b, 9)},
    "cpc": lambda a, b: {"patches": patches(a * b, 16)},
    "infomin": lambda a, b: {"view1": a, "view2": b, "patches": patches(a * b, 9)},
}
CASES = [*OBJECTIVES, *(case for case in ARGUMENTS if " " in case)]


def two_views(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"left": a, "right": b}


def fixed(count: int, like: Tensor) -> Tensor:
    """Rows that are the same on every rank."""
    rows = torch.randn(count, like.shape[1], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return rows.to(like.dtype)


def patches(x: Tensor, count: int) -> Tensor:
    """As many different rows of each sample."""
    return torch.stack([x.roll(k, 1) * (1 + k / count) for k in range(count)], dim=1)


def two_rows(a: Tensor, b: Tensor) -> Tensor:
    """Two rows of each sample, one after the other."""
    return torch.stack([a, b], dim=1).flatten(0, 1)


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


def results(world: int) -> list[dict[str, Any]]:
    """Every check on each of W processes, spawned once a session, even if they fail."""
    found = _results(world)
    if isinstance(found, Exception):
        raise found
    return found


@cache
def _results(world: int) -> list[dict[str, Any]] | Exception:
    try:
        return run_ranks(world, run_checks)
    except Exception as error:
        return error


def run_checks() -> dict[str, Any]:
    found: dict[str, Any] = {"objects": objects(), "gathers": gathers(), "averages": averages()}
    found |= {"memories": memories(), "clusters": clusters()}
    for dtype in DTYPES:
        for shape in WIDTHS:
            found |= {f"{name} {shape} {dtype}": loss_of(name, shape, dtype) for name in LOSSES}
    return found | {f"ddp {case}": trained(case) for case in CASES}


def unit_rows(count: int, like: Tensor) -> Tensor:
    """Rows of length 1, the same on every rank."""
    return nn.functional.normalize(fixed(count, like), dim=1)


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


class Tiny(nn.Module):
    """An objective on linear branches, as DDP sees it: one for the first view and one for all others, or one for all
    where the objective allows no other; with fixed targets, maps and labels where it needs them.
    """

    def __init__(self, case: str) -> None:
        super().__init__()
        name, arguments = case.split()[0], dict(ARGUMENTS.get(case, {}))
        regularize = arguments.pop("regularize", None)
        self.objective = OBJECTIVES[name](**arguments)
        if regularize is not None:
            self.objective = Regularized(self.objective, **regularize)
        self.inputs = INPUTS.get(name, two_views)
        names = list(self.inputs(*torch.zeros(2, 1, 6)))
        self.views = {view: "right" if number else "left" for number, view in enumerate(names)}
        try:
            self.objective.check_branches(self.views)
        except RecipeError:
            self.views = dict.fromkeys(names, "left")
        self.online, self.targets = (
            nn.ModuleDict({branch: nn.Linear(6, 36) for branch in sorted(set(self.views.values()))}) for _ in range(2)
        )
        self.targets.requires_grad_(False)
        self.objective.attach({view: ViewShape(branch, 9, 9) for view, branch in self.views.items()}, samples=11)

    def before_step(self, index: Tensor, item: Tensor) -> None:
        """The hook, with boxes that the crops could have."""
        boxes = torch.rand(len(self.views), 11, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        boxes[..., 4].round_()
        told = {f"{view}_box": box[index] for view, box in zip(self.views, boxes, strict=True)}
        self.objective.before_step({"index": index, "item": item} | told)

    def embedded(self, branches: nn.ModuleDict, inputs: dict[str, Tensor], chosen: list[str]) -> dict[str, Embedding]:
        found = {}
        for view in chosen:
            maps = branches[self.views[view]](inputs[view]).unflatten(-1, (9, 2, 2))
            z = maps.mean((-2, -1))
            found[view] = Embedding(z, z, maps, (maps.repeat_interleave(2, -1), maps))
        return found

    def forward(self, a: Tensor, b: Tensor, index: Tensor, item: Tensor) -> dict[str, Tensor]:
        inputs = self.inputs(a, b)
        online = self.embedded(self.online, inputs, self.objective.online_views(self.views))
        target = self.embedded(self.targets, inputs, self.objective.target_views(self.views))
        label = item if "label" in self.objective.needs else None
        return self.objective(online, target or None, index=index, item=item, label=label)

    def embed(self, a: Tensor, b: Tensor, index: Tensor) -> EpochEmbeddings:
        """What `start_epoch` gets of the first view."""
        with torch.no_grad():
            first = self.embedded(self.online, self.inputs(a, b), list(self.views)[:1])[next(iter(self.views))]
        return EpochEmbeddings(index, first.h, first.z)


def trained(case: str) -> dict[str, Any]:
    """Gradients of the parameters under DDP, and by hand with `average_gradients`; the buffers after the step."""
    torch.manual_seed(3)
    model = Tiny(case).double()
    convert_batch_norm(model, "cpu")
    a, b, item = (own_rows(x) for x in batch(6, torch.float64))
    index = own_rows(torch.arange(11))
    model.objective.start_epoch(0, lambda: model.embed(a, b, index))
    model.before_step(index, item)
    parallel = DistributedDataParallel(model, broadcast_buffers=False) if distributed.world() > 1 else model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parallel(a, b, index, item)["loss"].backward()
    ddp = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    model.zero_grad()
    terms = model(a, b, index, item)
    terms["loss"].backward()
    distributed.average_gradients(parameters)
    model.objective.end_step(0.5)
    return {
        "ddp": ddp,
        "by_hand": [parameter.grad for parameter in parameters],
        "terms": {key: term.detach() for key, term in terms.items()},
        "buffers": dict(model.objective.named_buffers()),
    }


def memories() -> dict[str, Any]:
    """A queue and a bank after steps with uneven rows, more rows than the queue holds, and repeated samples."""
    queue, bank = Queue(8, 3).double(), Bank(7, 3, momentum=0.25).double()
    a, b, item = batch(3, torch.float64)
    for rows in (a[:2], b, a):
        queue.hold(own_rows(rows) if len(rows) == 11 else rows[distributed.rank() :: distributed.world()])
        queue.commit()
    for rows, drop in ((a, 0), (b, 3)):
        bank.hold(own_rows(item.roll(drop)).clamp(max=6), own_rows(rows))
        bank.commit()
    return {"queue": dict(queue.named_buffers()), "bank": dict(bank.named_buffers()), "drawn": bank.draw(20)}


def clusters() -> dict[str, Any]:
    """k-means and whitening of samples that are dealt out in another order for each number of ranks."""
    world = distributed.world()
    rows = torch.randn(120, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(world))
    own = order.split({1: [120], 2: [117, 3], 4: [60, 0, 57, 3]}[world])[distributed.rank()]
    whitened = torch.zeros(120, 3, dtype=torch.float64).index_copy_(0, own, pca_whiten(rows[own], 3))
    found: dict[str, Any] = {"whitened": distributed.sum_over_ranks(whitened)}
    repeated = torch.where(torch.arange(120)[:, None] < 5, rows, rows[0])
    for case, data in (("spherical", rows), ("euclidean", rows), ("repeated", repeated)):
        result = kmeans(data[own], own, 6, spherical=case != "euclidean")
        table = Assignments(1, 120)
        table.put(0, own, result.assignment)
        found |= {case: result.centroids, f"{case} all": table.cluster}
    return found


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

"""Whether W processes, micro-batches and a resume give the numbers of one run in one piece: measured, per objective.

Each objective trains a few steps on tiny branches, through the code that real runs go through: the model's hooks, DDP,
`forward_backward`, checkpoints. Compared with one process in one piece are the gradients of every step and, after the
last one, everything that a checkpoint holds.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jointembed import distributed
from jointembed.bench.covariance import bench_covariance
from jointembed.bench.micro_batch import bench_micro_batch, plot
from jointembed.bench.processes import Tensors, run_processes
from jointembed.branches.branch import Branch
from jointembed.errors import JointEmbedError, RecipeError
from jointembed.layers import MLP, convert_batch_norm
from jointembed.model import JointEmbedding
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.objective import EpochEmbeddings
from jointembed.training import checkpoint as checkpoints
from jointembed.training.folder import environment
from jointembed.training.loop import forward_backward, gradient_norm

Views = Callable[[Tensor, Tensor], dict[str, Tensor]]

ROWS, SAMPLES, STEPS, SIDE, MICRO = 24, 48, 4, 4, 7
COUNTS = {1: (24,), 2: (15, 9), 4: (9, 1, 11, 3)}  # rows of each rank: as uneven as a last batch may be, and more
DTYPES = {"float64": torch.float64, "float32": torch.float32}
WORLDS = (2, 4)


class Case(NamedTuple):
    """How an objective is tried: its arguments, small enough for 24 rows, the views that it takes, its expander."""

    arguments: Mapping[str, Any] = {}
    views: Views = lambda a, b: {"view1": a, "view2": b}
    widths: tuple[int, ...] = (9, 9)  # () for one that looks at representations alone


def _patches(x: Tensor, count: int) -> Tensor:
    """(N, count, C, H, W): as many different pictures of each sample."""
    return torch.stack([x.roll(k, -1) * (1 + k / count) for k in range(count)], dim=1)


CASES: dict[str, Case] = {  # an objective that is not here is tried with its defaults on two views
    "clip": Case({"learn_temperature": True}),
    "moco": Case({"queue": 13}),
    "wmse": Case({"size": 24, "eps": 0.3}),
    "byol": Case({"predictor_width": 7, "batch_norm": False}),
    "simsiam": Case({"predictor_width": 5, "batch_norm": False}),
    "swav": Case({"n_prototypes": 5, "freeze_steps": 0}, lambda a, b: {"view1": a, "view2": b, "crop1": a * b}),
    "deepcluster": Case({"clusters": 4, "components": 5}),
    "deepcluster_v2": Case({"heads": 2, "n_prototypes": 4}),
    "obow": Case({"n_words": 16, "channels": [9, 9]}, lambda a, b: {"image": a, "view1": b, "crop1": a * b}),
    "sigreg": Case({"slices": 16}),
    "supervised": Case({"classes": 8}, widths=()),
    "pirl": Case({"width": 5, "negatives": 8}, lambda a, b: {"view1": a, "patches": _patches(b, 9)}, widths=()),
    "cpc": Case(
        {"steps": (1, 2), "blocks": 2, "hidden": 4, "width": 3},
        lambda a, b: {"patches": _patches(a * b, 16)},
        widths=(),
    ),
    "cmc": Case({"negatives": 8}),
    "infomin": Case({"queue": 13}, lambda a, b: {"view1": a, "view2": b, "patches": _patches(a * b, 9)}),
    "vicregl": Case({"projector": (7, 5), "matches": 3}),
}


class Maps(nn.Module):
    """(N, 3, 4, 4) pictures to representations of width 9 and the maps of two stages."""

    width = 9

    def __init__(self) -> None:
        """With one layer."""
        super().__init__()
        self.layer = nn.Conv2d(3, self.width, 1)

    def forward_with_levels(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Representation and maps."""
        first = torch.tanh(self.layer(x))
        last = nn.functional.avg_pool2d(first, 2)
        return last.mean((-2, -1)), (first, last)

    def forward(self, x: Tensor) -> Tensor:
        """Representation."""
        return self.forward_with_levels(x)[0]


def make_model(name: str, dtype: torch.dtype) -> JointEmbedding:
    """The objective on tiny branches, one a view where it allows that, ready to train."""
    torch.manual_seed(3)
    case = CASES.get(name, Case())
    names = list(case.views(*torch.zeros(2, 1, 3, SIDE, SIDE)))
    objective = OBJECTIVES[name](**case.arguments)
    views = {view: ("other" if number else "first") for number, view in enumerate(names)}
    try:
        objective.check_branches(views)
    except RecipeError:
        views = dict.fromkeys(names, "first")
    widths = list(case.widths)
    branches = {branch: Branch(Maps(), MLP(9, widths=widths, norm="layer")) for branch in sorted(set(views.values()))}
    core = JointEmbedding(branches, views, objective)
    core.attach(SAMPLES)
    convert_batch_norm(core, "cpu")
    return core.to(dtype).train()


def batch_of(name: str, step: int, dtype: torch.dtype) -> dict[str, Any]:
    """This rank's part of the global batch of a step: views, numbers, labels, and the boxes of crops."""
    counts = COUNTS[distributed.world()]
    start = sum(counts[: distributed.rank()])
    rows = slice(start, start + counts[distributed.rank()])
    generator = torch.Generator().manual_seed(step)
    a = torch.randn(ROWS, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 0.7 + 0.3
    b = a + torch.randn(a.shape, generator=generator, dtype=torch.float64)
    index = (torch.arange(ROWS) + ROWS * (step % 2)) % SAMPLES
    views = CASES.get(name, Case()).views(a.to(dtype), b.to(dtype))
    boxes = torch.rand(len(views), ROWS, 5, generator=generator, dtype=torch.float64).to(dtype)
    boxes[..., 4].round_()
    whole = views | {f"{view}_box": box for view, box in zip(views, boxes, strict=True)}
    whole |= {"index": index, "item": index, "label": index % 8}
    return {key: value[rows] for key, value in whole.items()}


def _epoch(core: JointEmbedding, name: str, dtype: torch.dtype) -> EpochEmbeddings:
    """This rank's part of the training set, embedded as for `start_epoch`."""
    batches = [batch_of(name, step, dtype) for step in range(2)]
    with torch.no_grad():
        found = [next(iter(core.embed(batch).values())) for batch in batches]
    index = torch.cat([batch["index"] for batch in batches])
    return EpochEmbeddings(index, *(torch.cat([getattr(one, key) for one in found]) for key in ("h", "z")))


def train(
    name: str, dtype: torch.dtype, *, micro_batch: int | None = None, steps: int = 2, stop: int | None = None
) -> Tensors:
    """Gradients of each step and, at the end, all that a checkpoint holds; in one piece, or stopped and resumed.

    Args:
        name: of the objective.
        dtype: of everything.
        micro_batch: samples of a micro-batch.
        steps: of the run.
        stop: the step to save, throw away and resume at.
    """
    core, optimizer = _new(name, dtype)
    found: Tensors = {}
    for step in range(steps):
        if step == stop:
            core, optimizer = _resumed(core, optimizer, name, dtype)
        model = core if distributed.world() == 1 else DistributedDataParallel(core, broadcast_buffers=False)
        batch = batch_of(name, step, dtype)
        if step % 2 == 0:
            core.start_epoch(step // 2, partial(_epoch, core, name, dtype))
        core.before_step(batch)
        forward_backward(model, core, batch, Accelerator(cpu=True), micro_batch)
        gradient_norm([parameter for parameter in core.parameters() if parameter.requires_grad], clip=None)
        found |= {f"{step} {key}": p.grad.clone() for key, p in core.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        core.end_step(step / steps)
    return found | {f"end {key}": value for key, value in core.state_dict().items()}


def _new(name: str, dtype: torch.dtype) -> tuple[JointEmbedding, torch.optim.Optimizer]:
    core = make_model(name, dtype)
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    return core, torch.optim.SGD(trained, lr=1e-3, momentum=0.9)


def _resumed(
    core: JointEmbedding, optimizer: torch.optim.Optimizer, name: str, dtype: torch.dtype
) -> tuple[JointEmbedding, torch.optim.Optimizer]:
    with TemporaryDirectory() as folder:
        checkpoints.save(Path(folder), core, optimizer, {"step": 1}, keep=1)
        core, optimizer = _new(name, dtype)
        torch.rand(7)  # what happens between two lives of a process
        saved = checkpoints.newest(Path(folder))
        assert saved is not None
        checkpoints.restore(saved, core, optimizer)
    return core, optimizer


def largest_error(found: Tensors, expected: Tensors) -> float:
    """The largest difference of any entry, relative to the largest entry of its kind (gradients of a step, the end).

    Raises JointEmbedError for different tensors, or a value that is not finite, whose difference `max` would pass over.
    """
    for side in (found, expected):
        bad = next((key for key, value in side.items() if not bool(value.double().isfinite().all())), None)
        if bad is not None:
            raise JointEmbedError(f"{bad}: a value is not finite")
    if found.keys() != expected.keys():
        raise JointEmbedError(f"different tensors: {sorted(found.keys() ^ expected.keys())[:3]}")
    worst = 0.0
    for kind in {key.split()[0] for key in expected}:
        keys = [key for key in expected if key.split()[0] == kind and expected[key].numel()]
        scale = max(float(expected[key].double().abs().max()) for key in keys) or 1.0
        worst = max(worst, *(float((found[key].double() - expected[key].double()).abs().max()) / scale for key in keys))
    return worst


def all_objectives(names: tuple[str, ...], dtypes: tuple[str, ...]) -> Tensors:
    """Every objective trained, as one of W processes."""
    return {
        f"{dtype} {name} {key}": value
        for dtype in dtypes
        for name in names
        for key, value in train(name, DTYPES[dtype]).items()
    }


def bench_exactness(
    *, objectives: list[str] | None = None, dtypes: tuple[str, ...] = ("float64", "float32")
) -> list[dict[str, Any]]:
    """Measure every objective against one process in one piece.

    Args:
        objectives: names; all of them if None.
        dtypes: `float64`, `float32`.

    Returns:
        One row for each objective and type: `objective`, `dtype`, and the largest relative error under `2 ranks`,
        `4 ranks`, `micro-batch` and `resume` against one process in one piece of the same type; a text, the reason,
        where the objective refuses. `rounding`: what that one process is itself away from float64.

    Raises:
        RecipeError: for an objective that is not there.
    """
    names = tuple(OBJECTIVES if objectives is None else objectives)
    for name in names:
        if name not in OBJECTIVES:
            raise RecipeError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    ranks = {world: run_processes(world, all_objectives, names, dtypes)[0] for world in WORLDS}
    return [_row(name, dtype, ranks) for dtype in dtypes for name in names]


def _row(name: str, dtype: str, ranks: Mapping[int, Tensors]) -> dict[str, Any]:
    run = partial(train, name, DTYPES[dtype])
    one, prefix = run(), f"{dtype} {name} "
    row: dict[str, Any] = {"objective": name, "dtype": dtype}
    for world, tensors in ranks.items():
        own = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
        row[f"{world} ranks"] = largest_error(own, one)
    row["micro-batch"] = _error_or_reason(partial(run, micro_batch=MICRO), one)
    row["resume"] = _error_or_reason(partial(run, steps=STEPS, stop=STEPS // 2 + 1), run(steps=STEPS))
    row["rounding"] = 0.0 if dtype == "float64" else largest_error(one, train(name, torch.float64))
    return row


def _error_or_reason(run: Callable[[], Tensors], expected: Tensors) -> float | str:
    try:
        return largest_error(run(), expected)
    except JointEmbedError as error:
        return str(error)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, one line an objective; a resume that is not equal to the bit shows as a number."""
    kinds = [*(f"{world} ranks" for world in WORLDS), "micro-batch", "resume"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    columns = [(dtype, kind) for dtype in dtypes for kind in [*kinds, *(["rounding"] if dtype != "float64" else [])]]
    lines = ["| objective | " + " | ".join(f"{kind}, {dtype}" for dtype, kind in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for name in dict.fromkeys(row["objective"] for row in rows):
        own = {row["dtype"]: row for row in rows if row["objective"] == name}
        cells = [_cell(own[dtype][kind]) for dtype, kind in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_report(out: Path, *, objectives: list[str] | None = None, costs: bool = True) -> str:
    """Measure everything and write `exactness.json`, `exactness.md` and `micro_batch.png`.

    Args:
        out: folder, made if need be.
        objectives: names; all of them if None.
        costs: also what ranks pay for covariance, and the memory of micro-batches.

    Returns:
        The Markdown.
    """
    machine = environment()
    found: dict[str, Any] = {"environment": machine, "rows": bench_exactness(objectives=objectives)}
    parts = ["# Exactness\n", _TEXT, markdown(found["rows"])]
    out.mkdir(parents=True, exist_ok=True)
    if costs:
        found |= {"covariance": bench_covariance(), "micro_batch": bench_micro_batch()}
        plot(found["micro_batch"], out / "micro_batch.png")
        parts += ["## What a rank pays for the covariance term\n", _COVARIANCE, _table(found["covariance"])]
        parts += ["## Memory of a step in micro-batches\n", _MEMORY, _table(found["micro_batch"])]
    facts = ("command", "date", "processor", "cores", "torch")
    parts.append("; ".join(f"{fact}: {machine[fact]}" for fact in facts) + "\n")
    text = "\n".join(parts)
    (out / "exactness.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (out / "exactness.md").write_text(text, encoding="utf-8")
    return text


_TEXT = f"""Largest difference from one process in one piece, relative to the largest entry: gradients of every step,
and after the last one all that a checkpoint holds. {ROWS} rows a step, of which ranks hold {COUNTS[2]} and {COUNTS[4]},
micro-batches of {MICRO}; a resume in the middle of an epoch; 0 is equal to the bit. `rounding`: what the one process is
away from itself in float64.
"""
_COVARIANCE = """Rows of the global Gram matrix on each rank, against gathering all rows and computing D x D on each, as
VICReg's authors do, with the all-reduce of gradients that this takes. Forward and backward, 512 rows of 2,048 numbers
in all, in turn on one machine; `ratio` is the other's time over ours, `received_mb` what a rank receives in a step.
"""
_MEMORY = """Peak of a VICReg step above what the process had before it: it grows with the micro-batch, hardly with the
batch. Two views of 64 pixels through a ResNet-18 of a quarter of the width, float32.

![Peak memory](micro_batch.png)
"""


def _table(rows: list[dict[str, float]]) -> str:
    """The numbers that hold on a busy machine too; seconds are in the JSON."""
    columns = [name for name in rows[0] if "seconds" not in name]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(f"{row[name]:.4g}" for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: float | str) -> str:
    return f"refused: {value}" if isinstance(value, str) else "0" if value == 0 else f"{value:.1e}"

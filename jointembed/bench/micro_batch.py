"""Peak memory of a step as the micro-batch grows, at a fixed batch: each measured in a process of its own."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jointembed.bench.processes import Tensors, run_processes
from jointembed.bench.retrieval import peak_mb, reset_peak
from jointembed.branches import ENCODERS
from jointembed.branches.branch import Branch
from jointembed.layers import MLP
from jointembed.model import JointEmbedding
from jointembed.objectives.vicreg import VICReg
from jointembed.training.loop import forward_backward

Row = dict[str, float]


def work(batch: int, micro_batch: int, size: int) -> Tensors:
    """Peak resident memory of one step above what was there before it, in MB, and its seconds."""
    torch.manual_seed(0)
    encoder: Any = ENCODERS["torchvision"](model="resnet18", widen=0.25)
    core = JointEmbedding(
        {"net": Branch(encoder, MLP(encoder.width, widths=[256]))}, dict.fromkeys("ab", "net"), VICReg()
    )
    views = {view: torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8) for view in "ab"}
    step = views | {"index": torch.arange(batch)}
    part = {key: value[:2] for key, value in step.items()}
    forward_backward(core, core, part, Accelerator(cpu=True), None)  # what is made once must not count
    core.zero_grad()
    before, start = reset_peak(), perf_counter()
    forward_backward(core, core, step, Accelerator(cpu=True), micro_batch)
    return {"mb": torch.tensor(peak_mb() - before), "seconds": torch.tensor(perf_counter() - start)}


def bench_micro_batch(
    *, batches: Sequence[int] = (128, 256), micro_batches: Sequence[int] = (16, 32, 64, 128, 256), size: int = 64
) -> list[Row]:
    """Measure one VICReg step of two views through a quarter-width ResNet-18.

    Args:
        batches: samples of a step.
        micro_batches: samples of a pass; those above the batch are left out, the batch itself is one plain pass.
        size: of the pictures, pixels.

    Returns:
        One row for each pair: `batch`, `micro_batch`, `peak_mb` above what the process had before the step, `seconds`.
    """
    rows = []
    for batch in batches:
        for micro_batch in (one for one in micro_batches if one <= batch):
            found = run_processes(1, work, batch, micro_batch, size)[0]
            row = {"batch": float(batch), "micro_batch": float(micro_batch)}
            rows.append(row | {"peak_mb": float(found["mb"]), "seconds": float(found["seconds"])})
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Peak memory over the micro-batch, a curve a batch, as PNG."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = [row for row in rows if row["batch"] == batch]
        x, y = ([row[key] for row in own] for key in ("micro_batch", "peak_mb"))
        axes.plot(x, y, marker="o", label=f"batch {batch:.0f}")
    axes.set(xlabel="samples of a micro-batch", ylabel="peak memory of a step, MB", ylim=(0, None), xlim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)

"""Our training loop and other people's, step by step in turn, in one process."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from jointembed.bench.loss import live_bytes
from jointembed.bench.measure import Seconds, Stopwatch, compared, timed
from jointembed.build import precision_of
from jointembed.data.samples import Batch
from jointembed.inference.embed import Precision
from jointembed.model import JointEmbedding, autocast
from jointembed.optim import OPTIMIZERS, parameter_groups
from jointembed.training.allocator import keep_freed_memory
from jointembed.training.loop import fit
from jointembed.training.stages import Stages

LR, WEIGHT_DECAY = {"sgd": 0.05, "adam": 1e-3}, 1e-4  # of every side
Step = Callable[[], float]


def chosen_precision(precision: str) -> Precision:
    """What `training.precision` takes on the CPU."""
    return precision_of(cast(Any, SimpleNamespace(training=SimpleNamespace(precision=precision))), torch.device("cpu"))


def step_by_step(
    core: JointEmbedding,
    batches: Iterable[Batch],
    rivals: Mapping[str, Step],
    *,
    steps: int,
    precision: Precision,
    optimizer: str = "sgd",
) -> tuple[dict[str, list[Seconds]], Stages]:
    """Train by `fit`, whose loader lets every rival take a step of its own before each batch.

    A step of ours ends where `fit` asks for the next batch: the batch itself, checks, norms and hooks are in it. The
    first step warms up, and the last, at which `fit` saves, does not count either.

    Args:
        core: on the CPU.
        batches: `steps` of them, made when asked for.
        rivals: each call is one step, its batch included.
        steps: three or more.
        precision: of our side.
        optimizer: of our side.

    Returns:
        Seconds of each side's steps, `jointembed` ours; and the stages of ours, of wall time.
    """
    times: dict[str, list[Seconds]] = {"jointembed": [], **{name: [] for name in rivals}}
    stages = Stages()
    keep_freed_memory()

    def in_turn(start: int) -> Iterator[Batch]:
        source = iter(batches)
        for number in range(steps):
            for name, rival in rivals.items():
                times[name].append(timed(rival))
            watch = Stopwatch()
            with stages("data"):
                batch = next(source)
            yield batch
            times["jointembed"].append(watch.seconds())
            stages.steps += 1
            if number == 0:
                stages.seconds = dict.fromkeys(stages.seconds, 0.0)

    untimed, core.stage = core.stage, stages
    train(core, in_turn, steps=steps, precision=precision, optimizer=optimizer)
    core.stage, core.watch = untimed, False
    return {name: own[1 : steps - 1] for name, own in times.items()}, stages


def step_table(times: Mapping[str, list[Seconds]], memory: Mapping[str, float], stages: Stages) -> dict[str, Any]:
    """`sides`, the medians and ratios of `measure.compared` with `peak_mb`, and `stages` of our step."""
    return {
        "sides": {name: row | {"peak_mb": memory[name]} for name, row in compared(times).items()},
        "stages": [{"stage": one, "milliseconds": ms, "percent": share} for one, ms, share in stages.table()],
    }


def peaks(
    core: JointEmbedding, batches: Iterator[Batch], rivals: Mapping[str, Step], precision: Precision
) -> dict[str, float]:
    """Most MB of tensors that a step of each side has live at once: batch, activations, gradients; ours not updated."""

    def ours() -> None:
        core.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), precision):
            loss = core(next(batches))["loss"]
        loss.backward()

    return {name: live_bytes(turn) / 1e6 for name, turn in {"jointembed": ours, **rivals}.items()}


def train(
    core: JointEmbedding,
    batches: Callable[[int], Any],
    *,
    steps: int,
    precision: Precision,
    optimizer: str = "sgd",
    log_every: int = 0,
) -> list[float]:
    """`fit` without data sets, validation or a folder that stays; the losses that it logged.

    Args:
        core: on the CPU.
        batches: start step -> batches.
        steps: of the run.
        precision: of the branches.
        optimizer: by name.
        log_every: steps between losses.
    """
    groups = parameter_groups(core, weight_decay=WEIGHT_DECAY)
    AcceleratorState._reset_state(True)  # another precision may have been chosen in this process
    with TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        fit(
            core,
            batches,
            OPTIMIZERS[optimizer](groups, lr=LR[optimizer], weight_decay=WEIGHT_DECAY),
            lambda step: LR[optimizer] * min(1.0, (step + 1) / 10),
            accelerator=Accelerator(cpu=True, mixed_precision={"bf16": "bf16", "fp32": "no"}[precision]),
            run=Path(folder),
            steps=steps,
            per_epoch=steps,
            identity={},
            describe=lambda step: [],
            log_every=log_every,
            health_every=0,
        )
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    AcceleratorState._reset_state(True)
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]

"""Where the time of a step goes: wait for data, forward, loss, backward, optimizer."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
ORDER = ("data", "forward", "loss", "backward", "optimizer")


class Stages:
    """Adds up wall time by stage. An accelerator works behind the clock's back: each stage waits for it, at a cost.

    Attributes:
        seconds: stage -> sum over the measured steps.
        steps: how many were measured; the first step, which warms everything up, is not.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds = dict.fromkeys(ORDER, 0.0)
        self.steps = -1

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block."""
        _wait()
        begun = time.perf_counter()
        yield
        _wait()
        self.seconds[stage] += time.perf_counter() - begun

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each of them comes counts as `data`."""
        iterator = iter(batches)
        while True:
            with self("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch
            self.steps += 1
            if self.steps == 0:
                self.seconds = dict.fromkeys(ORDER, 0.0)

    def table(self) -> list[tuple[str, float, float]]:
        """Rows (stage, milliseconds a step, share in percent)."""
        total = sum(self.seconds.values()) or 1.0
        steps = max(1, self.steps)
        return [(stage, 1000 * time / steps, 100 * time / total) for stage, time in self.seconds.items()]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

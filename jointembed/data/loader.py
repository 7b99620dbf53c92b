"""Which samples make up which batch, on which rank, at which step; all of it a pure function of the step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from jointembed.data.loader_workers import Board, Reporting, already_a_batch, guarded
from jointembed.data.order import Order, epoch_order
from jointembed.data.samples import Batch, Key
from jointembed.errors import DataError


class Samples(Protocol):
    """What the loader needs of a data set: a length, and batches by keys (epoch, index)."""

    def __len__(self) -> int:
        """Samples an epoch."""
        ...

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A collated batch."""
        ...

    def describe(self, keys: Sequence[Key]) -> list[str]:
        """Name of each sample, for messages."""
        ...


def steps_per_epoch(samples: int, batch: int, drop_last: bool, world: int) -> int:
    """Batches an epoch. Raises DataError where there is none, or where a rank would get no sample."""
    steps = samples // batch if drop_last else -(-samples // batch)
    if steps == 0:
        raise DataError(f"{samples} training samples do not fill one batch of {batch}; lower loader.batch")
    smallest = batch if drop_last or samples % batch == 0 else samples % batch
    if smallest < world:
        raise DataError(f"a batch of {smallest} samples leaves a rank of {world} without any; change loader.batch")
    return steps


class BatchPlan:
    """Yields this rank's keys (epoch, index), batch after batch, from step `start` to step `stop`.

    Each epoch is one permutation keyed by (seed, epoch), cut into global batches; a rank takes its contiguous part
    of each, so W processes see the very batches that one process sees. Parts differ by at most one sample.
    `order` gives an epoch's permutation; by default every one of all samples is as likely.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        *,
        seed: int,
        start: int,
        stop: int,
        drop_last: bool,
        rank: int,
        world: int,
        order: Callable[[int], Order] | None = None,
    ) -> None:
        """See the class."""
        self.samples, self.batch, self.seed = samples, batch, seed
        self.order = order or epoch_order(None, samples, seed)
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.per_epoch = steps_per_epoch(samples, batch, drop_last, world)

    def __len__(self) -> int:
        """Batches left."""
        return max(0, self.stop - self.start)

    def keys(self, step: int, order: Order) -> list[Key]:
        """This rank's keys at one step, given the epoch's permutation."""
        epoch, position = divmod(step, self.per_epoch)
        whole = order[position * self.batch : (position + 1) * self.batch]
        part = np.array_split(whole, self.world)[self.rank]
        return [(epoch, int(index)) for index in part]

    def __iter__(self) -> Iterator[list[Key]]:
        """Batches of keys."""
        known = self.start // self.per_epoch
        order = self.order(known)
        for step in range(self.start, self.stop):
            epoch = step // self.per_epoch
            if epoch != known:
                known, order = epoch, self.order(epoch)
            yield self.keys(step, order)


class Loader:
    """Batches of a plan, in order, whatever the number of workers; draws nothing from torch's global generator.

    Args:
        samples: the data set.
        plan: batches of keys.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy batches to memory from where they go to a GPU faster.
        timeout: seconds that a batch may take the workers; 0 is no limit.
    """

    def __init__(
        self, samples: Samples, plan: BatchPlan, *, workers: int, pin_memory: bool = False, timeout: float = 0
    ) -> None:
        """See the class."""
        self.samples, self.plan, self.workers = samples, plan, workers
        self.pin_memory, self.timeout = pin_memory, timeout

    def __len__(self) -> int:
        """Batches left."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        """Batches. Raises DataError naming the sample that is bad, or that a worker was at when it ended or hung."""
        made = partial(
            DataLoader,
            Reporting(self.samples, self._name),  # type: ignore[arg-type]  # a Dataset in all but name
            batch_sampler=self.plan,
            num_workers=self.workers,
            collate_fn=already_a_batch,
            generator=torch.Generator().manual_seed(self.plan.seed),
            persistent_workers=False,
            pin_memory=self.pin_memory,
        )
        return guarded(made, Board(self.workers, self._name, self.timeout))

    def _name(self, key: Key) -> str:
        return self.samples.describe([key])[0]


def batch_rows(batch: Batch) -> int:
    """Samples in a batch."""
    return len(batch["index"])


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a batch."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value


def slice_rows(value: Any, start: int, stop: int) -> Any:
    """Rows start to stop of every tensor of a batch; a text view is cut to its own longest caption."""
    if isinstance(value, torch.Tensor):
        return value[start:stop]
    part = {key: slice_rows(item, start, stop) for key, item in value.items()}
    if set(part) == {"ids", "length"}:
        part["ids"] = part["ids"][:, : int(part["length"].max())]
    return part

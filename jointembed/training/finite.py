"""A loss or gradient that is no number: every rank stops before the step, or leaves it out, and names the samples."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jointembed import distributed
from jointembed.data.samples import Batch
from jointembed.errors import JointEmbedError
from jointembed.training.log import MetricsLog
from jointembed.training.snapshot import Snapshot

SHOWN = 8  # samples named of a rank


class NonFiniteError(JointEmbedError):
    """A step that was refused on every rank."""

    shared = True


def problems(terms: Mapping[str, Tensor], norm: float) -> list[str]:
    """What of this rank's step is not a number; empty where all is well."""
    values = {name: float(value) for name, value in terms.items() if not name.startswith("health/")}
    found = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return found if math.isfinite(norm) else [*found, f"the gradient's norm is {norm}"]


class Skips:
    """How many steps may be left out, and what each of them leaves behind: the model as it was before.

    Args:
        limit: 0 refuses the first.
        core: the unwrapped model.
        describe: step -> names of this rank's samples.
    """

    def __init__(self, limit: int, core: nn.Module, describe: Callable[[int], list[str]]) -> None:
        """See the class."""
        self.limit, self.core, self.describe = limit, core, describe
        self.before: Snapshot | None = None

    def watch(self) -> None:
        """Remember the model before a step; nothing where no step may be left out."""
        self.before = Snapshot(self.core) if self.limit else None

    def skip(self, step: int, found: list[str], batch: Batch, state: dict[str, Any], log: MetricsLog) -> None:
        """Leave a step out on every rank, count it in the state, and log its samples.

        Args:
            step: counts from 1.
            found: by `problems`, on this rank.
            batch: of this rank.
            state: of the loop.
            log: gets a line `skipped`.

        Raises:
            NonFiniteError: on every rank, with the samples, where the limit is passed.
        """
        told = [(rank, one) for rank, one in enumerate(distributed.gather_objects(found)) if one]
        names = self._names(step, bool(found), batch)
        said = {text: None for _, one in told for text in one}  # the loss is that of all ranks: each once
        where = "; ".join(f"rank {rank}: {_some(one)}" for rank, one in enumerate(names) if one)
        where = f" Samples of {where}." if where else ""
        message = f"step {step}: {_some(list(said), 3)}"
        if self.before is None or state.get("skipped", 0) >= self.limit:
            done = f" ({self.limit} steps were left out before)" if self.limit else ""
            raise NonFiniteError(
                f"{message}; nothing was updated on any rank{done}.{where} Lower the learning rate, set "
                "training.clip, allow training.skip_nonfinite steps, or check these samples"
            )
        self.before.restore()
        state["skipped"] = state.get("skipped", 0) + 1
        count = f"{state['skipped']} of {self.limit}"
        log.skipped(step, f"{message}; left out ({count}).{where}", [name for one in names for name in one])

    def _names(self, step: int, bad: bool, batch: Batch) -> list[list[str]]:
        """Of each rank the samples at fault; where no rank can tell, all samples of the ranks that found something."""
        own = self.describe(step - 1) if bad else []
        every = distributed.gather_objects((culprits(self.core, batch, own) if bad else [], own))
        return [known for known, _ in every] if any(known for known, _ in every) else [whole for _, whole in every]


def culprits(core: nn.Module, batch: Batch, names: list[str]) -> list[str]:
    """Of a rank's samples those whose input is not finite, else those whose embedding is not; perhaps none."""
    bad = {view: rows for view, tensor in _tensors(batch) if (rows := _bad_rows(tensor))}
    if bad:
        return [f"{names[row]} ({view} is not finite)" for view, rows in bad.items() for row in rows]
    return [names[row] for row in _bad_embeddings(core, batch)]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of a batch, by view; of a detector's lists none, whose pictures are bytes."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _tensors(one, name or key)


def _bad_rows(tensor: Tensor) -> list[int]:
    fine = torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else torch.isfinite(tensor)
    return torch.nonzero(~fine).flatten().tolist()


@torch.no_grad()
def _bad_embeddings(core: nn.Module, batch: Batch) -> list[int]:
    """Rows whose embeddings are not finite in evaluation mode, where one row cannot spoil the others."""
    embed = getattr(core, "embed", None)
    if embed is None or distributed.sharded_units(core):  # shards are gathered by all ranks or by none
        return []
    core.eval()
    try:
        bad = {row for one in embed(batch).values() for row in _bad_rows(one.z)}
    finally:
        core.train()
    return sorted(bad) if len(bad) < len(batch["index"]) else []


def _some(names: list[str], shown: int = SHOWN) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")

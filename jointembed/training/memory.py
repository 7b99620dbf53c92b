"""A first step that does not fit in memory is taken in micro-batches, where that is the same mathematics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jointembed import distributed
from jointembed.errors import MemoryLimitError
from jointembed.model import JointEmbedding
from jointembed.training.snapshot import Snapshot

_SIGNS = (  # how allocators of CPU, oneDNN and accelerators put it
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory object",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def fitted(
    passes: Callable[[int | None], dict[str, Tensor]],
    core: Any,
    *,
    rows: int,
    micro_batch: int | None,
    first: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], int | None]:
    """What `passes(micro_batch)` returns and the micro-batch that it took.

    In the first step of a run a micro-batch that is too large is halved until it fits: the gradient is that of the
    whole batch all the same. Batch norm inside a branch would see other rows, and ranks that run out of memory at
    different places cannot try again together: there the message says what to set.

    Args:
        passes: forward and backward.
        core: the unwrapped model.
        rows: of the batch, on this rank.
        micro_batch: to begin with; None is one pass.
        first: whether this is the first step.
        say: prints a line.

    Raises:
        MemoryLimitError: with the keys to set.
    """
    refused = _refused(core) if first else ""
    before = Snapshot(core) if first and not refused else None
    while True:
        try:
            return passes(micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0][-200:] if str(error).strip() else type(error).__name__
        # only here, after the except, nothing holds the activations of the pass that failed
        size = min(micro_batch or rows, rows)
        smaller = -(-size // 2)
        if before is None or size == 1:
            raise MemoryLimitError(_advice(size, smaller, reason, refused))
        before.restore()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory with {size} samples in a pass; going on with micro_batch={smaller}, the same gradient")
        micro_batch = smaller


def _refused(core: Any) -> str:
    """Why this run cannot change to micro-batches by itself; empty where it can."""
    if distributed.world() > 1:
        return f"rank {distributed.rank()} cannot change that alone; "
    if not isinstance(core, JointEmbedding):
        return "a detector is trained in one pass; "
    if any(isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training for one in core.branches.modules()):
        return "batch norm in a branch would then see that many samples at a time, so that has to be chosen; "
    return ""


def _advice(size: int, smaller: int, reason: str, why: str) -> str:
    if size == 1:
        remedy = "one sample does not fit: lower the size of the pictures or take a smaller encoder"
    else:
        remedy = f"{why}set training.micro_batch={smaller}, which keeps the whole batch's loss, or lower loader.batch"
    return f"out of memory with {size} samples in a pass ({reason}); {remedy}"

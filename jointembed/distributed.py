"""Several processes as one: the only file that calls torch.distributed. With one process everything is an identity.

Every rank computes the loss of the global batch, and DDP averages the gradients of the ranks. So what carries a
gradient here gives a rank W times the gradient of its own rows, and backward needs no communication.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from jointembed.errors import JointEmbedError, RankError

if TYPE_CHECKING:  # importing it takes half a second, and most runs have no shards
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
BUCKET_BYTES = 25 * 2**20


def world() -> int:
    """Number of processes, 1 where no process group was started."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 .. world - 1."""
    return distributed.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files and prints."""
    return rank() == 0


# -- tensors --------------------------------------------------------------------------------------------------------


def row_counts(x: Tensor) -> list[int]:
    """Rows that each rank holds, in rank order."""
    if world() == 1:
        return [len(x)]
    counts = torch.empty(world(), dtype=torch.int64, device=x.device)
    distributed.all_gather_into_tensor(counts, torch.tensor([len(x)], dtype=torch.int64, device=x.device))
    return counts.tolist()


def gather_without_grad(x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Rows of all ranks, in rank order, detached.

    Args:
        x: (n, ...), n may differ between ranks, the rest may not.
        counts: `row_counts(x)` where the caller has it.

    Returns:
        (N, ...), N the sum of the n.
    """
    x = x.detach()
    if world() == 1:
        return x
    counts = counts or row_counts(x)
    longest = max(counts)
    if len(x) < longest:
        x = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    rows = x.new_empty(world() * longest, *x.shape[1:])
    distributed.all_gather_into_tensor(rows, x.contiguous())
    if min(counts) == longest:
        return rows
    return torch.cat([rows[k * longest : k * longest + count] for k, count in enumerate(counts)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(x))
        return gather_without_grad(x, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own] * world(), None


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient: W times the own slice of the incoming one.

    Args:
        x: (n, ...), n may differ between ranks.

    Returns:
        (N, ...), the same on every rank.
    """
    return x if world() == 1 else _Gather.apply(x, row_counts(x))


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of every rank's tensor, detached; `x` itself is left as it is."""
    x = x.detach()
    if world() > 1:
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x)
    return x


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * world()


def total(x: Tensor) -> Tensor:
    """Sum of every rank's tensor, with gradient: W times the incoming one, to the own part."""
    return x if world() == 1 else _Total.apply(x)


@torch.no_grad()
def average_gradients(parameters: Iterable[Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Average `.grad` over the ranks in place, as DDP does, in flat buckets.

    A gradient that is missing on some ranks counts as zeros there; missing on all of them it stays missing, as in one
    process. The parameters must be the same, in the same order, on every rank. Parameters in shards are passed over:
    their backward pass has averaged them.
    """
    if world() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad and not _is_shard(parameter)]
    if not trained:
        return
    present = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    present = present.to(trained[0].device)
    distributed.all_reduce(present, distributed.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(trained, present.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= world()
        pieces = flat.split([gradient.numel() for gradient in bucket])
        for gradient, piece in zip(bucket, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))


def _buckets(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Consecutive tensors of one type and device, up to `limit` bytes a bucket."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        last = buckets[-1][-1] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (tensor.dtype, tensor.device)
        if not alike or size + tensor.nbytes > limit:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


# -- parameters in shards (FSDP2) ------------------------------------------------------------------------------------


def shard(core: Module, units: Iterable[Module]) -> None:
    """Spread the parameters over all ranks, in place: each unit's apart, and those that are left with `core`.

    A unit's parameters are whole only while its own `forward` runs, and again in its backward pass, which averages
    the gradients over the ranks as DDP does. The optimizer must be made afterwards. With one rank nothing changes.

    Args:
        core: a module.
        units: modules in it, inner ones before those around them.
    """
    if world() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(_device().type, (world(),))
    for unit in (*units, core):
        fully_shard(unit, mesh=mesh)
    # else a unit that runs before `core` does (micro-batches, the start of an epoch) would take itself for the root
    cast(FSDPModule, core)._get_fsdp_state()._lazy_init()


@contextmanager
def unsharded(core: Module, written: Module | None = None) -> Iterator[None]:
    """The same model, whole, on every rank, so that ranks may run forward passes without one another (evaluation).

    Running statistics of batch norm that each rank kept by itself become those of rank 0, which are saved.

    Args:
        core: a module.
        written: a part of it whose parameters may be written to meanwhile, alike on all ranks; what is written to
            others that are in shards is lost.
    """
    share_running_statistics(core)
    units = sharded_units(core)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        changed = dict(written.named_parameters()) if units and written is not None else {}
        values = {name: parameter.detach().clone() for name, parameter in changed.items()}
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
        if written is not None and values:
            own = dict(written.named_parameters())
            with torch.no_grad():
                for name, tensor in spread(values, own).items():
                    own[name].copy_(tensor)


def share_running_statistics(core: Module) -> None:
    """Rank 0's running statistics of batch norm on every rank; they differ where each rank normalises by itself."""
    if world() == 1:
        return
    for module in core.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers(recurse=False):
                distributed.broadcast(buffer, 0)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shards put together, all else as it is; every rank calls it with the same names in the same order."""
    return {name: getattr(tensor, "full_tensor", lambda own=tensor: own)() for name, tensor in tensors.items()}


def spread(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, the same on every rank, in the shards of those in `like` that have their name and shape."""
    found = {}
    for name, tensor in tensors.items():
        own: Any = like.get(name)
        if _is_shard(own) and own.shape == tensor.shape:
            from torch.distributed.tensor import distribute_tensor

            place = own.device_mesh, own.placements
            tensor = distribute_tensor(tensor.to(own.device), *place, src_data_rank=None)
        found[name] = tensor
    return found


def _is_shard(tensor: object) -> bool:
    return hasattr(tensor, "full_tensor")


def sharded_units(core: Module) -> "list[FSDPModule]":
    """The modules that `shard` has spread; none where it was not called."""
    if world() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in core.modules() if isinstance(module, FSDPModule)]


# -- objects and agreement ------------------------------------------------------------------------------------------


def gather_objects(value: T) -> list[T]:
    """Every rank's picklable value, in rank order, on every rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


def broadcast_object(value: T) -> T:
    """The main process's picklable value, on every rank."""
    if world() == 1:
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def all_agree(value: object) -> bool:
    """Whether every rank holds an equal picklable value."""
    values = gather_objects(value)
    return all(other == values[0] for other in values)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank: what lets all ranks stop together."""
    return bool(largest([int(flag)])[0])


def largest(values: Sequence[int]) -> list[int]:
    """Of each value the largest that a rank holds: several flags in one exchange."""
    if world() == 1:
        return list(values)
    found = torch.tensor(values, device=_device())
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.tolist()


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    on_gpu = "nccl" in distributed.get_backend() and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        distributed.barrier()


def meet(file: Path, rank: int, world: int) -> None:
    """Start a process group on gloo with the processes of this machine that give the same file, which must not exist.

    Args:
        file: where they find one another.
        rank: of this process.
        world: number of processes.
    """
    if Path("/sys/class/net/lo").exists():  # a host name that leads nowhere must not matter
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", f"file://{file.resolve()}", rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )


@contextmanager
def leaving() -> Iterator[None]:
    """The last frame of a program: leaves the process group at its end.

    Raises:
        RankError: in the place of what a backend says when another rank has ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or isinstance(error, JointEmbedError) or not _LOST.search(str(error)):
            raise
        other = f"rank {1 - rank()}" if world() == 2 else f"another of the {world()} ranks"
        reason = _LOST.search(str(error))
        assert reason is not None
        raise RankError(
            f"rank {rank()}: {other} has ended, or did not answer within training.rank_timeout "
            f"({reason[0].strip()}); what it printed, or the launcher's summary, says more"
        ) from None
    finally:
        shut_down()


# how gloo, NCCL and the store put it; an error of the program itself, such as unequal shapes, is none of these
_LOST = re.compile(
    r"(Connection (closed|reset) by (remote )?peer|Timed out waiting \d+\s*ms|Broken pipe|Connection refused|"
    r"Read timeout|Socket Timeout|remote process exited|Watchdog caught collective operation timeout|"
    r"wait timeout after \d+\s*ms|connection was (already )?closed|application timeout)",
    re.IGNORECASE,
)


def shut_down() -> None:
    """Leave the process group, if there is one; the last call of a program."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()

"""Which part of the work is this process's, as torchrun, accelerate or a SLURM array say it in the environment."""

from collections.abc import Mapping

import torch

from jointembed.errors import JointEmbedError


def rank_and_world(
    environment: Mapping[str, str], *, rank: int | None = None, world: int | None = None
) -> tuple[int, int]:
    """Rank r of W workers that do not talk to each other.

    Both numbers given win. Else the task of a SLURM array (SLURM_ARRAY_TASK_ID, _COUNT, _MIN, _MAX, _STEP) and the
    process of torchrun or accelerate (RANK, WORLD_SIZE) multiply: an array of 4 tasks with 2 processes each is W = 8.

    Raises:
        JointEmbedError: naming the variable or option that makes no sense.
    """
    if (rank is None) != (world is None):
        raise JointEmbedError("--rank and --world go together")
    if rank is None or world is None:
        task, tasks = _array_task(environment)
        process, processes = (_number(environment, name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        rank, world = task * processes + process, tasks * processes
    if not 0 <= rank < world:
        raise JointEmbedError(f"rank {rank} of {world}; expected 0 to {world - 1}")
    return rank, world


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    number, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    lowest = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    highest = _number(environment, "SLURM_ARRAY_TASK_MAX", lowest + (count - 1) * step)
    if step < 1 or lowest + (count - 1) * step != highest:  # --array=1,3,7: some shards would be nobody's
        raise JointEmbedError(
            f"SLURM array of {count} tasks from {lowest} to {highest} by {step}: the numbers must be evenly spaced"
        )
    return (number - lowest) // step, count


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(str(value))
    except ValueError:
        raise JointEmbedError(f"the environment says {name}={value}; expected a whole number") from None


def device_of(environment: Mapping[str, str]) -> str:
    """`cuda:N` by LOCAL_RANK where there are GPUs, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{_number(environment, 'LOCAL_RANK', 0) % torch.cuda.device_count()}"

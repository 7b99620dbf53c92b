"""Functions run by W processes that form a group, or by one of its own whose memory is its own."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from jointembed import distributed

Tensors = dict[str, Tensor]


def run_processes(world: int, function: Callable[..., Tensors], *args: Any) -> list[Tensors]:
    """What `function(*args)` returns on each of W gloo processes of one thread each.

    Args:
        world: W.
        function: importable, and so are its arguments.
        args: of the function.
    """
    get_context("forkserver").set_forkserver_preload([function.__module__])  # imported once, not W times
    with TemporaryDirectory() as folder:
        start_processes(_work, (world, folder, function, args), nprocs=world, start_method="forkserver")
        return [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(world)]


def _work(rank: int, world: int, folder: str, function: Callable[..., Tensors], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        distributed.meet(Path(folder) / "meeting", rank, world)
    found = function(*args)
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}, f"{folder}/{rank}.safetensors"
    )
    distributed.shut_down()

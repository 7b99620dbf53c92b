"""Safetensors files with the mode that every other new file has: safetensors lets their owner alone read them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors' `save_file` does, readable as the umask says.

    Args:
        tensors: contiguous, none of them sharing memory.
        path: in place of a file that is there, whose mode it then has.
        metadata: of the header.
    """
    with_usual_mode(path, lambda: save_file(dict(tensors), path, metadata=metadata))


def with_usual_mode(path: Path, write: Callable[[], object]) -> None:
    """Let `write` make a file, then give it the mode that the umask (or an ACL of its folder) gives a new one."""
    path.touch()  # asking the umask itself means setting it, for all threads
    mode = path.stat().st_mode
    write()
    path.chmod(mode)

"""Checkpoints that a kill cannot break: written aside, hashed, synced, then named by one rename.

A checkpoint is a folder `step-N` of safetensors and JSON. A folder of that name is complete by construction: it gets
the name by a rename when it is whole, and loses it by a rename before it is deleted. A kill in between leaves `.part`
and `.old` folders, which the next run removes.
"""

import hashlib
import json
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jointembed import distributed
from jointembed.errors import CheckpointError
from jointembed.tensor_files import save_tensors

FORMAT = 1
_FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read whole."""

    folder: Path
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


def save(
    folder: Path, core: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path | None:
    """Publish `folder/step-N`, then delete all but the newest `keep`. Every rank calls it; the main one writes.

    Args:
        folder: the run's `checkpoints`.
        core: the unwrapped model, objective included.
        optimizer: its state is saved by parameter number.
        state: JSON values; `step` names the checkpoint.
        keep: how many stay.

    Returns:
        The published folder on the main rank, None elsewhere.

    Raises:
        CheckpointError: on every rank, where the disk refused; older checkpoints are untouched.
    """
    tensors = [distributed.whole(core.state_dict()), distributed.whole(_moments(optimizer)), _random_states()]
    problem, target = None, folder / f"step-{state['step']}"
    if distributed.is_main():
        part = folder / f".{target.name}.part"
        try:
            _write(part, tensors, state)
            _publish(part, target)
            for old in complete(folder)[:-keep]:
                _remove(old)
        except (OSError, SafetensorError) as error:
            problem = f"{target}: cannot be saved ({disk_error(error)}); older checkpoints are untouched"
            shutil.rmtree(part, ignore_errors=True)
    problem = distributed.broadcast_object(problem)
    if problem:
        raise CheckpointError(problem)
    return target if distributed.is_main() else None


def complete(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest(folder: Path) -> Checkpoint | None:
    """The newest published checkpoint, verified, or None. Removes what killed saves left behind."""
    if distributed.is_main():
        for old in folder.glob(".step-*.old"):
            name = folder / old.name.removeprefix(".").removesuffix(".old")
            if not complete(folder) and not name.exists() and (old / "manifest.json").exists():
                old.rename(name)  # killed while the only checkpoint was replaced: it was still whole
        for leftover in (*folder.glob(".step-*.part"), *folder.glob(".step-*.old")):
            shutil.rmtree(leftover, ignore_errors=True)
    distributed.barrier()
    found = complete(folder)
    return read(found[-1]) if found else None


def read(folder: Path) -> Checkpoint:
    """Read one checkpoint. Raises CheckpointError naming the file that is missing, altered or of a newer version."""
    manifest = _json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        newer = " was written by a newer version;" if str(manifest.get("format")) > str(FORMAT) else ""
        raise CheckpointError(f"{folder}:{newer} format {manifest.get('format')}, this version reads {FORMAT}")
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing from the checkpoint")
        if _hash(path) != manifest.get("sha256", {}).get(name):
            raise CheckpointError(f"{path}: altered or truncated since it was saved (its hash differs)")
    try:
        tensors = [load_file(folder / name) for name in _FILES[:3]]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return Checkpoint(folder, _json(folder / "state.json"), *tensors)


def restore(checkpoint: Checkpoint, core: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model, optimizer and this rank's random states back. Raises CheckpointError naming keys that do not fit."""
    try:
        core.load_state_dict(distributed.spread(checkpoint.model, core.state_dict()), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.folder}/model.safetensors: {' '.join(str(error).split())[:600]}") from None
    optimizer.load_state_dict(_optimizer_state(checkpoint, optimizer))
    _set_random(checkpoint)


def _write(part: Path, tensors: list[dict[str, Tensor]], state: dict[str, Any]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, one in zip(_FILES, tensors, strict=False):
        save_tensors(_plain(one), part / name)
    (part / _FILES[3]).write_text(json.dumps(state, indent=1), encoding="utf-8")
    manifest = {"format": FORMAT, "sha256": {name: _hash(part / name) for name in _FILES}}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in part.iterdir():
        _sync(path)
    _sync(part)


def _publish(part: Path, target: Path) -> None:
    """Give a whole folder its name; one of that name is set aside first, a folder cannot be replaced in one step."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    folder.rename(old)
    shutil.rmtree(old)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Own, contiguous CPU memory for each: safetensors refuses tied weights, which load back tied all the same."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter number and key."""
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, one in optimizer.state_dict()["state"].items()
        for key, value in one.items()
    }


def _optimizer_state(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_state_dict` takes; it would pass over what is missing. Raises CheckpointError naming the parameter."""
    path = checkpoint.folder / "optimizer.safetensors"
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.optimizer.items():
        number, _, key = name.partition(".")
        if not number.isdigit() or not key:
            raise CheckpointError(f"{path}: {name!r} is no key of an optimizer's state")
        state.setdefault(int(number), {})[key] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unknown = sorted(set(state) - set(range(len(parameters))))
    if unknown:
        raise CheckpointError(f"{path}: parameter {unknown[0]}, but the optimizer has {len(parameters)}")
    expected = set(state[min(state)]) if state else set()
    for position, parameter in enumerate(parameters):
        own = state.get(position, {})
        if set(own) != expected:
            there, wanted = (", ".join(sorted(keys)) or "nothing" for keys in (own, expected))
            raise CheckpointError(f"{path}: of parameter {position} there is {there}; expected {wanted}")
        for key, tensor in own.items():
            if tensor.shape not in (parameter.shape, torch.Size([])):
                shapes = f"has shape {tuple(tensor.shape)}; the parameter has {tuple(parameter.shape)}"
                raise CheckpointError(f"{path}: {position}.{key} {shapes}")
    spread = {n: distributed.spread(own, dict.fromkeys(own, parameters[n])) for n, own in state.items()}
    return {"state": spread, "param_groups": optimizer.state_dict()["param_groups"]}


def _random_states() -> dict[str, Tensor]:
    """The random states of all ranks."""
    return {f"rank{rank}.{name}": value for rank, one in enumerate(_gather_random()) for name, value in one.items()}


def _gather_random() -> list[dict[str, Tensor]]:
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - user code may use it
    own = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return distributed.gather_objects(own)


def _set_random(checkpoint: Checkpoint) -> None:
    path, rank = checkpoint.folder / "random.safetensors", distributed.rank()
    ranks = {name.partition(".")[0] for name in checkpoint.random}
    if rank and f"rank{rank}" not in ranks and ranks == {f"rank{number}" for number in range(len(ranks))}:
        torch.manual_seed(torch.initial_seed() + rank)  # told to go on with more ranks than there were
        return
    prefix = f"rank{rank}."
    own = {name.removeprefix(prefix): value for name, value in checkpoint.random.items() if name.startswith(prefix)}
    missing = {"torch", "python", "python_gauss", "numpy", "numpy_gauss"} - set(own)
    if missing:
        raise CheckpointError(f"{path}: no random state {prefix}{min(missing)}")
    torch.set_rng_state(own["torch"])
    gauss = own["python_gauss"].item()
    version, *internal = own["python"].tolist()
    random.setstate((version, tuple(internal), None if gauss != gauss else gauss))
    *keys, position, has_gauss = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, own["numpy_gauss"].item()))  # noqa: NPY002
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def disk_error(error: Exception) -> str:
    """What the system said; safetensors puts its own words in front."""
    said = getattr(error, "strerror", None) or str(error)
    return said.rpartition("I/O error: ")[2].partition(" (os error")[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not the JSON object it should hold")
    return value


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

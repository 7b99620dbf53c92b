"""The folder of a run: opened by one process at a time, and what is written into it before any work."""

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from jointembed import __version__, distributed
from jointembed.errors import CheckpointError
from jointembed.inference.files import publish_json
from jointembed.training.checkpoint import disk_error
from jointembed.training.lock import LOCK_NAME, FolderLock

_MARKS = {"environment.json", "recipe.yaml"}  # of a run; a recipe alone may lie in a folder of other work
_BEGUN = {"environment.json", ".environment.json.part", ".recipe.yaml.part"}  # what a run killed at its start may leave
_AT_START = _MARKS | _BEGUN | {"checkpoints", "skipped.jsonl"}


@contextmanager
def opened(run: Path, recipe: str, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """A run folder, for this run alone; every rank enters it. Who resumes calls `record` once nothing refuses that.

    Args:
        run: made here, with `recipe.yaml` and `environment.json`.
        recipe: the resolved recipe, YAML.
        resume: the folder may hold a run, which goes on; its files are left as they are.
        overwrite: a run that is there is deleted; one that ended before its first step always is.

    Raises:
        CheckpointError: on every rank: not empty, not a run folder, in use by another run, or not writable.
    """
    lock, problem = None, None
    if distributed.is_main():
        try:
            lock = _prepared(run, recipe, resume=resume, overwrite=overwrite)
        except CheckpointError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{run}: cannot be written ({error.strerror})"
    try:
        problem = distributed.broadcast_object(problem)
        if problem:
            raise FolderError(problem)
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Put a refusal of the disk into one line. Raises CheckpointError naming the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({disk_error(error)}); checkpoints are untouched") from None


class FolderError(CheckpointError):
    """A folder that this run may not have."""

    shared = True


def _prepared(run: Path, recipe: str, *, resume: bool, overwrite: bool) -> FolderLock:
    names = {path.name for path in _content(run)} if run.exists() else set()
    if names and not (resume or overwrite or _untrained(run)):
        raise _not_empty(run)
    if names and not names >= _MARKS and not (resume and names <= _BEGUN):  # before anything is written into it
        missing = " and ".join(sorted(_MARKS - names))
        raise CheckpointError(f"{run}: not empty and not a run folder (no {missing}); nothing in it will be touched")
    run.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(run)
    try:
        if _content(run) and not resume:
            if not (overwrite or _untrained(run)):
                raise _not_empty(run)
            for path in sorted(_content(run), key=lambda path: path.name in _MARKS):  # killed here, it is a run still
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not (run / "recipe.yaml").exists():  # else a resume, which may yet be refused
            record(run, recipe)
        (run / "checkpoints").mkdir(exist_ok=True)  # after the marks of a run
    except BaseException:
        lock.release()
        raise
    return lock


def record(run: Path, recipe: str) -> None:
    """Write `recipe.yaml` and `environment.json`; the main rank does, others return at once."""
    if distributed.is_main():
        for name, text in (("environment.json", json.dumps(environment(), indent=1)), ("recipe.yaml", recipe)):
            part = run / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(run / name)


def _untrained(run: Path) -> bool:
    """Whether a run was refused there before its first step, by its data say: it is no run to lose."""
    names = {path.name for path in _content(run)}
    return names >= _MARKS and names <= _AT_START and not any((run / "checkpoints").glob("*"))


def _content(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.name != LOCK_NAME]


def _not_empty(run: Path) -> CheckpointError:
    return CheckpointError(f"{run}: not empty; pass --resume to go on, --overwrite to start anew, or another --out")


def environment() -> dict[str, Any]:
    """What a run ran on: versions, hardware, command, date."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "jointembed": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world": distributed.world(),
    }


def command() -> str:
    """The command line as one would type it."""
    return shlex.join(["jointembed", *sys.argv[1:]])


def save_evaluation(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write `metrics.json` of one evaluation, and return what it says.

    Args:
        folder: `RUN/evaluation/NAME`, made here.
        record: what was measured; the date and the command are added.
    """
    whole = {**record, "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command()}
    folder.mkdir(parents=True, exist_ok=True)
    publish_json(folder / "metrics.json", whole)  # a record that a kill cut short would be taken for a measurement
    return whole

"""Trains in forked processes that kill themselves with signal 9 at a chosen point; imports once, reads a job a line.

A job is JSON: recipe, overrides, out, resume, world, env, log, point; the answer is the exit codes of its ranks. A
point is null or [kind, number, rank]. Kinds: `step` (before the n-th optimizer step is set up) and, in the n-th save,
`model` (half of the model's file is written), `sync` (all is written, nothing is safe), `rename` (whole, not named),
`named` (named, nothing deleted yet), `delete` (the oldest checkpoint is half deleted).
"""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from jointembed import build, distributed, runs
from jointembed.recipe import load_recipe
from jointembed.training import checkpoint, loop

PATIENCE = 60  # seconds that the other ranks have to notice


def die(*_: object, **__: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def arm(kind: str, number: int) -> None:
    """Wrap the functions that the point lies in; `number` counts from 1."""
    if kind == "step":
        steps, set_lr = itertools.count(1), loop.set_lr

        def counted_set_lr(*arguments: Any) -> None:
            if next(steps) == number:
                die()
            set_lr(*arguments)

        setattr(loop, "set_lr", counted_set_lr)  # noqa: B010 - for the type checker
        return
    saves, write = itertools.count(1), checkpoint._write

    def counted(*arguments: Any) -> None:
        if next(saves) == number:
            now()
        write(*arguments)

    def now() -> None:
        if kind == "model":
            setattr(checkpoint, "save_tensors", half_written)  # noqa: B010
        elif kind == "delete":
            setattr(shutil, "rmtree", half_deleted)  # noqa: B010
        else:
            setattr(checkpoint, {"sync": "_sync", "rename": "_publish", "named": "_remove"}[kind], die)

    setattr(checkpoint, "_write", counted)  # noqa: B010


def half_written(tensors: dict, path: Path) -> NoReturn:
    from safetensors.torch import save

    content = save(tensors)
    path.write_bytes(content[: len(content) // 2])
    die()


def half_deleted(path: Path, ignore_errors: bool = False) -> None:
    if path.exists():
        (path / "state.json").unlink()
        die()


def train(job: dict[str, Any], rank: int) -> None:
    os.environ |= job["env"]
    if job["world"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["world"])}
    if job["point"] is not None and job["point"][2] == rank:
        arm(*job["point"][:2])
    recipe = build.check(load_recipe(job["recipe"], job["overrides"]))
    runs.train(recipe, Path(job["out"]), resume=job["resume"])
    distributed.shut_down()


def forked(job: dict[str, Any], rank: int) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(job, rank)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def codes(job: dict[str, Any]) -> list[int | None]:
    """Exit codes, negative for a signal; None for a rank that had to be ended after the others."""
    alive = {forked(job, rank): rank for rank in range(job["world"])}
    found: list[int | None] = [None] * job["world"]
    deadline = time.monotonic() + 240
    while alive:
        for process in list(alive):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                rank = alive.pop(process)
                found[rank] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + PATIENCE)
        if time.monotonic() > deadline:
            for process in alive:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            break
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(codes(json.loads(line))), flush=True)

"""Runs the command line in forked processes that meet a fault; imports once, reads a job a line.

A job is JSON: arguments of `jointembed`, world, env, log (files LOG.RANK get what a rank prints, LOG.RANK.pid its
number), fault. The exit codes of its ranks, negative for a signal, and the seconds between the first and the last end
are written to LOG.done. `patience` seconds after its start, or `after` seconds after the first end, what is left is
killed. A fault is null or {kind, rank, step, ...}; the functions `FAULTS` say what each kind does.
"""

import atexit
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from jointembed import cli, runs
from jointembed.data.pictures import PictureFolder
from jointembed.training import checkpoint, loop


def replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def at_step(fault: dict[str, Any], act: Callable[[], None], *, every: bool = False) -> None:
    """Do something just before step `fault["step"]` (from 1), or every one, is set up."""
    steps, original = itertools.count(1), loop.set_lr

    def counted(*arguments: Any) -> None:
        if next(steps) == fault.get("step") or every:
            act()
        original(*arguments)

    replace(loop, "set_lr", counted)


def refuse(fault: dict[str, Any]) -> None:
    raise ValueError("a rank that raises")


def die(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), fault.get("signal", signal.SIGKILL))


def spoil_input(fault: dict[str, Any]) -> None:
    steps, original = itertools.count(1), loop.to_device

    def spoiled(batch: Any, device: torch.device) -> Any:
        batch = original(batch, device)
        if isinstance(batch, dict) and "index" in batch and next(steps) in fault["steps"]:
            batch["image"]["h"][0] = float("nan")
        return batch

    replace(loop, "to_device", spoiled)


def spoil_gradient(fault: dict[str, Any]) -> None:
    steps, original = itertools.count(1), loop.gradient_norm

    def spoiled(parameters: list[torch.nn.Parameter], clip: float | None) -> float:
        if next(steps) == fault["step"] and parameters[0].grad is not None:
            parameters[0].grad.view(-1)[0] = float("inf")
        return original(parameters, clip)

    replace(loop, "gradient_norm", spoiled)


def spoil_loss(fault: dict[str, Any]) -> None:
    steps, original = itertools.count(1), loop.forward_backward

    def spoiled(*arguments: Any) -> dict[str, torch.Tensor]:
        terms = original(*arguments)
        return terms | {"loss": terms["loss"] + float("inf")} if next(steps) == fault["step"] else terms

    replace(loop, "forward_backward", spoiled)


def reading(fault: dict[str, Any]) -> None:
    """A worker that reads one picture is killed, raises or hangs; the process that trains never reads it."""
    acts = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(fault.get("code", 0)),
        "hang": lambda: time.sleep(10_000),
        "raise": lambda: [][1],
    }
    for kind in (PictureFolder,):
        original = kind.open

        def opened(self: Any, number: int, original: Callable = original) -> Any:
            if get_worker_info() is not None and self.names[number] == fault["picture"]:
                acts[fault["how"]]()
            return original(self, number)

        replace(kind, "open", opened)


def at_save(fault: dict[str, Any]) -> None:
    """From the n-th save on there is a limit on the size of a file, or no right to write into the folder."""
    saves, original = itertools.count(1), checkpoint._write

    def written(part: Path, *arguments: Any) -> None:
        if next(saves) == fault["save"]:
            if "bytes" in fault:
                resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"],) * 2)
            if "mode" in fault:
                part.parent.chmod(fault["mode"])
                become(fault)
            if "fill" in fault:
                fill(Path(fault["fill"]))
        original(part, *arguments)

    replace(checkpoint, "_write", written)


def become(fault: dict[str, Any]) -> None:
    """Another user: root may write anywhere."""
    if fault["user"]:
        os.setgid(fault["user"])
        os.setuid(fault["user"])


def fill(path: Path) -> None:
    """Write until the disk is full; leave a page."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - 4096))


def memory(fault: dict[str, Any]) -> None:
    """While it trains the process may map so many bytes more than it has."""
    original = runs.fit

    def limited(*arguments: Any, **options: Any) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + fault["bytes"], hard))
        try:
            return original(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    replace(runs, "fit", limited)


FAULTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "slow": lambda fault: at_step(fault, lambda: time.sleep(fault["seconds"]), every=True),
    "raise": lambda fault: at_step(fault, lambda: refuse(fault)),
    "signal": lambda fault: at_step(fault, lambda: die(fault)),
    "exit": lambda fault: at_step(fault, lambda: os._exit(0)),
    "input": spoil_input,
    "gradient": spoil_gradient,
    "loss": spoil_loss,
    "reading": reading,
    "save": at_save,
    "user": become,
    "memory": memory,
}


def rank_of(job: dict[str, Any], rank: int) -> None:
    """One process of a job, to its end."""
    Path(f"{job['log']}.{rank}.pid").write_text(str(os.getpid()))
    log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= job["env"]
    if job["world"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["world"])}
    fault = job["fault"]
    if fault is not None and fault.get("rank", 0) in (rank, "all"):
        FAULTS[fault["kind"]](fault)
    sys.argv = ["jointembed", *job["arguments"]]
    code: Any = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # as a process of its own would
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def supervised(job: dict[str, Any]) -> dict[str, Any]:
    """Exit codes of all ranks, None of those that had to be killed, and the seconds from the first to the last end."""
    alive = {}
    for rank in range(job["world"]):
        process = os.fork()
        if not process:
            rank_of(job, rank)
        alive[process] = rank
    codes: list[int | None] = [None] * job["world"]
    first, deadline = None, time.monotonic() + job["patience"]
    while alive and time.monotonic() < deadline:
        for process in list(alive):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[alive.pop(process)] = os.waitstatus_to_exitcode(status)
                first = first or time.monotonic()
                deadline = min(deadline, first + job["after"])
        time.sleep(0.02)
    for process in alive:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return {"codes": codes, "seconds": time.monotonic() - (first or time.monotonic())}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork() == 0:
            done = Path(f"{job['log']}.done")
            part = done.with_suffix(".part")
            part.write_text(json.dumps(supervised(job)))
            part.rename(done)
            os._exit(0)


if __name__ == "__main__":
    main()

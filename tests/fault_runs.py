"""Trainings that meet a fault: started through `fault_driver`, watched and signalled from outside, and waited for."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test_image_runs import RECIPE, write_pictures
from tiny_runs import TINY, write_captions

from jointembed.training import checkpoint as checkpoints

PICTURES = ["loader.batch=4", "evaluation.every=1000", "training.save_every=0.25"]  # 8 steps, each of them saved
CAPTIONS = ["evaluation.every=1000", "training.save_every=0.25", "evaluation.centre=false"]


class Running:
    """A training that goes on; its folder, and what it printed so far."""

    def __init__(self, out: Path, log: Path, world: int) -> None:
        self.out, self.log, self.world = out, log, world

    def pid(self, rank: int = 0) -> int:
        path = Path(f"{self.log}.{rank}.pid")
        self.until(lambda: path.is_file() and path.read_text() != "", "started")
        return int(path.read_text())

    def send(self, number: int, rank: int = 0) -> None:
        os.kill(self.pid(rank), number)

    def said(self, rank: int = 0) -> str:
        path = Path(f"{self.log}.{rank}")
        return path.read_text(errors="replace") if path.is_file() else ""

    def trained(self) -> list[int]:
        """Steps in the log of the run."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line)["step"] for line in lines if '"train"' in line]

    def until(self, arrived: Callable[[], object], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not arrived():
            assert time.monotonic() < deadline, f"not {what} after {seconds} s: {self.said()[-2000:]}"
            assert not Path(f"{self.log}.done").is_file(), f"ended before it had {what}: {self.said()[-2000:]}"
            time.sleep(0.02)

    def end(self, seconds: float = 420) -> "Ended":
        done, deadline = Path(f"{self.log}.done"), time.monotonic() + seconds
        while not done.is_file():
            assert time.monotonic() < deadline, f"still there after {seconds} s: {self.said()[-2000:]}"
            time.sleep(0.02)
        return Ended(self, **json.loads(done.read_text()))


class Ended:
    """How it ended: exit codes of its ranks, negative for a signal; seconds from the first end to the last."""

    def __init__(self, run: Running, codes: list[int | None], seconds: float) -> None:
        self.run, self.codes, self.seconds, self.out = run, codes, seconds, run.out

    def line(self, rank: int = 0) -> str:
        """The one line of complaint; warnings and progress are others."""
        text = self.run.said(rank)
        assert "Traceback" not in text, text[-3000:]
        found = [line for line in text.splitlines() if line.startswith("jointembed: ") and ": stopping" not in line]
        assert len(found) == 1, text[-3000:]
        return found[0]

    def saved(self) -> list[int]:
        """Steps whose checkpoints are there, the newest of them read whole."""
        found = checkpoints.complete(self.out / "checkpoints")
        if found:
            checkpoints.read(found[-1])
        return [int(path.name.removeprefix("step-")) for path in found]


class Trainings:
    """Starts trainings of two tiny recipes, `pictures` and `captions`."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        write_captions(root / "data")
        write_pictures(root / "pictures")
        (root / "captions.yaml").write_text(TINY.replace("ROOT", str(root / "data")))
        (root / "pictures.yaml").write_text(RECIPE.replace("ROOT", str(root / "pictures")))
        root.chmod(0o755)
        self.driver = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fault_driver.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.driver.stdout is not None
        assert self.driver.stdout.readline() == "ready\n"

    def start(
        self, *arguments: str, kind: str = "pictures", out: Path | None = None, world: int = 1,
        fault: dict[str, Any] | None = None, patience: float = 240, after: float = 120,
    ) -> Running:  # fmt: skip
        self.count += 1
        log = self.root / f"{self.count}.log"
        out = out or self.root / f"run-{self.count}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "JOINTEMBED_CACHE": str(self.root / "cache")}
        given = [*(PICTURES if kind == "pictures" else CAPTIONS), *arguments]
        recipe = ["train", str(self.root / f"{kind}.yaml"), *given, "--out", str(out)]
        job = {"arguments": recipe, "world": world, "env": env, "log": str(log), "fault": fault, "patience": patience}
        job["after"] = after
        assert self.driver.stdin is not None
        self.driver.stdin.write(json.dumps(job) + "\n")
        self.driver.stdin.flush()
        return Running(out, log, world)

    def run(self, *arguments: str, **options: Any) -> Ended:
        return self.start(*arguments, **options).end()

    def close(self) -> None:
        assert self.driver.stdin is not None
        self.driver.stdin.close()
        self.driver.wait(timeout=60)
        for path in self.root.glob("*.pid"):  # of a test that failed
            log = path.with_suffix("").with_suffix("")
            if not Path(f"{log}.done").is_file() and _is_python(int(path.read_text())):
                os.kill(int(path.read_text()), signal.SIGKILL)


def _is_python(process: int) -> bool:
    path = Path(f"/proc/{process}/cmdline")
    return path.is_file() and b"fault_driver" in path.read_bytes()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size; skips where mounting is not permitted."""
    import pytest

    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)

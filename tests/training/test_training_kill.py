"""Runs killed with signal 9, at steps and inside saves, resume from the newest whole checkpoint to the same bits."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_image_runs import RECIPE, write_pictures
from tiny_runs import TINY, write_captions

from jointembed.training import checkpoint as checkpoints

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(900)]

OVERRIDES = {
    "captions": [
        "data.image={name: crop, size: 32}", "data.image_evaluation={name: resize, size: 32}",
        "branches.image.train=all", "branches.text.expander={name: mlp, widths: [16, 16], dropout: 0.2}",
    ],
    "pictures": ["loader.batch=4", "objective={name: moco, queue: 24}", "branches.net.expander.norm=batch"],
}  # fmt: skip
SAVES = ("model", "sync", "rename", "named", "delete")
STEPS = [int(step) for step in np.random.default_rng(5).integers(2, 9, size=10)]  # of the 8 that a run has
Run = Callable[..., list[int | None]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills")
    write_captions(root / "data")
    write_pictures(root / "pictures")
    (root / "captions.yaml").write_text(TINY.replace("ROOT", str(root / "data")))
    (root / "pictures.yaml").write_text(RECIPE.replace("ROOT", str(root / "pictures")))
    return root


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[Run]:
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kill_driver.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdin is not None and driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    send, answer = driver.stdin, driver.stdout

    def ask(kind: str, out: Path, *overrides: str, world: int = 1, **job: Any) -> list[int | None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "JOINTEMBED_CACHE": str(place / "cache")}
        job = {"resume": False, "point": None, "env": env, "log": f"{out}.log", "world": world, "out": str(out)} | job
        # a save at each step, all but the last two deleted
        job |= {
            "recipe": str(place / f"{kind}.yaml"),
            "overrides": [*OVERRIDES[kind], "training.save_every=0.25", *overrides],
        }
        send.write(json.dumps(job) + "\n")
        send.flush()
        return json.loads(answer.readline())

    yield ask
    send.close()
    driver.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(run: Run, place: Path) -> Callable[[str, int], checkpoints.Checkpoint]:
    """The last checkpoint of a run that nobody killed, for each recipe and number of ranks."""
    known: dict[tuple[str, int], checkpoints.Checkpoint] = {}

    def get(kind: str, world: int) -> checkpoints.Checkpoint:
        if (kind, world) not in known:
            out = place / f"whole-{kind}-{world}"
            assert run(kind, out, world=world) == [0] * world, log(out)
            saved = checkpoints.newest(out / "checkpoints")
            assert saved is not None and saved.state["step"] == 8
            known[kind, world] = saved
        return known[kind, world]

    return get


def log(out: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(out.parent.glob(f"{out.name}.log.*")))


def kept(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints.complete(out / "checkpoints")]


def case(kind: str, workers: int, world: int, point: str, number: int, *, slow: bool = True) -> Any:
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(
        kind, workers, world, point, number, marks=marks, id=f"{kind}-{workers}w-{world}r-{point}{number}"
    )


def cases() -> Iterator[Any]:
    yield case("captions", 2, 1, "model", 3, slow=False)
    yield case("pictures", 0, 1, "step", 6, slow=False)
    yield case("captions", 0, 2, "rename", 5, slow=False)
    yield case("pictures", 2, 2, "delete", 4, slow=False)
    for number, step in enumerate(STEPS):
        yield case(("captions", "pictures")[number % 2], 2 * (number // 2 % 2), 1 + number // 5, "step", step)
    for number, point in enumerate(SAVES):
        for world in (1, 2):
            yield case(("pictures", "captions")[number % 2], 2 * (number // 2 % 2), world, point, 3 + number)


@pytest.mark.fault(1, "signal 9 at ten steps and five points of a save, 1 and 2 ranks: resumed to the bit")
@pytest.mark.parametrize(("kind", "workers", "world", "point", "number"), [*cases()])
def test_killed_and_resumed_gives_the_bits_of_an_uninterrupted_run(
    run: Run, whole: Callable, tmp_path: Path, kind: str, workers: int, world: int, point: str, number: int
) -> None:
    expected = whole(kind, world)
    out = tmp_path / "killed"
    ask = partial(run, kind, out, f"loader.workers={workers}", world=world)
    rank = world - 1 if point == "step" else 0  # the main rank saves
    codes = ask(point=[point, number, rank])
    assert codes[rank] == -9, log(out)
    assert all(code not in (0, None) for code in codes), "another rank ended well, or had to be ended"

    # before: what a kill leaves behind, and that the newest whole one is the last that got its name
    last = number if point in ("named", "delete") else number - 1
    deleted = point == "delete"
    assert kept(out) == [step for step in range(last - (1 if deleted or last < number else 2), last + 1) if step > 0]
    leftovers = [path.name for path in (out / "checkpoints").glob(".*")]
    assert leftovers == {
        "model": [f".step-{number}.part"], "sync": [f".step-{number}.part"], "rename": [f".step-{number}.part"],
        "delete": [f".step-{number - 2}.old"],
    }.get(point, [])  # fmt: skip
    saved = checkpoints.read(checkpoints.complete(out / "checkpoints")[-1])
    assert saved.state["step"] == last

    assert ask(resume=True) == [0] * world, log(out)
    assert f"at step {last}" in log(out)
    assert kept(out) == [7, 8] and not list((out / "checkpoints").glob(".*"))
    found = checkpoints.newest(out / "checkpoints")
    assert found is not None
    for part in ("model", "optimizer", "random"):
        tensors, others = getattr(found, part), getattr(expected, part)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            if part != "random" or name.endswith("torch"):  # the others are drawn from by nothing in a run
                assert torch.equal(tensor, others[name]), (part, name)
    different = {key for key in found.state if found.state[key] != expected.state[key]}
    assert not different
    if kind == "pictures":
        assert any("targets" in name for name in found.model) and any("queue" in name for name in found.model)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, 9))

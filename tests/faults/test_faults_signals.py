"""SIGTERM, Ctrl-C, two runs into one folder: real signals to real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fault_runs import PICTURES, Trainings

from jointembed.training import checkpoint as checkpoints

pytestmark = pytest.mark.timeout(600)
SLOW = {"kind": "slow", "seconds": 0.3, "rank": "all"}


@pytest.fixture(scope="module")
def whole(trainings: Trainings) -> checkpoints.Checkpoint:
    ended = trainings.run()
    assert ended.codes == [0] and ended.saved() == [7, 8]
    return checkpoints.read(ended.out / "checkpoints" / "step-8")


def equal(one: checkpoints.Checkpoint, other: checkpoints.Checkpoint) -> bool:
    return all(
        getattr(one, part).keys() == getattr(other, part).keys()
        and all(torch.equal(tensor, getattr(other, part)[name]) for name, tensor in getattr(one, part).items())
        for part in ("model", "optimizer")
    )


@pytest.mark.fault(17, "SIGTERM, Ctrl-C: checkpoint of the last step, exit 143 or 130, resumed to the bit")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_resume_gives_the_bits_of_an_uninterrupted_run(
    trainings: Trainings, whole: checkpoints.Checkpoint, number: signal.Signals
) -> None:
    running = trainings.start("training.save_every=1000", "loader.workers=2", fault=SLOW)
    running.until(lambda: len(running.trained()) >= 2, "two steps")
    running.send(number)
    ended = running.end(120)
    assert ended.codes == [128 + number]
    (step,) = ended.saved()
    assert step == running.trained()[-1] < 8
    assert f"{number.name} after step {step}; saved" in ended.line() and "--resume" in ended.line()
    resumed = trainings.run("--resume", "loader.workers=2", out=ended.out)
    assert resumed.codes == [0] and f"at step {step}" in resumed.run.said()
    assert equal(whole, checkpoints.read(ended.out / "checkpoints" / "step-8"))


@pytest.mark.fault(17, "a second Ctrl-C ends the process at once, exit 130")
def test_a_second_ctrl_c_ends_at_once(trainings: Trainings) -> None:
    running = trainings.start("loader.workers=2", fault=SLOW | {"seconds": 60})  # a step that takes a minute
    running.until(lambda: "parameters trained" in running.said(), "announced")
    time.sleep(1)
    running.send(signal.SIGINT)
    running.until(lambda: "stopping after this step" in running.said(), "taken notice")
    begun = time.monotonic()
    running.send(signal.SIGINT)
    assert running.end(60).codes == [130] and time.monotonic() - begun < 30


@pytest.mark.fault(17, "SIGTERM to all processes of a run, loader workers too, as a batch system sends it")
def test_a_signal_to_loader_workers_too(trainings: Trainings) -> None:
    running = trainings.start("loader.workers=2", fault=SLOW)
    running.until(lambda: len(running.trained()) >= 2, "two steps")
    main = running.pid()
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    assert len(children) >= 2
    for process in (*map(int, children), main):
        os.kill(process, signal.SIGTERM)
    ended = running.end(120)
    assert ended.codes == [143] and ended.saved()[-1] == running.trained()[-1]


@pytest.mark.ddp
@pytest.mark.fault(17, "SIGTERM to one of two ranks: both stop after the same step, exit 143")
def test_a_signal_to_one_rank_stops_both_after_the_same_step(trainings: Trainings) -> None:
    running = trainings.start(world=2, fault=SLOW)
    running.until(lambda: len(running.trained()) >= 2, "two steps")
    running.send(signal.SIGTERM, rank=1)
    ended = running.end(120)
    assert ended.codes == [143, 143]
    assert f"SIGTERM after step {ended.saved()[-1]}" in ended.line(0)
    assert "jointembed:" not in running.said(1)  # it is said once


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.fault(17, "Ctrl-C to torchrun, two ranks and loader workers: checkpoint, resumable")
def test_ctrl_c_to_the_launcher(trainings: Trainings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jointembed"]
    recipe = ["train", str(trainings.root / "pictures.yaml"), *PICTURES, "--out", str(out), "loader.workers=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JOINTEMBED_CACHE": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        long = subprocess.Popen(
            [*start, *recipe, "training.epochs=1000", "training.save_every=1000"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        deadline = time.monotonic() + 180
        while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        long.send_signal(signal.SIGINT)
        assert long.wait(60) != 0
    said = (tmp_path / "log").read_text()
    assert said.count("SIGINT after step") == 1, said[-3000:]
    (saved,) = checkpoints.complete(out / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    done = subprocess.run(
        [*start, *recipe, f"training.epochs={step / 4 + 1}", "--resume", "--allow-changed"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and f"at step {step}" in done.stdout, done.stderr[-2000:]


@pytest.mark.fault(18, "a second run into a folder in use is refused, also with --resume and --overwrite; "
                   "a kill frees it")  # fmt: skip
def test_a_second_run_into_one_folder_is_refused(trainings: Trainings) -> None:
    first = trainings.start(fault=SLOW | {"seconds": 60, "rank": 0})
    first.until(lambda: (first.out / "recipe.yaml").is_file(), "opened its folder")
    for option in ("--resume", "--overwrite"):
        second = trainings.run(option, out=first.out)
        assert second.codes == [1]
        assert f"in use by another run (process {first.pid()} on {os.uname().nodename} since " in second.line()
    assert (first.out / "recipe.yaml").is_file()
    first.send(signal.SIGKILL)
    assert first.end().codes == [-9]
    again = trainings.run("--resume", out=first.out)
    assert again.codes == [0] and again.saved() == [7, 8]

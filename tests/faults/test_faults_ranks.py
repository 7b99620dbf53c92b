"""A rank that is killed, raises, exits, hangs, or meets NaN or Inf; a partial checkpoint under two ranks."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import Trainings

from jointembed.training import checkpoint as checkpoints

pytestmark = [pytest.mark.timeout(600), pytest.mark.ddp]
BOUND = 60  # seconds from the end of a rank to that of the job; on a quiet machine it is less than one


@pytest.mark.fault(8, "a rank killed, raising, exiting 0: the other names it and exits 1")
@pytest.mark.parametrize(("kind", "code", "rank"), [("kill", -9, 1), ("raise", 1, 1), ("exit", 0, 1), ("exit", 0, 0)])
def test_a_rank_that_ends_ends_the_job(trainings: Trainings, kind: str, code: int, rank: int) -> None:
    fault = {"kind": {"kill": "signal"}.get(kind, kind), "step": 3, "rank": rank, "signal": signal.SIGKILL}
    ended = trainings.run(world=2, fault=fault)
    other = 1 - rank
    assert ended.codes[rank] == code and ended.codes[other] == 1
    assert ended.seconds < BOUND
    assert f"rank {other}: rank {rank} has ended, or did not answer" in ended.line(other)
    assert ended.saved() == [1, 2]


@pytest.mark.fault(8, "a rank that hangs (SIGSTOP): the other ends after training.rank_timeout, by name")
def test_a_rank_that_hangs_is_waited_for_so_long(trainings: Trainings) -> None:
    fault = {"kind": "signal", "step": 3, "rank": 1, "signal": signal.SIGSTOP}
    ended = trainings.run("training.rank_timeout=6", world=2, fault=fault, after=2)
    assert ended.codes == [1, None]  # a stopped process is for the launcher to end, as it is here
    assert "rank 0: rank 1 has ended, or did not answer within training.rank_timeout" in ended.line(0)
    assert ended.saved() == [1, 2]


@pytest.mark.fault(7, "NaN in input, Inf in gradient or loss of one rank: both stop, samples named")
@pytest.mark.parametrize("kind", ["input", "gradient", "loss"])
def test_a_value_that_is_not_a_number_on_one_rank_stops_both(trainings: Trainings, kind: str) -> None:
    fault: dict[str, Any] = {"kind": kind, "rank": 1, "step": 3, "steps": [3]}
    ended = trainings.run(kind="captions", world=2, fault=fault)
    assert ended.codes == [1, 1] and ended.saved() == [1, 2]
    line = ended.line(0)
    assert line.startswith("jointembed: step 3: ") and "nothing was updated on any rank" in line
    assert "Samples of rank 1: " in line and ".jpg" in line and "rank 0" not in line
    assert ("(image is not finite)" in line) == (kind == "input")
    assert line.count(".jpg") == (1 if kind == "input" else 3)  # its part of the batch


@pytest.mark.fault(7, "training.skip_nonfinite: steps left out up to the limit, logged, nothing moved")
def test_steps_are_left_out_up_to_a_limit(trainings: Trainings) -> None:
    fault: dict[str, Any] = {"kind": "input", "steps": [3, 5]}
    ended = trainings.run("training.skip_nonfinite=2", kind="captions", fault=fault)
    assert ended.codes == [0] and ended.saved() == [7, 8]
    lines = [json.loads(line) for line in (ended.out / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["kind"] == "skipped"]
    assert [line["step"] for line in skipped] == [3, 5]
    assert all(len(line["samples"]) == 1 and ".jpg (image is not finite)" in line["samples"][0] for line in skipped)
    assert ended.run.said().count("left out (") == 2 and "left out (2 of 2)" in ended.run.said()
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 4, 6, 7, 8]
    assert all(math.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    saved = checkpoints.read(ended.out / "checkpoints" / "step-8")
    assert saved.state["skipped"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.model.values() if tensor.is_floating_point())
    refused = trainings.run("training.skip_nonfinite=1", kind="captions", fault=fault)
    assert refused.codes == [1] and refused.saved() == [3, 4]
    assert "step 5: " in refused.line() and "(1 steps were left out before)" in refused.line()


@pytest.fixture(scope="module")
def half(trainings: Trainings) -> Path:
    """A run of one process that was stopped after two steps."""
    ended = trainings.run(fault={"kind": "signal", "signal": signal.SIGKILL, "step": 3})
    assert ended.codes == [-9] and ended.saved() == [1, 2]
    return ended.out


@pytest.mark.fault(6, "another number of ranks is refused on resume, with both numbers, unless told")
@pytest.mark.fault(3, "what a killed save left behind, two ranks: removed, no hang")
def test_two_ranks_go_on_where_a_killed_save_left_a_part(trainings: Trainings, half: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(half, out)
    refused = trainings.run("--resume", out=out, world=2)
    assert refused.codes == [1, 1] and "world has changed since this checkpoint (1 -> 2)" in refused.line(0)
    for name in (".step-3.part", ".step-1.old"):
        (out / "checkpoints" / name).mkdir()
        (out / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    ended = trainings.run("--resume", "--allow-changed", out=out, world=2)
    assert ended.codes == [0, 0] and "at step 2" in ended.run.said() and ended.saved() == [7, 8]
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.fault(3, "a copied checkpoint folder with a file missing, two ranks: refused by name, no hang")
def test_two_ranks_refuse_a_partial_copy_by_name(trainings: Trainings, half: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(half, out)
    copy = out / "checkpoints" / "step-5"
    shutil.copytree(out / "checkpoints" / "step-2", copy)
    (copy / "optimizer.safetensors").unlink()
    ended = trainings.run("--resume", "--allow-changed", out=out, world=2)
    assert ended.codes == [1, 1] and ended.seconds < BOUND
    assert f"{copy}/optimizer.safetensors: missing from the checkpoint" in ended.line(0)

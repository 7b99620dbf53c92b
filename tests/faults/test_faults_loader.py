"""A loader worker that is killed, exits, raises or hangs: the message names the picture it was at."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_runs import Trainings
from test_image_runs import write_pictures
from torch.utils.data import DataLoader

from jointembed.data import loader_workers
from jointembed.data.folder import image_folder
from jointembed.data.loader_workers import in_order
from jointembed.data.views import VIEWS
from jointembed.errors import DataError
from jointembed.inference.embed import picture_batches

pytestmark = pytest.mark.timeout(600)
PICTURE = "train/dark/3.png"


@pytest.mark.fault(9, "a worker killed, exiting, raising, hanging (loader.timeout): exit 1, picture named")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kill", "was killed by SIGKILL; where memory is short, lower loader.workers"),
        ("exit", "exited with code 3"),
        ("raise", "IndexError: list index out of range (fault_driver.py, line "),
        ("hang", "did not come within loader.timeout (4 s)"),
    ],
)
def test_a_worker_that_fails_names_its_picture(trainings: Trainings, how: str, message: str) -> None:
    fault: dict[str, Any] = {"kind": "reading", "how": how, "picture": PICTURE, "code": 3}
    ended = trainings.run("loader.workers=2", "loader.timeout=4", fault=fault, patience=120)
    assert ended.codes == [1]
    assert ended.line().startswith(f"jointembed: {PICTURE} (sample 3 of epoch 0): ") and message in ended.line()


@pytest.mark.fault(9, "a worker that exits with code 0 in the middle of an epoch is noticed too")
def test_a_worker_that_leaves_without_a_word(trainings: Trainings) -> None:
    fault = {"kind": "reading", "how": "exit", "picture": PICTURE}
    ended = trainings.run("loader.workers=1", "loader.timeout=4", fault=fault, patience=120)
    assert ended.codes == [1] and f"{PICTURE} (sample 3 of epoch 0): loader worker" in ended.line()
    assert "exited with code 0" in ended.line()


@pytest.mark.ddp
@pytest.mark.fault(9, "a killed worker of one of two ranks: both end, the picture is named")
def test_a_worker_of_one_rank(trainings: Trainings) -> None:
    fault = {"kind": "reading", "how": "kill", "picture": PICTURE, "rank": "all"}
    ended = trainings.run("loader.workers=1", world=2, fault=fault)
    assert ended.codes == [1, 1] and ended.seconds < 60
    lines = [ended.line(rank) for rank in (0, 1)]
    assert sum(PICTURE in line for line in lines) == 1
    assert sum("has ended, or did not answer" in line for line in lines) == 1


@pytest.mark.fault(9, "a worker of a validation killed, exiting, raising: exit 1, picture named; the checkpoint loads")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kill", "was killed by SIGKILL"),
        ("exit", "exited with code 3"),
        ("raise", "IndexError: list index out of range"),
    ],
)
def test_a_worker_of_a_validation_names_its_picture(trainings: Trainings, how: str, message: str) -> None:
    picture = "test/dark/1.png"
    fault: dict[str, Any] = {"kind": "reading", "how": how, "picture": picture, "code": 3}
    ended = trainings.run("loader.workers=2", fault=fault, patience=120)
    assert ended.codes == [1] and ended.saved()
    assert ended.line().startswith(f"jointembed: {picture} (sample 1): ") and message in ended.line()


class Sleepy:
    """Its third sample does not come."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> int:
        time.sleep(600 if position == 2 else 0)
        return position


@pytest.mark.fault(9, "a worker that hangs outside training: DataError within the limit, sample named")
def test_a_worker_that_hangs_outside_training() -> None:
    names = "abcd"
    batches = in_order(Sleepy(), batch=2, workers=1, name=lambda position: names[position], timeout=2)
    assert next(batches).tolist() == [0, 1]
    began = time.monotonic()
    with pytest.raises(DataError, match=r"^c \(sample 2\): a loader worker has read it for \d s .* \(2 s\)$"):
        next(batches)
    assert time.monotonic() - began < 30


def test_spawned_workers_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows spawn workers: what they are given has to pickle."""
    monkeypatch.setattr(loader_workers, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    write_pictures(tmp_path)
    pictures = image_folder(path=str(tmp_path), split="test").pictures
    view = VIEWS["resize"](size=8)
    parts = list(picture_batches(view, pictures, [0, 1, 5], batch=2, workers=1))
    assert [part["image"].shape for part in parts] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    (tmp_path / "test" / "dark" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"test/dark/1.png"):
        list(picture_batches(view, pictures, [0, 1, 5], batch=2, workers=1))

"""A disk that refuses in the middle of a save, and a resume that does not fit."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import Trainings, small_disk

from jointembed import runs
from jointembed.errors import CheckpointError

pytestmark = pytest.mark.timeout(600)
NOBODY = 65534


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which only its owner may enter
        started = Trainings(Path(folder))
        yield started
        started.close()


@pytest.mark.fault(2, "disk full in a save (tmpfs): older checkpoints whole, resumed once there is room")
def test_a_full_disk_leaves_the_old_checkpoints(trainings: Trainings) -> None:
    with small_disk(trainings.root / "disk", "12m") as disk:
        ended = trainings.run(out=disk / "run", fault={"kind": "save", "save": 3, "fill": str(disk / "filler")})
        assert ended.codes == [1] and ended.saved() == [1, 2]
        assert "step-3: cannot be saved (No space left on device); older checkpoints are untouched" in ended.line()
        assert not list((ended.out / "checkpoints").glob(".*"))
        (disk / "filler").unlink()
        resumed = trainings.run("--resume", out=disk / "run")
        assert resumed.codes == [0] and "at step 2" in resumed.run.said() and resumed.saved() == [7, 8]


@pytest.mark.fault(2, "a limit on the size of files (RLIMIT_FSIZE) reached in a save: older checkpoints whole")
def test_a_quota_leaves_the_old_checkpoints(trainings: Trainings) -> None:
    ended = trainings.run(fault={"kind": "save", "save": 3, "bytes": 100_000})
    assert ended.codes == [1] and ended.saved() == [1, 2]
    assert "step-3: cannot be saved (File too large); older checkpoints are untouched" in ended.line()


@pytest.mark.ddp
@pytest.mark.fault(2, "the same with two ranks: both end with exit 1, no hang")
def test_a_quota_with_two_ranks(trainings: Trainings) -> None:
    ended = trainings.run(world=2, fault={"kind": "save", "save": 2, "bytes": 100_000})
    assert ended.codes == [1, 1] and ended.saved() == [1] and ended.seconds < 60
    assert "step-2: cannot be saved (File too large)" in ended.line(0)


@pytest.mark.fault(2, "a folder that becomes read-only before a save, or is so before the run")
def test_a_read_only_folder(trainings: Trainings) -> None:
    user = NOBODY if os.getuid() == 0 else 0
    ended = trainings.run(fault={"kind": "save", "save": 3, "mode": 0o555, "user": user})
    assert ended.codes == [1] and ended.saved() == [1, 2]
    assert "step-3: cannot be saved (Permission denied); older checkpoints are untouched" in ended.line()
    place = trainings.root / "closed"
    place.mkdir(mode=0o555)
    ended = trainings.run(out=place / "run", fault={"kind": "user", "user": user})
    assert ended.codes == [1] and f"{place / 'run'}: cannot be written (Permission denied)" in ended.line()


@pytest.mark.fault(6, "a changed recipe or data set is refused on resume by what changed, unless told; "
                   "the recipe in the folder stays")  # fmt: skip
def test_changed_data_are_refused_unless_told(tiny_recipe: Callable, tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = tiny_recipe("training.epochs=0.5")
    runs.train(short, run)
    kept = (run / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"step-2: recipe has changed since this checkpoint .*--allow-changed"):
        runs.train(tiny_recipe("training.epochs=0.5", "optimizer.lr=2e-3"), run, resume=True)
    assert (run / "recipe.yaml").read_bytes() == kept
    annotations = tiny_data / "captions.json"
    annotations.write_text(annotations.read_text().replace('"a red', '"a blue', 1))
    with pytest.raises(CheckpointError, match=r"step-2: data has changed since this checkpoint .*--allow-changed"):
        runs.train(short, run, resume=True)
    safe = ("training.epochs=1", "training.skip_nonfinite=3", "training.rank_timeout=60", "loader.timeout=9")
    assert runs.train(tiny_recipe(*safe), run, resume=True, changed=True)["step"] == 4
    assert runs.train(tiny_recipe("training.epochs=1"), run, resume=True)["step"] == 4  # told once, for what follows

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_detection import TINY_DETECTION

from jointembed import runs, runs_evaluate
from jointembed.inference.detect import make_detector, save_detector
from jointembed.inference.export import export_model
from jointembed.inference.index_build import build_index
from jointembed.inference.worker import Settings, embed_worker
from jointembed.tensor_files import save_tensors

PACKAGE = Path(__file__).parent.parent / "jointembed"


@pytest.fixture(params=[(0o022, 0o644), (0o027, 0o640)], ids=["umask 022", "umask 027"])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """What new files have under the umask that is set meanwhile."""
    mask, expected = request.param
    before = os.umask(mask)
    yield expected
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors({"x": torch.arange(3)}, path, {"key": "value"})
    assert mode_of(path) == mode and torch.equal(load_file(path)["x"], torch.arange(3))
    path.chmod(0o604)
    save_tensors({"x": torch.zeros(2)}, path)
    assert mode_of(path) == 0o604 and len(load_file(path)["x"]) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_all_that_is_written_follows_the_umask(tiny_recipe: Callable, tmp_path: Path, mode: int) -> None:
    made = tmp_path / "made"
    made.mkdir()
    data = tmp_path / "data" / "images"
    runs.train(tiny_recipe("training.save_every=1", "branches.image.encoder.model=squeezenet1_1"), made / "run")
    runs_evaluate.evaluate_run(made / "run", "test")
    embed_worker(made / "run", str(data), made / "embeddings", Settings(), shard_size=8).run(0, 1)
    build_index(made / "embeddings", made / "index")
    export_model(made / "run", made / "exported", branch="text")
    blocks = yaml.safe_load(TINY_DETECTION)
    config = {"encoder": blocks["encoder"], "detector": blocks["detector"], "categories": ["red"]}
    save_detector(make_detector(config), made / "detector", config, "# a card")
    written = [path for folder in (made, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    kinds = {path.parent.name for path in written if path.suffix == ".safetensors"}
    assert {"step-4", "model", "index", "detector", "cache"} <= kinds, kinds
    assert len([path for path in written if path.parent.name == "cache"]) >= 2  # representations and tokens
    assert {path.relative_to(tmp_path): oct(mode_of(path)) for path in written if mode_of(path) != mode} == {}


def test_nothing_else_in_the_package_writes_files_for_their_owner_alone() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\b(save_file|mkstemp|NamedTemporaryFile)\(", path.read_text(encoding="utf-8"))
    }
    # the benchmarks' files go when they end
    assert found == {"tensor_files.py", "bench/processes.py", "bench/search.py"}

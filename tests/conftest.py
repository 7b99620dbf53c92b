import os
from collections.abc import Callable, Iterator
from pathlib import Path

import network
import pytest
import torch
from tiny_runs import TINY, write_captions

from jointembed.recipe import Recipe, load_recipe

torch.set_num_threads(1)  # small tensors, and a machine that may be shared
network.block()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: at the end it would keep one process busy while the others have nothing left."""
    items.sort(key=lambda item: "test_quickstart" not in item.nodeid)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The local data; tests that need it skip, and say so, where it is unset."""
    if "JOINTEMBED_DATA" not in os.environ:
        pytest.skip("JOINTEMBED_DATA is not set")
    return Path(os.environ["JOINTEMBED_DATA"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOINTEMBED_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    network.attempts.clear()
    yield
    assert not network.attempts, f"network access: {'; '.join(network.attempts)}"


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "data")


@pytest.fixture
def tiny_recipe(tiny_data: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe that trains in seconds, with overrides, checked."""
    from jointembed import build

    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("ROOT", str(tiny_data)))

    def make(*overrides: str) -> Recipe:
        return build.check(load_recipe(path, overrides))

    return make

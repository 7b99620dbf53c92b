from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from embedding_runs import save_model, write_pictures

from jointembed.inference.index import Index
from jointembed.model import JointEmbedding

if TYPE_CHECKING:
    import httpx2


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), 0)


@pytest.fixture(scope="session")
def other_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture(scope="session")
def model(model_path: Path) -> JointEmbedding:
    return JointEmbedding.from_pretrained(model_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """11 pictures in two folders, and what is no picture."""
    return write_pictures(tmp_path / "pictures", 11)


@pytest.fixture(scope="session")
def indexed(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 24 pictures, for `jointembed serve`."""
    from serving import ROWS, make_index

    root = tmp_path_factory.mktemp("serve")
    return make_index(model_path, write_pictures(root / "pictures", ROWS), root)


@pytest.fixture(scope="session")
def index(indexed: Path) -> Index:
    return Index.open(indexed)


@pytest.fixture(scope="session")
def address(index: Index) -> Iterator[str]:
    """Of a server in a thread."""
    from serving import serving

    with serving(index) as found:
        yield found


@pytest.fixture
def client(address: str) -> "Iterator[httpx2.Client]":
    import httpx2
    from serving import PATIENCE

    with httpx2.Client(base_url=address, timeout=PATIENCE) as one:
        yield one

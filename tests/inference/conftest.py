from pathlib import Path

import pytest
from embedding_runs import save_model, write_pictures

from jointembed.model import JointEmbedding


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

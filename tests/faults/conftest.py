from collections.abc import Iterator

import pytest
from fault_runs import Trainings


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """Runs of the command line that are ended with the module."""
    started = Trainings(tmp_path_factory.mktemp("trainings"))
    yield started
    started.close()

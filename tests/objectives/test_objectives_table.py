"""What holds for every file of the table of objectives."""

import inspect
from pathlib import Path

import pytest

from jointembed.objectives import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_file_of_a_method_has_at_most_150_lines(name: str) -> None:
    file = Path(inspect.getfile(OBJECTIVES[name]))
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 150, file.name


def test_every_method_has_a_file_of_its_own() -> None:
    assert len({inspect.getfile(kind) for kind in OBJECTIVES.values()}) == len(OBJECTIVES)

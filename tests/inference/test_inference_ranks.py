import pytest

from jointembed.errors import JointEmbedError
from jointembed.inference.ranks import rank_and_world


def array(number: int, count: int, lowest: int = 0, highest: int | None = None, step: int = 1) -> dict[str, str]:
    highest = lowest + (count - 1) * step if highest is None else highest
    values = {"ID": number, "COUNT": count, "MIN": lowest, "MAX": highest, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "5", "LOCAL_RANK": "0"}, (2, 5)),
        (array(3, 4), (3, 4)),
        (array(1, 4, lowest=1), (0, 4)),
        (array(14, 3, lowest=4, step=5), (2, 3)),
        (array(1, 3) | {"RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (0, 1)),  # set in a batch script too, where all is one process
    ],
)
def test_the_environment_says_which_part(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert rank_and_world(environment) == expected
    assert rank_and_world(environment, rank=1, world=3) == (1, 3)


def test_array_and_processes_together_cover_every_part_once() -> None:
    parts = [
        rank_and_world(array(task, 3, lowest=1) | {"RANK": str(rank), "WORLD_SIZE": "2"})
        for task in (1, 2, 3)
        for rank in (0, 1)
    ]
    assert sorted(parts) == [(number, 6) for number in range(6)]


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, {}, "RANK=x; expected a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, "rank 2 of 2; expected 0 to 1"),
        ({"SLURM_ARRAY_TASK_ID": "2"}, {}, "SLURM_ARRAY_TASK_COUNT=None"),
        (array(1, 3, lowest=1, highest=7), {}, "array of 3 tasks from 1 to 7 by 1: .* evenly spaced"),
        ({}, {"rank": 1}, "--rank and --world go together"),
        ({}, {"rank": -1, "world": 2}, "rank -1 of 2"),
    ],
)
def test_what_makes_no_sense_is_named(environment: dict, options: dict, message: str) -> None:
    with pytest.raises(JointEmbedError, match=message):
        rank_and_world(environment, **options)

"""Several processes give the values and the gradients of one."""

from typing import Any

import pytest
import torch
from ranks import CASES, DTYPES, LOSSES, WIDTHS, loss_of, memories, results, trained

WORLDS = [2, 4]


def close(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    scale = max(1e-2, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_equal_one_process(world: int, dtype: str, shape: str, name: str) -> None:
    expected = loss_of(name, shape, dtype)
    found = [result[f"{name} {shape} {dtype}"] for result in results(world)]
    for part in found:
        assert part["terms"].keys() == expected["terms"].keys()
        for key, term in expected["terms"].items():
            close(part["terms"][key], term, dtype)
    assert expected["gradient"].abs().max() > 1e-3
    close(torch.cat([part["gradient"] for part in found]), expected["gradient"], dtype)


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_ddp_gives_the_parameters_gradients_of_one_process(world: int, case: str) -> None:
    expected = trained(case)
    for result in results(world):
        found: dict[str, Any] = result[f"ddp {case}"]
        for way in ("ddp", "by_hand"):
            for gradient, wanted in zip(found[way], expected["by_hand"], strict=True):
                close(gradient, wanted, "float64")
        for part in ("terms", "buffers"):
            assert found[part].keys() == expected[part].keys()
            for key, wanted in expected[part].items():
                close(found[part][key].double(), wanted.double(), "float64")


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
def test_memories_are_those_of_one_process_on_every_rank(world: int) -> None:
    expected = memories()
    for found in (result["memories"] for result in results(world)):
        for name in ("queue", "bank"):
            for key, wanted in expected[name].items():
                assert torch.equal(found[name][key], wanted), (name, key)
        assert torch.equal(found["drawn"], expected["drawn"])

import pytest
import torch
from ranks import results
from torch import nn

from jointembed import distributed

WORLDS = [2, 4]


def test_one_process_needs_no_group() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.world(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.gather(x) is x and distributed.total(x) is x
    assert torch.equal(distributed.gather_without_grad(x), x) and not distributed.gather_without_grad(x).requires_grad
    assert torch.equal(distributed.sum_over_ranks(x), x) and not distributed.sum_over_ranks(x).requires_grad
    assert distributed.row_counts(x) == [3]
    assert distributed.gather_objects("x") == ["x"] and distributed.broadcast_object("x") == "x"
    assert distributed.all_agree("x") and distributed.any_rank(True) and not distributed.any_rank(False)
    weight = nn.Parameter(x.detach().clone())
    weight.grad = torch.ones_like(weight)
    distributed.average_gradients([weight, nn.Parameter(torch.zeros(2))])
    assert torch.equal(weight.grad, torch.ones(3, 2))
    distributed.barrier()
    distributed.shut_down()


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
def test_gather_joins_uneven_rows_in_rank_order(world: int) -> None:
    full = torch.arange(44).view(11, 2, 2)
    for found in (result["gathers"] for result in results(world)):
        assert torch.equal(found["rows"], full.double().transpose(1, 2))
        assert torch.equal(found["item"], torch.arange(11))
        assert torch.equal(found["bfloat16"], full.bfloat16())
        assert torch.equal(found["bool"], full % 3 == 0)
        assert sum(found["counts"]) == 11 and len(found["counts"]) == world
        assert found["sum"].tolist() == [world, sum(range(world))]


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_w_times_those_of_the_own_part(world: int) -> None:
    found = [result["gathers"] for result in results(world)]
    weights = torch.arange(11.0, dtype=torch.float64).view(11, 1, 1).expand(11, 2, 2)
    assert torch.equal(torch.cat([gathers["gradient"] for gathers in found]), world * weights)
    for rank, gathers in enumerate(found):
        assert gathers["total"].tolist() == [sum((2 + other) ** 2 for other in range(world))]
        assert gathers["total_gradient"].tolist() == [world * 2 * (2 + rank)]


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
def test_missing_gradients_are_averaged_as_zeros(world: int) -> None:
    for everywhere, first_alone, nowhere, frozen, double in (result["averages"] for result in results(world)):
        assert torch.equal(everywhere, torch.full((3, 2), (world + 1) / 2))
        assert torch.equal(first_alone, torch.full((3, 2), 1 / world))
        assert nowhere is None and frozen is None
        assert torch.equal(double, torch.full((2,), 10.0 * (world - 1) / 2, dtype=torch.float64))


@pytest.mark.ddp
@pytest.mark.parametrize("world", WORLDS)
def test_objects_and_agreement(world: int) -> None:
    for rank, found in enumerate(result["objects"] for result in results(world)):
        assert (found["world"], found["rank"], found["main"]) == (world, rank, rank == 0)
        assert found["gathered"] == [{"rank": other} for other in range(world)]
        assert found["broadcast"] == "from 0"
        assert found["agree"] == (True, False)
        assert found["any"] == (False, True)

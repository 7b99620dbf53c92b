import math
from typing import cast

import pytest
import torch
from reference.cmc_reference import cmc
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.cmc import CMC, cmc_loss
from jointembed.objectives.contrast import Partition
from jointembed.objectives.memory import Bank
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import BatchError

SHAPES = {"luminance": ViewShape("l", 9, 4), "chroma": ViewShape("ab", 7, 4)}


def rows(n: int, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    left_out = torch.zeros(3, 6, dtype=torch.bool)
    left_out[0, 1] = left_out[2, 0] = left_out[2, 4] = True
    memories, negatives = (rows(3, seed=2), rows(3, seed=3)), (rows(6, seed=4), rows(6, seed=5))
    return rows(3).requires_grad_(), rows(3, seed=1).requires_grad_(), memories, negatives, left_out


def loss_of(kind: str, *arguments, **options) -> Tensor:
    partitions = (Partition().double(), Partition().double()) if kind == "nce" else None
    return cmc_loss(*arguments, partitions=partitions, **options)["loss"]


@pytest.mark.parametrize("kind", ["nce", "infonce"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_the_equations(temperature: float, kind: str) -> None:
    a, b, memories, negatives, left_out = inputs()
    found = loss_of(kind, a, b, memories, negatives, left_out=left_out, temperature=temperature)
    expected = cmc(kind, a, b, memories, negatives, left_out, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["nce", "infonce"])
def test_gradcheck(kind: str) -> None:
    a, b, memories, negatives, left_out = inputs()
    partitions = (Partition(), Partition()) if kind == "nce" else None

    def loss(a: Tensor, b: Tensor) -> Tensor:
        options = {"temperature": 0.4, "left_out": left_out, "partitions": partitions}
        return cmc_loss(a, b, memories, negatives, **options)["loss"]  # type: ignore[arg-type]

    loss(a, b)  # the partitions are constants from here on
    assert gradcheck(loss, (a, b))


def test_full_collapse_is_a_blind_choice() -> None:
    z, other = torch.ones(2, 3), torch.ones(7, 3)
    assert float(loss_of("infonce", z, z, (z, z), (other, other))) == pytest.approx(2 * math.log(8), rel=1e-5)
    expected = 2 * (math.log(8) + 7 * math.log(8 / 7))
    assert float(loss_of("nce", z, z, (z, z), (other, other))) == pytest.approx(expected, rel=1e-5)


def test_orthogonal_negatives() -> None:
    z, other = torch.eye(9)[:2], torch.eye(9)[2:]
    found = loss_of("infonce", z, z, (z, z), (other, other), temperature=0.5)
    assert float(found) == pytest.approx(2 * math.log(1 + 7 * math.exp(-2)), rel=1e-5)
    found = loss_of("nce", z, z, (z, z), (other, other), temperature=0.5)
    assert float(found) == pytest.approx(2 * (math.log(1 + 7 * math.exp(-2)) + 7 * math.log(8 / 7)), rel=1e-5)


def embeddings() -> dict[str, Embedding]:
    return {view: Embedding(z, z) for view, z in zip(SHAPES, (rows(3).float(), rows(3, seed=1).float()), strict=True)}


@pytest.mark.parametrize("kind", ["nce", "infonce"])
def test_the_module_contrasts_each_view_with_the_memory_of_the_other(kind: str) -> None:
    objective = CMC(loss=kind, negatives=20)  # type: ignore[arg-type]
    objective.attach(SHAPES, samples=8)
    banks = cast(list[Bank], list(objective.banks))
    banks[1].rows.copy_(rows(8, seed=9))  # apart from the first one, as after some steps
    index, online = torch.tensor([5, 0, 7]), embeddings()
    before = [bank.rows.clone() for bank in banks]
    drawn = banks[0].draw(20)
    terms = objective(online, index=index)
    assert terms.keys() == {"loss", "luminance_to_chroma", "chroma_to_luminance"}
    (a, b), double = (one.z.double() for one in online.values()), [rows.double() for rows in before]
    expected = cmc(kind, a, b, [one[index] for one in double], [one[drawn] for one in double], drawn == index[:, None])
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-5, atol=1e-5)
    objective.end_step(0.1)
    for bank, old, z in zip(banks, before, (a, b), strict=True):
        assert (bank.rows != old).any(1).nonzero().flatten().tolist() == [0, 5, 7]
        moved = 0.5 * old[5] + 0.5 * (z[0] / z[0].norm()).float()
        torch.testing.assert_close(bank.rows[5], moved / moved.norm())


def test_other_samples_of_the_same_picture_are_no_negatives() -> None:
    objective = CMC(loss="infonce", negatives=20)
    objective.attach(SHAPES, samples=8)
    index, item, online = torch.tensor([5, 0, 7]), torch.tensor([2, 2, 3]), embeddings()
    objective(online, index=index, item=item)
    objective.end_step(0.1)
    assert objective.items.tolist() == [2, -1, -1, -1, -1, 2, -1, 3]
    banks = cast(list[Bank], list(objective.banks))
    drawn = banks[0].draw(20)
    assert {0, 5} <= set(drawn.tolist())
    terms = objective(online, index=index, item=item)
    kin = torch.isin(drawn, torch.tensor([0, 5])) & torch.tensor([[True], [True], [False]])
    (a, b), rows_of = (one.z.double() for one in online.values()), [bank.rows.double() for bank in banks]
    left_out = kin | (drawn == index[:, None])
    expected = cmc("infonce", a, b, [one[index] for one in rows_of], [one[drawn] for one in rows_of], left_out)
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-5, atol=1e-5)


def test_defaults_are_the_authors() -> None:
    objective = CMC()
    objective.attach(SHAPES, samples=10)
    assert (objective.negatives, objective.temperature, objective.banks[0].momentum) == (16384, 0.07, 0.5)
    assert len(objective.partitions) == 2 and not list(objective.parameters())


def test_recipes_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="embeddings of one width, found luminance 4, chroma 5"):
        CMC().attach(SHAPES | {"chroma": ViewShape("ab", 7, 5)}, samples=3)
    with pytest.raises(RecipeError, match="must be nce or infonce, found 'softmax'"):
        CMC(loss="softmax")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="momentum at least 0 and below 1"):
        CMC(momentum=1.0)
    objective = CMC()
    objective.attach(SHAPES, samples=3)
    with pytest.raises(BatchError, match="numbers of the samples"):
        objective(embeddings())

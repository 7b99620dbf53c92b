import math

import pytest
import torch
from reference import pirl_reference as reference
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.contrast import Partition
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.pirl import PIRL, pirl_loss
from jointembed.objectives.statistics import BatchError

SHAPES = {"view1": ViewShape("net", 6, 6), "patches": ViewShape("net", 6, 6)}


def rows(n: int, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pictures, jigsaws, memory, negatives, and which of them are left out."""
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[0, 1] = left_out[2, 0] = left_out[2, 4] = True
    return rows(3).requires_grad_(), rows(3, seed=1).requires_grad_(), rows(3, seed=2), rows(5, seed=3), left_out


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_equals_the_equations(weight: float, official: bool) -> None:
    picture, jigsaw, memory, negative, left_out = inputs()
    found = pirl_loss(
        picture,
        jigsaw,
        memory,
        negative,
        weight=weight,
        temperature=0.3,
        left_out=left_out,
        partition=Partition().double() if official else None,
    )["loss"]
    samples = 1000 if official else None  # any number: Z grows with it
    expected = reference.pirl(picture, jigsaw, memory, negative, weight, 0.3, left_out, samples)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss, (picture, jigsaw)) for loss in (found, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("partition", [None, Partition()])
def test_gradcheck(partition: Partition | None) -> None:
    picture, jigsaw, memory, negative, left_out = inputs()

    def loss(picture: Tensor, jigsaw: Tensor) -> Tensor:
        options = {"temperature": 0.3, "left_out": left_out, "partition": partition}
        return pirl_loss(picture, jigsaw, memory, negative, **options)["loss"]  # type: ignore[arg-type]

    loss(picture, jigsaw)  # the partition is a constant from here on
    assert gradcheck(loss, (picture, jigsaw))


@pytest.mark.parametrize("partition", [None, Partition()])
def test_full_collapse_cannot_tell_data_from_noise(partition: Partition | None) -> None:
    z, k = torch.ones(2, 3), 7
    loss = pirl_loss(z, z, z, torch.ones(k, 3), partition=partition)["loss"]
    assert float(loss) == pytest.approx(math.log(1 + k) + k * math.log((k + 1) / k), rel=1e-5)


def test_orthogonal_negatives() -> None:
    z, k = torch.eye(9)[:2], 7
    loss = pirl_loss(z, z, z, torch.eye(9)[2:], temperature=0.5)["loss"]
    assert float(loss) == pytest.approx(math.log(1 + k * math.exp(-2)) + k * math.log((k + 1) / k), rel=1e-5)


def test_terms_add_up_to_the_loss() -> None:
    terms = pirl_loss(*inputs()[:4], weight=0.3)
    torch.testing.assert_close(terms["loss"], 0.3 * terms["jigsaw"] + 0.7 * terms["picture"])
    assert not terms["jigsaw"].requires_grad


def embeddings(n: int = 3) -> dict[str, Embedding]:
    picture, patches = rows(n, 6, 4).float(), rows(n * 9, 6, 5).float().unflatten(0, (n, 9))
    return {"view1": Embedding(picture, picture), "patches": Embedding(patches, patches)}


def test_the_module_contrasts_with_its_memory_and_moves_it() -> None:
    torch.manual_seed(0)
    objective = PIRL(width=4, negatives=20)
    objective.attach(SHAPES, samples=8)
    index, online = torch.tensor([5, 0, 7]), embeddings()
    before = objective.bank.rows.clone()
    terms = objective(online, index=index)
    drawn = objective.bank.draw(20)
    assert any(bool((drawn == one).any()) for one in index)  # so that something is left out
    expected = reference.pirl(
        objective.picture_head(online["view1"].h).double(),
        objective.jigsaw_head(online["patches"].h).double(),
        before[index].double(),
        before[drawn].double(),
        left_out=drawn == index[:, None],
        samples=8,
    )
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-5, atol=1e-5)
    objective.end_step(0.1)
    moved = (objective.bank.rows != before).any(1)
    assert moved.nonzero().flatten().tolist() == [0, 5, 7]
    picture = objective.picture_head(online["view1"].h).detach()
    expected_row = 0.5 * before[5] + 0.5 * picture[0] / picture[0].norm()
    torch.testing.assert_close(objective.bank.rows[5], expected_row / expected_row.norm())


def test_defaults_are_the_authors() -> None:
    objective = PIRL()
    objective.attach({view: ViewShape("net", 2048, 2048) for view in SHAPES}, samples=10)
    assert (objective.negatives, objective.temperature, objective.weight) == (32000, 0.07, 0.5)
    assert objective.bank.momentum == 0.5 and objective.bank.rows.shape == (10, 128)
    sizes = {name: tuple(one.shape) for name, one in objective.named_parameters() if "weight" in name}
    assert sizes == {
        "picture_head.weight": (128, 2048),
        "jigsaw_head.each.0.weight": (128, 2048),
        "jigsaw_head.all.weight": (128, 9 * 128),
    }


def test_recipes_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="PIRL needs the views view1 and patches, found view1, view2"):
        PIRL().check_views(["view1", "view2"])
    with pytest.raises(RecipeError, match="one branch for all views"):
        PIRL().check_branches({"view1": "a", "patches": "b"})
    with pytest.raises(RecipeError, match=r"branches.net.expander: PIRL has its own heads on h"):
        PIRL().attach({"view1": ViewShape("net", 6, 4), "patches": ViewShape("net", 6, 4)}, samples=3)
    with pytest.raises(RecipeError, match="must be positive"):
        PIRL(negatives=0)
    with pytest.raises(RecipeError, match="official or paper, found 'papre'"):
        PIRL(convention="papre")  # type: ignore[arg-type]
    objective = PIRL(width=4)
    objective.attach(SHAPES, samples=3)
    with pytest.raises(BatchError, match="numbers of the samples"):
        objective(embeddings())

import math

import pytest
import torch
from ranks import views
from reference.simclr_reference import nt_xent
from torch import Tensor
from torch.autograd import grad, gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.simclr import SimCLR, nt_xent_loss

ITEM = [0, 1, 2, 0, 3, 1]


def pair(n: int = 6, d: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("item", [None, ITEM])
@pytest.mark.parametrize("d", [9, 6, 3])
def test_equals_the_equations(d: int, item: list[int] | None, temperature: float) -> None:
    a, b = pair(d=d)
    numbers = None if item is None else torch.tensor(item)
    found = nt_xent_loss(a, b, temperature=temperature, item=numbers)["loss"]
    expected = nt_xent(a, b, temperature, item)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grad(found, (a, b)), grad(expected, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_full_collapse_is_a_blind_choice() -> None:
    z = torch.ones(7, 4)
    assert float(nt_xent_loss(z, z)["loss"]) == pytest.approx(math.log(13))


def test_orthogonal_pairs() -> None:
    z = torch.eye(5)
    assert float(nt_xent_loss(z, z, temperature=0.5)["loss"]) == pytest.approx(math.log(1 + 8 * math.exp(-2)))


def test_one_item_leaves_nothing_to_choose() -> None:
    a, b = pair()
    loss = nt_xent_loss(a, b, item=torch.zeros(6, dtype=torch.int64))["loss"]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    assert all(float(one.abs().max()) < 1e-15 for one in grad(loss, (a, b)))


def test_large_scores_stay_finite() -> None:
    a, b = (x.detach().float().requires_grad_() for x in pair())
    loss = nt_xent_loss(a, b, temperature=1e-4)["loss"]
    assert torch.isfinite(loss) and all(torch.isfinite(one).all() for one in grad(loss, (a, b)))


def test_gradcheck() -> None:
    item = torch.tensor(ITEM)
    assert gradcheck(lambda a, b: nt_xent_loss(a, b, temperature=0.3, item=item)["loss"], pair())
    assert gradcheck(lambda a, b: nt_xent_loss(a, b, temperature=0.3)["loss"], pair(4, 2))


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = (x.detach().bfloat16().requires_grad_() for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent_loss(a, b)["loss"]
        found.backward()
    wide = [x.detach().float().requires_grad_() for x in (a, b)]
    expected = nt_xent_loss(*wide)["loss"]
    expected.backward()
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    for narrow, full in zip((a, b), wide, strict=True):
        assert narrow.grad is not None and full.grad is not None
        assert torch.equal(narrow.grad, full.grad.bfloat16())


def test_module_names_its_directions() -> None:
    a, b = pair()
    terms = SimCLR(temperature=0.2)(views(view1=a, view2=b), item=torch.tensor(ITEM))
    expected = nt_xent_loss(a, b, temperature=0.2, item=torch.tensor(ITEM))
    assert terms.keys() == {"loss", "view1_to_view2", "view2_to_view1"}
    assert terms["loss"] == expected["loss"] and terms["view1_to_view2"] == expected["a_to_b"]
    assert terms["view2_to_view1"] == expected["b_to_a"] and terms["loss"].requires_grad
    torch.testing.assert_close(terms["loss"].detach(), (expected["a_to_b"] + expected["b_to_a"]) / 2)
    SimCLR().check_branches({"view1": "left", "view2": "right"})


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(RecipeError, match="objective.temperature: must be positive, found 0.0"):
        SimCLR(temperature=0.0)
    with pytest.raises(ValueError, match=r"same N and D, found a \(3, 4\) and b \(2, 4\)"):
        nt_xent_loss(torch.zeros(3, 4), torch.zeros(2, 4))

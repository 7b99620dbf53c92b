import math

import pytest
import torch
from ranks import views
from reference.siglip_reference import siglip
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.siglip import SigLIP, siglip_loss

ITEM = [0, 1, 2, 0, 3, 1]


def pair(n: int = 6, d: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("item", [None, ITEM])
@pytest.mark.parametrize("d", [9, 6, 3])
def test_equals_the_equations(d: int, item: list[int] | None) -> None:
    a, b = pair(d=d)
    given = None if item is None else torch.tensor(item)
    found = siglip_loss(a, b, temperature=0.3, bias=-1.5, item=given)["loss"]
    expected = siglip(a, b, 0.3, -1.5, item)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_full_collapse() -> None:
    z = torch.ones(7, 4)
    terms = siglip_loss(z, z, temperature=1.0, bias=-1.0)  # every logit is 0
    assert float(terms["positive"]) == pytest.approx(math.log(2))
    assert float(terms["negative"]) == pytest.approx(6 * math.log(2))


def test_rows_of_one_item_are_all_positives() -> None:
    terms = siglip_loss(*pair(), item=torch.zeros(6, dtype=torch.int64))
    assert float(terms["negative"]) == 0 and float(terms["loss"].detach()) == float(terms["positive"])


def test_gradcheck_with_temperature_and_bias() -> None:
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, -1.0)]
    assert gradcheck(lambda a, b, t, c: siglip_loss(a, b, temperature=t, bias=c)["loss"], (*pair(), *scalars))


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = (x.detach().bfloat16() for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        found = siglip_loss(a, b)["loss"]
    assert found.dtype == torch.float32 and torch.equal(found, siglip_loss(a.float(), b.float())["loss"])


def test_module_starts_at_its_arguments_and_learns_both() -> None:
    a, b = pair()
    module = SigLIP(temperature=0.2, bias=-3.0).double()
    terms = module(views(image=a, text=b), item=torch.tensor(ITEM))
    expected = siglip_loss(a, b, temperature=0.2, bias=-3.0, item=torch.tensor(ITEM))["loss"]
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-6, atol=0)
    terms["loss"].backward()
    assert [parameter.grad is not None and parameter.grad != 0 for parameter in module.parameters()] == [True, True]
    assert float(terms["bias"]) == -3.0 and float(terms["temperature"]) == pytest.approx(0.2)
    with pytest.raises(RecipeError, match="objective.temperature: a positive number"):
        SigLIP(temperature=0.0)

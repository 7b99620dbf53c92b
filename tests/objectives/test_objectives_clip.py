import math

import pytest
import torch
from ranks import views
from reference.clip_reference import clip
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.clip import CLIP, clip_loss

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
    found = clip_loss(a, b, temperature=0.2, item=None if item is None else torch.tensor(item))["loss"]
    expected = clip(a, b, 0.2, item)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_full_collapse_is_a_blind_choice() -> None:
    z = torch.ones(7, 4)
    assert float(clip_loss(z, z)["loss"]) == pytest.approx(math.log(7))


def test_orthogonal_pairs() -> None:
    z = torch.eye(5)
    assert float(clip_loss(z, z, temperature=0.5)["loss"]) == pytest.approx(math.log(1 + 4 * math.exp(-2)))


def test_one_item_leaves_nothing_to_choose() -> None:
    a, b = pair()
    loss = clip_loss(a, b, item=torch.zeros(6, dtype=torch.int64))["loss"]
    assert float(loss.detach()) == 0
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in torch.autograd.grad(loss, (a, b)))


def test_gradcheck_with_the_temperature() -> None:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    item = torch.tensor(ITEM)
    assert gradcheck(lambda a, b, t: clip_loss(a, b, temperature=t, item=item)["loss"], (*pair(), temperature))


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = (x.detach().bfloat16() for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        found = clip_loss(a, b)["loss"]
    assert found.dtype == torch.float32 and torch.equal(found, clip_loss(a.float(), b.float())["loss"])


def test_module_with_a_fixed_temperature() -> None:
    a, b = pair()
    module = CLIP(temperature=0.1)
    terms, expected = module(views(image=a, text=b), item=torch.tensor(ITEM)), clip_loss(a, b, temperature=0.1)
    assert not list(module.parameters()) and terms.keys() == {"loss", "image_to_text", "text_to_image"}
    assert terms["loss"] != expected["loss"]
    assert module(views(image=a, text=b))["image_to_text"] == expected["a_to_b"]


def test_learned_temperature_stays_within_its_limit() -> None:
    a, b = pair()
    module = CLIP(temperature=0.02, learn_temperature=True, max_scale=20.0).double()
    terms = module(views(image=a, text=b))
    terms["loss"].backward()
    assert module.log_scale is not None and module.log_scale.grad is not None
    assert module.log_scale.grad != 0  # although it was beyond the limit before
    assert float(module.log_scale.detach()) == pytest.approx(math.log(20))
    assert float(terms["temperature"]) == pytest.approx(0.05)
    torch.testing.assert_close(terms["loss"], clip_loss(a, b, temperature=0.05)["loss"])


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"max_scale": -1.0}])
def test_limits_must_be_positive(arguments: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="temperature and max_scale must be positive"):
        CLIP(**arguments)  # type: ignore[arg-type]

import pytest
import torch
from ranks import views
from reference.vse_reference import vse
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.objectives.vse import VSE, vse_loss

ITEM = [0, 1, 2, 0, 3, 1]


def pair(n: int = 6, d: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = a + 2 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("item", [None, ITEM])
@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("d", [9, 6, 3])
def test_equals_the_equations(d: int, hardest: bool, item: list[int] | None) -> None:
    a, b = pair(d=d)
    found = vse_loss(a, b, margin=0.3, hardest=hardest, item=None if item is None else torch.tensor(item))["loss"]
    expected = vse(a, b, 0.3, hardest, item)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
        assert left.abs().max() > 0


def test_orthogonal_pairs_have_no_loss() -> None:
    z = torch.eye(5)
    assert float(vse_loss(z, 3 * z)["loss"]) == 0


@pytest.mark.parametrize(("hardest", "negatives"), [(True, 1), (False, 6)])
def test_full_collapse_stands_at_the_plateau(hardest: bool, negatives: int) -> None:
    z = torch.ones(7, 4)
    terms = vse_loss(z, z, hardest=hardest)
    assert float(terms["loss"]) == pytest.approx(2 * 7 * 0.2 * negatives)
    assert float(terms["a_to_b"]) == float(terms["b_to_a"]) == pytest.approx(7 * 0.2 * negatives)


def test_one_item_has_no_negatives() -> None:
    for terms in (vse_loss(*pair(), item=torch.zeros(6, dtype=torch.int64)), vse_loss(*pair(n=1))):
        assert [float(term.detach()) for term in terms.values()] == [0, 0, 0]


def test_gradcheck() -> None:
    assert gradcheck(lambda a, b: vse_loss(a, b, item=torch.tensor(ITEM))["loss"], pair())


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = (x.detach().bfloat16() for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        found = vse_loss(a, b)["loss"]
    assert found.dtype == torch.float32 and torch.equal(found, vse_loss(a.float(), b.float())["loss"])


def test_warm_up_sums_hinges_before_the_hardest_negative() -> None:
    a, b = pair()
    online, item = views(image=a, text=b), torch.tensor(ITEM)
    module = VSE(warmup_steps=2)
    losses = []
    for _ in range(4):
        module.before_step({})
        losses.append(module(online, item=item)["loss"])
    summed = vse_loss(a, b, hardest=False, item=item)["loss"]
    hardest = vse_loss(a, b, item=item)["loss"]
    assert losses == [summed, summed, hardest, hardest] and summed != hardest
    again = VSE(warmup_steps=2)
    again.load_state_dict(module.state_dict())
    assert again(online, item=item)["loss"] == hardest


def test_module_without_warm_up() -> None:
    a, b = pair()
    terms = VSE(margin=0.4)(views(image=a, text=b))
    assert terms["loss"] == vse_loss(a, b, margin=0.4)["loss"]
    assert terms["image_to_text"] == vse_loss(a, b, margin=0.4)["a_to_b"]
    assert terms["text_to_image"] == vse_loss(a, b, margin=0.4)["b_to_a"]
    assert VSE(hardest=False, warmup_steps=0)(views(image=a, text=b))["loss"] == vse_loss(a, b, hardest=False)["loss"]

import pytest
import torch
from ranks import views
from reference.barlow_twins_reference import barlow_twins
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.objectives.barlow_twins import BarlowTwins, barlow_twins_loss


def pair(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64) * 0.8 + 2
    b = 0.5 * a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize(("n", "d"), [(5, 12), (8, 8), (14, 6), (2, 9), (3, 1)])
def test_equals_the_equations(n: int, d: int, eps: float) -> None:
    a, b = pair(n, d)
    terms = barlow_twins_loss(a, b, off_diagonal=0.3, scale=0.5, eps=eps)
    expected = 0.5 * barlow_twins(a, b, 0.3, eps)
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(terms["loss"], (a, b))
    for ours, theirs in zip(found, torch.autograd.grad(expected, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_default_weight_is_the_papers() -> None:
    a, b = pair(6, 5)
    terms = barlow_twins_loss(a, b)
    torch.testing.assert_close(terms["loss"], barlow_twins(a, b), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms["loss"].detach(), terms["on_diagonal"] + 0.0051 * terms["off_diagonal"])


def test_identical_orthogonal_views_have_no_loss() -> None:
    z = torch.randn(9, 4, dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0))[0]
    assert float(barlow_twins_loss(z, z, eps=0)["loss"]) == pytest.approx(0, abs=1e-12)


def test_opposite_views_cost_four_a_dimension() -> None:
    z = torch.randn(9, 4, dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0))[0]
    assert float(barlow_twins_loss(z, -z, eps=0)["loss"]) == pytest.approx(4 * 4)


@pytest.mark.parametrize(("n", "d"), [(4, 10), (10, 4)])
def test_full_collapse_costs_one_a_dimension(n: int, d: int) -> None:
    z = torch.ones(n, d, dtype=torch.float64)
    terms = barlow_twins_loss(z, z)
    assert float(terms["loss"]) == pytest.approx(d) and float(terms["off_diagonal"]) == 0


@pytest.mark.parametrize(("n", "d"), [(4, 9), (7, 4)])
def test_gradcheck(n: int, d: int) -> None:
    assert gradcheck(lambda a, b: barlow_twins_loss(a, b, off_diagonal=0.5)["loss"], pair(n, d))


def test_scale_of_a_branch_does_not_matter() -> None:
    a, b = pair(6, 5)
    torch.testing.assert_close(
        barlow_twins_loss(3 * a + 1, b, eps=0)["loss"], barlow_twins_loss(a, b, eps=0)["loss"], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("n", "d"), [(4, 12), (12, 4)])
def test_bfloat16_under_autocast_gives_float32_statistics(n: int, d: int) -> None:
    a, b = (x.detach().bfloat16().requires_grad_() for x in pair(n, d))
    with torch.autocast("cpu", torch.bfloat16):
        terms = barlow_twins_loss(a, b)
        terms["loss"].backward()
    expected = barlow_twins_loss(a.detach().float(), b.detach().float())
    assert all(term.dtype == torch.float32 and torch.equal(term, expected[key]) for key, term in terms.items())
    assert a.grad is not None and a.grad.dtype == torch.bfloat16 and a.grad.abs().max() > 0


def test_module_is_the_function() -> None:
    a, b = pair(6, 5)
    found = BarlowTwins(off_diagonal=0.1, scale=0.024, eps=1e-3)(views(image=a, text=b))
    expected = barlow_twins_loss(a, b, off_diagonal=0.1, scale=0.024, eps=1e-3)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        barlow_twins_loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="same N and D"):
        barlow_twins_loss(torch.zeros(4, 3), torch.zeros(4, 2))

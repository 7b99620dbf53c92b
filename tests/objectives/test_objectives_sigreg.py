import math

import pytest
import torch
from ranks import views
from reference import sigreg_reference as reference
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.sigreg import SIGReg, directions, epps_pulley, lejepa_loss


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crops(n: int = 6, d: int = 4) -> dict[str, Tensor]:
    return {name: rows(n, d, seed).requires_grad_() for seed, name in enumerate(["view1", "view2", "crop1"])}


@pytest.mark.parametrize(("t_max", "knots"), [(3.0, 17), (5.0, 9), (1.0, 2)])
def test_statistic_equals_the_equations(t_max: float, knots: int) -> None:
    x = (2 * rows(7, 3) + 0.5).requires_grad_()
    found = epps_pulley(x, t_max=t_max, knots=knots)
    expected = torch.stack([reference.statistic(x[:, m], t_max, knots) for m in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert gradcheck(lambda x: epps_pulley(x, t_max=t_max, knots=knots), x)


def test_loss_equals_the_equations() -> None:
    batch, projection = crops(), directions(4, 5, seed=1).double()
    found = lejepa_loss(batch, projection, centres=["view1", "view2"], weight=0.3)
    expected = reference.lejepa(batch, projection, ["view1", "view2"], 0.3)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-10, atol=1e-12)
    leaves = list(batch.values())
    ours, theirs = torch.autograd.grad(found["loss"], leaves), torch.autograd.grad(expected, leaves)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["loss"].detach(), 0.7 * found["prediction"] + 0.3 * found["sigreg"])


def test_full_collapse_has_a_closed_form() -> None:
    """The integral of (1 - phi)^2 phi over the line is sqrt(2 pi) (1 - sqrt 2 + 1 / sqrt 3)."""
    x = torch.zeros(8, 2, dtype=torch.float64)
    found = epps_pulley(x, t_max=12, knots=400)
    expected = 8 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    torch.testing.assert_close(found, torch.full((2,), expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_gaussian_sample_costs_little_and_any_other_more() -> None:
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(500, dtype=torch.float64) + 0.5) / 500)[:, None]
    assert float(epps_pulley(quantiles)) < 1e-2
    others = torch.cat([quantiles + 0.3, 1.3 * quantiles, quantiles.sign(), 0 * quantiles], 1)
    assert bool((epps_pulley(others) > 5).all())


def test_identical_and_opposite_views() -> None:
    z, projection = rows(6, 4), directions(4, 5, seed=0)
    same = lejepa_loss({"a": z, "b": z}, projection, centres=["a", "b"])
    assert float(same["prediction"]) == 0
    opposite = lejepa_loss({"a": z, "b": -z}, projection, centres=["a", "b"])
    torch.testing.assert_close(opposite["prediction"], z.square().mean())


def test_directions_are_unit_columns_keyed_by_the_step() -> None:
    first = directions(7, 20, seed=3)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(20))
    assert torch.equal(first, directions(7, 20, seed=3)) and not torch.equal(first, directions(7, 20, seed=4))
    assert float(first.mean().abs()) < 0.1


def test_module_is_the_function_with_directions_of_its_step() -> None:
    module, batch = SIGReg(weight=0.2, slices=6, t_max=2, knots=5), crops()
    losses = []
    for step in (1, 2):
        module.before_step({})
        found = module(views(**batch))
        options = {"weight": 0.2, "t_max": 2, "knots": 5, "centres": ["view1", "view2"]}
        expected = lejepa_loss(batch, directions(4, 6, seed=step), **options)  # type: ignore[arg-type]
        assert found.keys() == expected.keys() and torch.equal(found["loss"], expected["loss"])
        losses.append(float(found["loss"].detach()))
    assert losses[0] != losses[1]
    again = SIGReg(weight=0.2, slices=6, t_max=2, knots=5)
    again.load_state_dict(module.state_dict())
    assert float(again(views(**batch))["loss"].detach()) == losses[1]


def test_bfloat16_under_autocast_gives_float32() -> None:
    batch = {view: z.detach().bfloat16().requires_grad_() for view, z in crops().items()}
    wide = {view: z.detach().float().requires_grad_() for view, z in batch.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = lejepa_loss(batch, directions(4, 5, seed=0), centres=["view1"])["loss"]
    found.backward()
    expected = lejepa_loss(wide, directions(4, 5, seed=0), centres=["view1"])["loss"]
    expected.backward()
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    for narrow, full in zip(batch.values(), wide.values(), strict=True):
        assert narrow.grad is not None and full.grad is not None
        assert torch.equal(narrow.grad, full.grad.bfloat16())


def test_float32_stays_accurate_at_high_powers() -> None:
    x = rows(50, 8) * 3
    torch.testing.assert_close(epps_pulley(x.float()).double(), epps_pulley(x), rtol=1e-4, atol=1e-5)


def test_what_it_cannot_work_with_is_refused() -> None:
    for names in (["view1"], ["crop1", "crop2"]):
        with pytest.raises(RecipeError, match="SIGReg needs 2 views or more, not crops alone"):
            SIGReg().check_views(names)
    with pytest.raises(RecipeError, match="one width, found a 4, b 5"):
        SIGReg().attach({"a": ViewShape("x", 9, 4), "b": ViewShape("y", 9, 5)}, samples=9)
    for arguments in ({"weight": 1.5}, {"knots": 1}):
        with pytest.raises(RecipeError, match="weight within 0 and 1 and 2 knots or more"):
            SIGReg(**arguments)
    with pytest.raises(ValueError, match="same N and D"):
        lejepa_loss({"a": rows(4, 3), "b": rows(5, 3)}, directions(3, 2, seed=0), centres=["a"])

import copy

import pytest
import torch
from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.optim import LARS, parameter_groups
from jointembed.optim.lars import _step, trust_ratios


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).to(dtype)


def gradients(model: nn.Module, steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()] for _ in range(steps)
    ]


def plain_lars(
    model: nn.Module, steps: list[list[Tensor]], lrs: list[float], wd: float, mu: float, eta: float, timm: bool = False
) -> list[Tensor]:
    """The update written from the formula, one number at a time."""
    weights = [p.detach().clone() for p in model.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for gradient, lr in zip(steps, lrs, strict=True):
        for i, (w, g) in enumerate(zip(weights, gradient, strict=True)):
            step = g
            if w.ndim > 1:
                step = g + wd * w
                size, slope = w.norm(), step.norm()
                if timm:
                    slope = g.norm() + wd * size
                if size > 0 and slope > 0:
                    step = eta * size / slope * step
            momenta[i] = mu * momenta[i] + step
            weights[i] = w - lr * momenta[i]
    return weights


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: list[list[Tensor]], lrs: list[float]) -> None:
    for gradient, lr in zip(steps, lrs, strict=True):
        for p, g in zip(model.parameters(), gradient, strict=True):
            p.grad = g.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()


@pytest.mark.parametrize("wd", [0.0, 1e-6, 1e-2])
def test_equals_a_plain_loop(wd: float) -> None:
    model, lrs = network(), [0.3, 0.3, 0.1, 0.05]
    steps = gradients(model, len(lrs))
    expected = plain_lars(model, steps, lrs, wd, 0.9, 1e-3)
    run(model, LARS(parameter_groups(model, weight_decay=wd), lr=1.0), steps, lrs)
    for p, w in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-14)


def test_ratio_takes_the_norm_of_the_sum_not_the_sum_of_norms() -> None:
    lrs = [50.0] * 20
    away = {}
    for wd in (1e-6, 1e-2):
        model = network()
        steps = gradients(model, len(lrs))
        ours = plain_lars(model, steps, lrs, wd, 0.9, 1e-3)
        theirs = plain_lars(model, steps, lrs, wd, 0.9, 1e-3, timm=True)
        optimizer = LARS(parameter_groups(model, weight_decay=wd), lr=1.0)
        start = [p.detach().clone() for p in model.parameters()]
        run(model, optimizer, steps, lrs)
        away[wd] = float((ours[0] - theirs[0]).norm() / (ours[0] - start[0]).norm())
        for p, w in zip(model.parameters(), ours, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-12)
    assert away[1e-6] < 1e-5
    assert away[1e-2] > 1e-3


def test_gradients_are_left_as_they_are() -> None:
    model = network()
    (gradient,) = gradients(model, 1)
    run(model, LARS(parameter_groups(model, weight_decay=0.1), lr=0.1), [gradient], [0.1])
    for p, g in zip(model.parameters(), gradient, strict=True):
        assert torch.equal(p.grad, g)  # type: ignore[arg-type]


def test_zero_tensor_and_zero_gradient_take_a_ratio_of_one() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    LARS([zero, still], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.05))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_both_ways_over_tensors_agree() -> None:
    model = network()
    (gradient,) = gradients(model, 1)
    tensors = [p.detach().clone() for p in model.parameters()]
    for p, g in zip(tensors, gradient, strict=True):
        p.grad = g
    one_by_one = [p.clone() for p in tensors]
    for p, g in zip(one_by_one, gradient, strict=True):
        p.grad = g
    group = {"lr": 0.5, "weight_decay": 1e-2, "momentum": 0.9, "eta": 1e-3, "adapt": True}
    _step(tensors, [torch.ones_like(p) for p in tensors], group)
    for p in one_by_one:
        _step([p], [torch.ones_like(p)], group)
    for together, alone in zip(tensors, one_by_one, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-15)


def test_half_precision_weights_take_their_norms_in_float32() -> None:
    weight = nn.Parameter(torch.full((300, 300), 0.01, dtype=torch.bfloat16))
    weight.grad = torch.full_like(weight, 0.01)
    ratios = trust_ratios([weight.detach()], [weight.grad], 1.0)
    assert ratios[0].dtype == torch.bfloat16
    assert ratios[0].item() == 1.0


def test_state_round_trip_gives_the_same_next_step() -> None:
    model, other = network(), network()
    steps = gradients(model, 3)
    one = LARS(parameter_groups(model, weight_decay=1e-4), lr=1.0)
    run(model, one, steps[:2], [0.2, 0.2])
    other.load_state_dict(model.state_dict())
    two = LARS(parameter_groups(other, weight_decay=1e-4), lr=1.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # torch would share the tensors
    run(model, one, steps[2:], [0.1])
    run(other, two, steps[2:], [0.1])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closure_is_run_with_gradients_on() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert bool((weight < 1).all())


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"eta": -1.0}])
def test_impossible_hyper_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        LARS([nn.Parameter(torch.ones(1, 1))], **wrong)

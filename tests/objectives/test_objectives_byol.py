import pytest
import torch
from ranks import views
from reference import byol_reference as reference
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.byol import BYOL, prediction_error
from jointembed.objectives.objective import ViewShape

BRANCHES = {"view1": "net", "view2": "net"}


def rows(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def attached(width: int = 5, **arguments: object) -> BYOL:
    torch.manual_seed(0)
    module = BYOL(**({"predictor_width": 7} | arguments))  # type: ignore[arg-type]
    module.attach({view: ViewShape(branch, 8, width) for view, branch in BRANCHES.items()}, samples=100)
    return module.double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(6, 5), (1, 4), (3, 1)])
def test_equals_the_equations(n: int, d: int) -> None:
    q, z = rows(n, d), rows(n, d, seed=1)
    found, expected = prediction_error(q, z), reference.error(q, z)
    close(found, expected)
    close(grad(found, q)[0], grad(expected, q)[0])


def test_no_gradient_goes_to_the_target() -> None:
    q, z = rows(), rows(seed=1)
    prediction_error(q, z).backward()
    assert z.grad is None and q.grad is not None


def test_closed_forms() -> None:
    z = torch.eye(4)
    assert float(prediction_error(z, 3 * z)) == pytest.approx(0)
    assert float(prediction_error(z, z.roll(1, 0))) == pytest.approx(2)
    assert float(prediction_error(z, -z)) == pytest.approx(4)
    collapsed = torch.full((4, 3), 0.7, dtype=torch.float64)
    assert float(prediction_error(collapsed, collapsed)) == pytest.approx(0)  # what the momentum must keep away from


def test_gradcheck() -> None:
    assert gradcheck(lambda q: prediction_error(q, rows(seed=1)), rows())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_module_sums_both_directions(batch_norm: bool) -> None:
    module = attached(batch_norm=batch_norm)
    a, b, of_a, of_b = (rows(seed=seed) for seed in range(4))
    terms = module(views(view1=a, view2=b), views(view1=of_a, view2=of_b))
    expected = reference.byol((module.predictor(a), module.predictor(b)), (of_a, of_b))
    close(terms["loss"], expected)
    close(terms["loss"], terms["view1_to_view2"] + terms["view2_to_view1"])
    inputs = [a, b, *module.parameters()]
    for ours, theirs in zip(grad(terms["loss"], inputs), grad(expected, inputs), strict=True):
        close(ours, theirs)
    assert of_a.grad is None and of_b.grad is None


def test_without_target_its_own_embeddings_take_no_gradient() -> None:
    module = attached(target=False, predictor=False)
    assert not module.needs and not module.target_views(BRANCHES)
    a, b = rows(), rows(seed=1)
    found = module(views(view1=a, view2=b))["loss"]
    expected = reference.byol((a, b), (a, b))
    close(found, expected)
    for ours, theirs in zip(grad(found, (a, b)), grad(expected, (a, b)), strict=True):
        close(ours, theirs)


def test_momentum_goes_to_one_on_a_half_cosine() -> None:
    module = BYOL()
    assert module.momentum(0) == pytest.approx(0.996) and module.momentum(1) == 1
    for step in (1, 5, 9):
        assert module.momentum(step / 10) == pytest.approx(reference.momentum(step, 10, 0.996))
    assert BYOL(momentum=0.99).momentum(0.5) == pytest.approx(0.995)


def test_predictor_is_the_authors() -> None:
    module = BYOL()
    module.attach({view: ViewShape("net", 2048, 256) for view in BRANCHES}, samples=1)
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert shapes == [(4096, 256), (4096,), (4096,), (4096,), (256, 4096)]
    assert any(isinstance(one, nn.BatchNorm1d) for one in module.modules()) and module.couples_samples
    assert module.needs == {"target"} and module.target_views(["view1", "view2"]) == ["view1", "view2"]
    plain = attached(batch_norm=False)
    assert not any(isinstance(one, nn.BatchNorm1d) for one in plain.modules()) and not plain.couples_samples
    assert not list(attached(predictor=False).parameters())


def test_bfloat16_under_autocast_gives_float32() -> None:
    q, z = rows().detach().bfloat16(), rows(seed=1).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = prediction_error(q, z)
    assert found.dtype == torch.float32 and torch.equal(found, prediction_error(q.float(), z.float()))


def test_it_refuses_what_it_cannot_train() -> None:
    BYOL().check_branches(BRANCHES)
    message = r"BYOL needs one branch for all views \(its target is a moving average .* view1: left, view2: right"
    with pytest.raises(RecipeError, match=message):
        BYOL().check_branches({"view1": "left", "view2": "right"})
    with pytest.raises(RecipeError, match="objective.momentum: must be within 0 and 1, found 1.2"):
        BYOL(momentum=1.2)
    with pytest.raises(ValueError, match=r"found prediction \(3, 4\) and target \(3, 5\)"):
        prediction_error(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(RecipeError, match="embeddings of one width, found a 4, b 5"):
        BYOL().attach({"a": ViewShape("left", 8, 4), "b": ViewShape("right", 8, 5)}, samples=1)

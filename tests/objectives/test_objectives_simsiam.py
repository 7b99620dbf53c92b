import pytest
import torch
from ranks import views
from reference import simsiam_reference as reference
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.simsiam import SimSiam, negative_cosine

BRANCHES = {"view1": "net", "view2": "net"}


def rows(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def attached(**arguments: object) -> SimSiam:
    torch.manual_seed(0)
    module = SimSiam(**({"predictor_width": 3} | arguments))  # type: ignore[arg-type]
    module.attach({view: ViewShape(branch, 8, 5) for view, branch in BRANCHES.items()}, samples=100)
    return module.double()


def same_value_and_gradient(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grad(found, inputs), grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(6, 5), (1, 4), (3, 1)])
def test_equals_the_equations(n: int, d: int) -> None:
    p, z = rows(n, d), rows(n, d, seed=1)
    same_value_and_gradient(negative_cosine(p, z), reference.distance(p, z), [p, z])


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("predictor", [True, False])
def test_every_switch(predictor: bool, batch_norm: bool, stop_gradient: bool) -> None:
    module = attached(predictor=predictor, batch_norm=batch_norm, stop_gradient=stop_gradient)
    a, b = rows(), rows(seed=1)
    terms = module(views(view1=a, view2=b))
    expected = reference.simsiam(module.predictor(a), module.predictor(b), a, b, stop_gradient)
    same_value_and_gradient(terms["loss"], expected, [a, b, *module.parameters()])
    torch.testing.assert_close(terms["loss"].detach(), (terms["view1_to_view2"] + terms["view2_to_view1"]) / 2)
    assert any(isinstance(one, nn.BatchNorm1d) for one in module.modules()) == (predictor and batch_norm)
    assert module.couples_samples == (predictor and batch_norm)
    assert module.constant_lr == (("predictor",) if predictor else ()) and not module.needs
    assert bool(list(module.parameters())) == predictor


def test_closed_forms() -> None:
    z = torch.eye(4)
    assert float(negative_cosine(z, 3 * z)) == pytest.approx(-1)
    assert float(negative_cosine(z, z.roll(1, 0))) == pytest.approx(0)
    collapsed = torch.full((4, 3), 0.7)
    assert float(negative_cosine(collapsed, collapsed)) == pytest.approx(-1)  # the lowest value, and no use


def test_gradcheck() -> None:
    assert gradcheck(negative_cosine, (rows(), rows(seed=1)))


def test_predictor_has_the_authors_widths() -> None:
    module = SimSiam()
    module.attach({view: ViewShape("net", 2048, 2048) for view in BRANCHES}, samples=1)
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert shapes == [(512, 2048), (512,), (512,), (512,), (2048, 512), (2048,)]
    assert all(name.startswith(f"{SimSiam.constant_lr[0]}.") for name, _ in module.named_parameters())


def test_bfloat16_under_autocast_gives_float32() -> None:
    p, z = rows().detach().bfloat16(), rows(seed=1).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = negative_cosine(p, z)
    assert found.dtype == torch.float32 and torch.equal(found, negative_cosine(p.float(), z.float()))


def test_it_refuses_different_branches() -> None:
    SimSiam().check_branches(BRANCHES)
    with pytest.raises(RecipeError, match="SimSiam needs one branch for all views .* view1: left, view2: right"):
        SimSiam().check_branches({"view1": "left", "view2": "right"})

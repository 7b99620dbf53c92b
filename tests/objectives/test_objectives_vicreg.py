import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import views
from reference import vicreg_reference as reference
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.vicreg import VICReg, vicreg_loss

SHAPES = [(5, 12), (8, 8), (14, 6), (2, 3), (3, 1)]


def pair(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64) * 0.8 + 2
    b = 0.5 * a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def same_value_and_gradient(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("convention", ["official", "paper"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_equals_the_equations(n: int, d: int, convention: str) -> None:
    a, b = pair(n, d)
    found = vicreg_loss(a, b, convention=convention)["loss"]  # type: ignore[arg-type]
    same_value_and_gradient(found, getattr(reference, convention)(a, b), a, b)


@pytest.mark.parametrize("convention", ["official", "paper"])
@pytest.mark.parametrize(("n", "d"), [(5, 12), (14, 6)])
def test_coefficients_of_a_branch_weigh_its_own_terms(n: int, d: int, convention: str) -> None:
    a, b = pair(n, d)
    found = vicreg_loss(a, b, invariance=3, variance=(8, 2), covariance=[0, 5], convention=convention)  # type: ignore[arg-type]
    expected = getattr(reference, convention)(a, b, (3, 1, 1), of_a=(8, 0), of_b=(2, 5))
    same_value_and_gradient(found["loss"], expected, a, b)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), d=st.integers(1, 9), seed=st.integers(0, 1000))
def test_equals_the_equations_whatever_the_shape(n: int, d: int, seed: int) -> None:
    a, b = pair(n, d, seed)
    same_value_and_gradient(vicreg_loss(a, b)["loss"], reference.official(a, b), a, b)


def test_golden_values() -> None:
    torch.manual_seed(1)
    x = 0.5 * torch.randn(64, 32)
    y = x + 0.1 * torch.randn(64, 32)
    assert float(vicreg_loss(x, y)["loss"]) == pytest.approx(12.449969, abs=2e-6)
    assert float(vicreg_loss(x, y, convention="paper")["loss"]) == pytest.approx(32.096767, abs=4e-6)
    assert float(reference.solo_learn(x, y)) == pytest.approx(24.586842, abs=1e-5)
    assert float(reference.official(x, y)) == pytest.approx(12.449969, abs=1e-5)


def test_terms_add_up_to_the_loss() -> None:
    for convention, share in (("official", 0.5), ("paper", 1.0)):
        terms = vicreg_loss(*pair(6, 4), invariance=2, variance=3, covariance=4, convention=convention)  # type: ignore[arg-type]
        loss = terms.pop("loss")
        torch.testing.assert_close(loss, 2 * terms["invariance"] + 3 * terms["variance"] + 4 * terms["covariance"])
        torch.testing.assert_close(terms["variance"], share * (terms["variance/a"] + terms["variance/b"]))
        torch.testing.assert_close(terms["covariance"], terms["covariance/a"] + terms["covariance/b"])
        assert loss.requires_grad and not any(term.requires_grad for term in terms.values())


def test_identical_white_views_have_no_loss() -> None:
    white = torch.randn(9, 4, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0))[0] * 4  # centred, orthogonal columns of variance 16 / 8
    assert float(vicreg_loss(white, white)["loss"]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(4, 8), (8, 4)])
def test_full_collapse_costs_the_whole_variance_term(n: int, d: int) -> None:
    z = torch.full((n, d), 0.7, dtype=torch.float64)
    terms = vicreg_loss(z, z)
    assert float(terms["variance"]) == pytest.approx(1 - 1e-2)  # sqrt(eps) is 0.01
    assert float(terms["loss"]) == pytest.approx(25 * (1 - 1e-2))


def test_identical_dimensions_cost_covariance() -> None:
    column = torch.randn(20, 1, dtype=torch.float64)
    terms = vicreg_loss(column.expand(-1, 5), column.expand(-1, 5))
    assert float(terms["covariance/a"]) == pytest.approx(4 * float(column.var()) ** 2)


@pytest.mark.parametrize(("n", "d"), [(4, 7), (7, 4)])
def test_gradcheck(n: int, d: int) -> None:
    assert gradcheck(lambda a, b: vicreg_loss(a, b, gamma=1.7)["loss"], pair(n, d))


@pytest.mark.parametrize("convention", ["official", "paper"])
def test_module_of_three_views(convention: str) -> None:
    (a, b), (c, _) = pair(6, 5), pair(6, 5, seed=1)
    every = {"a": a, "b": b, "c": c}
    found = VICReg(convention=convention)(views(**every))["loss"]  # type: ignore[arg-type]
    same_value_and_gradient(found, reference.of_views(every, convention=convention), a, b, c)
    pairs = [["a", "c"], ["b", "c"]]
    found = VICReg(convention=convention, pairs=pairs)(views(**every))["loss"]  # type: ignore[arg-type]
    same_value_and_gradient(found, reference.of_views(every, pairs, convention), a, b, c)


def test_module_of_two_views_is_the_function() -> None:
    a, b = pair(6, 5)
    module = VICReg(variance={"text": 7.0, "image": 9.0}, covariance=2.0)
    found = module(views(image=a, text=b))
    expected = vicreg_loss(a, b, variance=(9, 7), covariance=2)
    assert torch.equal(found["loss"], expected["loss"])
    assert torch.equal(found["variance/text"], expected["variance/b"])
    assert torch.equal(found["covariance/image"], expected["covariance/a"])


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("convention", ["official", "paper"])
def test_predictor_on_either_side(convention: str, norm: str) -> None:
    a, b = pair(6, 5)
    module = VICReg(predictor=[7], predictor_norm=norm, convention=convention)  # type: ignore[arg-type]
    module.attach({"a": ViewShape("left", 8, 5), "b": ViewShape("right", 8, 5)}, samples=6)
    module.double()
    assert module.predictor is not None
    found = module(views(a=a, b=b))["loss"]
    size = 5 if convention == "official" else 1
    distance = (reference.invariance(module.predictor(a), b) + reference.invariance(a, module.predictor(b))) / 2
    expected = getattr(reference, convention)(a, b, (0, 25, 1)) + 25 * distance / size
    same_value_and_gradient(found, expected, a, b, *module.parameters())
    assert [one.out_features for one in module.modules() if isinstance(one, torch.nn.Linear)] == [7, 5]
    assert any(isinstance(one, torch.nn.BatchNorm1d) for one in module.modules()) == (norm == "batch")


def test_predictor_of_three_views_takes_the_chosen_pairs() -> None:
    (a, b), (c, _) = pair(6, 5), pair(6, 5, seed=1)
    module = VICReg(variance=0, covariance=0, invariance=1, predictor=[], pairs=[["a", "c"], ["c", "b"]])
    module.attach({view: ViewShape("net", 8, 5) for view in "abc"}, samples=6)
    q = module.double().predictor
    assert q is not None
    ways = [(q(a), c), (a, q(c)), (q(c), b), (c, q(b))]
    expected = torch.stack([reference.invariance(x, y) for x, y in ways]).mean() / 5
    same_value_and_gradient(module(views(a=a, b=b, c=c))["loss"], expected, a, b, c, *module.parameters())


def test_without_predictor_it_owns_nothing() -> None:
    module = VICReg()
    module.attach({"a": ViewShape("left", 8, 5), "b": ViewShape("right", 8, 4)}, samples=6)
    assert not list(module.parameters()) and not list(module.buffers())
    with pytest.raises(RecipeError, match="embeddings of one width, found a 5, b 4"):
        VICReg(predictor=[3]).attach({"a": ViewShape("left", 8, 5), "b": ViewShape("right", 8, 4)}, samples=6)


def test_views_of_different_widths_are_fine_where_no_pair_compares_them() -> None:
    (a, b), (c, d) = pair(6, 5), pair(6, 3)
    terms = VICReg(pairs=[["a", "b"], ["c", "d"]])(views(a=a, b=b, c=c, d=d))
    assert torch.isfinite(terms["loss"])


def test_bfloat16_under_autocast_gives_float32_statistics() -> None:
    a, b = (x.detach().bfloat16().requires_grad_() for x in pair(6, 12))
    with torch.autocast("cpu", torch.bfloat16):
        terms = vicreg_loss(a, b)
        terms["loss"].backward()
    wide = [x.detach().float().requires_grad_() for x in (a, b)]
    expected = vicreg_loss(*wide)
    expected["loss"].backward()
    for key, term in terms.items():
        assert term.dtype == torch.float32 and torch.equal(term, expected[key])
    for narrow, full in zip((a, b), wide, strict=True):
        assert narrow.grad is not None and full.grad is not None
        assert torch.equal(narrow.grad, full.grad.bfloat16())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((1, 4), (1, 4), "at least 2 samples in the global batch, found 1"),
        ((3, 4), (3, 5), r"same N and D, found a \(3, 4\) and b \(3, 5\)"),
        ((3, 4), (2, 4), "same N and D"),
        ((3, 4, 2), (3, 4, 2), r"\(N, D\)"),
    ],
)
def test_bad_shapes_are_refused(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vicreg_loss(torch.zeros(a), torch.zeros(b))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 branches expected, found 3"):
        vicreg_loss(*pair(3, 2), variance=(1, 2, 3))
    with pytest.raises(ValueError, match="official or paper, found 'papre'"):
        vicreg_loss(*pair(3, 2), convention="papre")  # type: ignore[arg-type]


@pytest.mark.parametrize("pairs", [[], [["a"]], [["a", "a"]], [["a", "b", "c"]]])
def test_pairs_must_be_pairs(pairs: list[list[str]]) -> None:
    with pytest.raises(RecipeError, match="objective.pairs: a list of pairs of different views"):
        VICReg(pairs=pairs)


def test_unknown_views_are_named() -> None:
    names = ["image", "text"]
    with pytest.raises(RecipeError, match="objective.pairs: no view 'audio'; the views are image, text"):
        VICReg(pairs=[["image", "audio"]]).check_views(names)
    with pytest.raises(RecipeError, match=r"objective.variance: one number for each of .* found \['image', 'txt'\]"):
        VICReg(variance={"image": 1.0, "txt": 2.0}).check_views(names)
    with pytest.raises(RecipeError, match=r"objective.covariance: .* found \['image'\]"):
        VICReg(covariance={"image": 1.0})(views(image=torch.zeros(2, 2), text=torch.zeros(2, 2)))
    with pytest.raises(RecipeError, match="2 views or more, found image"):
        VICReg().check_views(["image"])
    VICReg(pairs=[["image", "text"]], variance={"text": 1.0, "image": 2.0}).check_views(names)

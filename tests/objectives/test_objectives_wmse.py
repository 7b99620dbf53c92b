import pytest
import torch
from ranks import views
from reference import wmse_reference as reference
from torch import Tensor
from torch.autograd import grad, gradcheck

from jointembed.errors import RecipeError
from jointembed.objectives.wmse import WMSE, w_mse_loss


def pair(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = (
        torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.randn(d, d, generator=generator).double()
        + 2
    )
    b = 0.5 * a + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def orders(n: int, size: int, iterations: int = 1, seed: int = 0) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator).view(-1, size).tolist() for _ in range(iterations)]


def same_value_and_gradient(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grad(found, inputs), grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "d", "size", "iterations", "eps"), [
    (12, 3, 6, 1, 0.0), (12, 3, 12, 1, 0.0), (12, 3, 4, 2, 0.0), (8, 5, 4, 3, 0.2), (6, 1, 3, 1, 0.0),
])  # fmt: skip
def test_equals_the_equations(n: int, d: int, size: int, iterations: int, eps: float) -> None:
    a, b = pair(n, d)
    found = w_mse_loss(a, b, size=size, iterations=iterations, eps=eps, seed=4)["loss"]
    same_value_and_gradient(found, reference.w_mse([a, b], orders(n, size, iterations, seed=4), eps), a, b)


def test_closed_forms() -> None:
    a, b = (z.detach() for z in pair(8, 3))
    assert float(w_mse_loss(a, a, size=4)["loss"]) == pytest.approx(0, abs=1e-12)
    assert float(w_mse_loss(a, -a, size=4)["loss"]) == pytest.approx(4)
    shifted = 3 * a * torch.tensor([1.0, 2.0, 5.0]) + 7  # per-dimension scale and shift are whitened away
    torch.testing.assert_close(w_mse_loss(shifted, b, size=4)["loss"], w_mse_loss(a, b, size=4)["loss"])


def test_orthogonal_embeddings() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(8, 1), torch.randn(8, 6)], dim=1).double())[0][:, 1:]
    signs = torch.tensor([1.0, -1.0] * 4).double()[:, None]
    a, b = basis[:, :1], basis[:, 1:2]
    cosine = torch.sign(a * b).mean()  # of one dimension only the signs are left
    assert float(w_mse_loss(a, b, size=8)["loss"]) == pytest.approx(float(2 - 2 * cosine))
    assert float(w_mse_loss(signs, signs.roll(2, 0), size=8)["loss"]) == pytest.approx(0)
    assert float(w_mse_loss(signs, signs.roll(1, 0), size=8)["loss"]) == pytest.approx(4)


def test_collapse_is_refused() -> None:
    with pytest.raises(ValueError, match="covariance of 8 rows of 3 dimensions is singular"):
        w_mse_loss(torch.ones(8, 3), torch.ones(8, 3), size=8)
    column = torch.randn(8, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="is singular"):
        w_mse_loss(column.repeat(1, 2), pair(8, 2)[1], size=8)


@pytest.mark.parametrize(
    ("n", "d", "size", "message"),
    [
        (10, 3, 4, "global batch of 10 rows does not divide into sub-batches of 4"),
        (2, 3, 4, "global batch of 2 rows does not divide"),
        (0, 3, 4, "global batch of 0 rows does not divide"),
        (
            8,
            4,
            4,
            "sub-batches of 4 rows are too small to whiten 4 dimensions; at least 5 rows are needed, 8 recommended",
        ),
    ],
)
def test_batches_that_cannot_be_whitened_are_refused(n: int, d: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        w_mse_loss(*pair(n, d), size=size)


def test_gradcheck() -> None:
    assert gradcheck(lambda a, b: w_mse_loss(a, b, size=4, iterations=2)["loss"], pair(8, 2))


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = (x.detach().bfloat16() for x in pair(12, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found = w_mse_loss(a, b, size=6)["loss"]
    assert found.dtype == torch.float32 and torch.equal(found, w_mse_loss(a.float(), b.float(), size=6)["loss"])


def test_module_of_three_views_shuffles_anew_every_step() -> None:
    (a, b), (c, _) = pair(8, 2), pair(8, 2, seed=1)
    module = WMSE(size=4, iterations=2)
    every = views(a=a, b=b, c=c)
    for step in range(3):
        expected = reference.w_mse([a, b, c], orders(8, 4, 2, seed=step))
        same_value_and_gradient(module(every)["loss"], expected, a, b, c)
        assert torch.equal(module(every)["loss"], module(every)["loss"])
        module.end_step(0.5)
    resumed = WMSE(size=4, iterations=2)
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(resumed(every)["loss"], module(every)["loss"])


def test_it_refuses_what_it_cannot_train() -> None:
    module = WMSE()
    module.check_branches({"view1": "left", "view2": "right"})
    module.check_views(["a", "b", "c"])
    with pytest.raises(RecipeError, match="W-MSE compares 2 views or more, found a"):
        module.check_views(["a"])
    with pytest.raises(ValueError, match=r"found a \(3, 4\) and b \(3, 5\)"):
        module(views(a=torch.zeros(3, 4), b=torch.zeros(3, 5)))
    for arguments in ({"size": 1}, {"iterations": 0}, {"eps": 1.5}):
        with pytest.raises(RecipeError, match="size must be at least 2, iterations at least 1, eps within 0 and 1"):
            WMSE(**arguments)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vicreg_reference
from reference import vicregl_reference as reference
from torch import Tensor

from jointembed.objectives.matching import nearest, positions, take, variance_and_covariance_of_places
from jointembed.objectives.statistics import BatchError


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_positions_by_hand() -> None:
    box = torch.tensor([[10.0, 20.0, 8.0, 4.0, 0.0], [10.0, 20.0, 8.0, 4.0, 1.0]])
    found = positions(box, 1, 2)
    assert found[0].tolist() == [[12, 22], [16, 22]]
    assert found[1].tolist() == [[16, 22], [12, 22]]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
def test_positions_equal_those_of_each_cell(size: tuple[int, int]) -> None:
    box = torch.cat([100 * rows(4, 4).abs(), torch.tensor([[0.0], [1.0], [1.0], [0.0]])], dim=1)
    expected = torch.tensor([reference.positions(one.tolist(), *size) for one in box], dtype=torch.float64)
    torch.testing.assert_close(positions(box, *size), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 3), p=st.integers(1, 6), q=st.integers(1, 6), most=st.integers(1, 8) | st.none())
def test_nearest_equals_the_search_of_all_pairs(n: int, p: int, q: int, most: int | None) -> None:
    a, b = rows(n, p, 3), rows(n, q, 3, seed=1)
    chosen, neighbour = nearest(a, b, most)
    assert chosen.shape == neighbour.shape == (n, min(p, most or p))
    for i in range(n):
        pairs = list(zip(chosen[i].tolist(), neighbour[i].tolist(), strict=True))
        assert pairs == reference.matches(a[i].tolist(), b[i].tolist(), most)


def test_take_carries_the_gradient() -> None:
    z = rows(2, 3, 4).requires_grad_()
    found = take(z, torch.tensor([[2, 2], [0, 1]]))
    assert torch.equal(found[0, 1], z[0, 2]) and torch.equal(found[1], z[1, :2])
    found.sum().backward()
    assert z.grad is not None and z.grad[:, :, 0].tolist() == [[0, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize(("n", "d"), [(3, 6), (8, 4), (2, 2)])
def test_statistics_are_those_of_each_place(n: int, d: int) -> None:
    z = (0.5 * rows(n, 3, d) + 2).requires_grad_()
    found = variance_and_covariance_of_places(z)
    expected = [
        torch.stack([term(z[:, m]) for m in range(3)]).mean()
        for term in (vicreg_reference.variance, vicreg_reference.covariance)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        gradients = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_one_picture_has_no_statistics() -> None:
    with pytest.raises(BatchError, match="at least 2 samples in the global batch, found 1"):
        variance_and_covariance_of_places(rows(1, 3, 4))

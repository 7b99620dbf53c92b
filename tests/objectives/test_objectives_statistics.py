import math

import pytest
import torch
from reference import vicreg_reference as reference
from torch.autograd import gradcheck

from jointembed.objectives.statistics import (
    BatchError,
    centre,
    covariance_term,
    mean_absolute_correlation,
    mean_cosine,
    rankme,
    singular_values,
    squared_distance,
    std_per_dimension,
    variance_and_covariance,
    variance_term,
    whiten,
)


def rows(n: int, d: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype) + 3


@pytest.mark.parametrize(("n", "d"), [(5, 9), (7, 7), (9, 5)])
def test_both_forms_of_the_covariance_are_exact(n: int, d: int) -> None:
    z = rows(n, d).requires_grad_()
    expected = reference.covariance(z)
    (gradient,) = torch.autograd.grad(expected, z)
    for gram_up_to in (0.0, 100.0):
        found = covariance_term(z, centre(z, gram_up_to=gram_up_to))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, z)[0], gradient, rtol=1e-10, atol=1e-12)


def test_the_cheaper_form_is_taken() -> None:
    assert centre(rows(6, 7)).rows is not None and centre(rows(7, 7)).rows is not None
    assert centre(rows(8, 7)).rows is None


def test_variance_and_covariance_share_one_batch() -> None:
    z = rows(5, 9).requires_grad_()
    found, alone = variance_and_covariance(z, 4.0, 1e-3), (variance_term(z, 4.0, 1e-3), covariance_term(z))
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(torch.autograd.grad(one, z, retain_graph=True)[0], torch.autograd.grad(other, z)[0])


def test_mean_cosine_and_squared_distance() -> None:
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    assert float(mean_cosine(a, b)) == pytest.approx((24 / 25 - 1) / 2)
    assert float(squared_distance(a, b)) == pytest.approx((2 + 9) / 2)
    pair = rows(4, 3).requires_grad_(), rows(5, 3)[:4].requires_grad_()
    assert gradcheck(mean_cosine, pair) and gradcheck(squared_distance, pair)


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_whitened_rows_have_no_covariance(eps: float) -> None:
    z = rows(12, 4).view(2, 6, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0])
    z[1] = z[1] @ rows(4, 4)
    white = whiten(z, eps)
    torch.testing.assert_close(white.mean(1), torch.zeros(2, 4).double(), rtol=0, atol=1e-10)
    for batch, found in zip(z, white, strict=True):
        torch.testing.assert_close(whiten(batch, eps), found)
        covariance = (1 - eps) * torch.cov(found.T)
        mixed = torch.linalg.inv(torch.linalg.cholesky((1 - eps) * torch.cov(batch.T) + eps * torch.eye(4).double()))
        torch.testing.assert_close(covariance + eps * mixed @ mixed.T, torch.eye(4).double(), rtol=0, atol=1e-9)


def test_whitening_is_in_float32_at_least_and_refuses_a_singular_batch() -> None:
    narrow = rows(9, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert whiten(narrow).dtype == torch.float32 and torch.equal(whiten(narrow), whiten(narrow.float()))
    with pytest.raises(BatchError, match="covariance of 3 rows of 4 dimensions is singular"):
        whiten(rows(3, 4))
    assert torch.isfinite(whiten(rows(3, 4), eps=0.1)).all()


@pytest.mark.parametrize(("n", "d"), [(4, 6), (6, 4)])
def test_terms_pass_gradcheck_alone(n: int, d: int) -> None:
    z = rows(n, d).requires_grad_()
    assert gradcheck(covariance_term, z)
    assert gradcheck(lambda z: variance_term(z, gamma=1.2), z)
    torch.testing.assert_close(variance_term(z, 1.2, 0.1), reference.variance(z, 1.2, 0.1), rtol=1e-12, atol=0)


def test_a_sharing_batch_changes_nothing() -> None:
    z = rows(5, 8).requires_grad_()
    batch = centre(z)
    assert torch.equal(variance_term(z, 2.0, 1e-4, batch), variance_term(z, 2.0, 1e-4))
    assert torch.equal(covariance_term(z, batch), covariance_term(z))


def test_float32_stays_accurate_far_from_the_origin() -> None:
    wide = rows(40, 60) + 100
    found = covariance_term(wide.float())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(covariance_term(wide)), rel=1e-4)


def test_one_sample_has_no_variance() -> None:
    for function in (variance_term, covariance_term):
        with pytest.raises(BatchError, match="at least 2 samples in the global batch, found 1"):
            function(torch.zeros(1, 3))
        with pytest.raises(ValueError, match=r"must be \(N, D\), found \(3,\)"):
            function(torch.zeros(3))
    with pytest.raises(BatchError, match="at least 2 samples, found 1"):
        std_per_dimension(torch.zeros(1, 3))


def test_std_per_dimension() -> None:
    z = rows(9, 5)
    torch.testing.assert_close(std_per_dimension(z), z.std(0))
    assert std_per_dimension(torch.full((4, 3), 0.1)).max() < 1e-7


def test_mean_absolute_correlation() -> None:
    z = rows(30, 7)
    matrix = torch.corrcoef(z.T).abs()
    expected = float((matrix.sum() - matrix.trace()) / (7 * 6))
    assert mean_absolute_correlation(z) == pytest.approx(expected, rel=1e-6)
    assert mean_absolute_correlation(torch.cat([z[:, :1], -2 * z[:, :1]], 1)) == pytest.approx(1)
    assert mean_absolute_correlation(z[:, :1]) == 0


def test_constant_dimensions_are_correlated_with_nothing() -> None:
    z = rows(30, 4, torch.float32)
    with_constant = torch.cat([z, torch.full((30, 1), 0.1)], 1)
    assert mean_absolute_correlation(with_constant) == pytest.approx(mean_absolute_correlation(z) * 12 / 20, rel=1e-5)
    assert mean_absolute_correlation(torch.full((5, 3), 0.1)) == 0


def test_mean_absolute_correlation_of_many_dimensions_samples_them() -> None:
    z = rows(50, 40)
    some = z[:, [0, 13, 26, 39]]
    assert mean_absolute_correlation(z, limit=4) == pytest.approx(mean_absolute_correlation(some))
    assert mean_absolute_correlation(z, limit=None) == pytest.approx(mean_absolute_correlation(z), rel=1e-12)


def test_mean_absolute_correlation_of_more_than_one_block() -> None:
    z = rows(4, 1100)
    matrix = torch.corrcoef(z.T).abs()
    expected = float((matrix.sum() - matrix.trace()) / (1100 * 1099))
    assert mean_absolute_correlation(z, limit=None) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_singular_values_and_rankme(n: int, d: int) -> None:
    z = rows(n, d)
    expected = torch.linalg.svdvals(z)
    torch.testing.assert_close(singular_values(z), expected, rtol=1e-8, atol=1e-8)
    share = expected / expected.sum() + 1e-7
    assert rankme(z) == pytest.approx(math.exp(-float((share * share.log()).sum())), rel=1e-9)


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(torch.ones(6, 4)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(6, 4)) == pytest.approx(1, rel=1e-4)

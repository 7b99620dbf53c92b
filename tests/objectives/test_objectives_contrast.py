import math
from copy import deepcopy

import pytest
import torch
from ranks import Tiny
from torch import Tensor
from torch.nn import functional

from jointembed.objectives.contrast import Partition, PatchHead, Scores, candidates, info_nce, log_mean_exp, nce, scores
from jointembed.objectives.statistics import BatchError


def rows(n: int, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_are_cosines_whatever_the_lengths() -> None:
    query, positive, negative = rows(3), rows(3, seed=1), rows(5, seed=2)
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[1, 4] = True
    found = scores(query, 7 * positive, 3 * negative, 0.5, left_out)
    for i in range(3):
        assert float(found.positive[i]) == pytest.approx(
            2 * float(functional.cosine_similarity(query[i], positive[i], 0))
        )
        for k in range(5):
            expected = 2 * float(functional.cosine_similarity(query[i], negative[k], 0))
            assert float(found.negative[i, k]) == pytest.approx(-math.inf if (i, k) == (1, 4) else expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for query, positive, negative in ((3, 2, 5), (3, 3, 0)):
        with pytest.raises(BatchError, match="queries and positives must be"):
            scores(rows(query), rows(positive), rows(negative or 2, 4 if negative else 5), 1.0)


def test_info_nce_is_the_cross_entropy_of_the_positive() -> None:
    found = Scores(rows(3, 1)[:, 0], rows(3, 5))
    together = torch.cat([found.positive[:, None], found.negative], 1)
    expected = functional.cross_entropy(together, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(info_nce(found), expected)


def test_nce_is_logistic_regression() -> None:
    found, log_mean = Scores(4 * rows(3, 1)[:, 0], 4 * rows(3, 5)), torch.tensor(0.7, dtype=torch.float64)
    together = torch.cat([found.positive[:, None], found.negative], 1) - log_mean - math.log(5)
    is_data = torch.zeros(3, 6, dtype=torch.float64)
    is_data[:, 0] = 1
    expected = functional.binary_cross_entropy_with_logits(together, is_data, reduction="none").sum(1).mean()
    torch.testing.assert_close(nce(found, log_mean), expected)


@pytest.mark.parametrize("value", [-300.0, 300.0])
def test_nce_of_extreme_scores_is_finite(value: float) -> None:
    positive = torch.full((2,), value, requires_grad=True)
    negative = torch.full((2, 3), -value, requires_grad=True)
    loss = nce(Scores(positive, negative), torch.tensor(0.0))
    loss.backward()
    assert positive.grad is not None and negative.grad is not None
    assert loss.isfinite() and positive.grad.isfinite().all() and negative.grad.isfinite().all()
    assert float(loss.detach()) == pytest.approx(0 if value > 0 else 4 * 300 - 2 * math.log(3), abs=1e-4)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_negatives_left_out_count_for_nothing(kept: int) -> None:
    query, negative = rows(2).requires_grad_(), rows(5, seed=3)
    left_out = torch.arange(5).expand(2, -1) >= kept
    whole = scores(query, rows(2, seed=1), negative, 0.3, left_out)
    part = scores(query, rows(2, seed=1), negative[:kept], 0.3)
    log_mean = torch.tensor(0.2, dtype=torch.float64)
    for loss in (info_nce, lambda found: nce(found, log_mean)):
        torch.testing.assert_close(loss(whole), loss(part))
        (gradient,) = torch.autograd.grad(loss(whole), query, retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(part), query, retain_graph=True)[0])
    if kept:
        torch.testing.assert_close(log_mean_exp(whole.negative), part.negative.exp().mean(1).log())


def test_the_partition_is_that_of_the_first_step_for_good() -> None:
    partition = Partition()
    negative = 3 * rows(3, 5)
    negative[1, 2] = -math.inf
    expected = (negative.exp().sum() / 14).log()
    torch.testing.assert_close(partition(negative), expected)
    torch.testing.assert_close(partition(rows(3, 5, seed=9)), expected)  # the second loss of the same step
    assert float(partition.mean) == 0  # a refused step leaves no trace
    partition.commit()
    torch.testing.assert_close(partition(rows(2, 5, seed=8)), expected, rtol=1e-6, atol=1e-6)
    partition.commit()
    other = Partition()
    other.load_state_dict(partition.state_dict())
    assert torch.equal(other(rows(1, 1)), partition(rows(2, 2)))


@pytest.mark.parametrize("first", [math.nan, 1.0])
@pytest.mark.parametrize("name", ["pirl", "cmc"])
def test_a_first_step_that_is_left_out_leaves_no_partition(name: str, first: float) -> None:
    """Neither one that is no number nor another, which would be that of a step that never was."""
    torch.manual_seed(0)
    model = Tiny(name).double()
    a, b, index = rows(11, 6), rows(11, 6, seed=1), torch.arange(11)
    other = deepcopy(model)
    model.before_step(index, index)
    model(first * a.roll(1, 1), first * b.roll(1, 1), index, index)  # no end_step: the loop leaves the step out
    for one in (model, other):
        one.before_step(index, index)
    found, expected = (one(a, b, index, index)["loss"] for one in (model, other))
    assert found.isfinite() and torch.equal(found, expected)


def test_the_partition_of_large_scores_is_finite() -> None:
    assert float(Partition()(torch.full((2, 2), 200.0))) == pytest.approx(200)


def test_candidates_of_one_process_are_the_rows() -> None:
    x = rows(3).requires_grad_()
    every, start = candidates(x)
    assert every is x and start == 0


@pytest.mark.parametrize("hidden", [False, True])
def test_a_patch_head_tells_patches_apart(hidden: bool) -> None:
    torch.manual_seed(0)
    head, h = PatchHead(4, 3, 2, hidden=hidden).double(), rows(15).unflatten(0, (5, 3))
    z = head(h)
    assert z.shape == (5, 2)
    assert not torch.allclose(head(h.flip(1)), z)
    each = [head.each(h[0, patch]) for patch in range(3)]
    torch.testing.assert_close(z[0], head.all.weight @ torch.cat(each) + head.all.bias)
    with pytest.raises(BatchError, match=r"3 patches a picture expected, \(N, 3, R\), found \(5, 2, 4\)"):
        head(h[:, :2])

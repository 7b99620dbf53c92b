import numpy as np
import pytest
import torch
from torch import Tensor

from jointembed.inference import nearest as module
from jointembed.inference.nearest import SPARE, Vectors, nearest


def brute_force(queries: Tensor, rows: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Float64 scores rounded to float32, one stable sort: equal scores by row."""
    scores = (queries.double() @ rows.double().T).float().numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def unit(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator))


@pytest.mark.parametrize("sizes", [[300], [1, 120, 179], [299, 0, 1]])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 10), (130, 40), (3, 300), (3, 999)])
def test_equals_brute_force_whatever_the_parts(
    sizes: list[int], count: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCORES", 64 * 25)  # so that there are many blocks
    rows, queries = unit(300, 24, seed=0), unit(count, 24, seed=1)
    scores, found = nearest(queries, Vectors(list(rows.split(sizes)), 24), k)
    expected_scores, expected = brute_force(queries, rows, min(k, 300))
    assert scores.dtype == np.float32 and found.dtype == np.int64 and found.shape == (count, min(k, 300))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-7)


def test_ties_go_by_row_number_even_where_all_rows_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCORES", 64 * 7)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 2, (500, 4), generator=generator) / 2.0  # products without rounding, 81 different rows
    queries = torch.randint(-1, 2, (20, 4), generator=generator) / 2.0
    scores, found = nearest(queries, Vectors(list(rows.split(123)), 4), 50)
    expected_scores, expected = brute_force(queries, rows, 50)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)
    equal = torch.ones(500, 4) / 2
    assert nearest(queries, Vectors([equal], 4), 5)[1].tolist() == [[0, 1, 2, 3, 4]] * 20


def test_copies_of_a_row_are_neighbours_in_their_order() -> None:
    rows = unit(4000, 37, seed=2)
    copies = [5, 1017, 2048, 3999]  # in other places of a matrix product the last bit may differ
    rows[copies] = rows[5].clone()
    scores, found = nearest(rows[5:6], Vectors([rows], 37), 6)
    assert found[0, :4].tolist() == copies and len(set(scores[0, :4].tolist())) == 1
    assert len(copies) < SPARE


@pytest.mark.parametrize("spread", [0.0, 3e-8, 1e-6])  # equal rows, and rows that float32 products do not tell apart
def test_more_ties_than_spare_candidates_are_still_in_order(spread: float) -> None:
    row, noise = unit(1, 16, seed=0), unit(2000, 16, seed=1)
    rows = row + spread * noise
    rows[:900] = -rows[:900]  # which no answer may hold
    vectors = Vectors(list(rows.split([903, 203, 894])), 16)
    queries = torch.cat([row, 3 * row])
    scores, found = nearest(queries, vectors, 40)
    expected_scores, expected = brute_force(queries, rows, 40)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_equal_rows_of_two_parts_are_in_order() -> None:
    row = unit(1, 16, seed=0)
    vectors = Vectors([row.repeat(3, 1), row.repeat(203, 1)], 16)
    assert nearest(row, vectors, 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_rows_that_are_apart_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_reaching")
    rows, queries = unit(5000, 256, seed=5), unit(20, 256, seed=6)
    np.testing.assert_array_equal(nearest(queries, Vectors([rows], 256), 10)[1], brute_force(queries, rows, 10)[1])


def test_an_answer_does_not_depend_on_the_other_queries() -> None:
    rows, queries = unit(3000, 33, seed=3), unit(100, 33, seed=4)
    together = nearest(queries, Vectors([rows], 33), 10)
    for number in (0, 63, 64, 99):
        alone = nearest(queries[number : number + 1], Vectors([rows], 33), 10)
        np.testing.assert_array_equal(alone[1][0], together[1][number])
        np.testing.assert_array_equal(alone[0][0], together[0][number])


def test_scores_of_both_signs_and_zeros_are_in_order() -> None:
    rows = torch.tensor([[-1.0], [0.0], [1.0], [-0.0], [0.5], [-0.5], [1e-40], [-1e-40]])
    scores, found = nearest(torch.ones(1, 1), Vectors([rows], 1), 8)
    assert found.tolist() == [[2, 4, 6, 1, 3, 7, 5, 0]]
    assert scores[0, 3] == 0 and np.all(np.diff(scores[0]) <= 0)


def test_no_query_and_no_row() -> None:
    assert nearest(torch.zeros(0, 3), Vectors([unit(5, 3, seed=0)], 3), 2)[1].shape == (0, 2)
    assert nearest(unit(2, 3, seed=0), Vectors([], 3), 2)[1].shape == (2, 0)


def test_rows_are_taken_from_their_parts() -> None:
    rows = unit(50, 3, seed=0)
    vectors = Vectors(list(rows.split([10, 0, 39, 1])), 3)
    wanted = np.array([49, 0, 10, 9, 48, 10])
    assert torch.equal(vectors.take(wanted), rows[torch.from_numpy(wanted)]) and len(vectors) == 50

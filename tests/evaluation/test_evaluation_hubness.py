import numpy as np
import pytest
import torch
from torch.nn import functional

from jointembed.evaluation import hubness as room
from jointembed.evaluation.collapse import diagnostics
from jointembed.evaluation.hubness import hubness, occurrences


def some(rows: int, dimension: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 1 << 21])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_occurrences_are_counted(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BLOCK", block)
    query, candidate = some(31), some(17, seed=1)
    query[5] = query[6]  # asked twice
    scores = functional.normalize(query.double()) @ functional.normalize(candidate.double()).T
    expected = np.zeros(17)
    for row in scores.numpy():
        expected[np.argsort(-row)[:k]] += 1
    np.testing.assert_allclose(occurrences(query, candidate, k=k), expected)
    counts = hubness(query, candidate, k=k)
    assert counts["never"] == np.mean(expected == 0) and counts["largest"] == expected.max() / 31
    if k < 17:
        assert counts["skewness"] == pytest.approx(np.mean((expected - expected.mean()) ** 3) / expected.std() ** 3)


def test_ties_share_the_places_that_are_left() -> None:
    candidate = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    counts = occurrences(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), candidate, k=2)
    assert counts.tolist() == [2, 1, 1, 0]  # the two level ones are each found half of the time, twice


def test_one_hub_has_the_skewness_of_one_in_n() -> None:
    n = 12
    candidate = -torch.ones(n, 3)
    candidate[0] = 1
    found = hubness(torch.ones(50, 3), candidate, k=1)
    share = 1 / n  # N_1 is 50 for one candidate and 0 for the others: a Bernoulli variable
    assert found["skewness"] == pytest.approx((1 - 2 * share) / np.sqrt(share * (1 - share)))
    assert found["never"] == pytest.approx(1 - share) and found["largest"] == 1


def test_candidates_found_equally_often_have_no_skewness() -> None:
    rows = torch.eye(7)
    assert hubness(rows, rows, k=1) == {"skewness": 0.0, "never": 0.0, "largest": pytest.approx(1 / 7)}
    collapsed = torch.full((9, 4), 0.5)
    assert hubness(collapsed, collapsed, k=3)["skewness"] == 0.0


def test_diagnostics_hold_hubness_of_both_directions_and_the_gap() -> None:
    image, text = some(20), some(60, seed=1)
    found = diagnostics({"image": image, "text": text})
    for way, expected in (("image_to_text", hubness(image, text)), ("text_to_image", hubness(text, image))):
        assert {name: found[f"hubness_{name}/{way}"] for name in expected} == expected
    apart = diagnostics({"a": torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "b": torch.tensor([[0.0, 3.0], [0.0, 1.0]])})
    assert apart["gap"] == pytest.approx(2**0.5)
    assert not any("hubness" in name for name in diagnostics({"image": image}))

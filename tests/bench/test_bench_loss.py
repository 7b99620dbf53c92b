import pytest
import torch
from reference import barlow_twins_reference, vicreg_reference

from jointembed.bench.loss import SIZES, bench_grid, bench_loss, peak_bytes
from jointembed.bench.rivals import OBJECTIVES, known_losses, plain_barlow_twins, plain_vicreg
from jointembed.bench.share import loss_share
from jointembed.errors import RecipeError


def test_the_rival_is_the_official_formula() -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(plain_vicreg(a, b), vicreg_reference.official(a, b), rtol=1e-10, atol=0)


def test_measures_every_loss_and_size() -> None:
    rows = bench_loss(ns=[4, 8], ds=[16], repeats=2, rivals=["authors"])
    assert [(row["n"], row["d"], row["loss"]) for row in rows] == [
        (4, 16, "jointembed"),
        (4, 16, "authors"),
        (8, 16, "jointembed"),
        (8, 16, "authors"),
    ]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["ratio"] == 1 and float(theirs["ratio"]) > 0
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
        assert float(theirs["gradient_error"]) < 1e-4
        assert float(ours["milliseconds"]) > 0 and float(ours["peak_mb"]) > 0


def test_live_bytes_are_counted_at_their_peak() -> None:
    def square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum()

    # the product is dropped once summed, and its gradient is a view: what counts is both gradients
    for device in ("meta", "cpu"):
        a, b = torch.ones(2, 100, 10, device=device)
        assert peak_bytes(square, a, b) == pytest.approx(2 * 4000, abs=16)


def test_peak_memory_is_a_twentieth_of_the_authors_formula() -> None:
    a, b = torch.empty(2, 256, 8192, device="meta")
    assert 20 * peak_bytes(known_losses([])["jointembed"], a, b) <= peak_bytes(plain_vicreg, a, b)


def test_the_rival_of_barlow_twins_is_its_formula() -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    expected = barlow_twins_reference.barlow_twins(a, b, off_diagonal=5e-3)
    torch.testing.assert_close(plain_barlow_twins(a, b), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_agrees_with_its_rivals(objective: str) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed (extra `bench`)")
    rows = bench_loss(ns=[16], ds=[8], repeats=1, objective=objective)
    assert [row["loss"] for row in rows][-1] == "lightly" and len(rows) == 2 + (objective in ("vicreg", "barlow_twins"))
    assert all(float(row["gradient_error"]) < 1e-3 and float(row["cpu_ratio"]) > 0 for row in rows), rows
    assert SIZES[objective]


def test_an_objective_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="did you mean 'vicreg'"):
        bench_loss(objective="vicrek")


def test_the_grid_goes_over_all_sizes() -> None:
    rows = bench_grid(ns=[4, 8], ds=[4, 16], repeats=1)
    assert {(row["n"], row["d"]) for row in rows} == {(4, 4), (4, 16), (8, 4), (8, 16)}
    assert {row["loss"] for row in rows} == {"jointembed", "authors"}


def test_the_share_of_the_loss() -> None:
    found = loss_share(n=16, width=32, batch=2, size=32, model="resnet18", repeats=1)
    assert found["network_scaled"] == pytest.approx(8 * found["network"])
    assert found["percent_scaled"] == pytest.approx(100 * found["loss"] / (found["loss"] + found["network_scaled"]))

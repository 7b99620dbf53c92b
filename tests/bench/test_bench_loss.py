import pytest
import torch
from reference import vicreg_reference as reference

from jointembed.bench.loss import bench_loss, known_losses, peak_bytes, plain_vicreg


def test_the_rival_is_the_official_formula() -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(plain_vicreg(a, b), reference.official(a, b), rtol=1e-10, atol=0)


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

import math
from pathlib import Path

import pytest
from PIL import Image

from jointembed.bench import growth
from jointembed.bench.growth import PARTS, bench_growth
from jointembed.bench.loss import bench_grid
from jointembed.bench.plots import plot_curves, plot_grid, plot_growth
from jointembed.errors import RecipeError


def test_sizes_double_and_exponents_are_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {name: [(grows, max(2, size // 32), make) for grows, size, make in ways] for name, ways in PARTS.items()}
    small["retrieval"] = [("captions", 500, PARTS["retrieval"][0][2])]
    small["views"] = [("side", 16, PARTS["views"][1][2])]
    small["train"] = [("n", 2, lambda n: growth._training_step(n, 8))]
    monkeypatch.setattr(growth, "PARTS", small)
    series = bench_growth(doublings=1, repeats=1)
    assert {one["what"] for one in series} == set(PARTS)
    for one in series:
        assert one["rows"][1]["size"] == 2 * one["rows"][0]["size"]
        assert all(row["cpu_seconds"] > 0 and row["mb"] > 0 for row in one["rows"]), one
        assert all(math.isfinite(value) for value in one["exponents"].values())
    plot_growth(series, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.format == "PNG"


def test_memory_of_the_loss_grows_with_d_alone() -> None:
    found = bench_growth(what=["loss"], doublings=1, repeats=1)[1]
    assert found["exponents"]["mb"] == pytest.approx(1, abs=0.2)


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="no part 'losses'"):
        bench_growth(what=["losses"])


def test_other_plots(tmp_path: Path) -> None:
    plot_curves({"fp32": [3.0, 2.0, 1.0], "bf16": [3.0, 2.1, 1.0]}, tmp_path / "deeper" / "curves.png")
    plot_grid(bench_grid(ns=[4, 8], ds=[4], repeats=1), tmp_path / "grid.png")
    for path in ("deeper/curves.png", "grid.png"):
        with Image.open(tmp_path / path) as picture:
            assert picture.format == "PNG"

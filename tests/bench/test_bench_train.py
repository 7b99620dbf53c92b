from importlib.util import find_spec
from pathlib import Path

import pytest

from jointembed.bench.curves import bench_curves, differences, smoothed
from jointembed.bench.train import bench_train
from jointembed.bench.train_text import caption_texts
from jointembed.errors import DataError, RecipeError


def test_every_side_begins_with_the_same_loss() -> None:
    found = bench_train(batch=4, size=32, width=16, repeats=1, precision="fp32")
    sides = {"jointembed", "authors"} | ({"lightly"} if find_spec("lightly") else set())
    for kind in ("image", "text"):
        one = found[kind]
        assert set(one["sides"]) == set(one["values"]) == sides
        assert one["precision"] == "fp32"
        for name in sides:
            assert one["values"][name] == pytest.approx(one["values"]["jointembed"], rel=1e-4)
            assert one["sides"][name]["cpu_ratio"] > 0 and one["sides"][name]["rounds"] == 1
            assert one["sides"][name]["peak_mb"] > 0
        assert [row["stage"] for row in one["stages"]] == ["data", "forward", "loss", "backward", "optimizer"]
        assert sum(row["percent"] for row in one["stages"]) == pytest.approx(100)


def test_lightly_is_a_side_where_it_is_installed() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed (extra `bench`)")
    assert "lightly" in bench_train(kinds=["text"], batch=4, width=8, repeats=1)["text"]["sides"]


@pytest.mark.parametrize("options", [{"kinds": ["sound"]}, {"precision": "fp8"}])
def test_what_cannot_be_measured(options: dict) -> None:
    with pytest.raises(RecipeError, match="no (kind|precision)"):
        bench_train(**options)


def test_captions_of_a_file(tiny_data: Path) -> None:
    assert len(caption_texts(tiny_data / "captions.json", 24)) == 24
    with pytest.raises(DataError, match="24 captions, 25 are needed"):
        caption_texts(tiny_data / "captions.json", 25)
    lengths = [len(text.split()) for text in caption_texts(None, 2000)]
    assert 8 == min(lengths) and max(lengths) <= 30 and 10 < sum(lengths) / len(lengths) < 11


def test_curves_of_both_precisions() -> None:
    found = bench_curves(steps=3, batch=4, size=32, width=16)
    assert all(len(losses) == 3 for losses in found["losses"].values())
    first = [losses[0] for losses in found["losses"].values()]
    assert first[-1] == pytest.approx(first[0], rel=0.05)
    assert found["largest_difference"] >= found["last_difference"] >= 0


def test_curves_are_compared_smoothed() -> None:
    assert smoothed([1.0, 3.0] * 10) == [2.0] * 19
    assert differences([2.0] * 4, [2.0, 2.0, 3.0, 1.0]) == {"largest_difference": 0.5, "last_difference": 0.5}

from pathlib import Path

import numpy as np
import pytest

from jointembed.bench.retrieval_scale import bench_retrieval_scale, extrapolate, plot, write_parts
from jointembed.errors import EvaluationError
from jointembed.evaluation.parts import EmbeddingParts


def test_measures_each_size_and_draws_a_line() -> None:
    found = bench_retrieval_scale(texts=[40, 400], images=8, dimension=64, target=10_000)
    assert [row["texts"] for row in found["rows"]] == [40, 400]
    for row in found["rows"]:
        assert row["seconds"] > 0 and 0 <= row["added_mb"] < row["peak_mb"]
        assert row["i2t_R@1"] > 20  # chance is 12.5 and less
    assert "8 images" in found["formula"] and found["extrapolated"]["texts"] == 10_000


def test_the_line_is_that_through_the_last_two() -> None:
    rows = [{"texts": 1, "seconds": 9.0, "cpu_seconds": 9.0, "peak_mb": 9.0}]
    rows += [{"texts": t, "seconds": 2 + 3 * t, "cpu_seconds": 1 + t, "peak_mb": 100 + 0.5 * t} for t in (10, 20)]
    found = extrapolate(rows, 1, 1, 1000)
    assert found["extrapolated"] == {"texts": 1000, "seconds": 3002, "cpu_seconds": 1001, "peak_mb": 600}
    assert "seconds = 2 + 3 T, cpu_seconds = 1 + 1 T, peak_mb = 100 + 0.5 T" in found["formula"]


def test_the_picture_makes_its_folder(tmp_path: Path) -> None:
    rows = [{"texts": t, "seconds": t, "cpu_seconds": t, "peak_mb": t} for t in (10.0, 20.0)]
    plot(rows, tmp_path / "new" / "dir" / "x.png")
    assert (tmp_path / "new" / "dir" / "x.png").stat().st_size > 1000


def test_captions_lie_near_their_image(tmp_path: Path) -> None:
    write_parts(tmp_path, 3, 100, 64)
    image, text = (EmbeddingParts(tmp_path / side).read(0, 100) for side in ("image", "text"))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    scores = text @ image.T
    own = [scores[row, row // 5] for row in range(15)]
    assert np.mean(own) > 0.25 > scores[15:].max() - 0.2


def test_sizes_must_rise_and_hold_the_captions() -> None:
    for texts in ([100], [400, 100], [30, 100]):
        with pytest.raises(EvaluationError, match="two or more rising sizes"):
            bench_retrieval_scale(texts=texts, images=8)

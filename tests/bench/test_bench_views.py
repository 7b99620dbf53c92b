import io

import pytest
from PIL import Image

from jointembed.bench.views import bench_views, synthetic_jpegs


def test_the_benchmark_runs_and_its_pipelines_agree() -> None:
    found = bench_views(count=2, repeats=1, size=48, small=24)
    assert set(found["pipelines"]) == {"vicreg", "multi_crop", "resize", "center"}
    for times in found["pipelines"].values():
        assert times["ratio"] == pytest.approx(times["plain"]["milliseconds"] / times["ours"]["milliseconds"])
        assert times["ours"]["images_per_second"] == pytest.approx(1000 / times["ours"]["milliseconds"])
    assert {"hue", "blur", "solarize"} <= set(found["steps"])
    assert found["agreement"] < 0.5
    assert found["machine"]["pictures"] == 2


def test_synthetic_jpegs_weigh_what_photographs_weigh() -> None:
    files = synthetic_jpegs(2, seed=1)
    assert files[0] != files[1]
    assert files == synthetic_jpegs(2, seed=1)
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (640, 480))
        assert 40_000 < len(file) < 200_000

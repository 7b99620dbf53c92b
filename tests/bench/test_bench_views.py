import io

import pytest
from PIL import Image

from jointembed.bench import views
from jointembed.bench.measure import Seconds
from jointembed.bench.plots import plot_views
from jointembed.bench.views import bench_views, synthetic_jpegs
from jointembed.errors import RecipeError


def test_the_benchmark_runs_and_its_pipelines_agree(tmp_path) -> None:
    names = ["vicreg", "vicreg_small", "multi_crop", "caption_crop", "caption_resize"]
    found = bench_views(count=2, repeats=1, size=48, small=24, memory=False)
    assert list(found["pipelines"]) == names
    for row in found["pipelines"].values():
        times = row["times"]
        assert {"jointembed", "authors", "authors_bytes", "jointembed_normalised", "margin_1"} <= set(times)
        assert times["jointembed"]["cpu_ratio"] == 1
        assert times["authors"]["images_per_second"] == pytest.approx(2 / times["authors"]["cpu_seconds"])
        assert row["agreement"]["whole"] < 0.8  # grey levels
        assert row["agreement"]["training"] < 3
        assert set(row["same"]) == {"red", "blue", "deviation", "colourfulness", "detail"}
    assert ("whole" in found["pipelines"]["vicreg"]["times"]) and "whole" not in times
    assert {"hue", "blur", "solarize"} <= set(found["steps"])
    assert found["source"] == {"pictures": "made up", "count": 2, "width": 640, "height": 480} | {
        "kilobytes": found["source"]["kilobytes"]
    }
    plot_views(found["pipelines"], tmp_path / "views.png")
    assert (tmp_path / "views.png").stat().st_size > 1000


def test_a_pipeline_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="no pipeline 'vicrg'; did you mean 'vicreg'"):
        bench_views(pipelines=["caption_crop", "vicrg"], memory=False)


def test_pictures_of_a_folder_are_resized_where_asked(tmp_path) -> None:
    for number, file in enumerate(synthetic_jpegs(3, width=96, height=64)):
        (tmp_path / f"{number}.jpg").write_bytes(file)
    found = bench_views(
        pictures=tmp_path, side=48, count=2, repeats=1, size=16, small=8, pipelines=["caption_crop"], memory=False
    )
    assert list(found["pipelines"]) == ["caption_crop"]
    assert "resized to 48 px" in found["source"]["pictures"]
    assert [found["source"][key] for key in ("count", "width", "height")] == [2, 48, 32]


@pytest.mark.parametrize("count", [3, 9])
def test_a_short_turn_counts_by_its_pictures(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_second_a_picture(turns, repeats):
        return {name: [Seconds(*[float(len(turn.args[1]))] * 2)] * repeats for name, turn in turns.items()}

    monkeypatch.setattr(views, "take_turns", one_second_a_picture)
    found = bench_views(count=count, repeats=1, size=16, small=8, pipelines=["caption_resize"], memory=False)
    assert {row["images_per_second"] for row in found["pipelines"]["caption_resize"]["times"].values()} == {1.0}


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own() -> None:
    found = bench_views(count=1, repeats=1, size=32, small=16, pipelines=["vicreg"])["pipelines"]["vicreg"]["peak_mb"]
    assert set(found) == {"jointembed", "authors"} and min(found.values()) >= 0


def test_synthetic_jpegs_weigh_what_photographs_weigh() -> None:
    files = synthetic_jpegs(2, seed=1)
    assert files[0] != files[1]
    assert files == synthetic_jpegs(2, seed=1)
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (640, 480))
        assert 40_000 < len(file) < 200_000

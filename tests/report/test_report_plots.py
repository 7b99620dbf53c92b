import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import metrics_lines

from jointembed.report import plots
from jointembed.report.plots import (
    Sample,
    check_pairs,
    check_rows,
    draw_curves,
    draw_map,
    draw_similarity,
    draw_spectrum,
)
from jointembed.report.trials import Trial, Trials


def sample(**changes: Any) -> Sample:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(30, 8, generator=generator)
    text = image.repeat_interleave(2, 0) + 0.5 * torch.randn(60, 8, generator=generator)
    matched = np.stack([np.repeat(np.arange(30), 2), np.arange(60)], axis=1)
    given: dict[str, Any] = {
        "vectors": {"image": image, "text": text}, "matched": matched, "matching": "a picture and its caption",
        "open_picture": lambda row: Image.new("RGB", (20 + row, 30), (8 * row, 90, 90)),
        "texts": [f"costs {row} $ and {row} $" if row % 2 else f"犬 {row}" for row in range(60)],
    }  # fmt: skip
    return Sample(**given | changes)


def colours(path: Path) -> int:
    with Image.open(path) as picture:
        assert min(picture.size) > 400
        return len(picture.convert("RGB").getcolors(1 << 24) or ())


def test_curves_have_a_panel_for_each_group_of_numbers(tmp_path: Path) -> None:
    panels = {panel.title: panel.series for panel in plots._panels(metrics_lines())}
    assert {"loss", "terms of the loss", "learning rate", "validation: recall in %, i2t", "health: rankme"} <= set(
        panels
    )
    assert set(panels["validation: recall in %, t2i"]) == {"R@1", "R@5", "R@10"}
    assert set(panels["health: std"]) == {"image", "text"}
    x, y = panels["loss"]["loss"]
    assert len(x) == len(y) and (np.diff(x) > 0).all()
    assert draw_curves(metrics_lines(), tmp_path / "curves.png") and colours(tmp_path / "curves.png") > 50
    assert not draw_curves([], tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": step, "loss": loss} for step, loss in enumerate([1.0, float("nan"), 3.0])]
    [panel] = plots._panels(lines)
    assert panel.series["loss"][1].tolist() == [1.0, 3.0] and draw_curves(lines, tmp_path / "curves.png")


def test_similarities_are_those_of_the_pairs() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    matched, unmatched = plots.similarities(
        sample(vectors={"image": rows, "text": rows[[0, 1]]}, matched=np.array([[0, 0], [1, 1]]))
    )
    assert matched.tolist() == [1.0, 1.0]
    assert np.allclose(sorted(unmatched), [0, 0, 0.5**0.5, 0.5**0.5])
    one_view = sample(vectors={"view1": rows}, matched=plots.pairs_of_classes(np.array([1, 0, 1])))
    matched, unmatched = plots.similarities(one_view)  # rows 0 and 2 are of one class; each pair counts once
    assert np.allclose(matched, [0.5**0.5]) and np.allclose(sorted(unmatched), [0, 0.5**0.5])


@pytest.mark.parametrize("tsne", [False, True])
def test_all_are_drawn_for_two_views(tmp_path: Path, tsne: bool) -> None:
    draw_similarity(sample(), tmp_path / "similarity.png")
    draw_spectrum(sample().vectors, tmp_path / "spectrum.png")
    draw_map(sample(), tmp_path / "map.png", tsne=tsne)
    for name in ("similarity", "spectrum", "map"):
        assert colours(tmp_path / f"{name}.png") > 20


def test_a_map_of_one_view_shows_its_classes_and_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    vectors, label = {"view1": sample().vectors["image"]}, np.arange(30) % 3
    one = sample(
        vectors=vectors, matched=plots.pairs_of_classes(label), label=label, classes=("a", "b", "c"), texts=None
    )
    for name in ("first", "second"):
        draw_map(one, tmp_path / f"{name}.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    draw_map(sample(vectors=vectors, open_picture=None, texts=None), tmp_path / "bare.png")
    assert colours(tmp_path / "first.png") > colours(tmp_path / "bare.png")


def test_what_is_shown_does_not_cover_one_another() -> None:
    places = np.random.default_rng(0).random((200, 2))
    taken = places[plots._spread(places, 50, 0, (0.1, 0.2))]
    apart = np.abs(taken[:, None] - taken[None]) > (0.1, 0.2)
    assert 5 < len(taken) <= 50 and (apart.any(axis=2) | np.eye(len(taken), dtype=bool)).all()


def test_why_similarities_cannot_be_compared() -> None:
    assert check_pairs(sample()) is None
    rows = {"view1": torch.randn(5, 3)}
    for label, reason in (([0, 1, 2, 3, 4], "no pair is known to match"), ([0] * 5, "all are of one class")):
        one = sample(vectors=rows, matched=plots.pairs_of_classes(np.array(label)))
        assert reason in (check_pairs(one) or "")
    assert check_pairs(sample(vectors=rows, matched=plots.pairs_of_classes(np.array([0, 0, 0, 0, 1])))) is None
    every = np.argwhere(np.ones((4, 6), dtype=bool))
    one = sample(vectors={"image": torch.randn(4, 3), "text": torch.randn(6, 3)}, matched=every)
    assert "all are of one class" in (check_pairs(one) or "")


def test_why_nothing_can_be_drawn() -> None:
    rows = torch.randn(5, 3)
    assert check_rows({"image": rows}) is None
    assert check_rows({"image": rows[:3]}) == "3 rows of image; plots of embeddings need at least 4"
    assert check_rows({"image": rows.log()}) == "the vectors of image have values that are not finite"
    assert check_rows({"text": rows[:1].expand(5, 3)}) == "all vectors of text are equal: the model has collapsed"


# -- the figures of docs/image_text_recipe.md -----------------------------------------------------------------------


@pytest.fixture
def figures() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "recipe_figures.py"
    spec = importlib.util.spec_from_file_location("recipe_figures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def searched(name: str, *rows: tuple[dict[str, Any], float | None]) -> Trials:
    return Trials(name, "rsum", "maximize", [Trial(n, "complete", *row) for n, row in enumerate(rows)])


def labelled(axes: Any) -> dict[str, tuple[str, list[float]]]:
    """Style and values of each line by its label."""
    return {str(line.get_label()): (line.get_linestyle(), list(line.get_ydata())) for line in axes.get_lines()}


def test_eigenvalues_are_squares_of_the_spectrum(figures: ModuleType, tmp_path: Path) -> None:
    run = figures.Run(Path("runs/best/clip-0"), {}, 240.0, {"text": {"spectrum": [4.0, 2.0, 1.0]}})
    with plots.figure_of(tmp_path / "x.png", (4, 3)) as figure:
        axes = figure.add_subplot()
        figures.draw_spectra([run], axes)
        assert labelled(axes) == {"InfoNCE": ("-", [1, 0.25, 0.0625])}


def test_the_contrastive_term_is_compared_to_none_and_to_infonce(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = searched("flickr8k_vicreg_contrast", ({"contrast.weight": 0.1}, 237.1), ({"contrast.weight": 1.0}, 247.5))
    infonce = searched("flickr8k_clip", ({"optimizer.lr": 1e-3}, 240.3), ({"optimizer.lr": 4e-3}, 249.0))
    known = {Path(one.name): one for one in (weights, infonce)}
    monkeypatch.setattr(figures, "read_trials", lambda folder: known)
    run = figures.Run(Path("runs/factor/none"), {}, 231.7, {})
    with plots.figure_of(tmp_path / "x.png", (4, 3)) as figure:
        first, second = figure.subplots(1, 2)
        figures.draw_contrast(Path("search"), [run], first)
        lines = labelled(first)
        assert lines["weight 0"] == ("--", [231.7] * 2) and lines["InfoNCE alone"] == ("--", [249.0] * 2)
        assert [237.1, 247.5] in [values for _, values in lines.values()]
        assert [text.get_text() for text in first.get_legend().get_texts()] == ["weight 0", "InfoNCE alone"]
        del known[Path("flickr8k_clip")]
        figures.draw_contrast(Path("search"), [], second)
        assert len(labelled(second)) == 1 and second.get_legend() is None


def test_the_legend_says_what_is_solid_and_what_is_dashed(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("objective.off_diagonal", "optimizer.lr")
    drawn = [(0.03, 1e-3), (0.03, 2e-3), (0.1, 1e-3), (0.1, 2e-3)]
    rows = [(dict(zip(keys, one, strict=True)), sum(one)) for one in drawn]
    found = {Path("flickr8k_barlow_twins"): searched("flickr8k_barlow_twins", *rows)}
    monkeypatch.setattr(figures, "read_trials", lambda folder: found)
    with plots.figure_of(tmp_path / "x.png", (4, 3)) as figure:
        axes = figure.add_subplot()
        figures.draw_trials(Path("search"), axes)
        styles = {label: style for label, (style, _) in labelled(axes).items()}
        assert styles == {"Barlow Twins, off diagonal 0.03": "-", "Barlow Twins, off diagonal 0.1": "--"}
        legend = axes.get_legend()
        assert legend is not None and len(legend.get_texts()) == 2

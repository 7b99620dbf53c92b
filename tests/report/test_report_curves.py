import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_runs import metrics_lines

from jointembed.errors import CheckpointError
from jointembed.report import curves


def test_each_number_of_the_log_is_drawn_once() -> None:
    lines = metrics_lines()
    assert [curve.title for curve in curves.loss_curves(lines)] == [
        "Loss", "Terms of the loss", "Gradient norm", "Learning rate", "Samples per second",
    ]  # fmt: skip
    terms = curves.loss_curves(lines)[1]
    assert all(f">{name}<" in terms.svg for name in ("invariance", "variance", "covariance")) and "lr" not in terms.alt
    assert [curve.title for curve in curves.validation_curves(lines)] == [
        "Validation rsum", "Recall in %, image query → text", "Recall in %, text query → image",
    ]  # fmt: skip
    assert [curve.alt.split(".")[0] for curve in curves.health_curves(lines)] == [
        "Standard deviation (mean)", "Correlation (mean absolute)", "RankMe (effective dimensions)",
    ]  # fmt: skip


def test_alt_text_tells_the_curve() -> None:
    lines = [{"kind": "train", "step": s, "loss": loss} for s, loss in ((1, 8.0), (2, 1.5), (3, 2.0))]
    (curve,) = curves.loss_curves(lines)
    assert curve.alt == "Loss. loss: 8 at step 1, 2 at step 3, lowest 1.5, highest 8."


def test_epoch_is_the_axis_where_every_line_has_it() -> None:
    with_epoch = [{"kind": "train", "step": s, "epoch": s / 2, "loss": 1.0 * s} for s in (1, 2)]
    assert "epoch 0.5" in curves.loss_curves(with_epoch)[0].alt
    assert "step 1" in curves.loss_curves([*with_epoch, {"kind": "train", "step": 3, "loss": 1.0}])[0].alt


def test_highest_rsum_is_marked() -> None:
    lines = [{"kind": "validation", "step": s, "rsum": r} for s, r in ((1, 90.0), (2, 251.26), (3, 200.0))]
    assert "best 251.3" in curves.validation_curves(lines)[0].svg


def test_a_run_of_pictures_shows_every_number_and_marks_what_selects() -> None:
    numbers = {"knn20_top1": 71.24, "knn20_top5": 90.0, "std": 0.9512, "z_std": 0.04, "rankme": 30.0}
    lines = [{"kind": "validation", "step": s, **{name: v * s for name, v in numbers.items()}} for s in (1, 2)]
    found = curves.validation_curves(lines, select="knn20_top1")
    assert [curve.title for curve in found] == [
        "Validation: Accuracy in %", "Validation: Standard deviation (mean)",
        "Validation: RankMe (effective dimensions)",
    ]  # fmt: skip
    assert all(f">{name}<" in found[0].svg for name in ("knn20_top1", "knn20_top5"))
    assert all(f">{name}<" in found[1].svg for name in ("std", "z_std"))
    assert ["best " in curve.svg for curve in found] == [True, False, False] and "best 142.5" in found[0].svg
    assert "best 0.08000" in curves.validation_curves(lines, select="z_std")[1].svg


def test_a_run_of_captions_shows_its_ranks_but_not_the_size_of_its_data() -> None:
    numbers = {"i2t_medr": 3.0, "t2i_medr": 4.0, "tied_queries": 1.0, "n_images": 5.0, "n_texts": 25.0}
    titles = [curve.title for curve in curves.validation_curves([{"kind": "validation", "step": 1, **numbers}])]
    assert titles == ["Validation: Median rank", "Validation: Tied queries"]


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("rsum", 251.26, "251.3"), ("i2t_R@1", 0.951, "1.0"), ("knn20_top1", 41.25, "41.2"),
        ("z_std", 0.951, "0.9510"), ("z_std", 0.04, "0.04000"), ("rankme", 123.456, "123.5"),
        ("rankme", 1234.6, "1235"), ("bbox_AP", 0.0, "0.0"), ("std", float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers_in_percent_have_one_digit_and_others_four(metric: str, value: float, words: str) -> None:
    assert curves.metric_text(metric, value) == words


def test_step_written_twice_counts_once_and_values_without_meaning_are_left_out() -> None:
    lines = [
        {"kind": "train", "step": 2, "loss": 9.0},
        {"kind": "train", "step": 1, "loss": 5.0},
        {"kind": "train", "step": 2, "loss": 4.0},
        {"kind": "train", "step": 3, "loss": float("nan")},
        {"kind": "train", "step": 4, "loss": "broken"},
        {"kind": "train", "step": 5, "loss": True},
    ]
    assert curves.loss_curves(lines)[0].alt == "Loss. loss: 5 at step 1, 4 at step 2, lowest 4, highest 5."


def test_nothing_to_draw_is_no_curve() -> None:
    assert curves.loss_curves([]) == curves.health_curves([]) == curves.validation_curves([]) == []
    assert curves.loss_curves([{"kind": "train", "step": 1, "loss": float("inf")}]) == []
    assert curves.spectrum_curve({"gap": 0.1, "image": {"std_mean": 1.0}}) is None
    assert curves.spectrum_curve({"image": {"spectrum": [0.0, 0.0]}}) is None


def test_drawing_is_part_of_the_page() -> None:
    drawings = curves.loss_curves(metrics_lines())
    svg = "".join(curve.svg for curve in drawings)
    assert not re.search(r"http|xmlns|<style|<\?xml|DOCTYPE|font-family|#0000|#[0-9a-f]{6}", svg)
    assert svg.count("<svg") == len(drawings) and "var(--series-2)" in svg and "var(--ink)" in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
    assert used and used <= set(ids)


def test_drawing_is_the_same_each_time() -> None:
    assert curves.health_curves(metrics_lines()) == curves.health_curves(metrics_lines())


def test_long_run_is_drawn_small() -> None:
    lines = [{"kind": "train", "step": s, "loss": 5.0 + (s % 7)} for s in range(20_000)]
    (curve,) = curves.loss_curves(lines)
    assert len(curve.svg) < 40_000 and "lowest 5, highest 11" in curve.alt
    assert "fill-opacity: 0.18" in curve.svg  # the band from lowest to highest


def test_wide_range_gets_a_logarithmic_axis() -> None:
    def ticks(values: list[float]) -> list[str]:
        lines = [{"kind": "train", "step": s, "loss": v} for s, v in enumerate(values)]
        return re.findall(r">([\d.]+)</text>", curves.loss_curves(lines)[0].svg)

    assert {"0.01", "1", "100"} <= set(ticks([100.0, 1.0, 0.01]))
    assert "0.01" not in ticks([30.0, 10.0, 1.0])


def test_spectrum_draws_each_view() -> None:
    collapse: dict[str, Any] = {"image": {"spectrum": [4.0, 2.0, 0.0]}, "text": {"spectrum": [3.0, 1.0]}, "gap": 0.1}
    curve = curves.spectrum_curve(collapse)
    assert curve is not None and ">image<" in curve.svg and ">text<" in curve.svg
    assert "image: 4 at rank 1, 2 at rank 2" in curve.alt


def test_label_cannot_leave_its_drawing() -> None:
    lines = [{"kind": "train", "step": s, "<b>x</b>": 1.0 * s, "$y$": 2.0} for s in (1, 2)]
    svg = curves.loss_curves(lines)[0].svg
    assert "<b>" not in svg and "&lt;b&gt;x" in svg and ">$y$<" in svg


@pytest.mark.parametrize("name", ['v/a"><b>', "v/a\\d", "v/\\g<0>", "#000099/std", "#000001/std", 'v/ id="x" href="#y'])
def test_names_of_a_log_stay_text(name: str) -> None:
    lines = [{"kind": "health", "step": s, name: 1.0 * s, "b/std": 2.0, f"c/{name}": 3.0} for s in (1, 2)]
    for curve in curves.health_curves(lines):
        root = ElementTree.fromstring(curve.svg)  # well-formed
        assert not root.findall(".//b")
        ids = [one.attrib["id"] for one in root.iter() if "id" in one.attrib]
        assert ids and all(re.fullmatch(r"health-\d+-[\w.]+", one) for one in ids)
    view = name.rpartition("/")[0]
    assert any(f"{view}: 1 at step 1" in curve.alt for curve in curves.health_curves(lines))
    if name.startswith("#"):
        assert any(one.text == view for one in ElementTree.fromstring(curves.health_curves(lines)[0].svg).iter("text"))


def test_read_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert curves.read_metrics(path) == ([], 0)
    good = json.dumps({"kind": "train", "step": 1, "loss": 2.0}).encode()
    for tail, broken in ((b"", 0), (b"\n", 0), (b'\n{"kind": "tr', 1), (b"\n\x00\x00\x00", 1), (b"\n\xff\xfe\n", 1)):
        path.write_bytes(good + tail)
        assert curves.read_metrics(path) == ([{"kind": "train", "step": 1, "loss": 2.0}], broken)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b'{"kind": "train", "st', "line 2 is not JSON"),
        (b"[1, 2]", "line 2 has no kind and step"),
        (b'{"kind": "train"}', "line 2 has no kind and step"),
        (b'{"kind": "train", "step": "3"}', "line 2 has no kind and step"),
        (b'{"kind": "train", "step": 3, "epoch": null}', "line 2: epoch is None"),
    ],
)
def test_bad_line_in_the_middle_is_named(tmp_path: Path, second: bytes, message: str) -> None:
    good = b'{"kind": "train", "step": 1, "loss": 2.0}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(good + second + b"\n" + good)
    with pytest.raises(CheckpointError, match=message):
        curves.read_metrics(path)

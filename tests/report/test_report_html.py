import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from report_runs import ATTACK

from jointembed.errors import CheckpointError, DataError
from jointembed.report.html import duration, write_report
from jointembed.report.rendering import format_number

VOID = {"meta", "img", "br", "link", "input", "hr", "col"}


class Page(HTMLParser):
    """Elements with their attributes, the text people read, and tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.problems: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_page_nests_and_its_ids_are_unique(written_report: Path) -> None:
    page = Page(written_report.read_text(encoding="utf-8"))
    assert page.problems == [] and page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) > 100 and len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}  # type: ignore[index]
    assert targets <= set(ids)


def test_page_loads_nothing_from_outside(written_report: Path) -> None:
    source = written_report.read_text(encoding="utf-8")
    assert "http:" not in source and "https:" not in source and "@import" not in source
    page = Page(source)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert name not in attributes or re.match(r"#|data:image/jpeg;base64,", attributes[name] or "")
    assert all(re.fullmatch(r"#[\w.-]+", address) for address in re.findall(r"url\(([^)]*)\)", source))
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_captions_are_text_whatever_they_hold(short_run: Path) -> None:
    source = write_report(short_run).read_text(encoding="utf-8")
    assert "<script" not in source
    page = Page(source)
    assert ATTACK in page.text
    assert "كلب يركض على الشاطئ" in page.text
    assert "a 🐕‍🦺 & a \"quoted\" 'dog'" in page.text
    assert "{{ name }}" in page.text  # a caption is no template
    said = [attributes for _, attributes in page.elements if "said" in (attributes.get("class") or "").split()]
    assert said and all(attributes.get("dir") == "auto" for attributes in said)


def test_all_parts_are_there(written_report: Path) -> None:
    page = Page(written_report.read_text(encoding="utf-8"))
    for words in (
        "shapes_vicreg", "Shapes & their names.", "6 min 20 s", "best validation rsum", "at step 40",
        "image query → text (i2t) the VICReg paper prints “text-to-image”",
        "text query → image (t2i) the VICReg paper prints “image-to-text”",
        "22.5 [20.2, 25.2] chance 5.1", "56.0 [53.8, 58.8] chance 5.1", "rsum sum of all R@K 248.5",
        "median rank 5 8", "mean rank 9.25 11.5", "images 20", "texts 40", "tied queries 3",
        "jointembed evaluate runs/shapes --split test", "first answer right",
        "first answer wrong; best right one at rank",
        "Loss", "Terms of the loss", "Learning rate", "Samples per second", "Validation rsum",
        "RankMe (effective dimensions)", "spread: 30.5 of 64 dimensions in use", "Singular values of the embeddings",
        "jointembed train shapes.yaml --out runs/shapes", "packages.numpy 2.1", "accelerators none",
        "vicreg (invariance 15, variance 25, covariance 1)",
        "torchvision (model mobilenet_v2, weights IMAGENET1K_V1) → mlp (widths 64–64), encoder frozen",
        "batch 32", "embedding z, centre yes", "Seed 3",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("details")) == 1 and "warmup_steps: 10" in page.text
    assert "missing" not in page.text and "No " not in page.text


def test_page_can_be_read_without_seeing_it(written_report: Path) -> None:
    page = Page(written_report.read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(picture.get("alt") for picture in page.all("img")) and len(page.all("img")) >= 12
    plots = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(plots) == 12 and all(plot["aria-label"] for plot in plots)
    assert any((plot["aria-label"] or "").startswith("Validation rsum. rsum: ") for plot in plots)
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    right = [a for _, a in page.elements if a.get("class") == "right"]
    assert page.text.count("✓ right") == len(right) > 0  # told by words, not by colour alone
    assert page.text.count("✗ wrong") == 12 * 5 - len(right)


def test_same_run_same_bytes_and_no_other_process_aside(short_run: Path) -> None:
    (short_run / "report.html.part").write_text("of another process")
    first = write_report(short_run).read_bytes()
    assert write_report(short_run).read_bytes() == first
    assert [path.name for path in short_run.iterdir() if path.name.endswith(".part")] == ["report.html.part"]


def test_two_evaluations_share_no_id(short_run: Path) -> None:
    other = short_run / "evaluation" / "validation-full"
    other.mkdir()
    for name in ("metrics.json", "collapse.json"):
        (other / name).write_bytes((short_run / "evaluation/test-full" / name).read_bytes())
    page = report(short_run)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and sum("spectrum-1" in str(one) for one in ids) > 0
    assert "No gallery for shapes · test · full." in page.text


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("evaluation/test-full/metrics.json", "The evaluation test-full has no metrics.json; it was not finished."),
        ("evaluation/test-full/metrics.json", "No evaluation yet"),
        ("evaluation/test-full/gallery.json", "No gallery for shapes · test · full."),
        ("evaluation/test-full/collapse.json", "No collapse.json for this evaluation."),
        ("metrics.jsonl", "metrics.jsonl is missing or empty"),
        ("metrics.jsonl", "No validation in metrics.jsonl"),
        ("metrics.jsonl", "No health lines in metrics.jsonl"),
        ("recipe.yaml", "No recipe.yaml in this run folder."),
        ("environment.json", "No environment.json"),
    ],
)
def test_missing_part_is_said(short_run: Path, written_report: Path, gone: str, words: str) -> None:
    assert words not in Page(written_report.read_text(encoding="utf-8")).text
    (short_run / gone).unlink()
    assert words in report(short_run).text


def test_validation_of_pictures_is_drawn_and_its_best_is_at_a_glance(short_run: Path) -> None:
    recipe = yaml.safe_load((short_run / "recipe.yaml").read_text())
    recipe["evaluation"]["select"] = "z_std"
    (short_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {"kind": "validation", "step": s, "knn20_top1": 10.0 * s, "z_std": z}
        for s, z in ((1, 0.04), (2, 0.951), (3, float("nan")), (4, 0.5))
    ]
    (short_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(short_run).text
    assert "No validation" not in text and "Validation: Accuracy in %" in text
    assert "best validation z_std 0.9510 at step 2" in text and "best validation rsum" not in text
    (short_run / "metrics.jsonl").write_text(json.dumps(lines[2] | {"knn20_top1": float("nan")}) + "\n")
    assert "No finite number in the validation lines of metrics.jsonl." in report(short_run).text


def test_a_chance_level_of_all_is_no_power_of_ten(short_run: Path) -> None:
    path = short_run / "evaluation/test-full/metrics.json"
    document = json.loads(path.read_text())
    document["chance"] = dict.fromkeys(document["chance"], 99.97) | {"t2i_R@1": 0.125, "rsum": 500.0}
    path.write_text(json.dumps(document))
    text = report(short_run).text
    assert "chance 100.0" in text and "chance 0.12" in text and "chance 500.0" in text and "e+" not in text


def test_a_gallery_says_what_its_scores_are(short_run: Path) -> None:
    assert "Scores are cosines." in report(short_run).text
    path = short_run / "evaluation/test-full/gallery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": "cosines corrected by csls"}))
    assert "Scores are cosines corrected by csls." in report(short_run).text
    old = json.loads(path.read_text())
    del old["scores"]  # of before
    path.write_text(json.dumps(old))
    assert "Scores are cosines." in report(short_run).text


def test_empty_folder_makes_a_report(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert page.problems == [] and tmp_path.name in page.text
    assert "No evaluation yet" in page.text and "No gallery" in page.text and "No training yet" in page.text


def test_missing_thumb_is_said(short_run: Path) -> None:
    for thumb in (short_run / "evaluation/test-full/thumbs").iterdir():
        thumb.unlink()
    page = report(short_run)
    assert "thumb missing: shape_" in page.text and not page.all("img")


def test_broken_last_line_is_left_out_and_counted(short_run: Path) -> None:
    with (short_run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 41, "lo')
    page = report(short_run)
    assert "1 broken line at the end of metrics.jsonl was left out" in page.text and "steps 2" in page.text


def test_broken_middle_line_is_named(short_run: Path) -> None:
    lines = (short_run / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:30]
    (short_run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is not JSON"):
        write_report(short_run)


def test_bad_files_are_named(short_run: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such run folder"):
        write_report(short_run / "absent")
    path = short_run / "evaluation/test-full/gallery.json"
    gallery = json.loads(path.read_text())
    gallery["queries"][0]["query"]["thumb"] = "../../secret.jpg"
    path.write_text(json.dumps(gallery))
    with pytest.raises(DataError, match="secret.jpg.*must stay inside"):
        write_report(short_run)
    del gallery["queries"][0]["query"]
    path.write_text(json.dumps(gallery))
    with pytest.raises(CheckpointError, match=r"gallery\.json: a query without query"):
        write_report(short_run)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"gallery\.json: not valid JSON"):
        write_report(short_run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rankme": 1.2}, "collapsed to a line: 1.2 of 64"),
        ({"rankme": 4.0}, "few directions: 4.0 of 64"),
        ({"std_mean": 1e-5}, "collapsed to a point: spread 1e-05"),
        ({"relative_std": 0.05}, "collapsed to a point: spread 0.05"),
    ],
)
def test_collapse_is_told_in_words(short_run: Path, change: dict[str, float], words: str) -> None:
    path = short_run / "evaluation/test-full/collapse.json"
    collapse = json.loads(path.read_text())
    collapse["text"].update(change)
    path.write_text(json.dumps(collapse))
    page = report(short_run)
    assert words in page.text and page.text.count("spread: 30.5 of 64") == 1


def test_evaluation_that_is_no_retrieval_is_listed(short_run: Path) -> None:
    folder = short_run / "evaluation" / "test-knn"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"split": "test", "metrics": {"knn_top1": 61.25}}))
    page = report(short_run)
    assert "knn_top1 61.25" in page.text and "No collapse.json for this evaluation." in page.text


def test_unknown_recipe_is_shown_as_it_is(short_run: Path) -> None:
    (short_run / "recipe.yaml").write_text(yaml.safe_dump({"branches": 3, "loader": [1], "note": "<b>x</b>"}))
    assert "note: <b>x</b>" in report(short_run).text


def test_numbers_and_durations_for_reading() -> None:
    assert [format_number(x) for x in (1000, 5.0, 39.2149, 12345.6, 1e-5, float("nan"))] == [
        "1,000", "5", "39.21", "12,346", "1e-05", "nan",
    ]  # fmt: skip
    assert [duration(s) for s in (12.4, 372, 11100)] == ["12 s", "6 min 12 s", "3 h 05 min"]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_has_contrast_in_light_and_dark(written_report: Path, theme: int) -> None:
    style = written_report.read_text(encoding="utf-8").partition("<style>")[2]
    block = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for front, backs in {
        "ink": ("page", "card", "warning-soft", "good-soft"),
        "muted": ("page", "card", "good-soft"),
        "accent": ("page", "card"),
        "good": ("card", "good-soft"),
        "bad": ("card",),
        "warning": ("card", "warning-soft"),
        **{f"series-{n}": ("card",) for n in range(1, 7)},
    }.items():
        for back in backs:
            low, high = sorted((luminance(colours[front]), luminance(colours[back])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)

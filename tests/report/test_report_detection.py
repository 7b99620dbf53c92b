import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from detection_data import coco_tree, detections, read_coco, the_truth, write_coco
from PIL import Image
from test_report_browser import browse, complaints

from jointembed.data.detection import DetectionData
from jointembed.errors import CheckpointError
from jointembed.evaluation.detection import coco_average_precision
from jointembed.evaluation.detection_voc import voc_average_precision
from jointembed.inference.detect import Detections
from jointembed.report.detection import write_detection_report, write_drawings

RECIPE = """
name: shapes
detector: {name: rcnn_fpn}
encoder: {name: torchvision, model: resnet18, weights: null}
"""
ATTACK = "<script>alert(1)</script>"


def found_in(data: DetectionData) -> list[Detections]:
    """Of picture 0 everything, of 1 one object and a stray, of 2 nothing, of 3 weak ones only, and so on."""
    found = the_truth(data, masks=True)
    first = found[1]
    assert first.masks is not None
    found[1] = Detections(
        xywh=np.array([first.xywh[0], [40.0, 1.0, 10.0, 6.0]]),
        scores=np.array([0.95, 0.7]),
        labels=np.array([1, 2]),
        masks=(first.masks[0], first.masks[1]),
    )
    found[2] = detections([])
    found[3] = Detections(found[3].xywh, np.array([0.2, 0.1]), found[3].labels, found[3].masks)
    return found


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    root = write_coco(tmp_path / "toy")
    tree = coco_tree()
    tree["categories"][1]["name"] = ATTACK
    tree["annotations"][8]["iscrowd"] = 1  # of picture 4
    return read_coco(root, tree, masks=True)


@pytest.fixture
def run(data: DetectionData, tmp_path: Path) -> Path:
    run = tmp_path / "shapes"
    folder = run / "evaluation" / "test"
    folder.mkdir(parents=True)
    found = found_in(data)
    results = [coco_average_precision(data, found), coco_average_precision(data, found, kind="segm")]
    results.append(voc_average_precision(data, found))
    record = {
        "task": "detection", "split": "test", "data": "toy", "n_images": 6, "n_objects": 12, "n_detections": 9,
        "metrics": {name: value for one in results for name, value in one.metrics.items()},
        "per_category": {"bbox_AP": results[0].per_category, "voc_AP50": results[2].per_category},
        "date": "2026-01-02T03:04:05+00:00", "command": "jointembed detect shapes.yaml",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(record))
    write_drawings(folder, data, found)
    lines = [
        {
            "kind": "train",
            "loss": 3 / step,
            "loss_mask": 1 / step,
            "step": step,
            "epoch": step / 10,
            "seconds": 1.0 * step,
        }
        for step in range(1, 21)
    ]
    lines += [
        {"kind": "validation", "bbox_AP": step / 40, "voc_AP50": step / 30, "step": step, "epoch": step / 10}
        for step in (10, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "recipe.yaml").write_text(RECIPE)
    environment = {"command": "jointembed detect shapes.yaml", "torch": "2.14", "accelerators": []}
    (run / "environment.json").write_text(json.dumps(environment))
    return run


def test_drawings_say_what_is_right_and_wrong(data: DetectionData, tmp_path: Path) -> None:
    path = write_drawings(tmp_path / "evaluation", data, found_in(data))
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())["pictures"]}
    assert len(entries) == 6
    words = {name: [one["verdict"] for one in entry["found"]] for name, entry in entries.items()}
    assert words["000.png"] == ["right", "right"] and words["001.png"] == ["right", "wrong"]
    assert words["002.png"] == [] and entries["002.png"]["masks"] is None
    assert words["003.png"] == ["right", "right"] and entries["003.png"]["weak"] and not entries["000.png"]["weak"]
    assert entries["004.png"]["truth"][0]["ignored"] and not entries["004.png"]["truth"][1]["ignored"]
    assert entries["000.png"]["truth"][0] == {"box": [4, 8, 24, 32], "category": "red", "ignored": False}
    with Image.open(tmp_path / "evaluation" / entries["001.png"]["masks"]) as overlay:
        pixels = np.array(overlay)
    assert pixels.shape == (48, 64, 4)
    assert pixels[20, 15].tolist() == [20, 160, 90, 110] and pixels[20, 45].tolist() == [214, 70, 30, 110]
    assert pixels[0, 0].tolist() == [0, 0, 0, 0]


def test_pictures_are_drawn_by_the_seed_and_old_ones_go(data: DetectionData, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    chosen = []
    for seed in (0, 1, 0):
        path = write_drawings(folder, data, found_in(data), count=2, seed=seed)
        chosen.append([entry["name"] for entry in json.loads(path.read_text())["pictures"]])
        assert len(list((folder / "drawings").glob("*.jpg"))) == 2
    assert chosen[0] == chosen[2] and chosen[0] != chosen[1]


def test_large_pictures_are_drawn_small(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "large", pictures=1, width=960, height=720)
    data = read_coco(root)
    path = write_drawings(tmp_path / "evaluation", data, the_truth(data))
    entry = json.loads(path.read_text())["pictures"][0]
    assert (entry["width"], entry["height"]) == (480, 360) and entry["masks"] is None
    assert entry["found"][0]["box"] == [2, 4, 12, 16]


def test_the_page_holds_everything_and_escapes_names(run: Path) -> None:
    page = write_detection_report(run).read_text()
    for part in ("shapes", "rcnn_fpn", "resnet18, random weights", "COCO, boxes", "COCO, masks", "VOC 2007, eleven",
                 "jointembed detect shapes.yaml", "2026-01-02 03:04:05 UTC", "By category (2)"):  # fmt: skip
        assert part in page, part
    assert ATTACK not in page and html.escape(ATTACK) in page
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page.count('class="drawing"') == 6
    assert page.count("data:image/jpeg") == 6 and page.count("data:image/png") == 5
    found = json.loads((run / "evaluation/test/drawings.json").read_text())
    drawn = sum(len(entry["found"]) for entry in found["pictures"])
    assert page.count('class="found"') == drawn and page.count('class="truth"') == 12
    assert "no detection reaches 0.5" in page and "nothing found" in page
    assert "COCO, boxes: validation" in page and "Terms of the loss" in page
    value = json.loads((run / "evaluation/test/metrics.json").read_text())["metrics"]["bbox_AP"]
    assert f"<b>{100 * value:.1f}</b>" in page
    assert write_detection_report(run).read_text() == page


def test_what_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    (run / "evaluation/test/drawings.json").unlink()
    assert "No pictures were drawn for toy · test" in write_detection_report(run).read_text()
    bare = tmp_path / "bare"
    bare.mkdir()
    page = write_detection_report(bare).read_text()
    for part in ("No evaluation yet", "No pictures: there is no evaluation", "No training yet", "No validation",
                 "No recipe.yaml", "No environment.json"):  # fmt: skip
        assert part in page, part
    with pytest.raises(CheckpointError, match="no such run folder"):
        write_detection_report(tmp_path / "nowhere")


def test_a_broken_last_line_is_left_out_and_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 21, "lo')
    page = write_detection_report(run).read_text()
    assert "1 broken line at the end of metrics.jsonl was left out" in page and "<b>20</b>" in page


def test_files_aside_of_another_process_stay(run: Path, data: DetectionData) -> None:
    parts = [run / "report.html.part", run / "evaluation/test/drawings.json.part"]
    for part in parts:
        part.write_text("of another process")
    write_drawings(run / "evaluation/test", data, found_in(data))
    write_detection_report(run)
    assert sorted(run.rglob("*.part")) == sorted(parts)


def test_a_missing_picture_is_named(run: Path) -> None:
    next((run / "evaluation/test/drawings").glob("*.jpg")).unlink()
    with pytest.raises(CheckpointError, match="named in drawings.json, but not there"):
        write_detection_report(run)


@pytest.mark.browser
def test_it_opens_without_complaint_and_fits_a_phone(run: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed")
    page, shot = write_detection_report(run), tmp_path / "shot.png"
    done = browse(chromium, page, tmp_path / "profile", f"--screenshot={shot}")
    assert complaints(done.stderr) == []
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000)
    assert colours is not None and {(20, 160, 90), (214, 70, 30)} <= {colour for _, colour in colours}
    inner = html.escape(page.read_text(encoding="utf-8"))
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"""<!doctype html><title>?</title><iframe style="width: 360px; border: 0" srcdoc="{inner}"></iframe><script>
        document.querySelector("iframe").onload = event => {{
            const root = event.target.contentDocument.documentElement
            document.title = `${{root.clientWidth}} pixels hold ${{root.scrollWidth}}`
        }}</script>""",
        encoding="utf-8",
    )
    done = browse(chromium, probe, tmp_path / "profile", "--dump-dom")
    assert "<title>360 pixels hold 360</title>" in done.stdout, re.findall("<title>.*?</title>", done.stdout)

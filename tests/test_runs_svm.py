"""VOC07 under linear SVMs: presence from the boxes, and a whole evaluation on a made-up VOCdevkit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_image_runs import RECIPE, write_pictures

from jointembed import build, runs
from jointembed.data.detection_voc import VOC_CATEGORIES, voc_devkit
from jointembed.errors import DataError
from jointembed.recipe import load_recipe
from jointembed.report.results import table_page
from jointembed.runs_svm import evaluate_svm, presence

BOX = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>12</xmax><ymax>12</ymax></bndbox>"


def write_devkit(root: Path, each: int = 3) -> None:
    """Each category alone in some pictures of its own colour; the first one has a difficult neighbour."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / "VOC2007" / folder).mkdir(parents=True)
    for split in ("trainval", "test"):
        names = []
        for number, category in enumerate(VOC_CATEGORIES):
            for k in range(each):
                name = f"{split}{number:02d}{k}"
                pixels = np.full((16, 16, 3), 0, dtype=np.uint8) + rng.integers(0, 20, (16, 16, 3), dtype=np.uint8)
                pixels[:, :, number % 3] += np.uint8(10 * number)
                Image.fromarray(pixels).save(root / "VOC2007/JPEGImages" / f"{name}.jpg")
                objects = f"<object><name>{category}</name><difficult>0</difficult>{BOX}</object>"
                if number == 0:
                    objects += f"<object><name>cat</name><difficult>1</difficult>{BOX}</object>"
                size = "<size><width>16</width><height>16</height><depth>3</depth></size>"
                xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
                (root / "VOC2007/Annotations" / f"{name}.xml").write_text(xml)
                names.append(name)
        (root / "VOC2007/ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))


def test_a_difficult_object_alone_neither_counts_nor_counts_against(tmp_path: Path) -> None:
    write_devkit(tmp_path)
    found = presence(voc_devkit(root=str(tmp_path), splits=["VOC2007/test"]))
    cat, aeroplane = VOC_CATEGORIES.index("cat"), 0
    assert found.shape == (60, 20) and found[:3, aeroplane].tolist() == [1, 1, 1]
    assert found[:3, cat].tolist() == [0, 0, 0] and found[3 * cat : 3 * cat + 3, cat].tolist() == [1, 1, 1]
    assert (found == 1).sum() == 60 and (found == 0).sum() == 3


def test_a_run_is_judged_on_voc07_and_fills_its_cell(tmp_path: Path) -> None:
    write_devkit(tmp_path / "voc")
    write_pictures(tmp_path / "pictures")
    path = tmp_path / "pictures.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path / "pictures")))
    runs.train(build.check(load_recipe(path, ["training.epochs=0.5"])), tmp_path / "run")
    record = evaluate_svm(tmp_path / "run", str(tmp_path / "voc"))
    saved = json.loads((tmp_path / "run/evaluation/test-voc07/metrics.json").read_text())
    assert saved == record and record["n_images"] == 60 and 0 < record["metrics"]["svm_voc07"] <= 100
    table = table_page("transfer", [tmp_path / "run"]).tables[0]
    (row,) = [row for row in table.rows if str(row["method"]).startswith("VICReg (without BN")]
    assert row["measured/VOC07"].value == record["metrics"]["svm_voc07"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="trainval"):
        evaluate_svm(tmp_path / "run", str(tmp_path / "absent"))

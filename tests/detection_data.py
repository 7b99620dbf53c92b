"""Small detection data sets for tests: bright rectangles on dark noise, in COCO's form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jointembed.data.detection import DetectionData, Objects
from jointembed.data.detection_coco import coco_detection
from jointembed.inference.detect import Detections

SHADES = {1: (230, 60, 60), 2: (60, 90, 230)}


def coco_tree(pictures: int = 6, width: int = 64, height: int = 48) -> dict[str, Any]:
    """A COCO document: two rectangles a picture, of categories 1 and 2, with polygons."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(pictures):
        images.append({"id": number + 1, "file_name": f"{number:03d}.png", "width": width, "height": height})
        for label, left in ((1, 4 + number), (2, 34 + number)):
            box = [left, 8 + number, 20, 24]
            x, y, wide, high = box
            annotations.append({
                "id": len(annotations) + 1, "image_id": number + 1, "category_id": label, "bbox": box,
                "area": wide * high, "iscrowd": 0,
                "segmentation": [[x, y, x + wide, y, x + wide, y + high, x, y + high]],
            })  # fmt: skip
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_pictures(folder: Path, tree: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for image in tree["images"]:
        pixels = rng.integers(0, 60, (image["height"], image["width"], 3), dtype=np.uint8)
        for annotation in tree["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, wide, high = annotation["bbox"]
                pixels[y : y + high, x : x + wide] = SHADES[annotation["category_id"]]
        Image.fromarray(pixels).save(folder / image["file_name"])


def write_coco(root: Path, **options: Any) -> Path:
    """Write `images/` and `instances.json`; the root."""
    tree = coco_tree(**options)
    write_pictures(root / "images", tree)
    (root / "instances.json").write_text(json.dumps(tree))
    return root


def read_coco(root: Path, tree: dict[str, Any] | None = None, **options: Any) -> DetectionData:
    if tree is not None:
        (root / "instances.json").write_text(json.dumps(tree))
    return coco_detection(images=str(root / "images"), annotations=str(root / "instances.json"), **options)


class Blank:
    """Pictures that need no files."""

    def __init__(self, count: int, width: int, height: int) -> None:
        self.names, self.size = [f"{number}.png" for number in range(count)], (width, height)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        return Image.new("RGB", self.size)

    def sizes(self) -> list[int]:
        return [1] * len(self.names)


def objects(
    rows: list[tuple[list[float], int]], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()
) -> Objects:
    """Objects of (box left-top-width-height, label), by number crowds or difficult."""
    boxes = np.array([box for box, _ in rows], dtype=np.float64).reshape(-1, 4)
    numbers = np.arange(len(rows))
    return Objects(
        xywh=boxes,
        labels=np.array([label for _, label in rows], dtype=np.int64),
        crowd=np.isin(numbers, crowd),
        difficult=np.isin(numbers, difficult),
        area=boxes[:, 2] * boxes[:, 3],
        ids=numbers + 1,
    )


def by_hand(*pictures: Objects, categories: tuple[str, ...] = ("a", "b"), side: int = 100) -> DetectionData:
    """A data set of blank square pictures."""
    count = len(pictures)
    return DetectionData(
        name="toy",
        pictures=Blank(count, side, side),
        sizes=np.full((count, 2), side, dtype=np.int64),
        categories=categories,
        category_ids=tuple(range(1, len(categories) + 1)),
        objects=pictures,
        picture_ids=tuple(str(number + 1) for number in range(count)),
    )


def detections(rows: list[tuple[list[float], float, int]]) -> Detections:
    """Detections of (box left-top-width-height, score, label)."""
    return Detections(
        xywh=np.array([box for box, _, _ in rows], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], dtype=np.float64),
        labels=np.array([label for _, _, label in rows], dtype=np.int64),
    )


def the_truth(data: DetectionData, *, masks: bool = False) -> list[Detections]:
    """What a perfect detector finds: every object but the crowds, surely."""
    found = []
    for one in data.objects:
        kept = np.flatnonzero(~one.crowd)
        found.append(
            Detections(
                xywh=one.xywh[kept],
                scores=np.linspace(1.0, 0.9, len(kept)),
                labels=one.labels[kept],
                masks=tuple(one.masks[row] for row in kept) if masks and one.masks is not None else None,
            )
        )
    return found

"""COCO's average precision of boxes and masks, by pycocotools, on what was found by any detector.

What makes pycocotools give 0, -1 or an exception in silence is handled before it is called: annotations are numbered
from 1, an empty list of detections scores 0, numbers that are no numbers and categories that do not exist are refused,
and a size of object of which there is none has no entry, where pycocotools would say -1.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jointembed.data.detection import DetectionData
from jointembed.data.json_file import field, read_json
from jointembed.data.masks import encode_segmentation, is_finite_number, mask_area
from jointembed.errors import DataError, EvaluationError
from jointembed.inference.detect import Detections

Kind = Literal["bbox", "segm"]
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of pycocotools, at most 100 detections a picture


@dataclass(frozen=True)
class AveragePrecision:
    """What one rule of scoring gives."""

    metrics: dict[str, float]  # 0 .. 1
    per_category: dict[str, float]  # AP of each category that has objects, by name


def check_detections(data: DetectionData, found: Sequence[Detections]) -> None:
    """Refuse detections that would count as wrong in silence, and data in which there is nothing to find.

    Raises:
        EvaluationError: naming the picture and the detection: a score or box that is not finite, a box without area,
            an unknown category; not one entry a picture; data without any object.
    """
    if len(found) != len(data.pictures):
        raise EvaluationError(f"{data.name}: detections of {len(found)} pictures, but it has {len(data.pictures)}")
    if all(one.crowd.all() for one in data.objects):
        raise EvaluationError(f"{data.name}: no object in it; there is nothing to be found, so no precision")
    for picture_id, one in zip(data.picture_ids, found, strict=True):
        where = f"{data.name}: picture {picture_id}"
        if len({len(one.xywh), len(one.scores), len(one.labels)}) > 1 or one.xywh.shape[1:] != (4,):
            raise EvaluationError(f"{where}: boxes, scores and labels of detections must be equally many")
        if one.masks is not None and len(one.masks) != len(one):
            raise EvaluationError(f"{where}: {len(one.masks)} masks of {len(one)} detections")
        faults = (
            (~np.isfinite(one.scores), "its score is not finite"),
            (~np.isfinite(one.xywh).all(axis=1), "its box is not finite"),
            ((one.xywh[:, 2:] <= 0).any(axis=1), "its box has no area"),
            ((one.labels < 1) | (one.labels > len(data.categories)), f"its label is not 1 .. {len(data.categories)}"),
        )
        for bad, fault in faults:
            if bad.any():
                number = int(np.flatnonzero(bad)[0])
                shown = f"{one.xywh[number].tolist()}, score {one.scores[number]}, label {one.labels[number]}"
                raise EvaluationError(f"{where}: detection {number} ({shown}): {fault}")


def coco_average_precision(
    data: DetectionData, found: Sequence[Detections], *, kind: Kind = "bbox"
) -> AveragePrecision:
    """AP over IoU .5 : .05 : .95, AP50, AP75, and AP of small, medium and large objects.

    Crowds are ignored as COCO does; VOC's `difficult` objects count like any other.

    Args:
        data: pictures and objects; masks too for `segm`.
        found: one entry a picture.
        kind: compare boxes or masks.

    Returns:
        Metrics `bbox_AP`, `bbox_AP50` ... or `segm_AP` ..., 0 .. 1, equal to pycocotools' on the annotation file;
        a size of object that does not occur has none.

    Raises:
        EvaluationError: see `check_detections`; masks that are not there.
    """
    check_detections(data, found)
    if kind == "segm":
        if not data.has_masks:
            raise EvaluationError(f"{data.name}: its masks were not read; masks: true reads them")
        if any(one.masks is None for one in found if len(one)):
            raise EvaluationError(f"{data.name}: these detections have no masks")
    order = picture_numbers(data)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        evaluation = COCOeval(_truth(data, order), _found(data, found, order, kind), iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {
        f"{kind}_{name}": float(value)
        for name, value in zip(STATS, evaluation.stats[: len(STATS)], strict=True)
        if value > -1
    }
    return AveragePrecision(metrics, _per_category(data, evaluation.eval["precision"]))


def _per_category(data: DetectionData, precision: np.ndarray) -> dict[str, float]:
    """AP of each category from (T, R, K, A, M): all IoUs and recalls, all sizes, 100 detections."""
    found = {}
    for number, name in enumerate(data.categories):
        values = precision[:, :, number, 0, -1]
        if (values > -1).any():
            found[name] = float(values[values > -1].mean())
    return found


def picture_numbers(data: DetectionData) -> list[int]:
    """A number a picture for COCO's files: its id where all ids are whole numbers, else 1 .. I."""
    if all(one.removeprefix("-").isdecimal() and str(int(one)) == one for one in data.picture_ids):
        return [int(one) for one in data.picture_ids]
    return list(range(1, len(data.picture_ids) + 1))


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _truth(data: DetectionData, numbers: list[int]) -> COCO:
    annotations: list[dict[str, Any]] = []
    for number, one, size in zip(numbers, data.objects, data.sizes.tolist(), strict=True):
        for row in range(len(one)):
            annotation = {
                "id": len(annotations) + 1,  # never 0, which pycocotools takes for "unmatched"
                "image_id": number,
                "category_id": int(one.labels[row]),
                "bbox": one.xywh[row].tolist(),
                "area": float(one.area[row]),
                "iscrowd": int(one.crowd[row]),
            }
            if one.masks is not None:
                annotation["segmentation"] = {"size": size[::-1], "counts": one.masks[row]}
            annotations.append(annotation)
    return _indexed(_document(data, numbers) | {"annotations": annotations})


def _found(data: DetectionData, found: Sequence[Detections], numbers: list[int], kind: Kind) -> COCO:
    annotations: list[dict[str, Any]] = []
    for number, one, (width, height) in zip(numbers, found, data.sizes.tolist(), strict=True):
        for row in range(len(one)):
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(one.labels[row]),
                "bbox": one.xywh[row].tolist(),
                "score": float(one.scores[row]),
                "area": float(one.xywh[row, 2] * one.xywh[row, 3]),
                "iscrowd": 0,
            }
            if kind == "segm" and one.masks is not None:
                annotation["segmentation"] = {"size": [height, width], "counts": one.masks[row]}
                annotation["area"] = mask_area(one.masks[row], width, height)  # a mask's size is not its box's
            annotations.append(annotation)
    return _indexed(_document(data, numbers) | {"annotations": annotations})


def _document(data: DetectionData, numbers: list[int]) -> dict[str, Any]:
    return {
        "images": [
            {"id": number, "width": width, "height": height}
            for number, (width, height) in zip(numbers, data.sizes.tolist(), strict=True)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(data.categories, 1)],
    }


# -- files ----------------------------------------------------------------------------------------------------------


def save_detections(path: Path, data: DetectionData, found: Sequence[Detections]) -> None:
    """Write COCO's results format, with the ids of the source, so that any tool can score it anew."""
    rows: list[dict[str, Any]] = []
    for number, one, (width, height) in zip(picture_numbers(data), found, data.sizes.tolist(), strict=True):
        for row in range(len(one)):
            entry = {
                "image_id": number,
                "category_id": data.category_ids[int(one.labels[row]) - 1],
                "bbox": one.xywh[row].tolist(),
                "score": float(one.scores[row]),
            }
            if one.masks is not None:
                entry["segmentation"] = {"size": [height, width], "counts": one.masks[row].decode("ascii")}
            rows.append(entry)
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(rows), encoding="utf-8")
    os.replace(part, path)


def read_detections(path: Path, data: DetectionData) -> list[Detections]:
    """Read COCO's results format, made by any detector, for a data set.

    Raises:
        DataError: naming the record: broken JSON or NaN, a missing or ill-typed key, an unknown category or picture,
            a box or score that is not finite, a broken mask, masks of some detections only.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: is {type(rows).__name__}; expected a list of detections")
    place = {number: position for position, number in enumerate(picture_numbers(data))}
    labels = {category_id: label for label, category_id in enumerate(data.category_ids, 1)}
    kept: list[list[tuple[list[float], float, int, bytes | None]]] = [[] for _ in data.picture_ids]
    for number, row in enumerate(rows):
        where = f"{path}: detection {number}"
        image_id, category_id = field(row, "image_id", int, where), field(row, "category_id", int, where)
        if image_id not in place:
            raise DataError(f"{where}: image_id {image_id} is no picture of {data.name}")
        if category_id not in labels:
            raise DataError(f"{where}: category_id {category_id} is no category of {data.name}")
        box, score = field(row, "bbox", list, where), field(row, "score", object, where)
        if len(box) != 4 or not all(is_finite_number(value) for value in box):
            raise DataError(f"{where}: its box {box} is not four finite numbers")
        if not is_finite_number(score):
            raise DataError(f"{where}: its score {score!r} is not a finite number")
        width, height = data.sizes[place[image_id]].tolist()
        mask = encode_segmentation(row["segmentation"], width, height, where) if "segmentation" in row else None
        kept[place[image_id]].append((box, float(score), labels[category_id], mask))
    with_masks = {mask is not None for one in kept for *_, mask in one}
    if len(with_masks) > 1:
        raise DataError(f"{path}: some detections have masks and some have not")
    return [_detections(one, with_masks == {True}) for one in kept]


def _detections(rows: list[tuple[list[float], float, int, bytes | None]], masks: bool) -> Detections:
    rows = sorted(rows, key=lambda row: -row[1])  # stable, as pycocotools' own sorting is
    return Detections(
        xywh=np.array([box for box, *_ in rows], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, *_ in rows], dtype=np.float64),
        labels=np.array([label for _, _, label, _ in rows], dtype=np.int64),
        masks=tuple(mask for *_, mask in rows if mask is not None) if masks else None,
    )

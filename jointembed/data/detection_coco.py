"""COCO detection as published: `instances_train2017.json` ... and every file in that form.

Format: Lin et al., Microsoft COCO, arXiv 1405.0312; http://cocodataset.org/#format-data.
"""

import logging
from pathlib import Path
from typing import Any, Literal

from jointembed.data.captions import stem
from jointembed.data.detection import DetectionData, box_fault, has_no_area
from jointembed.data.detection_rows import PictureRow, Row, from_rows
from jointembed.data.json_file import field, read_json
from jointembed.data.masks import encode_segmentation, is_finite_number, mask_area
from jointembed.errors import DataError

log = logging.getLogger(__name__)


def coco_detection(
    *, images: str, annotations: str, masks: bool = False, degenerate: Literal["refuse", "drop"] = "refuse"
) -> DetectionData:
    """Pictures in the order of "images"; of each its annotations in the order of "annotations".

    What is handled: a picture without objects (kept); crowds (kept, never trained on, ignored by the rules of
    scoring); id 0 and ids below, on which pycocotools miscounts (scoring numbers annotations anew); a missing
    `iscrowd` (0); a missing `area` (the mask's, else the box's); a box up to 1 px beyond the picture (cut off for
    training, scored as it is). Categories are numbered 1 .. K in the order of their ids.

    Args:
        images: folder that each `file_name` is in, such as `train2017`.
        annotations: the JSON file.
        masks: read the masks too; every object must then have one.
        degenerate: what becomes of boxes without area, of which COCO 2017 has a few: refused, or left out with one
            line in the log. Left out they are not asked for in scoring either.

    Raises:
        DataError: naming the file and the record: broken JSON or NaN, a missing or ill-typed key, a picture without
            width or height, an id that is there twice, an unknown category or picture, a box that is not finite, has
            a negative side or no area, or lies outside its picture, an area below 0, a broken mask.
    """
    drop = ("license", "coco_url", "flickr_url", "date_captured") + (() if masks else ("segmentation",))
    document = read_json(Path(annotations), drop=drop)
    pictures = _pictures(document, annotations)
    categories = _categories(document, annotations)
    labels = {category_id: label for label, category_id in enumerate(categories, 1)}
    seen: set[int] = set()
    dropped: list[str] = []
    for number, annotation in enumerate(field(document, "annotations", list, annotations)):
        where = f"{annotations}: annotations[{number}]"
        annotation_id = field(annotation, "id", int, where)
        where = f"{where} (id {annotation_id})"
        if annotation_id in seen:
            raise DataError(f"{where}: this id is there twice")
        seen.add(annotation_id)
        picture = pictures.get(field(annotation, "image_id", int, where))
        if picture is None:
            raise DataError(f"{where}: image_id {annotation['image_id']} is not among the images of the file")
        label = labels.get(field(annotation, "category_id", int, where))
        if label is None:
            raise DataError(f"{where}: category_id {annotation['category_id']} is not among the categories of the file")
        box = _box(annotation, where)
        if has_no_area(box) and degenerate == "drop":
            dropped.append(where)
            continue
        picture.rows.append(_row(annotation, box, label, picture, where, masks))
    if dropped:
        log.warning("%s: %d boxes without area left out, the first is %s", annotations, len(dropped), dropped[0])
    return from_rows(stem(annotations), images, list(pictures.values()), tuple(categories.values()), tuple(categories))


def _pictures(document: object, annotations: str) -> dict[int, PictureRow]:
    found: dict[int, PictureRow] = {}
    for number, image in enumerate(field(document, "images", list, annotations)):
        where = f"{annotations}: images[{number}]"
        image_id = field(image, "id", int, where)
        where = f"{where} (id {image_id})"
        if image_id in found:
            raise DataError(f"{where}: this id is there twice")
        width, height = (field(image, key, int, where) for key in ("width", "height"))
        if width < 1 or height < 1:
            raise DataError(f"{where}: its size is {width} x {height}")
        found[image_id] = PictureRow(str(image_id), field(image, "file_name", str, where), width, height)
    if not found:
        raise DataError(f"{annotations}: no image in it")
    return found


def _categories(document: object, annotations: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, category in enumerate(field(document, "categories", list, annotations)):
        where = f"{annotations}: categories[{number}]"
        category_id, name = field(category, "id", int, where), field(category, "name", str, where)
        if category_id in found or name in found.values():
            raise DataError(f"{where}: id {category_id} or name {name!r} is there twice")
        found[category_id] = name
    if not found:
        raise DataError(f"{annotations}: no category in it")
    return dict(sorted(found.items()))


def _box(annotation: dict[str, Any], where: str) -> list[float]:
    box = field(annotation, "bbox", list, where)
    if len(box) != 4 or not all(is_finite_number(value) for value in box):
        raise DataError(f"{where}: its box {box} is not four finite numbers: left, top, width, height")
    return [float(value) for value in box]


def _row(annotation: dict[str, Any], box: list[float], label: int, picture: PictureRow, where: str, masks: bool) -> Row:
    fault = box_fault(box, picture.width, picture.height)
    if fault is not None:
        raise DataError(f"{where}: {fault}")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: 'iscrowd' is {crowd!r}; expected 0 or 1")
    mask = None
    if masks:
        segmentation = field(annotation, "segmentation", object, where)
        mask = encode_segmentation(segmentation, picture.width, picture.height, where)
    area = annotation.get("area")
    if area is None:
        area = box[2] * box[3] if mask is None else mask_area(mask, picture.width, picture.height)
    elif not is_finite_number(area) or area < 0:
        raise DataError(f"{where}: 'area' is {area!r}; expected a number of pixels")
    return Row(box, label, float(area), annotation["id"], bool(crowd), mask=mask)

"""Pascal VOC detection: one XML file a picture, in the folders of VOCdevkit or in any two folders.

Format: Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010. VOC counts pixels from 1 and names the
last pixel inside, so the box 1 .. 10 has its left edge at 0 and its right edge at 10.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from jointembed.data.detection import DetectionData, box_fault, has_no_area
from jointembed.data.detection_rows import PictureRow, Row, from_rows
from jointembed.data.json_file import read_text
from jointembed.data.pictures import inside
from jointembed.errors import DataError

log = logging.getLogger(__name__)

VOC_CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
Degenerate = Literal["refuse", "drop"]


def voc_devkit(*, root: str, splits: list[str], degenerate: Degenerate = "refuse") -> DetectionData:
    """Splits of VOCdevkit, one after the other, with VOC's 20 categories.

    Args:
        root: the folder VOCdevkit, with `VOC2007/{JPEGImages,Annotations,ImageSets/Main}`.
        splits: year folder and list, such as `[VOC2007/trainval, VOC2012/trainval]`; `[VOC2007/test]`.
        degenerate: boxes without area are refused, or left out with one line in the log.

    Raises:
        DataError: naming the file and the object, as `voc_folder`.
    """
    pictures = []
    for split in splits:
        year, _, part = split.partition("/")
        if not year or not part:
            raise DataError(f"{split!r}: a split looks like VOC2007/trainval")
        lines = read_text(inside(Path(root), f"{year}/ImageSets/Main/{part}.txt")).split("\n")
        for name in filter(None, (line.strip() for line in lines)):
            path = inside(Path(root), f"{year}/Annotations/{name}.xml")
            pictures.append((path, f"{year}/JPEGImages/{name}.jpg"))
    rows = [_read(path, name, one_based=True) for path, name in pictures]
    return _assembled("+".join(splits), root, rows, VOC_CATEGORIES, degenerate)


def voc_folder(
    *,
    images: str,
    annotations: str,
    names: str | None = None,
    categories: list[str] | None = None,
    one_based: bool = True,
    degenerate: Degenerate = "refuse",
) -> DetectionData:
    """Pictures and VOC XML files in two folders.

    What is handled: a picture without objects (kept); `difficult` objects (trained on, left out by the VOC rule of
    scoring, ordinary ones by COCO's); a box up to 1 px beyond the picture (cut off for training, scored as it is).

    Args:
        images: folder that each `<filename>` is in.
        annotations: folder of XML files, read in the order of their names.
        names: text file of the XML files to read, without `.xml`, one a line; all of them where it is not given.
        categories: the names that may occur, in the order of their labels; those that occur, sorted, if not given.
        one_based: coordinates count pixels from 1, as VOC's do; false where they are plain lengths from 0.
        degenerate: boxes without area are refused, or left out with one line in the log.

    Raises:
        DataError: naming the file and the object: broken XML, a missing element, a picture without width or height,
            an unknown category, a coordinate that is not a finite number or is 0 where they count from 1, a box with
            a negative side or no area or outside its picture, a `difficult` other than 0 and 1.
    """
    folder = Path(annotations)
    if names is not None:
        stems = [line.strip() for line in read_text(Path(names)).split("\n") if line.strip()]
        paths = [inside(folder, f"{stem}.xml") for stem in stems]
    elif folder.is_dir():
        paths = sorted(folder.glob("*.xml"))
    else:
        raise DataError(f"{folder}: no such folder of annotations")
    rows = [_read(path, None, one_based=one_based) for path in paths]
    return _assembled(folder.name, images, rows, categories, degenerate)


Found = tuple[Path, PictureRow, list[tuple[str, str, Row]]]  # file, picture, its objects: place, category, row


def _assembled(
    name: str, images: str, found: Sequence[Found], categories: Sequence[str] | None, degenerate: Degenerate
) -> DetectionData:
    if not found:
        raise DataError(f"{name}: no annotation in it")
    known = tuple(categories or sorted({category for _, _, objects in found for _, category, _ in objects}))
    labels = {category: label for label, category in enumerate(known, 1)}
    dropped, number = [], 0
    for _, picture, objects in found:
        for where, category, row in objects:
            if category not in labels:
                raise DataError(f"{where}: category {category!r} is not among {', '.join(known)}")
            if has_no_area(row.box) and degenerate == "drop":
                dropped.append(where)
                continue
            fault = box_fault(row.box, picture.width, picture.height)
            if fault is not None:
                raise DataError(f"{where}: {fault}")
            number += 1
            row.label, row.number = labels[category], number
            picture.rows.append(row)
    if dropped:
        log.warning("%s: %d boxes without area left out, the first is %s", name, len(dropped), dropped[0])
    return from_rows(name, images, [picture for _, picture, _ in found], known, tuple(labels.values()))


def _read(path: Path, picture_name: str | None, *, one_based: bool) -> Found:
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: declares entities or a document type, which annotations do not need")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: broken XML ({error})") from None
    width, height = (_number(root, f"size/{side}", str(path)) for side in ("width", "height"))
    if not (width.is_integer() and height.is_integer() and width >= 1 and height >= 1):
        raise DataError(f"{path}: the picture's size is {width:g} x {height:g}")
    name = picture_name or _text(root, "filename", str(path))
    picture = PictureRow(path.stem if picture_name is None else name, name, int(width), int(height))
    objects = []
    for number, element in enumerate(root.findall("object")):
        where = f"{path}: object {number}"
        objects.append((where, _text(element, "name", where), _row(element, where, one_based)))
    return path, picture, objects


def _row(element: Element, where: str, one_based: bool) -> Row:
    left, top, right, bottom = (_number(element, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
    if one_based:
        if min(left, top) < 1:
            raise DataError(
                f"{where}: xmin {left:g}, ymin {top:g}, but VOC counts pixels from 1; set one_based: false if these "
                "annotations do not"
            )
        left, top = left - 1, top - 1
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"{where}: 'difficult' is {difficult!r}; expected 0 or 1")
    box = [left, top, right - left, bottom - top]
    return Row(box, 0, box[2] * box[3], 0, difficult=difficult == "1")


def _text(element: Element, path: str, where: str) -> str:
    value = (element.findtext(path) or "").strip()
    if not value:
        raise DataError(f"{where}: has no {path!r}")
    return value


def _number(element: Element, path: str, where: str) -> float:
    text = _text(element, path, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {path!r} is {text[:40]!r}; expected a finite number")
    return value

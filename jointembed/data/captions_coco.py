"""COCO captions as published: `captions_train2014.json` ... `captions_val2017.json`.

Format: Chen et al., Microsoft COCO Captions, arXiv 1504.00325; http://cocodataset.org/#format-data.
"""

import logging
from pathlib import Path

from jointembed.data.captions import Record, clean_caption, from_records, stem
from jointembed.data.json_file import field, read_json
from jointembed.data.records import CaptionData
from jointembed.errors import DataError

log = logging.getLogger(__name__)


def coco_captions(
    *,
    images: str,
    annotations: str,
    captions_per_picture: int | None = None,
    skip_uncaptioned: bool = False,
) -> CaptionData:
    """Pictures in the order of "images", their captions in the order of "annotations".

    Args:
        images: folder that each `file_name` is in, such as `train2017`.
        annotations: the JSON file.
        captions_per_picture: keep at most so many, the first ones; some pictures have 6 or 7.
        skip_uncaptioned: leave pictures without a caption out, with one line in the log, instead of refusing them.

    Raises:
        DataError: naming the file and the record: broken JSON, a missing or ill-typed key, an id that is there
            twice, a caption of an unknown picture, an empty caption, a picture without captions or without file.
    """
    document = read_json(Path(annotations), drop=("segmentation", "bbox", "license", "coco_url", "date_captured"))
    records = _pictures(document, annotations)
    seen: set[int] = set()
    for number, annotation in enumerate(field(document, "annotations", list, annotations)):
        where = f"{annotations}: annotations[{number}]"
        caption_id = field(annotation, "id", int, where)
        where = f"{where} (id {caption_id})"
        image_id = field(annotation, "image_id", int, where)
        if caption_id in seen:
            raise DataError(f"{where}: this id is there twice")
        if image_id not in records:
            raise DataError(f"{where}: image_id {image_id} is not among the images of the file")
        seen.add(caption_id)
        record = records[image_id]
        caption = field(annotation, "caption", object, where)
        record.captions.append(clean_caption(caption, f"{where} of picture {record.name!r}"))
        record.caption_ids.append(caption_id)
    kept = _captioned(list(records.values()), annotations, skip_uncaptioned)
    return from_records(stem(annotations), images, kept, captions_per_picture=captions_per_picture)


def _pictures(document: object, annotations: str) -> dict[int, Record]:
    records: dict[int, Record] = {}
    for number, image in enumerate(field(document, "images", list, annotations)):
        where = f"{annotations}: images[{number}]"
        image_id = field(image, "id", int, where)
        where = f"{where} (id {image_id})"
        if image_id in records:
            raise DataError(f"{where}: this id is there twice")
        records[image_id] = Record(str(image_id), field(image, "file_name", str, where))
    if not records:
        raise DataError(f"{annotations}: no image in it")
    return records


def _captioned(records: list[Record], annotations: str, skip: bool) -> list[Record]:
    kept = [record for record in records if record.captions]
    if len(kept) < len(records):
        first = next(record for record in records if not record.captions)
        count = f"{len(records) - len(kept)} of {len(records)} pictures have no caption, the first is {first.name!r}"
        if not skip:
            raise DataError(f"{annotations}: {count} (id {first.picture_id}); skip_uncaptioned leaves them out")
        log.warning("%s: %s; left out", annotations, count)
    return kept

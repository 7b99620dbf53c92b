"""What all readers of caption files share: the rules for one caption, and putting a data set together.

The readers: `captions_coco`, `captions_karpathy`, `captions_flickr`, `captions_table`; `hub` for `datasets`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jointembed.data.pictures import PictureFolder
from jointembed.data.records import CaptionData
from jointembed.errors import DataError


@dataclass
class Record:
    """One picture as a file describes it: its id, its name below the folder, its captions and their ids."""

    picture_id: str
    name: str
    captions: list[str] = field(default_factory=list)
    caption_ids: list[int] = field(default_factory=list)


def clean_caption(value: object, where: str) -> str:
    """A caption without the white space around it.

    Raises:
        DataError: beginning with `where`, for anything but text with something in it: None, a number, white space
            alone, a NUL character (it separates captions in fingerprints), or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: the caption is {type(value).__name__} {ascii(value)[:60]}; expected text")
    caption = value.strip()
    if not caption:
        raise DataError(f"{where}: the caption is empty")
    if "\0" in caption:
        raise DataError(f"{where}: the caption {ascii(caption)[:60]} holds a NUL character")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the caption {ascii(caption)[:60]} holds half of a surrogate pair") from None
    return caption


def row_captions(cells: Iterable[object], where: str) -> tuple[str, ...]:
    """The captions of one row, whose cells hold text or lists of text.

    Raises:
        DataError: beginning with `where`, for none, or what `clean_caption` refuses.
    """
    captions = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    if not captions:
        raise DataError(f"{where}: has no caption")
    return tuple(clean_caption(text, where) for text in captions)


def from_records(name: str, images: str, records: Sequence[Record], *, captions_per_picture: int | None) -> CaptionData:
    """Data set of pictures in a folder, one item a picture, in the order of the records.

    Args:
        name: name of the data set, in messages and reports.
        images: the folder that the records' names begin at.
        records: each with a caption.
        captions_per_picture: keep at most so many captions of a picture, the first ones.

    Raises:
        DataError: for no record at all; or naming the picture that is missing, lies outside the folder, or is there
            twice.
    """
    if captions_per_picture is not None and captions_per_picture < 1:
        raise DataError(f"{name}: captions_per_picture is {captions_per_picture}; expected 1 or more")
    numbered = all(len(record.caption_ids) == len(record.captions) for record in records)
    return CaptionData(
        name=name,
        pictures=PictureFolder(images, [record.name for record in records]),
        item=np.arange(len(records), dtype=np.int64),
        captions=tuple(tuple(record.captions[:captions_per_picture]) for record in records),
        picture_ids=tuple(record.picture_id for record in records),
        caption_ids=tuple(tuple(record.caption_ids[:captions_per_picture]) for record in records) if numbered else None,
    )


def stem(path: str) -> str:
    """File name without its last suffix, which names the data set."""
    return Path(path).stem or path

"""What the readers of detection files share: one annotation, one picture, and putting a data set together."""

from dataclasses import dataclass, field

import numpy as np

from jointembed.data.detection import DetectionData, Objects
from jointembed.data.pictures import PictureFolder


@dataclass
class Row:
    """One annotation: box as [left, top, width, height]."""

    box: list[float]
    label: int
    area: float
    number: int
    crowd: bool = False
    difficult: bool = False
    mask: bytes | None = None


@dataclass
class PictureRow:
    """One picture as a file describes it, with its annotations."""

    picture_id: str
    name: str
    width: int
    height: int
    rows: list[Row] = field(default_factory=list)


def from_rows(
    name: str, images: str, pictures: list[PictureRow], categories: tuple[str, ...], category_ids: tuple[int, ...]
) -> DetectionData:
    """Put a data set together. Raises DataError naming the picture that is missing or leads out of the folder."""
    return DetectionData(
        name=name,
        pictures=PictureFolder(images, [picture.name for picture in pictures]),
        sizes=np.array([(picture.width, picture.height) for picture in pictures], dtype=np.int64).reshape(-1, 2),
        categories=categories,
        category_ids=category_ids,
        objects=tuple(_objects(picture.rows) for picture in pictures),
        picture_ids=tuple(picture.picture_id for picture in pictures),
    )


def _objects(rows: list[Row]) -> Objects:
    masks = tuple(row.mask for row in rows if row.mask is not None)
    return Objects(
        xywh=np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowd=np.array([row.crowd for row in rows], dtype=bool),
        difficult=np.array([row.difficult for row in rows], dtype=bool),
        area=np.array([row.area for row in rows], dtype=np.float64),
        ids=np.array([row.number for row in rows], dtype=np.int64),
        masks=masks if masks else None,
    )

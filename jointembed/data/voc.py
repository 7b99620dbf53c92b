"""Which classes a picture shows, from a PASCAL VOC devkit: `ImageSets/Main/<class>_<split>.txt`.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf, section 4.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointembed.data.json_file import read_text
from jointembed.data.pictures import PictureFolder
from jointembed.data.records import ImageData
from jointembed.errors import DataError

_PRESENCE = {"1": 1, "-1": -1, "0": 0}


@dataclass(frozen=True, eq=False)
class Presence:
    """Pictures, and which classes each of them shows."""

    data: ImageData  # I pictures, without labels
    classes: tuple[str, ...]  # C
    presence: np.ndarray  # (I, C) int8: 1 shown, -1 not, 0 shown in difficult instances alone


def voc_presence(*, path: str, split: str) -> Presence:
    """Pictures and classes of a split, in the order of the files.

    Args:
        path: a year's folder, such as `VOCdevkit/VOC2007`, with `ImageSets/Main` and `JPEGImages` in it.
        split: `train`, `val`, `trainval` or `test`.

    Raises:
        DataError: naming the file and the line: none there, a line that is not an id and one of -1, 0, 1, an id that is
            there twice, classes that list different pictures, a picture that is missing.
    """
    folder = Path(path) / "ImageSets" / "Main"
    files = sorted(folder.glob(f"*_{split}.txt"))
    if not files:
        raise DataError(f"{folder}: no file of a class such as aeroplane_{split}.txt")
    columns = [_read(file) for file in files]
    ids = list(columns[0])
    for file, column in zip(files, columns, strict=True):
        if list(column) != ids:
            odd = sorted(set(column) ^ set(ids))
            what = f"{odd[0]!r} is listed in one of them alone" if odd else "in another order"
            raise DataError(f"{file}: does not list the pictures of {files[0].name} ({what})")
    pictures = PictureFolder(Path(path) / "JPEGImages", [f"{one}.jpg" for one in ids])
    return Presence(
        data=ImageData(f"{Path(path).name}-{split}", pictures, labels=None, classes=None, picture_ids=tuple(ids)),
        classes=tuple(file.stem.removesuffix(f"_{split}") for file in files),
        presence=np.array([list(column.values()) for column in columns], dtype=np.int8).T.copy(),
    )


def _read(file: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in _PRESENCE:
            raise DataError(f"{file}: line {number} is {ascii(line)[:60]}; expected an id and one of 1, 0, -1")
        if words[0] in found:
            raise DataError(f"{file}: line {number}: {words[0]!r} is listed already")
        found[words[0]] = _PRESENCE[words[1]]
    if not found:
        raise DataError(f"{file}: no picture in it")
    return found

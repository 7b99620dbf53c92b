"""Pictures in the ImageFolder layout: one folder a class, or no classes at all; a directory, a zip or a tar.

The layout of torchvision's `ImageFolder`: the class of a picture is the first folder of its path, at whatever depth it
lies, and classes are numbered in the order of their names.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointembed.data.pictures import PictureFolder, inside
from jointembed.data.records import ImageData, Pictures
from jointembed.data.shards import SUFFIXES, PictureTar, PictureZip
from jointembed.data.subsets import PicturePart, choose
from jointembed.errors import DataError

log = logging.getLogger(__name__)

_SPLITS = {"train", "val", "valid", "validation", "test"}


def image_folder(
    *,
    path: str,
    split: str | None = None,
    labels: bool = True,
    subset: str | None = None,
    fraction: float | None = None,
    subset_seed: int = 0,
) -> ImageData:
    """Pictures by name, class after class.

    Hidden files and what macOS adds to archives are passed over; other files that are no pictures are counted in one
    line of the log. Nothing of an archive is unpacked. A single folder around everything in an archive is stepped into.

    Args:
        path: a directory, a `.zip`, or an uncompressed `.tar`.
        split: the folder in it to read, such as `train`.
        labels: whether folders are classes; without, pictures are taken at any depth, and one flat folder will do.
        subset: text file of the pictures to keep, one file name a line, such as ImageNet's `1percent.txt`.
        fraction: share of each class to keep, chosen by `subset_seed`; see `jointembed.data.subsets.choose`.
        subset_seed: of the fraction.

    Raises:
        DataError: naming the file or folder: none there, a picture in no class folder, a class without a picture,
            splits taken for classes, a link, a name that leads out of the archive, a member that is there twice.
    """
    tree = _read_tree(Path(path), split)
    base = _base(tree, split)
    below = {name.removeprefix(base): name for name in tree.pictures if name.startswith(base)}
    ids = sorted(below, key=lambda name: name.split("/"))
    label = f"{tree.label}/{split}" if split else tree.label
    if not ids:
        raise DataError(f"{label}: no picture in it ({', '.join(SUFFIXES)})")
    heads = {one.split("/")[0] for one in ids}
    if heads <= _SPLITS:
        raise DataError(f"{label}: holds {', '.join(sorted(heads))}, which are splits; say which one with split")
    others = [name for name in tree.others if name.startswith(base)]
    if others:
        log.warning("%s: left out %d files that are no pictures, the first is %r", label, len(others), others[0])
    classes = _classes(ids, _folders_below(tree, base), label) if labels else None
    number = {name: position for position, name in enumerate(classes or ())}
    data = ImageData(
        name=f"{Path(path).stem}-{split}" if split else Path(path).stem,
        pictures=tree.take([below[one] for one in ids]),
        labels=np.array([number[one.split("/")[0]] for one in ids], dtype=np.int64) if labels else None,
        classes=classes,
        picture_ids=tuple(ids),
    )
    return choose(data, subset=subset, fraction=fraction, subset_seed=subset_seed)


@dataclass(frozen=True)
class _Tree:
    """All names in a directory or an archive, with `/` between folders."""

    label: str
    pictures: Sequence[str]
    others: Sequence[str]
    folders: Collection[str]  # those that have an entry of their own
    take: Callable[[Sequence[str]], Pictures]
    wrapped: bool  # whether a single folder around everything may be stepped into


def _read_tree(path: Path, split: str | None) -> _Tree:
    if path.is_dir():
        return _read_directory(path, split)
    if path.suffix not in (".zip", ".tar"):
        kind = "no such folder" if not path.exists() else "not a folder"
        raise DataError(f"{path}: {kind}; expected a folder, a .zip or an uncompressed .tar")
    archive = PictureZip(path) if path.suffix == ".zip" else PictureTar(path)

    def take(names: Sequence[str]) -> Pictures:
        position = {name: number for number, name in enumerate(archive.names)}
        return PicturePart(archive, [position[name] for name in names])

    pictures, others, folders = (
        [name for name in names if not _is_hidden(name)]
        for names in (archive.names, archive.other_names, sorted(archive.folders))
    )
    return _Tree(str(path), pictures, others, folders, take, wrapped=True)


def _read_directory(root: Path, split: str | None) -> _Tree:
    if split and not inside(root, split).is_dir():
        raise DataError(f"{root / split}: no such folder")
    pictures, others, folders = [], [], []
    pending = [f"{split}/" if split else ""]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{root / folder}: cannot be read ({error.strerror})") from None
        for entry in entries:
            name = f"{folder}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.is_symlink():
                    raise DataError(f"{entry.path}: a link to a folder; expected plain folders")
                folders.append(name)
                pending.append(f"{name}/")
            elif entry.name.lower().endswith(SUFFIXES):
                pictures.append(name)
            else:
                others.append(name)
    return _Tree(str(root), pictures, others, folders, lambda names: PictureFolder(root, names), wrapped=False)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _base(tree: _Tree, split: str | None) -> str:
    """What the name of every picture of the split begins with, its last `/` included; "" for all names."""
    base = ""
    while True:
        if split and any(name.startswith(f"{base}{split}/") for name in tree.pictures):
            return f"{base}{split}/"
        below = [name.removeprefix(base) for name in tree.pictures]
        heads = sorted({name.split("/")[0] for name in below})
        depth = min((name.count("/") for name in below), default=0)
        if tree.wrapped and len(heads) == 1 and depth > (0 if split else 1):
            base = f"{base}{heads[0]}/"
        elif split:
            known = ", ".join(map(repr, heads[:12])) or "no picture at all"
            raise DataError(f"{tree.label}: no folder {split!r} with pictures in it; found {known}")
        else:
            return base


def _folders_below(tree: _Tree, base: str) -> set[str]:
    """Names of the folders right below the base that anything is said of, pictures in them or not."""
    inside_of = [name.removeprefix(base) for name in (*tree.pictures, *tree.others) if name.startswith(base)]
    found = {name.split("/")[0] for name in inside_of if "/" in name}
    return found | {name.removeprefix(base).split("/")[0] for name in tree.folders if name.startswith(base)} - {""}


def _classes(ids: Sequence[str], folders: set[str], label: str) -> tuple[str, ...]:
    loose = next((one for one in ids if "/" not in one), None)
    if loose is not None:
        raise DataError(f"{label}/{loose}: lies in no class folder; labels: false reads pictures without classes")
    held = {one.split("/")[0] for one in ids}
    empty = sorted(folders - held)
    if empty:
        raise DataError(f"{label}/{empty[0]}: a class without a picture ({len(empty)} of {len(folders)} such folders)")
    return tuple(sorted(held))

"""Pictures and labels in tar shards, as WebDataset lays them out: `000123.jpg`, beside it `000123.cls` or `.json`."""

from pathlib import Path
from typing import Literal

import numpy as np

from jointembed.data.json_file import parse_json, read_text
from jointembed.data.labels import number_labels
from jointembed.data.records import ImageData
from jointembed.data.shards import PictureTar, member_key
from jointembed.data.subsets import choose
from jointembed.errors import DataError


def image_shards(
    *,
    path: str | list[str],
    labels: Literal["cls", "json"] | None = "cls",
    json_key: str = "label",
    classes: str | None = None,
    subset: str | None = None,
    fraction: float | None = None,
    subset_seed: int = 0,
) -> ImageData:
    """Pictures in the order of the shards. Shards are indexed once and read by offset, nothing is unpacked.

    Args:
        path: an uncompressed `.tar`, a folder of them (taken by name), or a list of them.
        labels: a file beside each picture, `KEY.cls` with the label as text or `KEY.json` with it under `json_key`;
            the key of a member is its path up to the first dot of the file name. None reads pictures alone.
        json_key: of the label.
        classes: text file with the name of one class a line, with labels alone; see
            `jointembed.data.labels.number_labels`.
        subset: text file of the pictures to keep; see `jointembed.data.subsets.choose`, for the next two as well.
        fraction: share of each class to keep.
        subset_seed: of the fraction.

    Raises:
        DataError: naming shard and member: what `PictureTar` refuses, a picture without a label, two pictures of one
            key, a label that is no class, a class without a picture. Or naming `classes`, where there are no labels.
    """
    if classes and not labels:
        raise DataError(f"{classes}: names of classes for pictures without labels; leave out classes, or set labels")
    shards = _shards(path)
    name = Path(path).stem if isinstance(path, str) else f"{shards[0].stem} and {len(shards) - 1} shards more"
    archive = PictureTar(shards)
    if not len(archive):
        raise DataError(f"{path}: no picture in it")
    numbers: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    if labels:
        found = _labels(archive, labels, json_key, str(shards[0].parent))
        listed = [line.strip() for line in read_text(Path(classes)).splitlines() if line.strip()] if classes else None
        numbers, names = number_labels(found, listed, source=str(shards[0].parent), pictures=archive.names)
    data = ImageData(name, archive, numbers, names, picture_ids=tuple(archive.names))
    return choose(data, subset=subset, fraction=fraction, subset_seed=subset_seed)


def _shards(path: str | list[str]) -> list[Path]:
    if not isinstance(path, str):
        shards = [Path(one) for one in path]
    else:
        shards = sorted(Path(path).glob("*.tar")) if Path(path).is_dir() else [Path(path)]
    if not shards:
        raise DataError(f"{path}: no .tar in it")
    return shards


def _labels(archive: PictureTar, kind: str, json_key: str, source: str) -> list[str]:
    """Of each picture, as text."""
    beside = {member_key(other): other for other in archive.other_names if other.endswith(f".{kind}")}
    found: list[str] = []
    owner: dict[str, str] = {}
    for picture in archive.names:
        key = member_key(picture)
        if owner.setdefault(key, picture) != picture:
            raise DataError(f"{source}: {picture!r} and {owner[key]!r} are pictures of one key, {key!r}")
        if key not in beside:
            raise DataError(f"{source}: {picture!r} has no {key + '.' + kind!r} beside it; labels: null does without")
        where = f"{source}: {beside[key]}"
        try:
            text = archive.read_other(beside[key]).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text ({error.reason})") from None
        found.append(_label(parse_json(text, where), json_key, where) if kind == "json" else text.strip())
        if not found[-1]:
            raise DataError(f"{where}: no label in it")
    return found


def _label(record: object, key: str, where: str) -> str:
    value = record.get(key) if isinstance(record, dict) else record
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{where}: the label under {key!r} is {ascii(value)[:60]}; expected a whole number or a name")
    return str(value).strip()

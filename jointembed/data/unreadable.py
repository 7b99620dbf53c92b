"""Training pictures that cannot be read: found once before the first step, left out up to a limit, and listed.

Every picture is decoded once, by all ranks and their worker processes together, and what was found is kept in the cache
under the data set's fingerprint. So the data of a run, and with it the order of its samples, is settled before it
begins and is the same after a resume, unless a picture on the list has been mended.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset

from jointembed import distributed
from jointembed.data.loader_workers import in_order, worker_faults
from jointembed.data.records import CaptionData, ImageData, Pictures
from jointembed.data.subsets import PicturePart
from jointembed.errors import DataError

log = logging.getLogger(__name__)
_AT_ONCE = 64  # pictures a worker is given
D = TypeVar("D", CaptionData, ImageData)


def readable(data: D, limit: float, *, workers: int, folder: Path) -> D:
    """The data set without the pictures that cannot be read, which its `skipped` then lists; every rank calls it.

    Args:
        data: the data set.
        limit: greatest share of its pictures that may be left out, 0 to 1.
        workers: processes that decode, on each rank.
        folder: the cache.

    Raises:
        DataError: naming the first of them, where there are more than the limit allows, or a class would lose all of
            its pictures.
    """
    found = unreadable(data.pictures, data.fingerprint, workers=workers, folder=folder)
    if not found:
        return data
    count, total = len(found), len(data.pictures)
    said = f"{data.name}: {count} of {total} pictures cannot be read"
    if count > limit * total:
        raise DataError(
            f"{said}, data.skip_unreadable: {limit:g} allows {int(limit * total)}; "
            f"the first: {next(iter(found.values()))}"
        )
    log.warning("%s and are left out; the run's skipped.jsonl names them", said)
    kept = np.array([number for number in range(total) if number not in found], dtype=np.int64)
    skipped = tuple((data.pictures.names[number], reason) for number, reason in found.items())
    pictures = PicturePart(data.pictures, kept.tolist())
    ids = tuple(data.picture_ids[number] for number in kept)
    if isinstance(data, ImageData):
        labels = None if data.labels is None else data.labels[kept]
        if data.labels is not None and data.classes is not None and labels is not None:
            lost = set(data.labels.tolist()) - set(labels.tolist())
            if lost:
                raise DataError(f"{said}, among them all of the class {data.classes[min(lost)]!r}")
        changes: dict[str, Any] = {"labels": labels}  # a type checker sees both kinds of data here
        return replace(data, pictures=pictures, picture_ids=ids, skipped=skipped, **changes)
    items, item = np.unique(data.item[kept], return_inverse=True)  # one that no picture shows any more has no captions
    return replace(
        data,
        pictures=pictures,
        item=item.astype(np.int64),
        captions=tuple(data.captions[one] for one in items),
        picture_ids=ids,
        caption_ids=None if data.caption_ids is None else tuple(data.caption_ids[one] for one in items),
        skipped=skipped,
    )


@worker_faults()
def unreadable(pictures: Pictures, fingerprint: str, *, workers: int, folder: Path) -> dict[int, str]:
    """Number and reason of every picture that cannot be read, ascending.

    All are decoded the first time; later those alone that were found then: a file may have been mended since.

    Raises:
        DataError: a cache file that cannot be written, or not be read; delete it.
    """
    key = f"{fingerprint}{getattr(pictures, 'rate', '')}"  # a sound of another rate than the recipe's is none
    path = folder / f"unreadable-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        stored = distributed.broadcast_object(path.read_bytes() if distributed.is_main() and path.is_file() else None)
        known = None if stored is None else {int(number): str(reason) for number, reason in json.loads(stored)}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: the list of unreadable pictures cannot be read ({error}); delete the file") from None
    own = (range(len(pictures)) if known is None else sorted(known))[distributed.rank() :: distributed.world()]
    loader = in_order(
        _Reasons(pictures, own),
        batch=_AT_ONCE,
        workers=workers if known is None else 0,
        name=partial(_name_of, pictures, own),
        collate=_joined,
    )
    found = dict(sorted(_joined(distributed.gather_objects(_joined(list(loader)))).items()))
    if distributed.is_main() and found != known:
        part_file = path.with_suffix(f".{os.getpid()}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part_file.write_text(json.dumps(list(found.items())), encoding="utf-8")
            part_file.replace(path)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path}: the list cannot be written ({reason}); set JOINTEMBED_CACHE") from None
    return found


def write_skipped(path: Path, skipped: tuple[tuple[str, str], ...]) -> None:
    """Write `skipped.jsonl`: a line a picture that was left out, with its name and the reason."""
    lines = [json.dumps({"picture": name, "reason": reason}) + "\n" for name, reason in skipped]
    path.write_text("".join(lines), encoding="utf-8")


def _name_of(pictures: Pictures, own: Sequence[int], place: int) -> str:
    return pictures.names[own[place]]


class _Reasons(Dataset[dict[int, str]]):
    """Why a picture cannot be read, for those that cannot."""

    def __init__(self, pictures: Pictures, numbers: Sequence[int]) -> None:
        self.pictures, self.numbers = pictures, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> dict[int, str]:
        number = self.numbers[place]
        try:
            self.pictures.open(number)
        except DataError as error:
            return {number: str(error)}
        return {}


def _joined(parts: list[dict[int, str]]) -> dict[int, str]:
    return {number: reason for part in parts for number, reason in part.items()}

"""Captioned pictures in tar shards of the WebDataset layout, read in place and far too many to unpack.

The members of one sample follow one another and share their path up to the first dot of its last part, the key:
`000012.jpg`, `000012.json`. Each shard is indexed once, by its headers; the index is kept beside it as JSON.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from jointembed.data.captions import clean_caption
from jointembed.data.json_file import parse_json, read_json
from jointembed.data.order import Layout
from jointembed.data.pictures import open_picture, stamp
from jointembed.data.records import CaptionData
from jointembed.data.shards import MAX_BYTES, Member, index_tar, is_picture, member_key
from jointembed.errors import DataError

FORMAT = 1
MANIFEST = "shards.json"  # what scripts/make_shards.py leaves: names, bytes and SHA-256 of a folder's shards
logger = logging.getLogger(__name__)


class ShardIndex(NamedTuple):
    """The samples of one shard, in their order."""

    pictures: tuple[str, ...]  # names of the members
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]  # bytes
    captions: tuple[tuple[str, ...], ...]


def caption_shards(
    *,
    shards: str,
    captions: Literal["json", "txt"] = "json",
    caption_key: str = "captions",
    window: int = 4096,
    interleave: int = 8,
) -> CaptionData:
    """Pictures in the order of the shards, one item a picture.

    Args:
        shards: a folder, all of whose `.tar` files are read in the order of their names (and checked against
            `shards.json` where that is there); one `.tar` file; or names with a range, `data/train-{000..127}.tar`.
        captions: the member that holds them: `json`, an object with a text or a list of texts under `caption_key`;
            or `txt`, one caption a line.
        caption_key: of the JSON object.
        window: training samples that are shuffled among each other.
        interleave: shards that training reads at once.

    Raises:
        DataError: naming shard and member: no shard, a shard that is missing or damaged, a sample without picture
            or captions, a key that is there twice, an empty caption.
    """
    paths = shard_paths(shards)
    found = [shard_index(path, captions, caption_key) for path in paths]
    layout = Layout(tuple(len(one.pictures) for one in found), window, interleave)
    pictures = ShardPictures(paths, found, layout)
    return CaptionData(
        name=Path(shards).name or shards,
        pictures=pictures,
        item=np.arange(len(pictures), dtype=np.int64),
        captions=tuple(one for index in found for one in index.captions),
        picture_ids=tuple(pictures.names),
    )


class ShardPictures:
    """Pictures in tar shards by number; may be pickled, forked and shared by threads."""

    def __init__(self, paths: Sequence[Path], indexes: Sequence[ShardIndex], layout: Layout) -> None:
        """Join the indexes of the shards."""
        self.paths, self.layout = tuple(paths), layout
        self.names: Sequence[str] = tuple(
            f"{path.name}/{name}" for path, index in zip(paths, indexes, strict=True) for name in index.pictures
        )
        self._offsets = np.array([offset for index in indexes for offset in index.offsets], dtype=np.int64)
        self._sizes = np.array([size for index in indexes for size in index.sizes], dtype=np.int64)
        self._ends = np.cumsum(layout.sizes)
        self._changed = [path.stat().st_mtime_ns for path in paths]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB. Raises DataError naming shard and member."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        path = self.paths[shard]
        label = f"{path}: {self.names[number].removeprefix(path.name + '/')}"
        place = int(self._offsets[number]), int(self._sizes[number])
        return open_picture(_read(path, self._changed[shard], *place, label), name=label)

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture."""
        return self._sizes.tolist()

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change of each shard."""
        return [stamp(path) for path in self.paths]


@lru_cache(maxsize=64)  # open files; one that is dropped here closes when its last reader lets go
def _opened(path: Path, changed: int) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _read(path: Path, changed: int, offset: int, size: int, label: str) -> bytes:
    """Bytes of the shard as it was at its change time in nanoseconds."""
    try:  # at a place of its own, so that forks and threads may share the file
        data = os.pread(_opened(path, changed).fileno(), size, offset)
    except FileNotFoundError:
        raise DataError(f"{label}: the shard is gone") from None
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error})") from None
    if len(data) < size:
        raise DataError(f"{label}: {len(data)} of {size} bytes; the shard was cut short since it was indexed")
    return data


def shard_paths(shards: str) -> list[Path]:
    """The shards that a folder, a file name or a name with one range stands for.

    Raises:
        DataError: for none, or one that a range or the folder's manifest names and that is not there.
    """
    place = Path(shards)
    span = re.search(r"\{(\d+)\.\.(\d+)\}", shards)
    if span is not None:
        numbers = range(int(span[1]), int(span[2]) + 1)
        paths = [Path(f"{shards[: span.start()]}{n:0{len(span[1])}d}{shards[span.end() :]}") for n in numbers]
    elif place.is_dir():
        paths = sorted(place.glob("*.tar"))
        if (place / MANIFEST).is_file():
            _check_manifest(place, paths)
    else:
        paths = [place]
    if not paths:
        raise DataError(f"{shards}: no .tar shard there")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such shard")
    return paths


def _check_manifest(folder: Path, paths: Sequence[Path]) -> None:
    document = read_json(folder / MANIFEST)
    try:
        listed = {str(one["name"]): int(one["bytes"]) for one in document["shards"]}
        complete = bool(document["complete"])
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{folder / MANIFEST}: not the manifest of a folder of shards") from None
    if not complete:
        raise DataError(f"{folder}: its shards are unfinished; run scripts/make_shards.py again to finish them")
    there = {path.name: path.stat().st_size for path in paths}
    for name in sorted(set(listed) | set(there)):
        if name not in there:
            raise DataError(f"{folder / name}: no such shard, but {MANIFEST} lists it")
        if name not in listed:
            raise DataError(f"{folder / name}: not one of the shards that {MANIFEST} lists")
        if listed[name] != there[name]:
            raise DataError(f"{folder / name}: {there[name]} bytes, {MANIFEST} says {listed[name]}")


def shard_index(path: Path, captions: Literal["json", "txt"], caption_key: str) -> ShardIndex:
    """The index of one shard: as it is stored beside it, or made and stored, where the folder can be written to.

    Raises:
        DataError: as `caption_shards`.
    """
    stored = path.with_name(f"{path.name}.{captions}.index.json")
    status = path.stat()
    made_of = {
        "format": FORMAT,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "caption_key": caption_key if captions == "json" else None,
    }
    known = _stored_index(stored, made_of)
    if known is not None:
        return known
    index = _make_index(path, captions, caption_key)
    part = stored.with_name(f".{stored.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(made_of | index._asdict(), ensure_ascii=False), encoding="utf-8")
        part.replace(stored)
    except OSError as error:
        logger.info("%s: cannot be written (%s); the shard is indexed again next time", stored, error.strerror)
    return index


def _stored_index(path: Path, made_of: dict[str, Any]) -> ShardIndex | None:
    """A stored index that still belongs to its shard; it can always be made again, so anything else is None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or any(found.get(key) != value for key, value in made_of.items()):
            return None
        columns = [found[name] for name in ShardIndex._fields]
        if len({len(column) for column in columns}) != 1:
            return None
        pictures, offsets, sizes, texts = map(tuple, columns)
        known = ShardIndex(pictures, offsets, sizes, tuple(map(tuple, texts)))
        return known if _is_sound(known, made_of["bytes"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_sound(index: ShardIndex, size: int) -> bool:
    """Whether an index holds what one holds, in a shard of that many bytes."""
    return (
        len(set(index.pictures)) == len(index.pictures) > 0
        and all(isinstance(name, str) for name in index.pictures)
        and all(type(one) is int and 0 <= one <= size for one in (*index.offsets, *index.sizes))
        and all(one and all(isinstance(text, str) and text.strip() for text in one) for one in index.captions)
    )


def _make_index(path: Path, captions: Literal["json", "txt"], caption_key: str) -> ShardIndex:
    members, _ = index_tar(path)
    rows: list[tuple[str, int, int, tuple[str, ...]]] = []
    seen: set[str] = set()
    for key, group in groupby(members, key=lambda entry: member_key(entry[0])):
        if key in seen:
            raise DataError(f"{path}: the key {key!r} is there twice, with other samples between")
        seen.add(key)
        rows.append(_sample(path, key, dict(group), captions, caption_key))
    if not rows:
        raise DataError(f"{path}: no sample in it")
    names, offsets, sizes, texts = zip(*rows, strict=True)
    return ShardIndex(names, offsets, sizes, texts)


def _sample(
    path: Path, key: str, members: dict[str, Member], captions: str, caption_key: str
) -> tuple[str, int, int, tuple[str, ...]]:
    pictures = [name for name in members if is_picture(name)]
    if len(pictures) != 1:
        raise DataError(f"{path}: {key!r} has {len(pictures)} pictures among {', '.join(members)}; expected one")
    words = members.get(f"{key}.{captions}")
    if words is None:
        raise DataError(f"{path}: no member {f'{key}.{captions}'!r} with captions; there are {', '.join(members)}")
    picture = members[pictures[0]]
    for name, size in ((pictures[0], picture.size), (words.stored, words.size)):
        if size > MAX_BYTES:
            raise DataError(f"{path}: {name!r} has {size} bytes; at most {MAX_BYTES} are read")
    where = f"{path}: {words.stored}"
    data = _read(path, path.stat().st_mtime_ns, words.offset, words.size, where)
    texts = _texts(data, where, captions, caption_key)
    return pictures[0], picture.offset, picture.size, texts


def _texts(data: bytes, where: str, captions: str, caption_key: str) -> tuple[str, ...]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}: {error.reason})") from None
    found: object = [line for line in text.splitlines() if line.strip()]
    if captions == "json":
        record = parse_json(text, where)
        if not isinstance(record, dict) or caption_key not in record:
            keys = ", ".join(map(repr, record)) if isinstance(record, dict) else "none: it is no object"
            raise DataError(f"{where}: has no {caption_key!r}; its keys are {keys}")
        found = record[caption_key] if isinstance(record[caption_key], list) else [record[caption_key]]
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: has no caption")
    return tuple(clean_caption(one, where) for one in found)

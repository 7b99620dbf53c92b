"""What `jointembed embed` reads, cut into input shards: folders of pictures, tar shards, texts, parquet, the emoji.

A source knows its number of shards and a fingerprint without decoding anything, and opens one shard at a time, so a
worker holds one shard however large the whole is.
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from jointembed.data.captions import clean_caption
from jointembed.data.emoji import emoji
from jointembed.data.pictures import open_picture
from jointembed.data.shards import SUFFIXES, PictureTar
from jointembed.errors import DataError
from jointembed.inference.places import emoji_place, tar_place

Modality = Literal["image", "text"]
EMOJI_SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("text", "caption")  # looked for where none is named


@dataclass(frozen=True)
class Records:
    """One input shard, opened: N inputs that can be read by number, each of which may turn out to be bad."""

    ids: Sequence[str]  # N, unique in the whole source
    paths: Sequence[str | None]  # N places, None for texts
    read: Callable[[int], Any]  # a picture or a text; raises DataError naming it


class Source(Protocol):
    """Inputs in shards."""

    @property
    def modality(self) -> Modality:
        """Pictures or texts."""
        ...

    @property
    def name(self) -> str:
        """Where it is."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what tells whether it has changed."""
        ...

    def __len__(self) -> int:
        """Number of shards."""
        ...

    def records(self, shard: int) -> Records:
        """Open one shard. Raises DataError."""
        ...


def open_source(
    data: str,
    *,
    modality: Modality | None = None,
    shard_size: int = 10_000,
    column: str | None = None,
    id_column: str | None = None,
) -> Source:
    """Find out what `data` is, and cut it into shards.

    Args:
        data: a folder of pictures, read recursively in sorted order; a `.txt` file, a text a line; a `.csv`, `.tsv`
            or `.jsonl` with a column of texts; a `.tar` shard, or a folder or pattern of them (WebDataset layout);
            a `.parquet` file, or a folder or pattern of them; `emoji` or `emoji:test`.
        modality: what to read where there is a choice: the pictures or the `.txt` members of tar shards, the columns
            of a parquet, pictures or captions of the emoji. None: pictures where there are any.
        shard_size: inputs a shard; a tar archive is one shard whatever its size.
        column: of the texts or pictures, in files that have columns.
        id_column: of the ids; ids are numbers without one.

    Raises:
        DataError: naming the file or folder.
    """
    if shard_size < 1:
        raise DataError(f"shard size {shard_size}; expected 1 or more")
    name, _, split = data.partition(":")
    if name == "emoji" and not Path(data).exists():
        return Emoji(split, modality or "image", shard_size)
    files = _files(data)
    kind = _kind(data, files)
    if kind == "pictures" and modality != "text":
        return PictureFiles(Path(data), files, shard_size)
    if kind == "tar":
        return TarShards(Path(data), files, modality or "image")
    if kind == "parquet":
        from jointembed.inference.inputs_parquet import ParquetFiles

        return ParquetFiles(_named(Path(data), files), data, modality, shard_size, column, id_column)
    if kind == "texts" and modality != "image":
        from jointembed.inference.inputs_text import TextFile

        return TextFile(files[0], shard_size, column, id_column)
    wanted = {"image": "pictures", "text": "texts", None: "inputs"}[modality]
    raise DataError(f"{data}: holds {kind}; expected {wanted}")


def _files(data: str) -> list[Path]:
    """The files of a folder, sorted by their relative path; those of a pattern, sorted; or the one file."""
    path = Path(data)
    if path.is_dir():
        return sorted(_walk(path, {path.resolve()}), key=lambda one: one.relative_to(path).as_posix())
    if path.exists():
        return [path]
    if glob.has_magic(data):
        return sorted(Path(one) for one in glob.glob(data, recursive=True))
    raise DataError(f"{data}: no such file or folder")


def _walk(folder: Path, above: set[Path]) -> Iterable[Path]:
    """Files below a folder but hidden ones; links are followed, unless in a circle."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if not entry.is_dir():
            yield path
        elif not entry.is_symlink() or path.resolve() not in above:
            yield from _walk(path, above | {path.resolve()})


_KINDS = {".tar": "tar", ".parquet": "parquet", ".txt": "texts", ".csv": "texts", ".tsv": "texts", ".jsonl": "texts"}


def _kind(data: str, files: list[Path]) -> str:
    """The one kind of file that is there; `files` keeps the files of that kind alone."""
    if Path(data).is_file():
        kinds = {_KINDS.get(files[0].suffix.lower())}
        if None in kinds:
            raise DataError(f"{data}: expected a folder of pictures, or a file in {', '.join(_KINDS)}")
    else:
        found = {path: "pictures" if _is_picture(path) else _KINDS.get(path.suffix.lower()) for path in files}
        kinds = set(found.values()) & {"pictures", "tar", "parquet"}  # a folder of pictures may have notes in it
        if not kinds:
            raise DataError(f"{data}: no picture, tar shard or parquet file there")
        if len(kinds) > 1:
            raise DataError(
                f"{data}: holds {' and '.join(sorted(filter(None, kinds)))}; give a folder or pattern of one"
            )
        files[:] = [path for path, kind in found.items() if kind in kinds]
        if "pictures" in kinds and not Path(data).is_dir():
            raise DataError(f"{data}: a pattern of pictures; give their folder")
    return str(kinds.pop())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def sizes_digest(names: Iterable[str], sizes: Iterable[int]) -> str:
    """SHA-256 of names and sizes."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def part(sequence: Sequence[Any], shard: int, size: int) -> Sequence[Any]:
    """What of a sequence belongs to one shard."""
    return sequence[shard * size : (shard + 1) * size]


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none, which opening it will say."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class PictureFiles:
    """Pictures of a folder, by their relative names."""

    modality: Modality = "image"

    def __init__(self, root: Path, files: Sequence[Path], size: int) -> None:
        """Look at every file's size."""
        self.root, self.size, self.name = root.absolute(), size, root.absolute().as_posix()
        self.names = [path.relative_to(root).as_posix() for path in files]
        for name in self.names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"{root}: the file name {ascii(name)} is not valid Unicode") from None
        self.fingerprint = sizes_digest(self.names, map(_size, files))

    def __len__(self) -> int:
        """Number of shards."""
        return -(-len(self.names) // self.size)

    def records(self, shard: int) -> Records:
        """One shard."""
        names = part(self.names, shard, self.size)
        return Records(names, [f"{self.name}/{name}" for name in names], partial(_open_file, self.root, names))


def _open_file(root: Path, names: Sequence[str], number: int) -> Image.Image:
    return open_picture(root / names[number])


class TarShards:
    """Tar archives, each of which is a shard: their pictures, or the texts in their `.txt` members."""

    def __init__(self, data: Path, files: Sequence[Path], modality: Modality) -> None:
        """Look at the size of every archive; none is opened."""
        self.modality, self.name = modality, data.absolute().as_posix()
        self.files = _named(data, files)
        self.fingerprint = sizes_digest([*self.files, modality], [*map(_size, files), 0])

    def __len__(self) -> int:
        """Number of archives."""
        return len(self.files)

    def records(self, shard: int) -> Records:
        """Index one archive."""
        name, path = list(self.files.items())[shard]
        archive = PictureTar(path)
        if self.modality == "image":
            members = archive.names
            paths: list[str | None] = [tar_place(path, member) for member in members]
            return Records([f"{name}/{member}" for member in members], paths, archive.open)
        texts = [member for member in archive.other_names if member.endswith(".txt")]
        return Records(
            [f"{name}/{member}" for member in texts], [None] * len(texts), partial(_read_text, archive, path, texts)
        )


def _named(data: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The files under their paths below the folder they have in common, without the suffix.

    Raises:
        DataError: naming two files that differ in the suffix alone, as `a.tar` and `a.TAR`.
    """
    folder = data if data.is_dir() else Path(os.path.commonpath([path.parent for path in files]))
    named: dict[str, Path] = {}
    for path in files:
        other = named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise DataError(f"{other} and {path}: their rows would have the same ids; rename one of them")
    return named


def _read_text(archive: PictureTar, path: Path, members: Sequence[str], number: int) -> str:
    where = f"{path}: {members[number]}"
    try:
        return clean_caption(archive.read_other(members[number]).decode("utf-8-sig"), where)
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None


class Emoji:
    """Pictures or English captions of the data set inside the package."""

    def __init__(self, split: str, modality: Modality, size: int) -> None:
        """One split, or all of them where none is named."""
        self.modality, self.size = modality, size
        self.name = f"emoji:{split}" if split else "emoji"
        splits: list[Any] = [split] if split else list(EMOJI_SPLITS)
        self.data = [emoji(split=one, captions="one") for one in splits]
        owner = [(data, one) for data, one in zip(self.data, splits, strict=True)]
        if modality == "image":
            self.rows = [(data, number, one) for data, one in owner for number in range(len(data.pictures))]
        else:
            self.rows = [(data, number, one) for data, one in owner for number in range(len(data.texts))]
        self.fingerprint = sizes_digest([data.fingerprint for data in self.data], range(len(self.data)))

    def __len__(self) -> int:
        """Number of shards."""
        return -(-len(self.rows) // self.size)

    def records(self, shard: int) -> Records:
        """One shard."""
        rows = part(self.rows, shard, self.size)
        if self.modality == "text":
            ids = [f"{split}/{number}" for _, number, split in rows]
            return Records(ids, [None] * len(rows), lambda number: rows[number][0].texts[rows[number][1]])
        keys = [(split, data.picture_ids[number]) for data, number, split in rows]
        return Records(
            [f"{split}/{key}" for split, key in keys],
            [emoji_place(split, key) for split, key in keys],
            partial(_open_emoji, rows),
        )


def _open_emoji(rows: Sequence[Any], number: int) -> Image.Image:
    data, picture, _ = rows[number]
    return data.pictures.open(picture)

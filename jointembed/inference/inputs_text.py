"""Texts to embed from one file: a text a line, or a column of a CSV, TSV or JSON Lines file."""

import csv
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jointembed.data.captions import clean_caption
from jointembed.data.captions_table import SEPARATORS
from jointembed.data.json_file import parse_json
from jointembed.errors import DataError
from jointembed.inference.inputs import TEXT_COLUMNS, Modality, Records


class _Text(NamedTuple):
    """One record of a file; `value` is not yet known to be a text."""

    value: object
    id: object


class _Lines:
    """Lines of a file from where it stands, and how many bytes were read when the last one was given."""

    def __init__(self, file: BinaryIO, path: Path, digest: Any = None) -> None:
        self.file, self.path, self.digest, self.offset = file, path, digest, file.tell()

    def __iter__(self) -> Iterator[str]:
        for raw in self.file:
            start, self.offset = self.offset, self.offset + len(raw)
            if self.digest is not None:
                self.digest.update(raw)
            try:
                yield raw.decode("utf-8-sig" if start == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path}: not UTF-8 text (byte {start + error.start}: {error.reason})") from None


class TextFile:
    """One file, read once to count its records and to note where each shard begins."""

    modality: Modality = "text"

    def __init__(self, path: Path, size: int, column: str | None, id_column: str | None) -> None:
        """Read the file through.

        Raises:
            DataError: naming the file and the record, for broken UTF-8 or CSV, a column that is not there, or no
                record at all.
        """
        self.path, self.size, self.name = path, size, path.absolute().as_posix()
        suffix = path.suffix.lower()
        if suffix == ".txt" and (column or id_column):
            raise DataError(f"{path}: has no columns; it is a text a line")
        digest = hashlib.sha256()
        self._starts: list[int] = []
        with open(path, "rb") as file:
            lines = _Lines(file, path, digest)
            self._parse: Callable[[_Lines], Iterator[_Text]]
            if suffix == ".txt":
                self._parse = _plain
            elif suffix == ".jsonl":
                self._parse = partial(_json_lines, column=column or _first_column(path), id_column=id_column)
            else:
                separator = SEPARATORS[suffix]
                header = _header(lines, separator)
                wanted = [_position(header, name, path) for name in (_column(column, header, path), id_column) if name]
                self._parse = partial(_csv, separator=separator, columns=len(header), wanted=wanted)
            start, count = lines.offset, 0
            for record in self._parse(lines):
                if count % size == 0:
                    self._starts.append(start)
                if id_column is not None and not isinstance(record.id, str | int):
                    raise DataError(f"{path}, record {count + 1}: {id_column!r} is {ascii(record.id)[:60]}")
                start, count = lines.offset, count + 1
        if not count:
            raise DataError(f"{path}: no text in it")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Number of shards."""
        return len(self._starts)

    def records(self, shard: int) -> Records:
        """One shard, held in memory."""
        with open(self.path, "rb") as file:
            file.seek(self._starts[shard])
            found = list(islice(self._parse(_Lines(file, self.path)), self.size))
        first = shard * self.size + 1
        ids = [f"{self.path.stem}:{first + n}" if one.id is None else str(one.id) for n, one in enumerate(found)]
        return Records(ids, [None] * len(found), partial(_read, self.path, first, found))


def _read(path: Path, first: int, found: list[_Text], number: int) -> str:
    return clean_caption(found[number].value, f"{path}, record {first + number}")


def _plain(lines: _Lines) -> Iterator[_Text]:
    for line in lines:
        yield _Text(line, None)


def _csv(lines: _Lines, *, separator: str, columns: int, wanted: list[int]) -> Iterator[_Text]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != columns:
                raise DataError(f"{lines.path}, byte {lines.offset}: {len(row)} columns; the header has {columns}")
            yield _Text(row[wanted[0]], row[wanted[1]] if len(wanted) > 1 else None)
    except csv.Error as error:
        raise DataError(f"{lines.path}, byte {lines.offset}: {error}") from None


def _header(lines: _Lines, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader(lines, delimiter=separator, strict=True), [])]
    except csv.Error as error:
        raise DataError(f"{lines.path}, the header: {error}") from None


def _column(column: str | None, names: list[str], path: Path) -> str:
    if column is not None:
        return column
    found = next((name for name in TEXT_COLUMNS if name in names), None)
    if found is None:
        raise DataError(f"{path}: no column {' or '.join(map(repr, TEXT_COLUMNS))} in {ascii(names)[:200]}; name it")
    return found


def _position(header: list[str], name: str, path: Path) -> int:
    if header.count(name) != 1:
        count = "two columns" if name in header else "no column"
        raise DataError(f"{path}: {count} {name!r}; the header is {ascii(header)[:200]}")
    return header.index(name)


def _first_column(path: Path) -> str:
    with open(path, "rb") as file:
        first = next(_objects(_Lines(file, path)), {})
    return _column(None, list(first), path)


def _json_lines(lines: _Lines, *, column: str, id_column: str | None) -> Iterator[_Text]:
    for row in _objects(lines):
        for name in filter(None, (column, id_column)):
            if name not in row:
                keys = ", ".join(map(repr, row)) or "none"
                raise DataError(
                    f"{lines.path}, the line up to byte {lines.offset}: has no {name!r}; its keys are {keys}"
                )
        yield _Text(row[column], row[id_column] if id_column else None)


def _objects(lines: _Lines) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.strip():
            where = f"{lines.path}, the line up to byte {lines.offset}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise DataError(f"{where}: {ascii(row)[:60]}; expected an object")
            yield row

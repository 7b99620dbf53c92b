"""One's own data: a CSV, TSV or JSON Lines file of picture paths and captions."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from jointembed.data.captions import Record, clean_caption, from_records, stem
from jointembed.data.json_file import parse_json, read_text
from jointembed.data.records import CaptionData
from jointembed.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def caption_table(
    *,
    images: str,
    table: str,
    picture_column: str = "image",
    caption_column: str = "caption",
    separator: str | None = None,
) -> CaptionData:
    """Pictures in the order in which the table first names them; rows of one picture are its captions.

    Args:
        images: folder that the paths of the table begin at.
        table: `.csv` or `.tsv` with a header line, quoted as spreadsheets do (but for tab-separated columns a row is
            one line); or `.jsonl`, one object a line, whose caption may also be a list of captions.
        picture_column: column or key of the path.
        caption_column: column or key of the caption.
        separator: one character between the columns, where the suffix of the file does not tell it.

    Raises:
        DataError: naming the file and the line.
    """
    rows = _json_rows if Path(table).suffix.lower() in JSON_LINES else _csv_rows
    records: dict[str, Record] = {}
    for where, name, captions in rows(table, picture_column, caption_column, separator):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: {picture_column!r} is {ascii(name)[:60]}; expected the path of a picture")
        record = records.setdefault(name.strip(), Record(name.strip(), name.strip()))
        record.captions += [clean_caption(caption, f"{where} ({name.strip()!r})") for caption in captions]
    return from_records(stem(table), images, list(records.values()), captions_per_picture=None)


Row = tuple[str, object, list[object]]  # place in the file, path, captions


def _csv_rows(table: str, picture_column: str, caption_column: str, separator: str | None) -> Iterator[Row]:
    separator = separator or SEPARATORS.get(Path(table).suffix.lower())
    if separator is None:
        known = ", ".join((*SEPARATORS, *JSON_LINES))
        raise DataError(f"{table}: the suffix is none of {known}; say `separator`")
    if len(separator) != 1 or separator in '\r\n"':
        raise DataError(f"{table}: separator {separator!r}; expected one character")
    text = io.StringIO(read_text(Path(table)), newline="")
    reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] = []
    first = 1  # line of a row
    try:
        for row in reader:
            where, last = f"{table}, line {first}", reader.line_num
            if separator == "\t" and last > first:  # mostly a quote that is part of the text
                raise DataError(f"{where}: a cell that begins with a double quote goes on in line {last}")
            first = last + 1
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                picture, caption = (_column(header, name, table) for name in (picture_column, caption_column))
                continue
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} columns; the header has {len(header)}")
            yield where, row[picture], [row[caption]]
    except csv.Error as error:
        raise DataError(f"{table}, line {first}: {error}") from None
    if not header:
        raise DataError(f"{table}: empty; expected a header line")


def _column(header: list[str], name: str, table: str) -> int:
    if header.count(name) != 1:
        count = "two columns" if name in header else "no column"
        raise DataError(f"{table}: {count} {name!r}; the header is {ascii(header)[:200]}")
    return header.index(name)


def _json_rows(table: str, picture_column: str, caption_column: str, separator: str | None) -> Iterator[Row]:
    if separator is not None:
        raise DataError(f"{table}: JSON Lines have no separator, {separator!r} was given")
    for number, line in enumerate(read_text(Path(table)).split("\n"), 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise DataError(f"{where}: {ascii(row)[:60]}; expected an object")
        for key in (picture_column, caption_column):
            if key not in row:
                raise DataError(f"{where}: has no {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
        captions = row[caption_column]
        if captions == []:
            raise DataError(f"{where}: the list of captions is empty")
        yield where, row[picture_column], captions if isinstance(captions, list) else [captions]

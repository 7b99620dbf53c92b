"""Flickr8k's own text files: `Flickr8k.token.txt` and `Flickr_8k.trainImages.txt`.

Source: Hodosh, Young, Hockenmaier, Framing Image Description as a Ranking Task, JAIR 47 (2013).
"""

from pathlib import Path

from jointembed.data.captions import Record, clean_caption, from_records, stem
from jointembed.data.json_file import read_text
from jointembed.data.records import CaptionData
from jointembed.errors import DataError


def flickr8k_tokens(*, images: str, tokens: str, split_file: str) -> CaptionData:
    """Pictures in the order of the split file, their captions in the order of their numbers.

    Flickr30k's `results_20130124.token` has the same form, and any list of its file names will do as a split file.

    Args:
        images: folder of the pictures, `Flicker8k_Dataset` in the published archive.
        tokens: lines `NAME#NUMBER<tab>CAPTION`; names outside the split are passed over.
        split_file: one file name a line.

    Raises:
        DataError: naming the file and the line.
    """
    records = _split(split_file)
    numbers: dict[str, dict[int, str]] = {name: {} for name in records}
    for where, line in _lines(tokens):
        key, tab, caption = line.partition("\t")
        name, hash_sign, number = key.rpartition("#")
        if not (tab and hash_sign and name and number.isascii() and number.isdigit() and len(number) < 10):
            raise DataError(f"{where}: {ascii(line)[:60]}; expected NAME#NUMBER, a tab, and the caption")
        if name not in numbers:
            continue
        if int(number) in numbers[name]:
            raise DataError(f"{where}: {key!r} is there twice")
        numbers[name][int(number)] = clean_caption(caption, f"{where} ({key!r})")
    for name, captions in numbers.items():
        if not captions:
            raise DataError(f"{tokens}: no caption of {name!r}, which {split_file} names")
        records[name].captions = [captions[number] for number in sorted(captions)]
    return from_records(stem(split_file), images, list(records.values()), captions_per_picture=None)


def _split(split_file: str) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for where, line in _lines(split_file):
        name = line.strip()
        if name in records:
            raise DataError(f"{where}: {name!r} is there twice")
        records[name] = Record(name, name)
    if not records:
        raise DataError(f"{split_file}: names no picture")
    return records


def _lines(path: str) -> list[tuple[str, str]]:
    """Lines that hold something, each with its place for messages."""
    lines = read_text(Path(path)).replace("\r\n", "\n").split("\n")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]

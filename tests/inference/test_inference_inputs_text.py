import json
from pathlib import Path
from typing import Any

import pytest

from jointembed.errors import DataError
from jointembed.inference.inputs import open_source

TEXTS = ["a red dog", "zwei „Hunde“, am Strand", "三只狗", 'she said "no"', "five", "a b\u2028c", "seven"]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"captions{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"key": n, "caption": text}) for n, text in enumerate(TEXTS)))
    else:
        separator = "," if suffix == ".csv" else "\t"
        quoted = ['"' + text.replace('"', '""') + '\n"' for text in TEXTS]  # a line break inside a cell
        lines = [f"{n}{separator}{text}" for n, text in enumerate(quoted)]
        path.write_bytes(("\ufeff" + f"key{separator}caption\r\n" + "\r\n".join(lines)).encode())
    return path


def read(source: Any, shards: list[int]) -> list[tuple[str, Any]]:
    opened = [source.records(shard) for shard in shards]
    return [(records.ids[n], records.read(n)) for records in opened for n in range(len(records.ids))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_every_text_once_in_order_and_any_shard_alone(tmp_path: Path, suffix: str, size: int) -> None:
    source = open_source(str(write(tmp_path, suffix)), shard_size=size)
    assert source.modality == "text" and len(source) == -(-7 // size)
    found = read(source, list(range(len(source))))
    assert found == [(f"captions:{n}", text) for n, text in enumerate(TEXTS, start=1)]
    last = len(source) - 1
    assert read(source, [last]) == found[last * size :]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_ids_of_a_column(tmp_path: Path, suffix: str) -> None:
    source = open_source(str(write(tmp_path, suffix)), id_column="key", column="caption", shard_size=3)
    assert [one[0] for one in read(source, [0, 1, 2])] == list("0123456")


def test_a_bad_text_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"one\n \nthree\r\n")
    records = open_source(str(path)).records(0)
    assert [records.read(0), records.read(2)] == ["one", "three"]
    with pytest.raises(DataError, match=r"captions.txt, record 2: the caption is empty"):
        records.read(1)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"", {}, "a.txt: no text in it"),
        ("a.txt", b"good\nb\xffd\n", {}, r"a.txt: not UTF-8 text \(byte 6"),
        ("a.txt", b"good\n", {"column": "text"}, "a.txt: has no columns"),
        ("a.csv", b"", {}, "a.csv: no column 'text' or 'caption' in"),
        ("a.csv", b"x,y\n1,2\n", {}, "a.csv: no column 'text' or 'caption' in"),
        ("a.csv", b"x,y\n1,2\n", {"column": "z"}, "a.csv: no column 'z'; the header is"),
        ("a.csv", b"text,text\n1,2\n", {}, "a.csv: two columns 'text'"),
        ("a.csv", b"text,y\n1\n", {}, "a.csv, byte 9: 1 columns; the header has 2"),
        ("a.csv", b'text\n"open', {}, "a.csv, byte 10: unexpected end of data"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', {}, "a.jsonl, the line up to byte 26: has no 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{', {}, "a.jsonl, the line up to byte 15: broken JSON"),
        ("a.jsonl", b"[1]", {}, "a.jsonl, the line up to byte 3: .*expected an object"),
        ("a.jsonl", b'{"text": "a", "key": null}', {"id_column": "key"}, "a.jsonl, record 1: 'key' is None"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, options: dict, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / name), **options)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    found = []
    for content in ("a\nb\n", "a\nc\n"):
        (tmp_path / "a.txt").write_text(content)
        found.append(open_source(str(tmp_path / "a.txt")).fingerprint)
    assert found[0] != found[1]

"""Reading text and JSON strictly: what is wrong in a file is said once, with its place."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from jointembed.errors import DataError

_KINDS: dict[type, str] = {int: "a whole number", str: "a string", list: "a list"}


def read_text(path: Path) -> str:
    """Whole file as UTF-8, without a byte order mark.

    Raises:
        DataError: where the file is missing, unreadable, or not UTF-8 (with the position of the first bad byte).
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def read_json(path: Path, *, drop: Collection[str] = ()) -> Any:
    """Parse a JSON file; NaN, infinities and duplicate keys are refused.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        drop: keys that are not kept, in any object; what is not needed of a large file then takes no memory.

    Raises:
        DataError: naming the file and the place in it.
    """
    return parse_json(read_text(path), str(path), drop=drop)


def parse_json(text: str, where: str, *, drop: Collection[str] = ()) -> Any:
    """As `read_json`, from text; `where` begins every message."""
    if not text or text.isspace():
        raise DataError(f"{where}: empty; expected JSON")

    def constant(name: str) -> NoReturn:
        raise DataError(f"{where}: holds {name}, which is not JSON")

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise DataError(f"{where}: an object holds the key {twice!r} twice")
        for key in drop:
            found.pop(key, None)
        return found

    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=record)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where}: broken JSON at {place} (character {error.pos}): {error.msg}") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{where}: {error}") from None


def field(record: object, key: str, kind: type, where: str) -> Any:
    """Value of a key that must be there, of the kind `int`, `str` or `list` (True is no whole number) or `object`.

    Raises:
        DataError: beginning with `where` and naming the key, what was found and what is expected.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: is {_shown(record)}; expected an object")
    if key not in record:
        raise DataError(f"{where}: has no {key!r}; its keys are {', '.join(map(repr, list(record)[:12])) or 'none'}")
    value = record[key]
    if kind is not object and (not isinstance(value, kind) or isinstance(value, bool)):
        raise DataError(f"{where}: {key!r} is {_shown(value)}; expected {_KINDS[kind]}")
    if kind is int and not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {key!r} does not fit in 64 bits")
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"

"""Getting the published data sets: downloads that resume and are checked, archives that cannot write elsewhere."""

import errno
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointembed.data.archives import extract
from jointembed.data.sources import SOURCES
from jointembed.errors import DataError

Progress = Callable[[str, int, int | None], None]  # file name, bytes there, bytes in all where known

CHUNK = 1 << 20
AGENT = "jointembed (data set download)"


@dataclass(frozen=True)
class Fetched:
    """A file that is there: its sum, and whether a published sum said the same."""

    path: Path
    size: int
    sha256: str
    verified: bool

    def __str__(self) -> str:
        """What to print of it."""
        verdict = "as published" if self.verified else "no published sum to compare with"
        return f"{self.path}: {self.size} bytes, sha256 {self.sha256} ({verdict})"


def get(
    name: str,
    out: Path | str,
    *,
    parts: Sequence[str] | None = None,
    unpack: bool = True,
    progress: Progress | None = None,
) -> list[Fetched]:
    """Download and unpack a data set of `SOURCES`; what is there already is checked, not fetched again.

    Args:
        name: key of `SOURCES`.
        out: folder for archives and what is in them.
        parts: only these, such as `["annotations", "val"]`.
        unpack: extract the archives.
        progress: called as bytes arrive.

    Raises:
        DataError: for an unknown name or part, and whatever `download` and `extract` find wrong.
    """
    if name not in SOURCES:
        raise DataError(f"{name!r}: no such data set to get; expected one of {', '.join(SOURCES)}")
    known = [source.part for source in SOURCES[name]]
    for part in parts or ():
        if part not in known:
            raise DataError(f"{part!r}: no such part of {name}; expected {', '.join(known)}")
    done = []
    for source in SOURCES[name]:
        if parts is not None and source.part not in parts:
            continue
        target = Path(out) / source.file
        fetched = download(
            source.url, target, sha256=source.sha256, md5=source.md5, size=source.size, progress=progress
        )
        if unpack:
            extract(target, Path(out) / source.folder)
        done.append(fetched)
    return done


def download(
    url: str,
    target: Path | str,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    attempts: int = 6,
    backoff: float = 1.0,
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch a file over HTTP. What a cut leaves in `TARGET.part` is continued, in this call or the next.

    A part is continued only where the server says (by ETag, date or length) that the file is still the same;
    otherwise it is begun again. The target appears at once and whole, after its size and sums were checked.

    Args:
        url: http or https.
        target: file to write; one that is there already is checked and kept.
        sha256: expected sum, in hex.
        md5: the same, where only this one is published.
        size: expected bytes.
        attempts: how often in a row it may fail without a byte more than ever before.
        backoff: seconds before the second attempt, doubled each time, never more than 60.
        timeout: seconds without a byte after which an attempt has failed.
        progress: called as bytes arrive.

    Raises:
        DataError: naming the address or file: refused, unreachable, no room, wrong size or sum.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: expected an http or https address")
    target = Path(target)
    expected = {"sha256": sha256, "md5": md5}
    try:
        part = None if target.exists() else _fetch(url, target, size, attempts, backoff, timeout, progress)
        path = target if part is None else part.path
        length, sums = _sums(path)
        if wrong := _wrong(length, sums, expected, size):
            if part is None:
                raise DataError(f"{path}: {wrong}; delete it to download it again")
            part.restart()
            raise DataError(f"{url}: {wrong}; what was downloaded is deleted")
        if part is not None:
            os.replace(path, target)
            part.note.unlink(missing_ok=True)
        return Fetched(target, length, sums["sha256"], bool(sha256 or md5))
    except OSError as error:  # of the disk; those of the network never come this far
        raise DataError(f"{error.filename or target}: {error.strerror or error}") from None


def _fetch(
    url: str,
    target: Path,
    size: int | None,
    attempts: int,
    backoff: float,
    timeout: float,
    progress: Progress | None,
) -> "_Part":
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, size)
    failures, furthest = 0, part.length
    while not _attempt(url, part, timeout, progress):
        # a server that ignores ranges and always ends at one place gets no further: that counts as failing
        failures = 0 if part.length > furthest else failures + 1
        furthest = max(furthest, part.length)
        if failures >= attempts:
            raise DataError(f"{url}: {part.trouble}; given up, {part.length} bytes are kept in {part.path}")
        time.sleep(min(backoff * 2 ** max(failures - 1, 0), 60.0))
    return part


class _Part:
    """The unfinished file, and a note beside it of which version of the file on the server it is part of."""

    def __init__(self, target: Path, size: int | None) -> None:
        self.name = target.name
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.size = size
        self.trouble = ""

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> dict[str, str]:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return {key: value for key, value in note.items() if isinstance(value, str)}
        except (OSError, ValueError, AttributeError):
            return {}

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _attempt(url: str, part: _Part, timeout: float, progress: Progress | None) -> bool:
    """One request; True when the part is whole. What may pass with time is kept in `part.trouble`."""
    version = part.version()
    if part.length and version.get("Length") == str(part.length):
        return True
    if part.length and not version:
        part.restart()
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if part.length:
        request.add_header("Range", f"bytes={part.length}-")
        # a weak ETag may not stand in If-Range (RFC 9110, 13.1.5)
        strong = version.get("ETag", "W/")
        validator = strong if not strong.startswith("W/") else version.get("Last-Modified")
        if validator:
            request.add_header("If-Range", validator)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _receive(response, url, part, version, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file on the server is shorter now
            part.restart()
        elif error.code not in (408, 425, 429) and error.code < 500:
            raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
        part.trouble = f"the server answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise  # of the disk, which another attempt does not mend
        part.trouble = str(getattr(error, "reason", error)) or type(error).__name__
    return False


def _receive(
    response: http.client.HTTPResponse, url: str, part: _Part, version: dict[str, str], progress: Progress | None
) -> bool:
    offset, total = _place(response)
    found = {key: response.headers[key] for key in ("ETag", "Last-Modified") if response.headers[key]}
    if total is not None:
        found["Length"] = str(total)
    if offset and (offset != part.length or any(found[key] != version[key] for key in found.keys() & version.keys())):
        part.restart()
        part.trouble = "the file on the server has changed"
        return False
    if part.size is not None and total is not None and total != part.size:
        raise DataError(f"{url}: the server offers {total} bytes; expected {part.size}")
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - offset > free:
        raise DataError(f"{part.path}: needs {total - offset} bytes, {free} are free")
    if not offset:
        part.restart()  # before the note: a kill in between must not leave old bytes with a new note
    part.note.write_text(json.dumps(found), encoding="utf-8")
    with open(part.path, "ab" if offset else "wb") as file:
        done = offset
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(part.name, done, total)
    part.trouble = f"the connection ended after {done} of {total} bytes"
    return total is None or done == total


def _place(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is."""
    if response.status == 206:
        first, _, length = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start = first.partition("-")[0]
        if start.isdigit():
            return int(start), int(length) if length.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _sums(path: Path) -> tuple[int, dict[str, str]]:
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            for digest in sums.values():
                digest.update(chunk)
    return path.stat().st_size, {name: digest.hexdigest() for name, digest in sums.items()}


def _wrong(length: int, sums: dict[str, str], expected: dict[str, str | None], size: int | None) -> str:
    """What differs from what was expected, or nothing."""
    wrong = [] if size in (None, length) else [f"{length} bytes, expected {size}"]
    wrong += [
        f"{name} {sums[name]}, expected {value}"
        for name, value in expected.items()
        if value is not None and sums[name] != value.lower()
    ]
    return "; ".join(wrong)

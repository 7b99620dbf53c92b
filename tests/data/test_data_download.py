import hashlib
import http.server
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jointembed.data import download as module
from jointembed.data.download import Fetched, download, get
from jointembed.data.sources import SOURCES, Source
from jointembed.errors import DataError

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path; the flags are the ways in which servers go wrong."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.headers: dict[str, str] = {"ETag": '"v1"'}
        self.cuts: list[int] = []  # bytes after which to drop the connection, one number a request
        self.statuses: list[int] = []  # errors to answer first, one a request
        self.ranges = True
        self.if_range = True
        self.lengths = True
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = self._start()
        if start is not None and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start or 0 :]
        self.send_response(200 if start is None else 206)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def _start(self) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        validator = self.headers.get("If-Range")
        same = validator is None or validator in self.server.headers.values() or not self.server.if_range
        return int(asked[1]) if asked and self.server.ranges and same else None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Server, target: Path, **options: Any) -> Fetched:
    return download(server.url, target, **{"backoff": 0.001, "timeout": 5.0, "sha256": SHA256, **options})


def starts(server: Server) -> list[int]:
    """Where in the file each request asked to begin."""
    return [int(request.get("Range", "bytes=0-")[6:-1]) for request in server.requests]


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_in_one_go(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    target = tmp_path / "new" / "data.bin"
    fetched = fetch(server, target, md5=MD5, size=len(CONTENT), progress=lambda *news: seen.append(news))
    assert target.read_bytes() == CONTENT and only(target.parent) == ["data.bin"]
    assert fetched == Fetched(target, len(CONTENT), SHA256, verified=True)
    assert str(fetched) == f"{target}: 300000 bytes, sha256 {SHA256} (as published)"
    assert seen[-1] == ("data.bin", len(CONTENT), len(CONTENT)) and starts(server) == [0]


def test_without_a_published_sum_the_computed_one_is_told(server: Server, tmp_path: Path) -> None:
    fetched = fetch(server, tmp_path / "data.bin", sha256=None)
    assert not fetched.verified and f"sha256 {SHA256} (no published sum" in str(fetched)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"v1"'},
        {"Last-Modified": "Wed, 01 Jan 2014 00:00:00 GMT"},
        {"ETag": 'W/"v1"', "Last-Modified": "Wed, 01 Jan 2014 00:00:00 GMT"},
        {},
    ],
)
def test_cut_connections_are_resumed(server: Server, tmp_path: Path, headers: dict[str, str]) -> None:
    server.headers = headers
    server.cuts = [100_000, 50_000, 1]
    fetch(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and only(tmp_path) == ["data.bin"]
    assert starts(server) == [0, 100_000, 150_000, 150_001]
    validators = {request.get("If-Range") for request in server.requests[1:]}
    assert validators == {next((value for value in headers.values() if not value.startswith("W/")), None)}


def test_a_later_call_goes_on_where_an_earlier_one_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [120_000, 0, 0]
    with pytest.raises(
        DataError, match="ended after 120000 of 300000 bytes; given up, 120000 bytes are kept in .*part"
    ):
        fetch(server, tmp_path / "data.bin", attempts=2)
    assert only(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    fetch(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and starts(server)[-1] == 120_000


def test_a_kill_between_the_last_byte_and_the_renaming(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    (tmp_path / "data.bin.part.json").write_text(json.dumps({"ETag": '"v1"', "Length": str(len(CONTENT))}))
    fetch(server, tmp_path / "data.bin")
    assert only(tmp_path) == ["data.bin"] and server.requests == []


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_is_begun_again(server: Server, tmp_path: Path, if_range: bool) -> None:
    server.if_range = if_range  # some servers ignore If-Range; then the ETag of the answer tells
    server.cuts = [100_000, 0]
    with pytest.raises(DataError, match="given up"):
        fetch(server, tmp_path / "data.bin", attempts=1)
    server.cuts, server.content, server.headers = [], CONTENT[::-1], {"ETag": '"v2"'}
    fetch(server, tmp_path / "data.bin", sha256=hashlib.sha256(CONTENT[::-1]).hexdigest())
    assert (tmp_path / "data.bin").read_bytes() == CONTENT[::-1] and only(tmp_path) == ["data.bin"]


def test_a_file_that_became_shorter_is_begun_again(server: Server, tmp_path: Path) -> None:
    server.headers = {}
    server.cuts = [200_000, 0]
    with pytest.raises(DataError, match="given up"):
        fetch(server, tmp_path / "data.bin", attempts=1)
    server.cuts, server.content = [], CONTENT[:1000]
    fetch(server, tmp_path / "data.bin", sha256=hashlib.sha256(CONTENT[:1000]).hexdigest())
    assert (tmp_path / "data.bin").read_bytes() == CONTENT[:1000]
    assert starts(server)[-2:] == [200_000, 0]


def test_a_part_of_unknown_origin_is_not_continued(server: Server, tmp_path: Path) -> None:
    for note in (None, "junk", "[1]", '{"ETag": 3}'):
        (tmp_path / "data.bin.part").write_bytes(b"of something else")
        if note is not None:
            (tmp_path / "data.bin.part.json").write_text(note)
        fetch(server, tmp_path / "data.bin")
        (tmp_path / "data.bin").unlink()
    assert starts(server) == [0, 0, 0, 0]


def test_a_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000, 50_000]
    fetch(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and starts(server) == [0, 100_000, 50_000]


def test_a_server_that_always_ends_at_one_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000] * 50
    with pytest.raises(DataError, match="ended after 100000 of 300000 bytes; given up"):
        fetch(server, tmp_path / "data.bin", attempts=3)
    assert len(server.requests) == 4  # one that got further than ever, three that did not


def test_no_content_length(server: Server, tmp_path: Path) -> None:
    server.lengths = False
    fetch(server, tmp_path / "data.bin", size=len(CONTENT))
    server.cuts = [1000]
    with pytest.raises(DataError, match="1000 bytes, expected 300000; sha256 .* what was downloaded is deleted"):
        fetch(server, tmp_path / "other.bin", size=len(CONTENT))
    assert only(tmp_path) == ["data.bin"]


def test_wrong_sums_and_sizes(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    for options, message in (
        ({"sha256": "0" * 64}, f"data.bin: sha256 {SHA256}, expected 0000"),
        ({"sha256": None, "md5": "1" * 32}, f"data.bin: md5 {MD5}, expected 1111"),
        ({"size": 7}, "the server offers 300000 bytes; expected 7"),
    ):
        with pytest.raises(DataError, match=message):
            fetch(server, target, **options)
        assert not target.exists() and only(tmp_path) == []
    assert fetch(server, target, sha256=SHA256.upper()).verified


def test_what_is_there_already_is_checked_and_kept(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(CONTENT)
    assert fetch(server, target).verified
    target.write_bytes(b"other")
    with pytest.raises(
        DataError, match="data.bin: 5 bytes, expected 300000; sha256 .*; delete it to download it again"
    ):
        fetch(server, target, size=len(CONTENT))
    assert server.requests == [] and target.read_bytes() == b"other"


def test_passing_errors_are_tried_again_and_others_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    assert fetch(server, tmp_path / "data.bin").verified and len(server.requests) == 4
    for status in (403, 404, 410):
        server.statuses, server.requests = [status], []
        with pytest.raises(DataError, match=f"data.bin: the server answers {status} "):
            fetch(server, tmp_path / "none.bin")
        assert len(server.requests) == 1
    server.statuses = [503] * 9
    with pytest.raises(DataError, match="the server answers 503 Service Unavailable; given up, 0 bytes"):
        fetch(server, tmp_path / "none.bin", attempts=3)


def test_waiting_times_double_and_are_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.statuses = [503] * 9
    with pytest.raises(DataError, match="given up"):
        fetch(server, tmp_path / "data.bin", attempts=9, backoff=1.0)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_unreachable_and_unusable_addresses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="http://127.0.0.1:1/x: .*refused; given up"):
        download("http://127.0.0.1:1/x", tmp_path / "x", attempts=2, backoff=0.001)
    for url in ("file:///etc/passwd", "ftp://host/x", "x"):
        with pytest.raises(DataError, match="expected an http or https address"):
            download(url, tmp_path / "x")


def test_a_silent_server_times_out(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as silent:  # accepts, never answers
        with pytest.raises(DataError, match="timed out; given up"):
            download(f"http://127.0.0.1:{silent.server_port}/x", tmp_path / "x", attempts=1, timeout=0.1)


def test_troubles_of_the_disk_are_not_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file.*: (File exists|Not a directory)"):
        fetch(server, tmp_path / "file" / "data.bin")
    (tmp_path / "data.bin.part.json").mkdir()
    with pytest.raises(DataError, match=r"data.bin.part.json: Is a directory$"):
        fetch(server, tmp_path / "data.bin")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="other.bin.part: needs 300000 bytes, 1000 are free"):
        fetch(server, tmp_path / "other.bin")


# ---- get


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_get_downloads_and_unpacks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = zipped({"val2014/a.jpg": b"a"})
    sha256 = hashlib.sha256(server.content).hexdigest()
    sources = (
        Source("images", server.url, "images.zip", len(server.content), sha256),
        Source("text", server.url, "text.zip", folder="sub"),
    )
    monkeypatch.setitem(SOURCES, "toy", sources)
    done = get("toy", tmp_path)
    assert [(fetched.path, fetched.sha256, fetched.verified) for fetched in done] == [
        (tmp_path / "images.zip", sha256, True),
        (tmp_path / "text.zip", sha256, False),
    ]
    assert (tmp_path / "val2014/a.jpg").read_bytes() == (tmp_path / "sub/val2014/a.jpg").read_bytes() == b"a"
    get("toy", str(tmp_path))
    assert len(server.requests) == 2
    assert [fetched.path.name for fetched in get("toy", tmp_path / "b", parts=["text"], unpack=False)] == ["text.zip"]
    assert only(tmp_path / "b") == ["text.zip"]


def test_get_refuses_unknown_names_and_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'coco': no such data set to get; expected one of coco2014, coco2017"):
        get("coco", tmp_path)
    with pytest.raises(DataError, match="'test': no such part of coco2014; expected annotations, karpathy, val, train"):
        get("coco2014", tmp_path, parts=["test"])


def test_sources_are_well_formed() -> None:
    for name, sources in SOURCES.items():
        assert len({source.part for source in sources}) == len({source.file for source in sources}) == len(sources), (
            name
        )
        for source in sources:
            assert source.url.startswith(("http://", "https://")) and "/" not in source.file
            assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
            assert source.md5 is None or re.fullmatch("[0-9a-f]{32}", source.md5)
            assert source.sha256 or source.md5

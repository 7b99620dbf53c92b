"""What bounds the page of `jointembed serve`: malformed, large, slow, too many requests. All at once: tests/faults."""

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import PATIENCE, answered, encoded, error_of, get, raw, serving, until

from jointembed.inference import serve_app
from jointembed.inference.index import Index
from jointembed.inference.serve_bounds import Limits, is_own


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8000", True), ("192.168.1.7:80", True), ("[::1]:8000", True),
        ("localhost:8000", True), ("LOCALHOST", True), ("mine.local", True), ("evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example:8000", False), ("evil@127.0.0.1x", False),
        ("[::1", False), ("a:b:c", False), ("127.0.0.1:8000/evil", True),
    ],
)  # fmt: skip
def test_only_own_names_are_answered(host: str, own: bool) -> None:
    assert is_own(host, {"localhost", "mine.local"}) is own


def test_a_foreign_name_gets_no_answer(address: str) -> None:
    for target in ("/", "/api/search?q=a", "/thumbnail/0"):
        status, body = get(address, target, "evil.example")
        assert status == 400 and "this name is not served" in body and "/thumbnail/" not in body


@pytest.mark.fault(20, "malformed requests")
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/nine\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
def test_malformed_requests_are_refused(address: str, request_bytes: bytes) -> None:
    answer = raw(address, request_bytes + b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]
    assert get(address, "/api/search?q=a")[0] == 200


@pytest.mark.fault(20, "a head without end")
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /?q="])
def test_a_head_without_end_is_refused(address: str, start: bytes) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(start)
            for _ in range(1000):
                connection.sendall(b"x" * 65536)
    assert get(address, "/api/search?q=a")[0] == 200


@pytest.mark.fault(20, "malformed forms")
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--\r\n"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x; charset=rot13", b"--x\r\n\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\n' * 50),
        ("application/x-www-form-urlencoded", b"q=%zz&&&===;;;"),
        ("application/x-www-form-urlencoded", b"a=1&" * 50),
        ("application/x-www-form-urlencoded", b"q=" + b"x" * 200_000),
        ("application/json", b"{"),
        ("nonsense", b"\xff" * 100),
    ],
)
def test_malformed_forms_are_one_message(client: httpx2.Client, kind: str, body: bytes) -> None:
    answer = client.post("/api/search", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (200, 400) and ("error" in answer.json()) == (answer.status_code == 400)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), name=st.text(max_size=20), kind=st.sampled_from(["form", "parts", "picture"]))
def test_no_body_brings_it_down(client: httpx2.Client, body: bytes, name: str, kind: str) -> None:
    if kind == "picture":
        answer = client.post("/api/search", files={"picture": (name or "x", body)})
    else:
        header = "application/x-www-form-urlencoded" if kind == "form" else "multipart/form-data; boundary=x"
        content = body if kind == "form" else b"--x\r\nContent-Disposition: form-data; " + body + b"\r\n--x--\r\n"
        answer = client.post("/api/search", content=content, headers={"Content-Type": header})
    assert answer.status_code in (200, 400), answer.text
    assert "answers" in answer.json() or answer.json()["error"]


@pytest.mark.fault(20, "a body that is too large")
def test_a_body_that_is_too_large_is_refused(index: Index) -> None:
    with serving(index, Limits(upload=50_000)) as address, httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        for content in (b"x" * 60_000, (b"x" * 1000 for _ in range(60))):  # said at once; found out on the way
            header = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = client.post("/api/search", content=content, headers=header)
            assert answer.status_code == 413
            assert answer.json()["error"] == "the upload is too large; at most 0.05 MB are taken"
        page = client.post("/", files={"picture": ("a.png", b"x" * 60_000)})
        assert page.status_code == 413 and "at most 0.05 MB" in error_of(page.text)
        assert client.post("/api/search", files={"picture": ("a.png", b"x" * 40_000)}).status_code == 400


@pytest.mark.fault(20, "an upload that does not end")
def test_an_upload_that_takes_too_long_is_refused(index: Index) -> None:
    with serving(index, Limits(upload_seconds=0.5)) as address:
        late = raw(address, b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
                            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nq=a")  # fmt: skip
        assert b" 408 " in late and b"the upload took longer than 0.5 seconds" in late


@pytest.mark.fault(20, "slow clients: heads that do not end")
def test_slow_clients_are_let_go_of_and_hinder_nobody(index: Index) -> None:
    with serving(index, Limits(connection_seconds=3)) as address:
        host, port = address.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(20)]
        for number, connection in enumerate(slow):
            connection.sendall([b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: local"][number % 3])
        assert until(lambda: answered(address))
        for connection in slow:
            try:
                assert connection.recv(1000) == b""
            except ConnectionResetError:
                pass
            connection.close()


@pytest.mark.fault(20, "a client that does not read its answers")
def test_a_client_that_takes_no_answer_is_let_go_of(index: Index) -> None:
    with serving(index, Limits(connection_seconds=3)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.settimeout(PATIENCE)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                end = time.monotonic() + PATIENCE
                while time.monotonic() < end:  # the buffers take some
                    connection.sendall(b"GET /static/serve.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert until(lambda: answered(address))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The model takes its time until this is set."""
    opened, encode = threading.Event(), serve_app.encode_query

    def slowly(model: Any, query: Any) -> Any:
        assert opened.wait(60)
        return encode(model, query)

    monkeypatch.setattr(serve_app, "encode_query", slowly)
    yield opened
    opened.set()


def ask_all(address: str, count: int, **options: Any) -> tuple[list[threading.Thread], list[httpx2.Response]]:
    answers: list[httpx2.Response] = []

    def ask() -> None:
        answers.append(httpx2.request(url=f"{address}/api/search", timeout=60, **options))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def test_too_many_at_once_are_told_to_come_back(index: Index, gate: threading.Event) -> None:
    with serving(index, Limits(searches=3, queue_seconds=120)) as address:
        threads, answers = ask_all(address, 10, method="GET", params={"q": "a"})
        assert until(lambda: len(answers) == 6)  # one is worked on, three wait
        assert httpx2.get(f"{address}/thumbnail/0", timeout=PATIENCE).status_code == 200
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [503] * 6
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1" and refused.json()["error"].startswith("too many requests at once")


def test_too_many_uploads_at_once_are_told_to_come_back(index: Index, gate: threading.Event) -> None:
    picture = ("a.png", encoded(Image.new("RGB", (30, 30), "red")))
    with serving(index, Limits(uploads=2, queue_seconds=120)) as address:
        threads, answers = ask_all(address, 5, method="POST", files={"picture": picture})
        assert until(lambda: len(answers) == 3)
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 3
        assert httpx2.post(f"{address}/api/search", files={"picture": picture}, timeout=PATIENCE).status_code == 200


def test_nobody_waits_for_ever(index: Index, gate: threading.Event) -> None:
    with serving(index, Limits(queue_seconds=0.5)) as address:
        threads, answers = ask_all(address, 3, method="GET", params={"q": "a"})
        assert until(lambda: len(answers) == 2)  # those that waited; what has begun is finished
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert [answer.status_code for answer in answers[:2]] == [503, 503]


@pytest.mark.fault(20, "more connections than are taken")
def test_connections_are_bounded(index: Index) -> None:
    with serving(index, Limits(connections=5)) as address:
        host, port = address.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(5)]
        assert until(lambda: httpx2.get(address, timeout=PATIENCE).status_code == 503)
        for connection in idle:
            connection.close()
        assert until(lambda: httpx2.get(address, timeout=PATIENCE).status_code == 200)


def test_a_client_that_leaves_is_no_fault(
    address: str, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = address.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
                               b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")  # fmt: skip
            time.sleep(0.1)
    assert client.get("/?q=a").status_code == 200
    assert "Traceback" not in caplog.text and not [one for one in caplog.records if one.levelno >= logging.ERROR]

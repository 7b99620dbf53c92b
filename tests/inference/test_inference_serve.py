"""`jointembed serve` as a user starts and ends it."""

import importlib.util
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from serving import PATIENCE, command, serving

from jointembed.cli import main
from jointembed.errors import JointEmbedError
from jointembed.inference import serve_http
from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.inference.serve import listen, serve


def test_ctrl_c_ends_it_cleanly_even_while_a_client_dawdles(indexed: Path) -> None:
    with command(indexed, "--top", "3") as (process, address):
        assert len(httpx2.get(f"{address}/api/search?q=a", timeout=PATIENCE).json()["answers"]) == 3
        host, port = address.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        upload = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 999\r\n\r\n--x"
        with (
            socket.create_connection((host, int(port))) as dawdler,
            socket.create_connection((host, int(port))) as uploader,
        ):
            dawdler.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            uploader.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + upload)
            httpx2.get(f"{address}/", timeout=PATIENCE)  # the upload has begun by now
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and out == "ended\n" and "Traceback" not in err


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["jointembed", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code if isinstance(stop.value.code, int) else 0), capsys.readouterr().err

    return run


def test_bad_starts_are_one_line(indexed: Path, tmp_path: Path, say: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    code, err = say(tmp_path / "absent", "--port", "0")
    assert code == 1 and "absent: not an index" in err and err.count("\n") == 1
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, err = say(indexed, "--port", port)
    assert code == 1 and err.startswith(f"jointembed: 127.0.0.1:{port}: cannot be listened on (Address already in use)")
    code, err = say(indexed, "--host", "no.such.host.invalid")
    assert code == 1 and "no.such.host.invalid:8000: cannot be listened on" in err and err.count("\n") == 1
    assert say(indexed, "--port", "70000")[0] == 2 and say(indexed, "--top", "0")[0] == 2
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    code, err = say(indexed)
    assert code == 1 and err == "jointembed: serve needs uvicorn: pip install 'jointembed[serve]'\n"


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_who_can_see_the_pictures_is_said(
    indexed: Path, host: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve_http, "run", lambda *arguments: None)
    serve(indexed, host=host, port=0)
    assert ("whoever reaches 0.0.0.0 can search and see these pictures" in caplog.text) is warned


def test_a_faiss_index_can_be_served_or_says_what_is_missing(
    indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    build_index(indexed.parent / "embeddings", tmp_path / "flat", kind="flat")
    with serving(Index.open(tmp_path / "flat")) as address:
        flat = httpx2.get(f"{address}/api/search?q=red", timeout=PATIENCE).json()
    with serving(Index.open(indexed)) as address:
        assert [one["row"] for one in flat["answers"]] == [
            one["row"] for one in httpx2.get(f"{address}/api/search?q=red", timeout=PATIENCE).json()["answers"]
        ]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(JointEmbedError, match=r"jointembed\[faiss\]"):
        serve(tmp_path / "flat", port=0)

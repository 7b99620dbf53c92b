"""A small index, the server of its page in a thread or as the command, and files that no server should swallow."""

import io
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embedding_runs import make_embeddings
from PIL import Image

from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.inference.serve import listen
from jointembed.inference.serve_app import make_app
from jointembed.inference.serve_bounds import Limits
from jointembed.inference.serve_http import server

ROWS = 24  # of the index that the tests share
PATIENCE = 240.0  # seconds: no test waits for so long, but a machine with other work is slow


def make_index(model_path: Path, data: Path | str, root: Path) -> Path:
    """`jointembed index` in this process."""
    build_index(make_embeddings(model_path, data, root / "embeddings", shard_size=500), root / "index")
    return root / "index"


@contextmanager
def serving(index: Index, limits: Limits | None = None, top: int = 5) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    limits = limits or Limits()
    with listen("127.0.0.1", 0) as listener:  # from here on clients can connect, and wait
        running = server(make_app(index, top=top, limits=limits), limits)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def command(index: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`jointembed serve` as a user starts it, and the address that it prints."""
    words = [sys.executable, "-m", "jointembed", "serve", str(index), "--port", "0", *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        address = re.match(r"(http://\S+)/ searches", line)
        assert address is not None, line + process.stderr.read()
        yield process, address[1]
    finally:
        process.kill()
        process.communicate()


def until(happens: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.02)
    return False


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def bomb() -> bytes:
    """100 megapixels in 12 kB."""
    content = encoded(Image.new("1", (10_000, 10_000)))
    assert len(content) < 20_000
    return content


def raw(address: str, request: bytes) -> bytes:
    """What comes back for these bytes, until the server has no more to say."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(request)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
            head, ended, body = found.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if ended and length is not None and len(body) >= int(length[1]):
                break
        return found


def get(address: str, target: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body of a target that no client library has tidied up."""
    answer = raw(address, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def answered(address: str, target: str = "/api/search?q=a") -> bool:
    """Whether a request is answered; not where it took longer than the limits of a test allow."""
    try:
        return get(address, target)[0] == 200
    except (OSError, IndexError):
        return False


def names(page: str) -> list[str]:
    return re.findall(r'<img src="/thumbnail/\d+\?v=\w+" alt="([^"]*)"', page)


def error_of(page: str) -> str:
    return re.findall(r'<p id="error" role="alert">(.*?)</p>', page, re.DOTALL)[0]

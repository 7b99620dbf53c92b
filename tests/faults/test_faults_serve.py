"""`jointembed serve` as a user starts it, under many clients, slow ones, and all that no client should send at once.

What each limit does alone is in tests/inference/test_inference_serve_http.py, of which row 20 has the parts too.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import pytest
from embedding_runs import save_model, write_pictures
from PIL import Image
from serving import PATIENCE, ROWS, bomb, command, encoded, make_index, until

BOMB = bomb()
WORDS = ["red", "a dark photo", "noise", "🐶" * 50]
EXPECTED = {
    "page": 200, "api": 200, "thumbnail": 200, "upload": 200, "no picture": 400, "bomb": 400, "long query": 400,
    "path": 404, "row": 404, "too large": 413, "malformed": 400,
}  # fmt: skip
ORDINARY = ["page", "api", "thumbnail", "thumbnail", "thumbnail", "upload"]
TOO_LARGE = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000001\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    return make_index(save_model(root, 0), write_pictures(root / "pictures", ROWS), root)


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)  # seconds for an answer
    let_go: int = 0  # times that a slow client lost its connection


def resident(process: int) -> float:
    """MB."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


async def status_of(address: str, request: bytes) -> int:
    """Status of the answer to bytes that no client library would send."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return int((await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1])
    finally:
        writer.transport.abort()


async def ask(client: httpx2.AsyncClient, address: str, kind: str, draw: random.Random, picture: bytes) -> int:
    """One request of a kind; its status."""
    match kind:
        case "page" | "api":
            path = "/" if kind == "page" else "/api/search"
            answer = await client.get(path, params={"q": draw.choice(WORDS)})
        case "thumbnail":
            answer = await client.get(f"/thumbnail/{draw.randrange(ROWS)}")
        case "upload":
            answer = await client.post("/api/search", files={"picture": ("a.png", picture)})
        case "no picture":
            answer = await client.post("/", files={"picture": ("a.png", b"no picture" * draw.randrange(20_000))})
        case "bomb":
            answer = await client.post("/", files={"picture": ("a.png", BOMB)})
        case "long query":
            answer = await client.get("/api/search", params={"q": "x" * 10_000})
        case "path":
            answer = await client.get(f"/static/..%2f..%2f{draw.random()}")
        case "row":
            answer = await client.get(f"/picture/%2fetc%2fpasswd{draw.randrange(9)}")
        case "too large":
            return await status_of(address, TOO_LARGE)
        case _:
            return await status_of(address, draw.randbytes(40).replace(b"\n", b" ") + b"\r\n\r\n")
    return answer.status_code


async def visit(address: str, end: float, seed: int, picture: bytes, seen: Seen) -> None:
    """One client: first one request of every kind, then searches, pictures and uploads, and now and then a fault."""
    draw = random.Random(seed)
    kinds = draw.sample(list(EXPECTED), len(EXPECTED))
    async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE) as client:
        while kinds or time.monotonic() < end:
            kind = kinds.pop() if kinds else draw.choice([*ORDINARY, draw.choice(list(EXPECTED))])
            start = time.monotonic()
            status = await ask(client, address, kind, draw, picture)
            seen.waits.append(time.monotonic() - start)
            seen.statuses[kind, status] += 1


async def dawdle(address: str, end: float, kind: int, seen: Seen) -> None:
    """One client that sends or reads next to nothing, and comes again when it is let go of."""
    host, port = address.removeprefix("http://").split(":")
    form = b"Content-Length: 9999\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + form
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write([b"GET / HTTP/1.1\r\nX: ", head, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200][kind])
        try:
            while time.monotonic() < end:
                if kind == 2:  # does not read, so cannot know
                    await asyncio.sleep(0.5)
                    continue
                writer.write(b"x")
                try:
                    if await asyncio.wait_for(reader.read(4096), 0.5) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    pass
        except OSError:
            seen.let_go += 1
        finally:
            writer.transport.abort()


async def crowd(address: str, seconds: float, clients: int, picture: bytes) -> Seen:
    """So many clients for so long, and half as many slow ones beside them."""
    end, seen = time.monotonic() + seconds, Seen()
    slow = [dawdle(address, end, number % 3, seen) for number in range(clients // 2)]
    await asyncio.gather(*slow, *(visit(address, end, seed, picture, seen) for seed in range(clients)))
    return seen


@pytest.mark.fault(20, "many clients, slow ones, oversized and malformed requests, paths, for some time; memory")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("seconds", "clients"), [(5.0, 20), pytest.param(60.0, 100, marks=pytest.mark.slow)], ids=["20", "100"]
)
def test_many_clients_and_slow_ones_bring_nothing_down(indexed: Path, seconds: float, clients: int) -> None:
    picture = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)))
    with command(indexed) as (process, address):
        assert httpx2.get(address, timeout=PATIENCE).status_code == 200  # its loop runs
        files = open_files(process.pid)
        asyncio.run(crowd(address, min(seconds, 15), clients, picture))  # fills caches, and the threads' own memory
        assert until(lambda: open_files(process.pid) <= files)
        before = resident(process.pid)
        seen = asyncio.run(crowd(address, seconds, clients, picture))
        assert until(lambda: open_files(process.pid) <= files)  # every connection is closed again
        after = resident(process.pid)
        assert httpx2.get(f"{address}/api/search?q=red", timeout=PATIENCE).status_code == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    waits = sorted(seen.waits)
    print(
        f"\n{len(waits)} requests of {clients} clients in {seconds:g} s beside {clients // 2} slow ones, let go of "
        f"{seen.let_go} times; median {waits[len(waits) // 2] * 1000:.0f} ms, 99% "
        f"{waits[int(len(waits) * 0.99)] * 1000:.0f} ms, longest {waits[-1]:.1f} s; resident {before:.0f} MB before, "
        f"{after:.0f} after; {dict(sorted(seen.statuses.items()))}"
    )
    assert process.returncode == 0 and "Traceback" not in err
    assert all(status in (EXPECTED[kind], 503) for kind, status in seen.statuses), seen.statuses
    assert all(seen.statuses[kind, status] for kind, status in EXPECTED.items()), seen.statuses
    assert after < before + 30
    if seconds > 20:  # an upload must be there within 20 seconds
        assert seen.let_go

"""What bounds the page of `jointembed serve`: its limits, its queues, and a guard around every answer."""

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from anyio import CapacityLimiter, fail_after, get_cancelled_exc_class, to_thread
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
Refuse = Callable[[Request, Exception], Awaitable[Response]]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many may be there at once."""

    characters: int = 1_000  # of a query
    upload: int = 16_000_000  # bytes of a request's body
    answers: int = 100  # that may be asked for
    upload_seconds: float = 20.0  # until a body must be there
    uploads: int = 64  # at once, from their first byte to the answer; each holds 1 MB, the rest is on disk
    queue_seconds: float = 20.0  # that a request waits for its turn, the work included
    searches: int = 128  # waiting for the model, which answers one at a time
    pictures: int = 512  # waiting to be decoded
    connections: int = 512  # open at once
    connection_seconds: float = 60.0  # from a connection's readiness for a request to the last byte of the answer


def busy() -> HTTPException:
    """The error of a request that there is no room for."""
    return HTTPException(503, "too many requests at once; try again in a moment", {"Retry-After": "1"})


class Queue:
    """A few threads, and a bounded number of requests that wait for them."""

    def __init__(self, threads: int, longest: int, seconds: float) -> None:
        """Of at most `longest` waiting requests, each for at most so many seconds."""
        self.limiter, self.most, self.seconds = CapacityLimiter(threads), threads + longest, seconds
        self.inside = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of work done in a thread. Raises HTTPException 503 where too many wait, or for too long."""
        if self.inside >= self.most:
            raise busy()
        self.inside += 1
        try:
            with fail_after(self.seconds):
                return await to_thread.run_sync(work, limiter=self.limiter)
        except TimeoutError:
            raise busy() from None
        finally:
            self.inside -= 1


class Guard:
    """Around the whole application: the headers of every answer, and no answer under a foreign name.

    A page elsewhere could have its own name point here (DNS rebinding) and read what is served; it cannot have a
    browser send another Host than its own name.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], refuse: Refuse) -> None:
        """Take the application over."""
        self.app, self.names, self.refuse = app, names, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        error = HTTPException(400, "this name is not served; ask by the address in numbers or by localhost")
        if is_own(request.headers.get("host", ""), self.names):
            try:
                await self.app(scope, receive, with_headers)
                return
            except get_cancelled_exc_class():  # Ctrl-C, and the time to finish is over: no traceback for that
                error = HTTPException(503, "the server has been ended")
        if not started:
            await (await self.refuse(request, error))(scope, receive, with_headers)


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether a Host header holds an IP address or one of the names, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False

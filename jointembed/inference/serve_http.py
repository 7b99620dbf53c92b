"""The server below the page of `jointembed serve`: uvicorn, with the deadlines that it does not have by itself."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jointembed.inference.serve_bounds import Limits

_HEAD = 160_000  # bytes of a request's head: 10,000 characters of four bytes, percent-encoded, still get our own answer
_FAREWELL = 3  # seconds that running requests have after Ctrl-C


def run(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM, which uvicorn raises again when all is closed."""
    server(app, limits).run(sockets=[listener])


def server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """A server that has not been started."""
    config = uvicorn.Config(
        app,
        http=_protocol(limits.connection_seconds),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_FAREWELL,
        h11_max_incomplete_event_size=_HEAD,
    )
    return uvicorn.Server(config)


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    class Deadline(H11Protocol):
        """Closes a connection whose next request is not there, read and answered in time.

        uvicorn waits for ever for the rest of a head, and for a client to take the rest of an answer.
        """

        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self.restart()

        def on_response_complete(self) -> None:
            self.restart()  # first, as the call below may begin the next request
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            super().connection_lost(exc)

        def restart(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            self.deadline = self.loop.call_later(seconds, self.transport.abort)

    return Deadline

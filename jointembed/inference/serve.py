"""A local web page that searches an index by words or by a picture: `jointembed serve INDEX`.

HTTP is uvicorn's and starlette's (the extra `serve`). `serve_app` is the page; `serve_bounds` and `serve_http` keep
requests within limits.
"""

import contextlib
import importlib.util
import ipaddress
import logging
import socket
from pathlib import Path

from jointembed.errors import JointEmbedError
from jointembed.inference.index import Index

logger = logging.getLogger(__name__)


def serve(folder: Path | str, *, host: str = "127.0.0.1", port: int = 8000, top: int = 24, verify: bool = True) -> None:
    """Serve the page of an index until Ctrl-C.

    Args:
        folder: of the index.
        host: address to listen on; with any other than a loopback one, a warning says who can see the pictures.
        port: 0 takes a free one, which is printed.
        top: answers to a question.
        verify: compare the SHA-256 of every file of the index.

    Raises:
        JointEmbedError: where the extra is not installed, the address cannot be listened on, or the index or its
            model cannot be used.
    """
    missing = [name for name in ("starlette", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise JointEmbedError(f"serve needs {', '.join(missing)}: pip install 'jointembed[serve]'")
    from jointembed.inference.serve_app import make_app
    from jointembed.inference.serve_bounds import Limits
    from jointembed.inference.serve_http import run

    with listen(host, port) as listener:
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        names = {"localhost", host.lower(), socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        limits = Limits()
        app = make_app(Index.open(folder, verify=verify), top=top, names=names, limits=limits)
        if not ipaddress.ip_address(address).is_loopback:
            logger.warning("whoever reaches %s can search and see these pictures; there is no password", shown)
        print(f"http://{shown}:{port}/ searches {folder}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # raised again by the server, or not, after it has closed down
            run(app, listener, limits)
        print("ended")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises JointEmbedError naming host and port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise JointEmbedError(
            f"{host}:{port}: cannot be listened on ({reason}); choose another --host or --port"
        ) from None

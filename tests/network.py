"""No test talks to another machine: an audit hook refuses Python sockets but those of this machine, and keeps count."""

import ipaddress
import sys
from typing import Any

attempts: list[str] = []  # since the last look: a library may catch the error, the test fails all the same


def is_local(address: Any) -> bool:
    """Whether an address of a socket, or a host name to be looked up, is this machine."""
    if not isinstance(address, tuple):  # a Unix socket's path, or a host's name
        name = address.decode(errors="replace") if isinstance(address, bytes) else address
        return name is None or not isinstance(name, str) or name.startswith(("/", "\0")) or _is_local_name(name)
    return _is_local_name(str(address[0]))


def _is_local_name(name: str) -> bool:
    if name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[0]
    else:
        return
    if not is_local(address):
        if not str(address).endswith(".invalid"):  # a name that never exists (RFC 6761): for tests of the message
            attempts.append(f"{event} {address!r}")
        raise ConnectionRefusedError(f"a test may not use the network: {event} {address!r}")


def block() -> None:
    """Refuse from now on, in this process and those forked from it; an audit hook cannot be taken back."""
    sys.addaudithook(_hook)

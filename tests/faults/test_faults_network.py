import socket
import subprocess
import sys

import network
import pytest

# an audit hook sees every socket that Python code opens, whichever module opens it
WATCHED = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event.startswith("socket.") else None)
sys.argv = ["jointembed", "--help"]
import jointembed, jointembed.cli
for name in jointembed.__all__:
    getattr(jointembed, name)
try:
    jointembed.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert not [one for one in seen if one != "socket.gethostname"], seen
"""


def test_import_and_help_open_no_socket() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "evaluate" in done.stdout


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_tests_cannot_reach_another_machine(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one, pytest.raises(ConnectionRefusedError, match="may not use"):
        one.connect((host, 80))
    with pytest.raises(ConnectionRefusedError, match="may not use"):
        socket.getaddrinfo("example.org", 80)
    assert len(network.attempts) == 2
    network.attempts.clear()  # they were the point


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=10):
        assert not network.attempts

"""Why the backend could not be asked stands in the log, and does not fill it."""

from __future__ import annotations

import resource
import socket
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gatekeeper.telemetry.repeated import RepeatedWarning
from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 200 OK\r\nSet-Cookie: secret\r\nContent-Length: x\r\n\r\n"


def reasons(gate: Sidecar) -> list[str]:
    """What stands behind `upstream failed`, by line."""
    return [line["event"].partition(": ")[2] for line in gate.log if line["event"].startswith("upstream failed: ")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ("http://127.0.0.1:{port}", "the backend cannot be reached: "),
        ("http://no-such-host.invalid:80", "the backend "),
        ("http+unix:///{directory}/no.sock", "the backend cannot be reached: "),
    ],
)
def test_a_backend_that_cannot_be_reached(store: Store, tmp_path: Path, upstream: str, expected: str) -> None:
    url = upstream.format(port=free_port(), directory=str(tmp_path).lstrip("/"))
    with sidecar(url, redis_url=store.url, upstream_connect_timeout="2s") as gate:
        user = token(someone())
        for _ in range(5):
            assert fetch(gate.url, "GET", "/", [bearer(user)], timeout=60).status in (502, 504)
        found = eventually(lambda: reasons(gate))
        assert found[0].startswith(expected)
        # Five failures, and no five lines: on a slow machine ten seconds pass.
        assert len(set(found)) <= 2
        assert sum(line.get("times", 0) for line in gate.log if line["event"].startswith("upstream failed")) <= 5


def test_a_process_without_files_left(store: Store) -> None:
    with Backend(CLOSING) as backend, sidecar(backend.url, redis_url=store.url) as gate:
        address = urlsplit(gate.url)
        client = HTTPConnection(address.netloc, timeout=60)

        def status(path: str) -> int:
            client.request("GET", path, headers=dict([bearer(user)]))
            response = client.getresponse()
            response.read()
            return response.status

        user = token(someone())
        # What is needed for a request is loaded by then, and no connection to the backend stays.
        assert status("/") == 200
        before = resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE)
        # Those that are open stay so; every number below the limit is in use.
        resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        assert status("/") == 502
        resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE, before)
        client.close()
        (why,) = eventually(lambda: reasons(gate))
        assert "Too many open files" in why
        eventually(lambda: fetch(gate.url, "GET", "/", [bearer(token(someone()))]).status == 200)


def test_nothing_of_a_response_is_quoted(store: Store) -> None:
    with Backend(BROKEN) as backend, sidecar(backend.url, redis_url=store.url) as gate:
        assert fetch(gate.url, "POST", "/", [bearer(token(someone()))]).status == 502
        (why,) = eventually(lambda: reasons(gate))
        assert "HTTP" in why
        assert "secret" not in gate.stderr


def test_each_reason_is_told_at_once_and_then_at_most_every_ten_seconds() -> None:
    now, told = 100.0, list[tuple[str, int]]()
    warn = RepeatedWarning(lambda *line: told.append(line), clock=lambda: now)
    for _ in range(3):
        warn("refused")
        warn("no file")
    assert told == [("refused", 1), ("no file", 1)]
    now += 10
    warn("refused")
    assert told[2:] == [("refused", 3)]
    # However many reasons there are, they cost neither memory nor lines.
    for number in range(1000):
        warn(f"other {number}")
    assert len(told) < 40
    now += 10
    warn("another one")
    assert told[-1] == ("another one", 1)

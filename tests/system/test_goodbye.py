"""The goodbye of a server that ends: every client is told, and none that could still be answered is cut off."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.system.slow import SlowBackend, slow_request
from tests.waiting import HANG_SECONDS


@contextmanager
def connected(gate: Sidecar) -> Iterator[socket.socket]:
    parts = urlsplit(gate.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=HANG_SECONDS) as connection:
        yield connection


def request(target: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: a", *headers, "", ""]
    return "\r\n".join(lines).encode()


def response(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """The next response with `Content-Length`: its status and headers."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers


def begin_to_end(gate: Sidecar, number: int = signal.SIGTERM) -> None:
    gate.process.send_signal(number)
    eventually(lambda: gate.ready().status == 503)


def test_from_the_signal_on_every_response_says_close(store: Store) -> None:
    signed = ": ".join(bearer(token(someone())))
    asked = {
        "forwarded": (200, request("/", signed)),
        "forwarded with a body": (200, request("/", signed, "Content-Length: 0", method="POST")),
        "refused": (401, request("/")),
        "our own": (200, request("/sessions/me", signed)),
        "public document": (200, request("/_gatekeeper/openapi.json")),
        "unknown": (404, request("/_gatekeeper/nothing", signed)),
        "rejected": (400, request("/%zz", signed)),
        "HTTP/1.0": (200, request("/", signed, "Connection: keep-alive", version="1.0")),
        "a handshake": (
            401,
            request("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")[:-2]
            + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        ),
    }
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url, shutdown_delay="1h") as gate:
        with connected(gate) as kept, connected(gate) as fresh, slow_request(backend, gate) as under_way:
            kept.sendall(request("/", signed))
            assert "connection" not in response(kept)[1]
            begin_to_end(gate)
            # Of a connection of before, of one that had not spoken, of a request in flight, and of new connections.
            for connection in (kept, fresh):
                connection.sendall(request("/", signed))
                assert response(connection)[1]["connection"] == "close"
                assert connection.recv(1) == b""
            backend.release.set()
            assert under_way.result(HANG_SECONDS).get_all("connection") == ["close"]
        for name, (status, data) in asked.items():
            with connected(gate) as connection:
                connection.sendall(data)
                answered, headers = response(connection)
                assert (name, answered, headers.get("connection")) == (name, status, "close")
                assert connection.recv(1) == b""
        gate.terminate()
        gate.exit_code()


def test_a_request_on_an_idle_connection_at_the_end_is_answered(store: Store, backend: Backend) -> None:
    signed = ": ".join(bearer(token(someone())))
    with sidecar(backend.url, redis_url=store.url) as gate, connected(gate) as idle:
        idle.sendall(request("/", signed))
        response(idle)
        gate.terminate()
        idle.sendall(request("/", signed, "Content-Length: 3", method="POST") + b"abc")
        status, headers = response(idle)
        assert (status, headers["connection"]) == (200, "close")
        assert gate.exit_code() == 0


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost"])
def test_an_idle_connection_ends_without_a_reset(store: Store, backend: Backend, said: bytes) -> None:
    with sidecar(backend.url, redis_url=store.url) as gate, connected(gate) as idle:
        idle.sendall(said)
        gate.terminate()
        assert idle.recv(1) == b""
        # Too late for an answer, and still no reset.
        idle.sendall(request("/"))
        idle.shutdown(socket.SHUT_WR)
        assert idle.recv(1) == b""
        assert gate.exit_code() == 0


def test_an_idle_connection_is_closed_without_a_reset_at_any_time(store: Store, backend: Backend) -> None:
    signed = ": ".join(bearer(token(someone())))
    with sidecar(backend.url, redis_url=store.url, keepalive_timeout="1s") as gate, connected(gate) as idle:
        idle.sendall(request("/", signed))
        response(idle)
        assert idle.recv(1) == b""
        idle.sendall(request("/", signed))
        idle.shutdown(socket.SHUT_WR)
        assert idle.recv(1) == b""

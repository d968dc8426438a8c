"""WebSocket handshakes on raw sockets: exactly these headers, and exactly what comes back."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.waiting import HANG_SECONDS


class Handshake(NamedTuple):
    """The answer to a handshake; `body` is empty where the connection was upgraded."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@contextmanager
def opened(
    url: str, target: str = "/ws", headers: Iterable[tuple[str, str]] = ()
) -> Iterator[tuple[Handshake, socket.socket]]:
    parts = urlsplit(url)
    head = [
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=HANG_SECONDS) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
        yield _answer(connection), connection


def _answer(connection: socket.socket) -> Handshake:
    data = b""
    # No byte more: frames may follow at once.
    while not data.endswith(b"\r\n\r\n"):
        data += connection.recv(1)
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = int(dict(headers).get("content-length", "0"))
    while len(body) < length:
        body += connection.recv(4096)
    return Handshake(int(status.split()[1]), headers, body)


def handshake(url: str, target: str = "/ws", headers: Iterable[tuple[str, str]] = ()) -> Handshake:
    with opened(url, target, headers) as (answer, _):
        return answer


def message(connection: socket.socket) -> bytes:
    """One short text frame of the server (RFC 6455 section 5.2)."""
    head = connection.recv(2)
    assert head[0] == 0x81, head
    length = head[1]
    if length == 126:
        length = int.from_bytes(connection.recv(2), "big")
    data = b""
    while len(data) < length:
        data += connection.recv(length - len(data))
    return data

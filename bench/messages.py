"""WebSocket load: connections that each send a message when the one before has come back.

`python -m bench.messages PORT CONNECTIONS SECONDS BYTES TOKENS`; the result is one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final, cast

import uvloop

from bench.echo import frame, frame_at

_TEXT: Final = 1
_UPGRADE: Final = (
    "GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {token}\r\n\r\n"
)


class Count:
    """The counts of all connections: messages, upgrades that were refused, connections that broke."""

    def __init__(self) -> None:
        self.messages = self.refused = self.broken = 0
        self.is_over = False


class Sender(asyncio.Protocol):
    """One connection."""

    def __init__(self, token: str, size: int, count: Count) -> None:
        self._upgrade = _UPGRADE.format(token=token).encode()
        self._payload = b"x" * size
        self._message = frame(self._payload, opcode=_TEXT, mask=b"\1\2\3\4")
        self._count = count
        self._data = bytearray()
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._upgrade)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._count.refused += 1
                self._transport.abort()
                return
            self._data, self._open = rest, True
            self._transport.write(self._message)
        while found := frame_at(self._data):
            length, opcode, _ = found
            del self._data[:length]
            if opcode == _TEXT:
                self._count.messages += 1
                self._transport.write(self._message)

    def connection_lost(self, _: Exception | None) -> None:
        if not self._count.is_over:
            self._count.broken += 1


async def measure(port: int, connections: int, seconds: float, size: int, tokens: list[str]) -> dict[str, float]:
    """Messages there and back within `seconds`, after a second of running in."""
    loop, count = asyncio.get_running_loop(), Count()
    transports = []
    for number in range(connections):
        token = tokens[number % len(tokens)]
        transport, _ = await loop.create_connection(partial(Sender, token, size, count), "127.0.0.1", port)
        transports.append(transport)
    await asyncio.sleep(1)
    before, begun = count.messages, time.perf_counter()
    await asyncio.sleep(seconds)
    took, messages = time.perf_counter() - begun, count.messages - before
    count.is_over = True
    for transport in transports:
        transport.abort()
    return {"requests": messages, "seconds": took, "refused": count.refused, "broken": count.broken}


def main(port: str, connections: str, seconds: str, size: str, tokens: str) -> None:
    known = Path(tokens).read_text().split()
    print(json.dumps(uvloop.run(measure(int(port), int(connections), float(seconds), int(size), known))))


if __name__ == "__main__":
    main(*sys.argv[1:])

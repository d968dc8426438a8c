"""A WebSocket backend that sends every frame back, with as little work as there can be: `python -m bench.echo PORT`.

It understands what `bench.messages` sends through a proxy, and nothing else: single frames, unfragmented, under 64 KiB.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
from typing import Final, cast

import uvloop

_KEY: Final = re.compile(rb"(?i)sec-websocket-key: *([^\r]+)")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_NO_UPGRADE: Final = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"


def frame_at(data: bytearray) -> tuple[int, int, bytes] | None:
    """Length of the frame that `data` begins with, opcode and unmasked payload (RFC 6455, 5.2); None: not all there."""
    if len(data) < 2:
        return None
    size, masked, at = data[1] & 0x7F, data[1] & 0x80, 2
    if size == 126:
        size, at = int.from_bytes(data[2:4], "big"), 4
    start = at + 4 if masked else at
    if len(data) < start + size:
        return None
    payload = bytes(data[start : start + size])
    if masked and size:
        mask = bytes(data[at:start]) * (size // 4 + 1)
        plain = int.from_bytes(payload, "big") ^ int.from_bytes(mask[:size], "big")
        payload = plain.to_bytes(size, "big")
    return start + size, data[0] & 0x0F, payload


def frame(payload: bytes, *, opcode: int, mask: bytes = b"") -> bytes:
    """One final frame. A mask of zeros leaves the payload as it is, and is still a mask."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    marked = bytes([length[0] | (0x80 if mask else 0)]) + length[1:]
    return bytes([0x80 | opcode]) + marked + mask + payload


class Echo(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open and not self._switched():
            return
        answer = bytearray()
        while found := frame_at(self._data):
            length, opcode, payload = found
            del self._data[:length]
            answer += frame(payload, opcode=10 if opcode == 9 else opcode)
        if answer:
            self._transport.write(answer)

    def _switched(self) -> bool:
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return False
        self._data = rest
        key = _KEY.search(head)
        if key is None:
            self._transport.write(_NO_UPGRADE)
            return False
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest())
        self._transport.write(_SWITCH + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self._open = True
        return True


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))

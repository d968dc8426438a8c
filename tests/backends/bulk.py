"""A backend as a process of its own, for much of everything; it listens on the port that it is given, or on any.

`GET /bytes/N` N bytes · `PUT` the SHA-256 of the body · `GET /events` server-sent events, one for each `GET /tell` ·
`GET /silent` nothing, ever · `GET /reset/N` N bytes of an answer, and a reset · `GET /open` how many connections there
are, this one included."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import sys
from contextlib import suppress

import uvloop

BLOCK = random.Random(7).randbytes(1 << 18)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

listeners: set[asyncio.StreamWriter] = set()
connections: set[asyncio.StreamWriter] = set()
told = 0


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connections.add(writer)
    try:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await answer(head, reader, writer)
    finally:
        connections.discard(writer)
        listeners.discard(writer)
        writer.close()


async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    method, target, *_ = head.split(b" ")
    _, name, *rest = target.split(b"/")
    if method == b"PUT":
        body = (await digest(head, reader)).encode()
        writer.write(_ANSWER % len(body) + body)
    elif name == b"bytes":
        await send(writer, int(rest[0]))
    elif name == b"events":
        listeners.add(writer)
        writer.write(_EVENTS)
        await reader.read(1)
        raise ConnectionResetError
    elif name == b"silent":
        await reader.read(1)
        raise ConnectionResetError
    elif name == b"reset":
        writer.write((_ANSWER % 1000 + b"x" * 1000)[: int(rest[0])])
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionResetError
    else:
        body = (tell() if name == b"tell" else str(len(connections))).encode()
        writer.write(_ANSWER % len(body) + body)
    await writer.drain()


def tell() -> str:
    global told
    told += 1
    for writer in listeners:
        writer.write(b"data: %d\n\n" % told)
    return str(len(listeners))


async def send(writer: asyncio.StreamWriter, size: int) -> None:
    writer.write(_ANSWER % size)
    while size > 0:
        writer.write(BLOCK[:size])
        size -= len(BLOCK)
        await writer.drain()


async def digest(head: bytes, reader: asyncio.StreamReader) -> str:
    left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    found = hashlib.sha256()
    while left and (part := await reader.read(min(left, 1 << 18))):
        found.update(part)
        left -= len(part)
    if left:
        raise ConnectionResetError
    return found.hexdigest()


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=2048, limit=1 << 18)
    print(f"running on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

"""WebSockets by hand, at either end: any bytes go out, and what comes is read by wsproto, which is neither the library
of the proxy nor that of the server in front."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tests.forward.chain import Chain, chain
from tests.servers import RawConnection, RawRequest, Script
from tests.waiting import HANG_SECONDS

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = False, length: int | None = None
) -> bytes:
    """One frame (RFC 6455 section 5.2), right or wrong. `length` is what it claims."""
    size = len(data) if length is None else length
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + data
    key = os.urandom(4)
    stream = (key * (len(data) // 4 + 1))[: len(data)]
    scrambled = (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")
    return head + key + scrambled


def close_payload(code: int | None, reason: str = "") -> bytes:
    return b"" if code is None else code.to_bytes(2, "big") + reason.encode()


class Closed(NamedTuple):
    """A close frame; `code` is None where it has none. A connection that breaks off without one is `DROPPED`."""

    code: int | None
    reason: str = ""


DROPPED = Closed(1006)


class Peer:
    """One end, after the handshake. What it sends is masked if it is the client's. Pings are answered when they are
    read, unless `answers_pings` is false."""

    answers_pings = True

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: ConnectionType) -> None:
        self.reader = reader
        self.writer = writer
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self._masked = kind is ConnectionType.CLIENT
        self._protocol = Connection(kind)
        self._events: deque[Event] = deque()
        self._parts: list[Any] = []

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def put(self, opcode: int, data: bytes = b"", **how: Any) -> None:
        await self.send(frame(opcode, data, **{"masked": self._masked, **how}))

    async def get(self) -> str | bytes | Closed:
        """The next message, or the end. Pings and pongs are kept."""
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                while not self._events:
                    try:
                        data = await self.reader.read(65536)
                    except ConnectionError:
                        data = b""
                    if not data:
                        return DROPPED
                    self._protocol.receive_data(data)
                    self._events.extend(self._protocol.events())
                if (seen := self._seen(self._events.popleft())) is not None:
                    return seen

    def _seen(self, event: Event) -> str | bytes | Closed | None:
        if isinstance(event, CloseConnection):
            return Closed(None if event.code == 1005 else event.code, event.reason or "")
        if isinstance(event, Ping):
            self.pings.append(bytes(event.payload))
            if self.answers_pings:
                self.writer.write(frame(PONG, bytes(event.payload), masked=self._masked))
        elif isinstance(event, Pong):
            self.pongs.append(bytes(event.payload))
        elif isinstance(event, TextMessage | BytesMessage):
            self._parts.append(event.data)
            if event.message_finished:
                parts, self._parts = self._parts, []
                return "".join(parts) if isinstance(event, TextMessage) else b"".join(map(bytes, parts))
        return None

    async def close(self, code: int | None = 1000, reason: str = "") -> Closed:
        """Closes, and returns what the other side answers."""
        await self.put(CLOSE, close_payload(code, reason))
        return await self.end()

    async def end(self) -> Closed:
        while not isinstance(seen := await self.get(), Closed):
            pass
        return seen

    async def gone(self) -> None:
        """Returns when the connection is at its end."""
        async with asyncio.timeout(HANG_SECONDS):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass

    def hang_up(self, *, reset: bool = False) -> None:
        """Drops what is unsent. With `reset` the other side is told at once, else once it has read everything."""
        if reset:
            no_linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.writer.transport.abort()


class Upgraded(NamedTuple):
    """The answer to a handshake, and the client's end of the WebSocket."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    peer: Peer

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@asynccontextmanager
async def opened(url: str, target: str = "/", headers: Iterable[tuple[str, str]] = ()) -> AsyncIterator[Upgraded]:
    """A handshake with exactly these headers and, unless it is among them, what every handshake has. Of a refusal, the
    body."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    headers = list(headers)
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        *(["Connection: Upgrade"] if "Connection" not in dict(headers) else []),
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        async with asyncio.timeout(HANG_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split()[1])
            fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
            body = b"" if status == 101 else await reader.readexactly(int(dict(fields).get("content-length", "0")))
        yield Upgraded(status, fields, body, Peer(reader, writer, ConnectionType.CLIENT))
    except asyncio.CancelledError:
        # With RST: a plain close could be that of the sending side alone (rule 3.20).
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def accepting(request: RawRequest, *more: str) -> bytes:
    """The answer that upgrades; `more` are further lines."""
    (key,) = request.get_all(b"sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()  # noqa: S324 - RFC 6455 section 4.2.2
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", *more, "", ""]).encode("latin-1")


def peer_of(connection: RawConnection) -> Peer:
    """The backend's end."""
    return Peer(connection._reader, connection._writer, ConnectionType.SERVER)


WebSocketScript = Callable[[Peer], Awaitable[None]]


def upgraded(script: WebSocketScript, *more: str) -> Script:
    """A backend that accepts and then does as `script` says; then the connection is closed."""

    async def run(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(accepting(request, *more))
        try:
            await script(peer_of(connection))
        finally:
            connection.close()

    return run


async def echo(peer: Peer) -> None:
    while not isinstance(seen := await peer.get(), Closed):
        is_text = isinstance(seen, str)
        await peer.put(TEXT if is_text else BINARY, seen.encode() if isinstance(seen, str) else seen)
    if seen != DROPPED:
        await peer.put(CLOSE, close_payload(seen.code, seen.reason))


def sockets() -> int:
    """How many this process has open."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(path.readlink()).startswith("socket:")
    return count


@asynccontextmanager
async def tunnel(answer: bytes | Script, **settings: Any) -> AsyncIterator[Chain]:
    """A backend and the proxy before it. Afterwards no call, no task and no socket of the proxy may be left."""
    before = sockets()
    async with chain(answer, **settings) as made:
        yield made
        calls = sum(scope["type"] != "lifespan" for scope in made.guarded.scopes)
        await made.ended(calls)
        assert await _tasks_of(made) == []
    async with asyncio.timeout(HANG_SECONDS):
        while sockets() > before:  # noqa: ASYNC110 - nobody tells when a socket is gone
            await asyncio.sleep(0.01)


async def _tasks_of(made: Chain) -> list[str]:
    """The proxy's tasks that still run beside a finished call."""
    loop = made.guarded.loop
    if loop is None or not loop.is_running():
        return []

    async def running() -> list[str]:
        names = (str(task.get_coro()) for task in asyncio.all_tasks() if not task.done())
        return [name for name in names if "left" in name or "ClientWebSocket" in name]

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(running(), loop))

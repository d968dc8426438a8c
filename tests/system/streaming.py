"""A backend with streams, and clients that read them to their end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.forward import sockets
from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import bearer, hello
from tests.waiting import HANG_SECONDS

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
DOWNLOAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nContent-Length: 1000000000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n"


class Streams:
    """What the backend did: how its WebSockets were closed, and how many of its answers were given up by the client.
    `/later` is answered when `later` is set."""

    def __init__(self) -> None:
        self.closed: list[sockets.Closed] = []
        self.given_up = 0
        self.asked_for_later, self.later = threading.Event(), threading.Event()

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        path = request.target.partition(b"?")[0]
        if path == b"/ws":
            await sockets.upgraded(self._websocket)(connection, request)
        elif path == b"/ws/frame":
            await sockets.upgraded(self._hang(sockets.frame(sockets.TEXT, b"abc")[:3]))(connection, request)
        elif path == b"/ws/fragments":
            await sockets.upgraded(self._hang(sockets.frame(sockets.TEXT, b"abc", fin=False)))(connection, request)
        elif path == b"/events":
            await self._dribble(connection, EVENTS, b"6\r\ndata: \r\n", b"9\r\nhello\n\nda\r\n", b"3\r\nta:\r\n")
        elif path == b"/quiet":
            await self._dribble(connection, EVENTS, b"d\r\ndata: hello\n\n\r\n")
        elif path == b"/download":
            await self._dribble(connection, DOWNLOAD, b"x" * 1000, *[b"x" * 1000] * 100_000)
        elif path == b"/chunked":
            await self._dribble(connection, CHUNKED, *[b"5\r\n1,2,3\r\n"] * 100_000)
        elif path == b"/later":
            self.asked_for_later.set()
            await asyncio.to_thread(self.later.wait)
            await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole")
        else:
            await hello(connection, request)

    async def _websocket(self, peer: sockets.Peer) -> None:
        while not isinstance(seen := await peer.get(), sockets.Closed):
            await peer.put(sockets.TEXT, seen.encode() if isinstance(seen, str) else seen)
        self.closed.append(seen)
        if seen != sockets.DROPPED:
            await peer.put(sockets.CLOSE, sockets.close_payload(seen.code, seen.reason))

    def _hang(self, data: bytes) -> sockets.WebSocketScript:
        """Sends this, and nothing more until the client has closed."""

        async def script(peer: sockets.Peer) -> None:
            await peer.send(data)
            self.closed.append(await peer.end())
            await peer.gone()

        return script

    async def _dribble(self, connection: RawConnection, *parts: bytes) -> None:
        """One part every 20 ms; after the last, nothing more until the client has left."""
        gone = asyncio.create_task(connection.gone())
        for part in parts:
            with suppress(ConnectionError):
                await connection.write(part)
            await asyncio.wait({gone}, timeout=0.02)
            if gone.done():
                break
        await gone
        self.given_up += 1
        connection.close()


class Ended(NamedTuple):
    """How a stream ended: what came, and when (`time.monotonic`). `whole` where the framing says so."""

    body: bytes
    whole: bool
    at: float


class Client:
    """An answer that is being read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.head = b""
        self.ended: asyncio.Task[Ended] | None = None

    async def begin(self) -> Client:
        self.head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), HANG_SECONDS)
        self.ended = asyncio.create_task(self._read())
        return self

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def end(self, seconds: float = HANG_SECONDS) -> Ended:
        assert self.ended is not None
        return await asyncio.wait_for(asyncio.shield(self.ended), seconds)

    @property
    def is_open(self) -> bool:
        assert self.ended is not None
        return not self.ended.done()

    async def _read(self) -> Ended:
        body = b""
        try:
            if b"transfer-encoding: chunked" not in self.head.lower():
                length = int(self.head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                while len(body) < length and (data := await self._reader.read(min(65536, length - len(body)))):
                    body += data
                return Ended(body, len(body) == length, time.monotonic())
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            return Ended(body, True, time.monotonic())
        except (asyncio.IncompleteReadError, ConnectionError):
            return Ended(body, False, time.monotonic())


@asynccontextmanager
async def requested(
    url: str, target: str, token: str, *, method: str = "GET", headers: Iterable[tuple[str, str]] = ()
) -> AsyncIterator[Client]:
    """The answer to a request, from its head on."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in [bearer(token), *headers]]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    client = Client(reader)
    try:
        yield await client.begin()
    finally:
        if client.ended is not None:
            client.ended.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Socket:
    """The client's end of a WebSocket, being read."""

    def __init__(self, opened: sockets.Upgraded) -> None:
        assert opened.status == 101, opened
        self.peer = opened.peer
        self.ended = asyncio.create_task(self._read())

    async def _read(self) -> tuple[sockets.Closed, float]:
        while not isinstance(seen := await self._next(), sockets.Closed):
            pass
        # Its half of the closing handshake (RFC 6455 section 5.5.1).
        with suppress(ConnectionError):
            await self.peer.put(sockets.CLOSE, sockets.close_payload(seen.code, seen.reason))
        return seen, time.monotonic()

    async def _next(self) -> str | bytes | sockets.Closed:
        while True:
            with suppress(TimeoutError):
                return await self.peer.get()

    async def end(self, seconds: float = HANG_SECONDS) -> tuple[sockets.Closed, float]:
        return await asyncio.wait_for(asyncio.shield(self.ended), seconds)

    @property
    def is_open(self) -> bool:
        return not self.ended.done()


@asynccontextmanager
async def websocket(url: str, token: str, target: str = "/ws") -> AsyncIterator[Socket]:
    async with sockets.opened(url, target, [bearer(token)]) as opened:
        socket = Socket(opened)
        try:
            yield socket
        finally:
            socket.ended.cancel()

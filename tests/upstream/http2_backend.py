"""Backends that speak HTTP/2: hypercorn, and one that follows a script frame by frame."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hypercorn.asyncio import serve
from hypercorn.config import Config

HeaderPairs = list[tuple[bytes, bytes]]


@asynccontextmanager
async def hypercorn(
    app: Any, certificate: Path | None = None, *, path: Path | None = None, **settings: Any
) -> AsyncIterator[str]:
    """Run this ASGI application under hypercorn, which speaks HTTP/2, over TLS with a `certificate`, on a Unix socket
    with a `path`; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}" if path is None else f"unix:{path}"]
        if certificate is not None:
            config.certfile = config.keyfile = str(certificate)
        config.errorlog = None
        config.graceful_timeout = 0.2
        for name, value in settings.items():
            setattr(config, name, value)
        stopped = asyncio.Event()
        server = asyncio.create_task(serve(app, config, shutdown_trigger=cast(Any, stopped.wait)))
        try:
            while path is not None and not path.exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            tcp = f"{'http' if certificate is None else 'https'}://localhost:{port}"
            yield tcp if path is None else f"http+unix://{path}"
        finally:
            stopped.set()
            await server


class Asked:
    """One request, and the ways to respond to it."""

    def __init__(self, served: Served, number: int, headers: HeaderPairs) -> None:
        self.served = served
        self.number = number
        self.headers = headers
        self.trailers: HeaderPairs = []
        self.body = b""
        self.complete = asyncio.Event()
        self.was_reset = asyncio.Event()

    def head(self, status: int = 200, *headers: tuple[bytes, bytes], end: bool = False) -> None:
        pairs = [(b":status", b"%d" % status), *headers]
        self.served.frames.send_headers(self.number, pairs, end_stream=end)
        self.served.flush()

    def data(self, data: bytes, *, end: bool = False) -> None:
        self.served.frames.send_data(self.number, data, end_stream=end)
        self.served.flush()

    def end(self, *trailers: tuple[bytes, bytes]) -> None:
        if trailers:
            self.served.frames.send_headers(self.number, list(trailers), end_stream=True)
        else:
            self.served.frames.end_stream(self.number)
        self.served.flush()

    def reset(self, code: int) -> None:
        self.served.frames.reset_stream(self.number, code)
        self.served.flush()

    def path(self) -> bytes:
        return dict(self.headers)[b":path"]


HttpTwoScript = Callable[[Asked], Awaitable[None]]


class Served(asyncio.Protocol):
    """One connection of the scripted backend."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self._backend = backend
        self.frames = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.asked: dict[int, Asked] = {}
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._backend.connections.append(self)
        self.frames.local_settings = Settings(
            client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: self._backend.max_streams}
        )
        self.frames.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.frames.receive_data(data)
        except ProtocolError as error:
            self._backend.errors.append(error)
            self.transport.close()
            return
        for event in events:
            self._take(event)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        for asked in self.asked.values():
            asked.was_reset.set()

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            asked = Asked(self, event.stream_id or 0, event.headers)
            self.asked[asked.number] = asked
            self._backend.requests.append(asked)
            self._backend.start(asked)
        elif (found := self.asked.get(getattr(event, "stream_id", 0))) is None:
            return
        elif isinstance(event, DataReceived):
            found.body += event.data or b""
            if self._backend.reads:
                self.frames.acknowledge_received_data(event.flow_controlled_length or 0, found.number)
        elif isinstance(event, TrailersReceived):
            found.trailers = event.headers
        elif isinstance(event, StreamEnded):
            found.complete.set()
        elif isinstance(event, StreamReset):
            found.was_reset.set()

    def flush(self) -> None:
        self.transport.write(self.frames.data_to_send())

    def going_away(self, last: int, *, code: int = 0) -> None:
        """Says so (RFC 9113 section 6.8) and goes on answering, as servers do and h2 does not."""
        payload = last.to_bytes(4, "big") + code.to_bytes(4, "big")
        self.transport.write(len(payload).to_bytes(3, "big") + b"\x07\x00\x00\x00\x00\x00" + payload)


class ScriptedBackend:
    """Runs `script` for each request. `max_streams` are allowed at once; data that is not to be read stays unread."""

    def __init__(self, script: HttpTwoScript, *, max_streams: int = 100, reads: bool = True) -> None:
        self._script = script
        self.max_streams = max_streams
        self.reads = reads
        self.connections: list[Served] = []
        self.requests: list[Asked] = []
        self.errors: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, asked: Asked) -> None:
        async def run() -> None:
            await self._script(asked)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @asynccontextmanager
    async def listening(self, certificate: Path | None, *, alpn: str = "h2") -> AsyncIterator[str]:
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            context.set_alpn_protocols([alpn])
        server = await asyncio.get_running_loop().create_server(lambda: Served(self), "127.0.0.1", 0, ssl=context)
        try:
            scheme = "http" if certificate is None else "https"
            yield f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}"
        finally:
            for task in list(self._tasks):
                task.cancel()
            for served in self.connections:
                served.transport.abort()
            server.close()
            await asyncio.sleep(0.01)

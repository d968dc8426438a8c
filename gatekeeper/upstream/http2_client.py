"""The backend over HTTP/2: its connections."""

from __future__ import annotations

import asyncio
from typing import Final

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.net import age_of_one
from gatekeeper.upstream.connector import Connector, SeparateConnection
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.http2 import Http2Connection
from gatekeeper.upstream.http2_stream import Http2Request
from gatekeeper.upstream.interface import BackendConnection


class Http2Upstream:
    """The backend at `url` over HTTP/2; the arguments are those of `Http1Upstream`.

    With `prior` every connection speaks it (RFC 9113 section 3.3), and over TLS the backend must choose it. Without,
    `url` is `https://…`, and the backend chooses at each handshake (ALPN, RFC 7301); once it has chosen HTTP/1.1,
    `http1` is the client for everything.

    As many requests share a connection as the backend allows, up to `MAX_STREAMS`; then another is opened.
    """

    def __init__(
        self,
        url: str,
        *,
        prior: bool = False,
        connect_timeout_seconds: float = 5.0,
        timeout_seconds: float = 60.0,
        ca_file: str | None = None,
        max_connections: int = 10_000,
        max_age_seconds: float = 300.0,
    ) -> None:
        self._url = url
        self._prior = prior
        self._connector = Connector(
            url,
            timeout_seconds=connect_timeout_seconds,
            ca_file=ca_file,
            alpn=("h2",) if prior else ("h2", "http/1.1"),
        )
        if not (prior or self._connector.origin.is_tls):
            raise ValueError("a backend chooses its protocol over TLS only")
        self.http1: Final = Http1Upstream(
            url,
            connect_timeout_seconds=connect_timeout_seconds,
            timeout_seconds=timeout_seconds,
            ca_file=ca_file,
            max_connections=max_connections,
            max_age_seconds=max_age_seconds,
        )
        self.authority: Final = self.http1.authority
        self._connect_timeout_seconds = connect_timeout_seconds
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._max_age_seconds = max_age_seconds
        self._connections: set[Http2Connection] = set()
        self._opening: asyncio.Task[None] | None = None
        self.chose_http1 = False

    def __repr__(self) -> str:
        return f"<Http2Upstream {self._url} [{len(self._connections)} open]>"

    def take_idle(self) -> BackendConnection | None:
        if self.chose_http1:
            return self.http1.take_idle()
        for connection in self._connections:
            if connection.has_room:
                return Http2Request(connection, self._connection)
        return None

    async def acquire(self, *, fresh: bool = False) -> BackendConnection:
        connection = await self._connection()
        if connection is None:
            return await self.http1.acquire(fresh=fresh)
        return Http2Request(connection, self._connection)

    async def probe(self) -> str:
        """Open a connection and return the name of its protocol."""
        return "HTTP/1.1" if await self._connection() is None else "HTTP/2"

    async def dial(self) -> SeparateConnection:
        return await self.http1.dial()

    async def aclose(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        for connection in list(self._connections):
            connection.abort()
        await self.http1.aclose()

    async def _connection(self) -> Http2Connection | None:
        """Return a connection with room for a request, None if the backend has chosen HTTP/1.1."""
        while not self.chose_http1:
            for connection in self._connections:
                if connection.has_room:
                    return connection
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
                self._opening.add_done_callback(self._opened)
            # One handshake for all requests that wait; a cancelled one does not cancel it.
            await asyncio.shield(self._opening)
        return None

    async def _open(self) -> None:
        if len(self._connections) >= self._max_connections:
            raise UpstreamTimeout("no connection to the backend is free")
        connection = await self._connector.connect(
            lambda: Http2Connection(
                timeout_seconds=self._timeout_seconds,
                age_seconds=age_of_one(self._max_age_seconds),
                on_lost=self._connections.discard,
            )
        )
        if not connection.is_http2:
            if self._prior:
                connection.abort()
                raise UpstreamUnavailable("the backend does not offer HTTP/2", kind="protocol")
            self.chose_http1 = True
            self.http1.pool.adopt(connection.transport)
            return
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                await connection.ready
        except BaseException as error:
            connection.abort()
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout("the backend was silent for too long (connect)") from error
            raise
        if not connection.has_room:
            connection.abort()
            raise UpstreamUnavailable("the backend takes no requests on a new connection", kind="connect")
        self._connections.add(connection)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()

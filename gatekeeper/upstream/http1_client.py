"""The backend over our own HTTP/1.1 client."""

from __future__ import annotations

from typing import Final

from gatekeeper.upstream.connector import Connector, SeparateConnection
from gatekeeper.upstream.pool import Http1Pool


class Http1Upstream:
    """The backend at `url` (`http://host:port`, `https://…`, `http+unix:///path.sock`), over HTTP/1.1.

    `connect_timeout_seconds` bounds opening a connection, TLS included, and the wait for a free one; `timeout_seconds`
    every later silence, never the whole response. `ca_file` is a PEM bundle that replaces the default certificate
    authorities. `max_connections` must not be less than the number of clients that may wait at once, or slow routes
    starve the others. No connection serves another request beyond `max_age_seconds`. Raises ValueError for a URL of
    another form.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_seconds: float = 5.0,
        timeout_seconds: float = 60.0,
        ca_file: str | None = None,
        max_connections: int = 10_000,
        max_age_seconds: float = 300.0,
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._connector = Connector(url, timeout_seconds=connect_timeout_seconds, ca_file=ca_file)
        self.authority: Final = self._connector.origin.authority
        self.pool: Final = Http1Pool(
            self._connector,
            timeout_seconds=timeout_seconds,
            wait_seconds=connect_timeout_seconds,
            max_connections=max_connections,
            max_age_seconds=max_age_seconds,
        )
        self.take_idle: Final = self.pool.take_idle
        self.acquire: Final = self.pool.acquire

    def __repr__(self) -> str:
        return f"<Http1Upstream {self._url} {self.pool!r}>"

    async def dial(self) -> SeparateConnection:
        return await self._connector.dial(self._timeout_seconds)

    async def probe(self) -> str:
        """Open a connection and return the name of its protocol."""
        await self.pool.acquire(fresh=True)
        return "HTTP/1.1"

    async def aclose(self) -> None:
        await self.pool.aclose()

"""Connections for httpcore that read while they write.

httpcore reads a response only after the full request is sent. If a backend responds with 413 and closes, httpcore sees
a reset and loses the response; if it responds and waits, the client is held up for nothing. These connections read
while the body is sent, and a final response ends the upload with `WriteError`, the one exception after which httpcore
looks for a response.
"""

# ruff: noqa: ASYNC109 - the signatures are httpcore's

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, TypeVar

import httpcore

from gatekeeper.net import age_of_one

_T = TypeVar("_T")
_SocketOption: TypeAlias = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

_READ_BYTES: Final = 64 * 1024
_INTERIM = re.compile(rb"HTTP/1\.[01] 1[0-9][0-9]")
_STATUS_LINE_START_BYTES: Final = len("HTTP/1.1 100")


class HttpxExchange:
    """The state of one request on its connection.

    `uploading`: a body is to be sent; `reused`: the connection had served before; `heard`: bytes arrived after the
    request began; `ended`: the backend closed its side.
    """

    def __init__(self, *, uploading: bool) -> None:
        self.stream: DuplexStream | None = None
        self.uploading = uploading
        self.reused = False
        self.heard = False
        self.ended = False


current_exchange: ContextVar[HttpxExchange] = ContextVar("current_exchange")
"""The exchange of the current task, set by `httpx_client`: httpcore does not report which connection it picks, but
writes to it in that task."""


class DuplexStream(httpcore.AsyncNetworkStream):
    """A connection that can be read in the background while a request body is written: one request at a time."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, expires_at: float) -> None:
        self._inner = inner
        self._expires_at = self._idle_until = expires_at
        self._exchange: HttpxExchange | None = None
        self._heard: deque[asyncio.Task[bytes]] = deque()
        self._reading: asyncio.Task[bytes] | None = None
        self._has_response = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        exchange = current_exchange.get()
        if exchange.stream is None:
            exchange.stream, exchange.reused = self, self._exchange is not None
            self._exchange = exchange
            await self._inner.write(buffer, timeout)
        elif exchange.uploading and buffer:
            await self.until_response(self._inner.write(buffer, timeout))
        else:
            await self._inner.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._heard:
            data = self._heard.popleft().result()
        elif self._reading is not None:
            done, _ = await asyncio.wait({self._reading}, timeout=timeout)
            if not done:
                raise httpcore.ReadTimeout
            data, self._reading = self._reading.result(), None
        else:
            data = await self._inner.read(max_bytes, timeout)
        if self._exchange is not None:
            self._exchange.heard |= bool(data)
            self._exchange.ended |= not data
        return data

    async def until_response(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of `work`. Raise WriteError, with `work` cancelled, if the backend responds or closes
        before it is done.

        Interim responses (1xx) do not count.
        """
        task = asyncio.ensure_future(work)
        try:
            while not self._has_response:
                if self._reading is None:
                    self._reading = asyncio.ensure_future(self._inner.read(_READ_BYTES))
                await asyncio.wait({task, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                if self._reading.done():
                    self._keep(self._reading)
                elif task.done():
                    return task.result()
            raise httpcore.WriteError("the backend responded before the request was complete")
        finally:
            await _cancelled(task)

    def _keep(self, reading: asyncio.Task[bytes]) -> None:
        self._heard.append(reading)
        self._reading = None
        failed = any(part.exception() or not part.result() for part in self._heard)
        self._has_response = failed or final_response_begun(b"".join(part.result() for part in self._heard))

    async def aclose(self) -> None:
        if self._reading is not None:
            await _cancelled(self._reading)
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return DuplexStream(await self._inner.start_tls(ssl_context, server_hostname, timeout), self._expires_at)

    def limit_idleness(self, seconds: float | None) -> None:
        """Serve no further request that comes more than `seconds` from now; with None, no limit but the age."""
        self._idle_until = self._expires_at if seconds is None else min(self._expires_at, time.monotonic() + seconds)

    def get_extra_info(self, info: str) -> Any:
        # httpcore closes an idle connection for which this is true. After an early response it must never serve again:
        # the next request would be read as the rest of the old body. A connection also comes of age.
        if info == "is_readable" and (
            self._has_response or self._heard or self._reading is not None or time.monotonic() >= self._idle_until
        ):
            return True
        return self._inner.get_extra_info(info)


class DuplexBackend(httpcore.AsyncNetworkBackend):
    """httpcore's asyncio back end, with `DuplexStream` connections that serve for `max_age_seconds`."""

    def __init__(self, max_age_seconds: float) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._max_age_seconds = max_age_seconds

    def _made(self, inner: httpcore.AsyncNetworkStream) -> DuplexStream:
        return DuplexStream(inner, time.monotonic() + age_of_one(self._max_age_seconds))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return self._made(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[_SocketOption] | None = None
    ) -> httpcore.AsyncNetworkStream:
        return self._made(await self._inner.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def final_response_begun(data: bytes) -> bool:
    """Tell whether a final response begins in these bytes, after any interim responses (RFC 9110 section 15.2)."""
    while _INTERIM.match(data):
        _, end, data = data.partition(b"\r\n\r\n")
        if not end:
            return False
    return len(data) >= _STATUS_LINE_START_BYTES


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it. Its result is dropped."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()

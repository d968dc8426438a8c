"""The backend over HTTP/2: connections, requests and responses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Final

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http import grammar
from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import HeaderList, get
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.request_writer import RequestNotForwardable
from gatekeeper.net import age_of_one
from gatekeeper.upstream.connector import Connector, SeparateConnection
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.http2 import Http2Connection
from gatekeeper.upstream.http2_stream import Http2Head, Http2Stream
from gatekeeper.upstream.interface import RequestBody, UpstreamRequest, UpstreamResponse

# RFC 9113 section 8.2.2; of `te`, `trailers` may stay.
_LEFT_OUT: Final = frozenset(
    {b"connection", b"host", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
_TARGET = re.compile(grammar.VISIBLE)
_LENGTH = re.compile(grammar.DECIMAL)
# As over HTTP/1.1 (RFC 9110 section 10.1.1).
_EXPECT_SECONDS: Final = 1.0
_MAX_KEPT_BYTES: Final = 64 * 1024


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
        self._connect_timeout_seconds = connect_timeout_seconds
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._max_age_seconds = max_age_seconds
        self._connections: set[Http2Connection] = set()
        self._opening: asyncio.Task[None] | None = None
        self.chose_http1 = False

    def __repr__(self) -> str:
        return f"<Http2Upstream {self._url} [{len(self._connections)} open]>"

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        headers = self._fields(request)
        body = None if request.body is None else ReplayableBody(request.body)
        for is_last in (False, True):
            connection = await self._acquire()
            if connection is None:
                # Nothing was sent so far.
                return await self.http1.send(request)
            exchange = Http2Exchange(
                connection.open(headers, has_body=body is not None), request, body, is_last=is_last
            )
            try:
                return Http2Response(await exchange.head(), exchange)
            except UpstreamUnavailable:
                if not exchange.may_be_sent_again:
                    raise
        raise AssertionError("the second attempt returns or raises")

    async def probe(self) -> str:
        """Open a connection and return the name of its protocol."""
        return "HTTP/1.1" if await self._acquire() is None else "HTTP/2"

    async def dial(self) -> SeparateConnection:
        return await self.http1.dial()

    async def aclose(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        for connection in list(self._connections):
            connection.abort()
        await self.http1.aclose()

    async def _acquire(self) -> Http2Connection | None:
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

    def _fields(self, request: UpstreamRequest) -> HeaderList:
        """Return the fields of the request, pseudo-header fields first. Raises RequestNotForwardable."""
        method, target, headers, *_ = request
        fields = [
            (b":method", method.encode("ascii")),
            (b":scheme", b"https" if self._connector.origin.is_tls else b"http"),
            (b":authority", get(headers, b"host") or self._connector.origin.authority),
            (b":path", target),
        ]
        if not is_token(fields[0][1]) or not _TARGET.fullmatch(target):
            raise RequestNotForwardable
        for name, value in headers:
            if not is_token(name) or name != name.lower() or not is_field_value(value) or value != value.strip(b" \t"):
                raise RequestNotForwardable
            if name not in _LEFT_OUT:
                fields.append((name, value))
            elif name == b"te" and value.lower() == b"trailers":
                fields.append((b"te", b"trailers"))
        return fields


class Http2Response:
    """A response, read from its exchange. HTTP/2 has no reason phrases: `reason` is the registered one."""

    def __init__(self, head: Http2Head, exchange: Http2Exchange) -> None:
        self.status = head.status
        self.reason = _reason(head.status)
        self.headers = head.headers
        # With a length, the response to an HTTP/1.1 client has no place for trailers.
        self.may_have_trailers = not head.is_all and get(head.headers, b"content-length") is None
        self.body: AsyncGenerator[bytes, None] = exchange.parts()
        self._exchange = exchange

    @property
    def trailers(self) -> HeaderList:
        return self._exchange.stream.trailers

    async def aclose(self) -> None:
        await self.body.aclose()
        await self._exchange.aclose()


class Http2Exchange:
    """One request and its response. The body is sent by a task of its own, even after the response has begun."""

    def __init__(
        self, stream: Http2Stream, request: UpstreamRequest, body: ReplayableBody | None, *, is_last: bool
    ) -> None:
        self.stream = stream
        self._request = request
        self._body = body
        self._is_last = is_last
        self._upload: asyncio.Task[None] | None = None
        self._upload_error: BaseException | None = None
        if body is not None:
            body.rewind()
            self._upload = asyncio.create_task(self._send_body(body))

    @property
    def may_be_sent_again(self) -> bool:
        """True if the backend has not begun with the request, or if doing it twice is harmless (RFC 9110 section
        9.2.2)."""
        if self._is_last:
            return False
        if self.stream.refused:
            return self._body is None or self._body.is_complete
        return self.stream.untouched and self._body is None and self._request.method in SAFE_METHODS

    async def head(self) -> Http2Head:
        """Return the head of the final response. If this is cancelled or fails, the exchange is closed."""
        try:
            while True:
                head = await self._or_failed_upload()
                if head.status >= 300:
                    await self._drop_body()
                if head.status >= 200:
                    return head
                if self._request.on_informational is not None and head.status != HTTPStatus.CONTINUE:
                    await self._request.on_informational(head.status, head.headers)
        except BaseException as error:
            if isinstance(error, UpstreamUnavailable) and self.may_be_sent_again:
                # The rest of the body is for the next attempt.
                await self._end_upload()
            else:
                await self.aclose()
            raise

    async def parts(self) -> AsyncGenerator[bytes, None]:
        while (part := await self.stream.part()) is not None:
            if part:
                yield part

    async def aclose(self) -> None:
        """Close what has not ended."""
        self.stream.close()
        await self._drop_body()

    async def _drop_body(self) -> None:
        await self._end_upload()
        if self._body is not None:
            await self._body.aclose()

    async def _end_upload(self) -> None:
        if self._upload is not None:
            upload, self._upload = self._upload, None
            self.stream.send_no_more()
            upload.cancel()
            await asyncio.wait({upload})

    async def _or_failed_upload(self) -> Http2Head:
        try:
            return await self.stream.head()
        except UpstreamUnavailable:
            if self._upload_error is not None:
                raise self._upload_error from None
            raise

    async def _send_body(self, body: ReplayableBody) -> None:
        try:
            expect = get(self._request.headers, b"expect")
            if expect is not None and expect.lower() == b"100-continue":
                await self._wait_for_continue()
            await self._send_parts(body)
            await body.aclose()
        except Exception as error:  # noqa: BLE001 - raised to the task that waits for the response
            self._upload_error = error
            self.stream.give_up()

    async def _send_parts(self, body: ReplayableBody) -> None:
        length = get(self._request.headers, b"content-length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise RequestNotForwardable
        left = None if length is None else int(length)
        async for part in body:
            if left is not None:
                left -= len(part)
                if left < 0:
                    raise RequestNotForwardable
            await self.stream.send(part)
            if self.stream.is_over:
                return
        if left:
            raise RequestNotForwardable
        if left is None and body.trailers:
            self.stream.send_trailers([(name.lower(), value) for name, value in body.trailers])
        else:
            await self.stream.send(b"", end=True)

    async def _wait_for_continue(self) -> None:
        try:
            async with asyncio.timeout(_EXPECT_SECONDS):
                await self.stream.continue_received.wait()
        except TimeoutError:
            pass


class ReplayableBody:
    """A request body whose beginning is kept, to be sent again if the backend has not begun with the request.

    `is_complete`: nothing of it was dropped so far.
    """

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._parts: list[bytes] = []
        self._size = 0
        self._at = 0
        self.is_complete = True

    @property
    def trailers(self) -> HeaderList:
        return self._body.trailers

    def rewind(self) -> None:
        self._at = 0

    def __aiter__(self) -> ReplayableBody:
        return self

    async def __anext__(self) -> bytes:
        if self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            return part
        part = await anext(self._body)
        self._size += len(part)
        if self._size > _MAX_KEPT_BYTES:
            self.is_complete = False
            self._parts.clear()
            self._at = 0
        else:
            self._parts.append(part)
            self._at += 1
        return part

    async def aclose(self) -> None:
        await self._body.aclose()


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""

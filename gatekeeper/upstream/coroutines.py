"""Requests to the backend by coroutines, on the callbacks of its connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from gatekeeper.errors import UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.request_writer import RequestNotForwardable, SerializedHead, serialize_head
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.upstream.interface import BackendConnection, Failure, RequestBody, Upstream, UpstreamRequest

# The part of a body that is buffered for a slow reader, beside one read of the socket.
_MAX_HELD_BYTES: Final = 64 * 1024
_MAX_HELD_HEADS: Final = 8
# RFC 9110 section 10.1.1: a client that expects 100 must not wait forever, because servers may not know it.
_EXPECT_SECONDS: Final = 1.0


async def send(upstream: Upstream, request: UpstreamRequest) -> UpstreamResponse:
    """Send a request and return the head of its response, which may arrive before the body is sent.

    Raises UpstreamUnavailable, UpstreamTimeout or RequestNotForwardable, and any exception of reading the body.
    Cancelling it closes the connection.
    """
    method, target, headers, body, _, names = request
    has_body = body is not None
    out = serialize_head(method, target, headers, authority=upstream.authority, has_body=has_body, names=names)
    exchange = UpstreamExchange(await upstream.acquire(), request, out)
    try:
        head = await exchange.head()
    except UpstreamUnavailable:
        if not exchange.untouched or body is not None or method not in SAFE_METHODS:
            raise
        exchange = UpstreamExchange(await upstream.acquire(fresh=True), request, out)
        head = await exchange.head()
    return UpstreamResponse(head, exchange)


class UpstreamResponse:
    """A response: its head, and its body as it arrives, without framing and otherwise unchanged. Names of headers and
    trailers are as they were read, in any case.

    `may_have_trailers` is known from the head; `trailers` are complete when `body` has ended. Iterating over `body`
    raises UpstreamUnavailable or UpstreamTimeout if the backend breaks off. `aclose` must be called, at any point.
    """

    __slots__ = ("_exchange", "headers", "may_have_trailers", "reason", "status")

    def __init__(self, head: ResponseHead, exchange: UpstreamExchange) -> None:
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self.may_have_trailers = head.is_chunked and exchange.has_body
        self._exchange = exchange

    @property
    def body(self) -> AsyncIterator[bytes]:
        return self._exchange

    @property
    def trailers(self) -> HeaderList:
        return self._exchange.trailers

    async def aclose(self) -> None:
        await self._exchange.aclose()


class UpstreamExchange:
    """One request and its response, started when it is made. It implements `ResponseCallbacks`, and iterates over the
    body of the response.

    One task may wait at a time, for `head` or for a part of the body. An upload is a task of its own.
    """

    __slots__ = (
        "_connection",
        "_continue_received",
        "_error",
        "_heads",
        "_held_bytes",
        "_is_over",
        "_parts",
        "_request",
        "_upload",
        "_waiter",
        "_writable",
        "has_body",
        "trailers",
        "untouched",
    )

    def __init__(self, connection: BackendConnection, request: UpstreamRequest, out: SerializedHead) -> None:
        self._connection: BackendConnection | None = connection
        self._request = request
        self._heads: deque[ResponseHead] = deque()
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._is_over = False
        self._upload: asyncio.Task[None] | None = None
        self.has_body = False
        self.trailers: HeaderList = []
        self.untouched = False
        body = request.body
        is_head = request.method == "HEAD"
        connection.start(
            out.head, self, to_head_request=is_head, uploading=body is not None, chunked=out.length is None
        )
        if body is not None:
            self._writable = asyncio.Event()
            self._continue_received = asyncio.Event()
            self._upload = asyncio.create_task(self._send_body(connection, body, out))

    # Awaited by the caller

    async def head(self) -> ResponseHead:
        """Return the head of the final response. If it does not want the rest of the body, the upload is stopped. If
        this is cancelled or fails, the exchange is closed."""
        try:
            while True:
                head = await self._next_head()
                if head.status >= 200:
                    break
                if self._request.on_informational is not None:
                    await self._request.on_informational(head.status, head.headers)
                if self._connection is not None:
                    self._connection.resume_reading()
            if self._upload is not None and (self._connection is None or not self._connection.uploading):
                await self._end_upload()
        except BaseException:
            await self.aclose()
            raise
        return head

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            await self._wait()
        parts, self._parts, self._held_bytes = self._parts, [], 0
        if self._connection is not None:
            self._connection.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def aclose(self) -> None:
        """Close what has not ended."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._is_over = True
        # Its traceback refers to this.
        self._error = None
        if self._upload is not None:
            await self._end_upload()

    async def _next_head(self) -> ResponseHead:
        while not self._heads:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._heads.popleft()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the connection

    def on_informational(self, head: ResponseHead) -> None:
        if head.status == 100:
            if self._upload is not None:
                self._continue_received.set()
        elif self._request.on_informational is not None:
            self._heads.append(head)
            if len(self._heads) > _MAX_HELD_HEADS and self._connection is not None:
                self._connection.pause_reading()
            self._wake()

    def on_head(self, head: ResponseHead) -> None:
        if self._connection is not None and self._connection.uploading:
            self._continue_received.set()
        self.has_body = not head.is_bodiless and self._request.method != "HEAD"
        self._heads.append(head)
        self._wake()

    def on_data(self, data: bytes) -> None:
        self._parts.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _MAX_HELD_BYTES and self._connection is not None:
            self._connection.pause_reading()
        self._wake()

    def on_end(self, trailers: HeaderList) -> None:
        self._connection = None
        self.trailers = trailers
        self._is_over = True
        self._wake()

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        self._connection = None
        self.untouched = untouched
        self._error = error
        self._wake()

    takes_full_response = False

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        """Never called: the body is taken part by part."""

    def on_batch_end(self) -> None:
        """Do nothing: the parts are taken on demand."""

    def on_writable(self) -> None:
        # A head alone can fill a connection.
        if self._upload is not None:
            self._writable.set()

    # The body

    async def _send_body(self, connection: BackendConnection, body: RequestBody, out: SerializedHead) -> None:
        try:
            if out.expects:
                await self._wait_for_continue()
            await self._send_parts(connection, body, out.length)
        except Exception as error:  # noqa: BLE001 - raised to the task that waits for the response
            # The backend must not take an incomplete body for a complete one.
            if self._connection is not None:
                self._connection = None
                connection.abort()
                self._error = error
                self._wake()

    async def _send_parts(self, connection: BackendConnection, body: RequestBody, length: int | None) -> None:
        left = length
        while left is None or left > 0:
            try:
                part = await anext(body)
            except StopAsyncIteration:
                break
            if left is not None:
                left -= len(part)
                if left < 0:
                    raise RequestNotForwardable
            connection.write(part)
            if connection.is_full and left != 0:
                self._writable.clear()
                await self._writable.wait()
        if left:
            raise RequestNotForwardable
        connection.finish(body.trailers)
        await body.aclose()

    async def _wait_for_continue(self) -> None:
        try:
            async with asyncio.timeout(_EXPECT_SECONDS):
                await self._continue_received.wait()
        except TimeoutError:
            pass

    async def _end_upload(self) -> None:
        upload, self._upload = self._upload, None
        body = self._request.body
        assert upload is not None and body is not None  # noqa: S101, PT018 - both or neither
        upload.cancel()
        await asyncio.wait({upload})
        await body.aclose()

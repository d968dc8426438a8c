"""One HTTP/1.1 connection to the backend: one request at a time, reported by callbacks.

It has no task, future or coroutine, so that the cost of a request is that of its bytes.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
from collections.abc import Callable
from typing import Final, cast

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.http.request_writer import chunk, last_chunk
from gatekeeper.http.response_parser import BadResponse, ResponseHead, ResponseParser
from gatekeeper.upstream.interface import Failure, ResponseCallbacks

_DRAIN_BYTES: Final = 256 * 1024


class Http1Connection(asyncio.Protocol):
    """A `BackendConnection` that `pool` keeps. `timeout_seconds` bounds every silence of the backend while it owes a
    response or should read a body, never the whole exchange.

    `expires_at` and `idle_until` are the pool's (`time.monotonic`); `parser` tells it for how long the backend keeps an
    idle connection. `on_idle(connection)` is called when it may serve another request, `on_lost(connection)` once, when
    it never will.
    """

    __slots__ = (
        "_callbacks",
        "_deadline",
        "_is_chunked",
        "_is_reading",
        "_is_unusable",
        "_loop",
        "_on_idle",
        "_on_lost",
        "_poll",
        "_timeout_seconds",
        "_timer",
        "_transport",
        "expires_at",
        "heard",
        "idle_until",
        "is_full",
        "is_lost",
        "parser",
        "reused",
        "uploading",
    )

    def __init__(
        self,
        *,
        timeout_seconds: float,
        on_idle: Callable[[Http1Connection], None],
        on_lost: Callable[[Http1Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = timeout_seconds
        self._on_idle = on_idle
        self._on_lost = on_lost
        self.parser = ResponseParser(self)
        self._poll = select.poll()
        self._callbacks: ResponseCallbacks | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._is_reading = True
        self._is_unusable = False
        self._transport: asyncio.Transport
        self.idle_until = 0.0
        self.expires_at = math.inf
        self.heard = False
        self.reused = False
        self.uploading = False
        self.is_full = False
        self.is_lost = False

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "idle" if self._callbacks is None else "busy"
        return f"<Connection [{state}]>"

    # Called for a request

    def start(
        self,
        head: bytes,
        callbacks: ResponseCallbacks,
        *,
        body: bytes = b"",
        to_head_request: bool = False,
        uploading: bool = False,
        chunked: bool = False,
    ) -> None:
        self._callbacks = callbacks
        self.heard = False
        self.uploading = uploading
        self._is_chunked = chunked
        self.parser.begin(to_head_request=to_head_request)
        self._watch()
        self._transport.write(head + body if body else head)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_seconds, self._check_silence)

    def write(self, data: bytes) -> None:
        if self.uploading:
            self._transport.write(chunk(data) if self._is_chunked else data)

    def finish(self, trailers: Headers = ()) -> None:
        if self.uploading:
            if self._is_chunked:
                self._transport.write(last_chunk(trailers))
            self.uploading = False
            self._watch()

    def pause_reading(self) -> None:
        if self._is_reading and not self.is_lost:
            self._is_reading = False
            self._watch()
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_reading and not self.is_lost:
            self._is_reading = True
            self._watch()
            self._transport.resume_reading()

    def hand_over(self, callbacks: ResponseCallbacks) -> None:
        if self._callbacks is not None:
            self._callbacks = callbacks

    def abort(self) -> None:
        self._callbacks = None
        self._lose()

    # Called by the pool

    def is_usable(self) -> bool:
        """Tell whether the connection is still open and holds no bytes, in the kernel neither: they would be read as
        the response to the next request."""
        return not self.is_lost and not self._poll.poll(0)

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not a subclass.
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._callbacks is None:
            self._lose()
            return
        self.heard = True
        if self._deadline != math.inf:
            self._deadline = self._loop.time() + self._timeout_seconds
        try:
            self.parser.feed(data)
        except BadResponse as error:
            self._fail(UpstreamUnavailable(f"the backend broke HTTP: {error}", kind="protocol"))
        else:
            if self._callbacks is not None:
                self._callbacks.on_batch_end()

    def eof_received(self) -> None:
        if self._callbacks is not None and not self.parser.feed_eof():
            self._fail(_connection_closed())
        self._lose()

    def connection_lost(self, error: Exception | None) -> None:
        if self._callbacks is not None:
            self._read_remainder()
        self._fail(_connection_closed())

    def pause_writing(self) -> None:
        self.is_full = True
        self._watch()

    def resume_writing(self) -> None:
        self.is_full = False
        self._watch()
        if self._callbacks is not None:
            self._callbacks.on_writable()

    # Called by the parser

    def on_informational(self, head: ResponseHead) -> None:
        assert self._callbacks is not None  # noqa: S101 - nothing is parsed without callbacks
        self._callbacks.on_informational(head)

    def on_head(self, head: ResponseHead) -> None:
        assert self._callbacks is not None  # noqa: S101
        if self.uploading and head.status >= 300:
            # The rest of the body is not wanted. A request sent next would be read as that rest.
            self.uploading = False
            self._is_unusable = True
            self._watch()
        self._callbacks.on_head(head)

    def on_data(self, data: bytes) -> None:
        assert self._callbacks is not None  # noqa: S101
        self._callbacks.on_data(data)

    def on_end(self, trailers: HeaderList) -> None:
        callbacks = self._callbacks
        assert callbacks is not None  # noqa: S101
        # First: the next request of the callback may use this connection.
        self._release()
        callbacks.on_end(trailers)

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        callbacks = self._callbacks
        assert callbacks is not None  # noqa: S101
        if callbacks.takes_full_response:
            self._release()
            callbacks.on_full_response(head, body)
            return
        self.on_head(head)
        if self._callbacks is not None:
            self.on_data(body)
        if self._callbacks is not None:
            self.on_end([])

    # Closing

    def _release(self) -> None:
        """Finish with a complete response."""
        self._callbacks = None
        if self.uploading or self.is_full or self._is_unusable or not self.parser.reusable:
            self._lose()
        else:
            if not self._is_reading:
                self.resume_reading()
            self.reused = True
            self._on_idle(self)

    def _watch(self) -> None:
        """Set the deadline after a change of turns. The backend's silence counts while the connection is read from and
        either has the full request or takes no more of it."""
        if self._is_reading and (self.is_full or not self.uploading):
            self._deadline = self._loop.time() + self._timeout_seconds
        else:
            self._deadline = math.inf

    def _check_silence(self) -> None:
        self._timer = None
        if self._callbacks is None:
            return
        left = self._deadline - self._loop.time()
        if left <= 0:
            self._fail(UpstreamTimeout("the backend was silent for too long"))
        else:
            self._timer = self._loop.call_later(min(left, self._timeout_seconds), self._check_silence)

    def _read_remainder(self) -> None:
        """Read what the kernel still holds of a connection that a write found reset: the response that says why."""
        if self._transport.get_extra_info("sslcontext") is not None:
            return
        try:
            number = self._transport.get_extra_info("socket").fileno()
            # After a reset, a response that is delimited by the end of the connection is not complete.
            while self._callbacks is not None and (data := os.read(number, _DRAIN_BYTES)):
                self.data_received(data)
        except OSError:
            pass

    def _fail(self, error: Failure) -> None:
        callbacks, self._callbacks = self._callbacks, None
        self._lose()
        if callbacks is not None:
            callbacks.on_failure(error, untouched=self.reused and not self.heard and error.kind == "reset")

    def _lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self.uploading = False
        self.parser.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._on_lost(self)


def _connection_closed() -> UpstreamUnavailable:
    return UpstreamUnavailable("the backend closed the connection", kind="reset")

"""One connection to the backend: one request at a time, told by callbacks.

There is no task, no future and no coroutine here, so that a request costs what its bytes cost; whoever wants to await
something builds it on a `ResponseCallbacks` (`native.py`).
"""

from __future__ import annotations

import asyncio
import math
import os
import select
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, cast

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import BadResponse, ResponseHead, ResponseParser

Failure: TypeAlias = UpstreamUnavailable | UpstreamTimeout

_DRAIN_BYTES: Final = 256 * 1024


class ResponseCallbacks(Protocol):
    """Who is told of the answer to one request. Any of these may call the connection's methods.

    After `on_end`, `on_failure` or its own `abort` the connection is not the sink's any more: it may be serving another
    request already.
    """

    def on_informational(self, head: ResponseHead) -> None:
        """An interim answer (1xx, never 101)."""

    def on_head(self, head: ResponseHead) -> None:
        """The head of the final answer. Where `connection.uploading` is false now, no more of the body is wanted."""

    def on_data(self, data: bytes) -> None:
        """A part of the body."""

    def on_end(self, trailers: HeaderList) -> None:
        """The answer is complete, and with it the request, even where its body was not."""

    @property
    def takes_full_response(self) -> bool:
        """Whether `on_full_response` may be called."""

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        """In place of the three above: the final answer, all of it, and the last word on it."""

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        """There will be no answer, or no more of it. `untouched`: a connection that had served before ended before it
        told anything, so that the backend may never have seen the request (RFC 9112 section 9.3.1)."""

    def on_batch_end(self) -> None:
        """No more has come for now, and the answer is not complete."""

    def on_writable(self) -> None:
        """The connection takes more of the request body, after `is_full`."""


class Http1Connection(asyncio.Protocol):
    """A connection that `pool` keeps. `timeout_seconds` bounds every silence of the backend while it owes an answer,
    or the reading of a body; never the whole.

    `on_idle(connection)` is called when it may serve another request, `on_lost(connection)` once, when it never will.
    """

    __slots__ = (
        "_deadline",
        "_is_reading",
        "_is_spoilt",
        "_loop",
        "_on_idle",
        "_on_lost",
        "_parser",
        "_poll",
        "_sink",
        "_timeout_seconds",
        "_timer",
        "_transport",
        "heard",
        "idle_since",
        "is_full",
        "is_lost",
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
        self._parser = ResponseParser(self)
        self._poll = select.poll()
        self._sink: ResponseCallbacks | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._is_reading = True
        self._is_spoilt = False
        self._transport: asyncio.Transport
        self.idle_since = 0.0
        self.heard = False
        self.reused = False
        self.uploading = False
        self.is_full = False
        self.is_lost = False

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "idle" if self._sink is None else "busy"
        return f"<Connection [{state}]>"

    # What a request does

    def start(
        self, head: bytes, sink: ResponseCallbacks, *, to_head_request: bool = False, uploading: bool = False
    ) -> None:
        """Sends the head of a request. With `uploading` its body is still to come, by `write` and `finish`."""
        self._sink = sink
        self.heard = False
        self.uploading = uploading
        self._parser.begin(to_head_request=to_head_request)
        self._watch()
        self._transport.write(head)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_seconds, self._check_silence)

    def write(self, data: bytes) -> None:
        """A part of the request body, in its framing. While `is_full`, none should come."""
        if self.uploading:
            self._transport.write(data)

    def finish(self) -> None:
        """The request is complete."""
        if self.uploading:
            self.uploading = False
            self._watch()

    def pause_reading(self) -> None:
        """The sink takes no more for now."""
        if self._is_reading and not self.is_lost:
            self._is_reading = False
            self._watch()
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_reading and not self.is_lost:
            self._is_reading = True
            self._watch()
            self._transport.resume_reading()

    def abort(self) -> None:
        """Nothing more is said or heard, and the sink is told nothing. A request that is not complete never will
        be."""
        self._sink = None
        self._lose()

    # What the pool asks

    def is_usable(self) -> bool:
        """Whether nothing has come since it became idle, not even to the kernel: neither the end nor bytes that nobody
        asked for, which would be read as the answer to the next request."""
        return not self.is_lost and not self._poll.poll(0)

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self._lose()
            return
        self.heard = True
        if self._deadline != math.inf:
            self._deadline = self._loop.time() + self._timeout_seconds
        try:
            self._parser.feed(data)
        except BadResponse as error:
            self._fail(UpstreamUnavailable(f"the backend broke HTTP: {error}", kind="protocol"))
        else:
            if self._sink is not None:
                self._sink.on_batch_end()

    def eof_received(self) -> None:
        if self._sink is not None and not self._parser.feed_eof():
            self._fail(_closed())
        self._lose()

    def connection_lost(self, error: Exception | None) -> None:
        if self._sink is not None:
            self._hear_out()
        self._fail(_closed())

    def pause_writing(self) -> None:
        self.is_full = True
        self._watch()

    def resume_writing(self) -> None:
        self.is_full = False
        self._watch()
        if self._sink is not None:
            self._sink.on_writable()

    # What the parser tells

    def on_informational(self, head: ResponseHead) -> None:
        assert self._sink is not None  # noqa: S101 - nothing is parsed without one
        self._sink.on_informational(head)

    def on_head(self, head: ResponseHead) -> None:
        assert self._sink is not None  # noqa: S101
        if self.uploading and head.status >= 300:
            # What is left of the body is not wanted; what the backend were sent next, it would take for that.
            self.uploading = False
            self._is_spoilt = True
            self._watch()
        self._sink.on_head(head)

    def on_data(self, data: bytes) -> None:
        assert self._sink is not None  # noqa: S101
        self._sink.on_data(data)

    def on_end(self, trailers: HeaderList) -> None:
        sink = self._sink
        assert sink is not None  # noqa: S101
        # First: what the sink sends next may want this connection.
        self._let_go()
        sink.on_end(trailers)

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        sink = self._sink
        assert sink is not None  # noqa: S101
        if sink.takes_full_response:
            self._let_go()
            sink.on_full_response(head, body)
            return
        self.on_head(head)
        if self._sink is sink:
            self.on_data(body)
        if self._sink is sink:
            self.on_end([])

    # Ends

    def _let_go(self) -> None:
        """The answer is complete."""
        self._sink = None
        if self.uploading or self.is_full or self._is_spoilt or not self._parser.reusable:
            self._lose()
        else:
            self.resume_reading()
            self.reused = True
            self._on_idle(self)

    def _watch(self) -> None:
        """Whose turn it is has changed. The backend's silence counts while it is read from and has the whole request,
        or takes no more of it."""
        if self._is_reading and (self.is_full or not self.uploading):
            self._deadline = self._loop.time() + self._timeout_seconds
        else:
            self._deadline = math.inf

    def _check_silence(self) -> None:
        self._timer = None
        if self._sink is None:
            return
        left = self._deadline - self._loop.time()
        if left <= 0:
            self._fail(UpstreamTimeout("the backend was silent for too long"))
        else:
            self._timer = self._loop.call_later(min(left, self._timeout_seconds), self._check_silence)

    def _hear_out(self) -> None:
        """Reads what the kernel still holds of a connection that a write found reset: the answer that says why."""
        if self._transport.get_extra_info("sslcontext") is not None:
            return
        try:
            number = self._transport.get_extra_info("socket").fileno()
            # An end after a reset is no end: an answer that ends with its connection is not whole.
            while self._sink is not None and (data := os.read(number, _DRAIN_BYTES)):
                self.data_received(data)
        except OSError:
            pass

    def _fail(self, error: Failure) -> None:
        sink, self._sink = self._sink, None
        self._lose()
        if sink is not None:
            sink.on_failure(error, untouched=self.reused and not self.heard and error.kind == "reset")

    def _lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self.uploading = False
        self._parser.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._on_lost(self)


def _closed() -> UpstreamUnavailable:
    return UpstreamUnavailable("the backend closed the connection", kind="reset")

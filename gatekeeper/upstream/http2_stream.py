"""One request and its response over HTTP/2: callbacks on the events of h2."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.http.response_parser import MAX_INFORMATIONAL, ResponseHead
from gatekeeper.upstream.http2_fields import fields_of, head_of, is_valid
from gatekeeper.upstream.interface import Failure, ResponseCallbacks

_MAX_HELD_HEADS: Final = 64
# So much of a body is kept for another attempt.
_MAX_KEPT_BYTES: Final = 64 * 1024
_LENGTH_DIFFERS: Final = "the backend sent a body of another length than it said"


class StreamConnection(Protocol):
    """The connection of a stream."""

    @property
    def timeout_seconds(self) -> float: ...

    @property
    def is_receiving(self) -> bool:
        """True in the midst of frames: `go_on` follows, and only then it is known what may be sent."""

    @property
    def scheme(self) -> bytes: ...

    def open(self, stream: Http2Request, fields: HeaderList, *, end: bool) -> int:
        """Open a stream with these fields, and return its number."""

    def room(self, number: int) -> int:
        """Return how many bytes may be sent on this stream now."""

    def send(self, number: int, data: bytes, *, end: bool) -> None: ...

    def send_trailers(self, number: int, trailers: HeaderList) -> None: ...

    def taken(self, number: int, size: int) -> None:
        """Give `size` bytes that were read back to the window."""

    def leave(self, number: int, *, whole: bool) -> None:
        """Remove the stream: `whole` if it is complete, else it is reset."""

    def doubt(self) -> None:
        """Handle a stream's timeout."""


class Http2Request:
    """A `BackendConnection`: one request on a connection with room for it.

    If the backend says that it has not begun with the request (RFC 9113 section 8.7), it is sent once more on the
    connection that `reconnect` returns, as long as all of it is still there.
    """

    __slots__ = (
        "_callbacks",
        "_connection",
        "_deadline",
        "_events",
        "_fields",
        "_head_count",
        "_heard",
        "_held_bytes",
        "_is_bodiless",
        "_is_finished",
        "_is_over",
        "_is_reading",
        "_is_repeated",
        "_is_sent",
        "_kept",
        "_kept_bytes",
        "_left",
        "_loop",
        "_number",
        "_reconnect",
        "_repeating",
        "_timer",
        "_trailers",
        "_trailers_received",
        "_unsent",
        "is_full",
        "uploading",
    )

    def __init__(
        self, connection: StreamConnection, reconnect: Callable[[], Awaitable[StreamConnection | None]]
    ) -> None:
        self._connection = connection
        self._reconnect = reconnect
        self._loop = asyncio.get_running_loop()
        self._callbacks: ResponseCallbacks | None = None
        self._fields: HeaderList = []
        self._number = 0
        # Of the request: what is to be sent, what was sent and is kept, and its end.
        self._unsent: deque[bytes] = deque()
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._trailers: HeaderList = []
        self._is_finished = self._is_sent = False
        self._is_repeated = False
        self._repeating: asyncio.Task[None] | None = None
        self.uploading = self.is_full = False
        # Of the response: what waits until it is read on.
        self._events: deque[Callable[[], None]] = deque()
        self._held_bytes = 0
        self._head_count = 0
        self._trailers_received: HeaderList = []
        # What is to come of the body, where the response says how long it is.
        self._left: int | None = None
        self._is_bodiless = False
        self._is_reading = True
        self._heard = self._is_over = False
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

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
        self._fields = fields_of(head, self._connection.scheme)
        self.uploading = uploading
        self._is_bodiless = to_head_request
        self._is_finished = not uploading
        if body:
            self._keep(body)
            self._unsent.append(body)
        self._timer = self._loop.call_later(self._connection.timeout_seconds, self._check_silence)
        self._open()

    def write(self, data: bytes) -> None:
        if self.uploading:
            self._keep(data)
            self._unsent.append(data)
            self._send()

    def finish(self, trailers: Headers = ()) -> None:
        if self.uploading:
            self.uploading = False
            self._is_finished = True
            self._trailers = [(name.lower(), value) for name, value in trailers]
            self._send()
            self._watch()

    def pause_reading(self) -> None:
        self._is_reading = False
        self._watch()

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._watch()
            self._loop.call_soon(self._report_held)

    def hand_over(self, callbacks: ResponseCallbacks) -> None:
        if self._callbacks is not None:
            self._callbacks = callbacks

    def abort(self) -> None:
        if self._callbacks is not None:
            self._end(whole=False)

    def _open(self) -> None:
        self._is_sent = self._is_finished and not self._unsent
        self._number = self._connection.open(self, self._fields, end=self._is_sent)
        self._watch()
        self._send()

    def _keep(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept_bytes += len(data)
            if self._kept_bytes > _MAX_KEPT_BYTES:
                self._kept = None
            else:
                self._kept.append(data)

    def _send(self) -> None:
        """Send as much of the body as there is room for."""
        was_full, unsent, connection = self.is_full, self._unsent, self._connection
        if not (connection.is_receiving or self._repeating or self._is_sent):
            while unsent and (room := connection.room(self._number)) > 0:
                part = unsent.popleft()
                if len(part) > room:
                    unsent.appendleft(part[room:])
                    part = part[:room]
                self._is_sent = self._is_finished and not (unsent or self._trailers)
                connection.send(self._number, part, end=self._is_sent)
                self._watch()
            if self._is_finished and not (unsent or self._is_sent):
                self._is_sent = True
                if self._trailers:
                    connection.send_trailers(self._number, self._trailers)
                else:
                    connection.send(self._number, b"", end=True)
        self.is_full = bool(unsent)
        if self.is_full != was_full:
            self._watch()

    def _repeat(self) -> None:
        """Send the request once more."""

        async def repeat() -> None:
            try:
                connection = await self._reconnect()
            except (UpstreamUnavailable, UpstreamTimeout) as error:
                self._give_failure(error, untouched=False)
                return
            if connection is None:
                self._give_failure(_closed(), untouched=False)
                return
            self._connection = connection
            self._repeating = None
            self._unsent = deque(self._kept or ())
            was_full = self.is_full
            self._open()
            self._report_room(was_full=was_full)

        self._is_repeated = True
        self._repeating = self._loop.create_task(repeat())

    # Called by the connection

    def go_on(self) -> None:
        """Send on: there may be more room."""
        if not self._is_sent:
            was_full = self.is_full
            self._send()
            self._report_room(was_full=was_full)

    def end_batch(self) -> None:
        """Take note that all frames that have arrived are reported."""
        if self._callbacks is not None and not self._events:
            self._callbacks.on_batch_end()

    def take(self, event: Event) -> None:
        """Take an event of this stream."""
        self._heard = True
        self._watch()
        if isinstance(event, DataReceived):
            self._take_data(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, (ResponseReceived, InformationalResponseReceived)):
            self._take_head(event.headers or [], is_all=getattr(event, "stream_ended", None) is not None)
        elif isinstance(event, TrailersReceived):
            self._trailers_received = [(bytes(name), bytes(value)) for name, value in event.headers or []]
            if not is_valid(self._trailers_received):
                self._broken()
        elif isinstance(event, StreamEnded):
            if self._left:
                self._broken(_LENGTH_DIFFERS)
            else:
                self._is_over = True
                self._report(self._give_end)
        elif isinstance(event, StreamReset):
            self._take_reset(event)

    def fail(self, error: UpstreamUnavailable, *, refused: bool = False) -> None:
        """End with an error, unless the response is complete. `refused`: the backend has not begun with the request."""
        if self._is_over:
            # It is read to its end, and nothing is sent any more.
            self._is_sent = True
        elif refused and self._kept is not None and not self._is_repeated:
            self._connection.leave(self._number, whole=True)
            self._repeat()
        else:
            untouched = not self._heard and self._number > 1 and error.kind == "reset"
            self._is_over = self._is_sent = True
            self._report(partial(self._give_failure, error, untouched=untouched))

    def _take_head(self, headers: list[Any], *, is_all: bool) -> None:
        head = head_of([(bytes(name), bytes(value)) for name, value in headers], is_all=is_all)
        self._head_count += 1
        if head is None or self._head_count > MAX_INFORMATIONAL or len(self._events) >= _MAX_HELD_HEADS:
            self._broken()
            return
        if head.status >= 200 and not (self._is_bodiless or head.is_bodiless):
            self._left = head.length
            if is_all and head.length:
                self._broken(_LENGTH_DIFFERS)
                return
        self._report(partial(self._give_head, head))

    def _take_reset(self, event: StreamReset) -> None:
        refused = event.error_code == ErrorCodes.REFUSED_STREAM
        if refused:
            self._heard = False
        self.fail(UpstreamUnavailable("the backend reset the stream", kind="reset"), refused=refused)

    def _take_data(self, data: bytes, size: int) -> None:
        if self._left is not None:
            self._left -= len(data)
        if self._left is not None and self._left < 0:
            self._connection.taken(self._number, size)
            self._broken(_LENGTH_DIFFERS)
        elif data:
            self._held_bytes += size
            self._report(partial(self._give_data, data, size))
        else:
            # Held, frames without data would fill the memory, which no window bounds (CVE-2019-9518).
            self._connection.taken(self._number, size)

    def _broken(self, why: str = "the backend sent a header that HTTP/2 does not allow") -> None:
        self._connection.leave(self._number, whole=False)
        self.fail(UpstreamUnavailable(why, kind="protocol"))

    # Reporting

    def _report(self, event: Callable[[], None]) -> None:
        if self._is_reading and not self._events:
            event()
        else:
            self._events.append(event)

    def _report_held(self) -> None:
        while self._events and self._is_reading and self._callbacks is not None:
            self._events.popleft()()
        self.end_batch()

    def _report_room(self, *, was_full: bool) -> None:
        if was_full and not self.is_full and self._callbacks is not None:
            self._callbacks.on_writable()

    def _give_head(self, head: ResponseHead) -> None:
        callbacks = self._callbacks
        if callbacks is None:
            return
        if head.status < 200:
            callbacks.on_informational(head)
            return
        if self.uploading and head.status >= 300:
            # The rest of the body is not wanted.
            self.uploading = self.is_full = False
            self._unsent.clear()
            self._watch()
        callbacks.on_head(head)

    def _give_data(self, data: bytes, size: int) -> None:
        if self._callbacks is not None:
            self._held_bytes -= size
            self._connection.taken(self._number, size)
            self._callbacks.on_data(data)

    def _give_end(self) -> None:
        callbacks = self._callbacks
        if callbacks is not None:
            self._end(whole=self._is_sent)
            callbacks.on_end(self._trailers_received)

    def _give_failure(self, error: Failure, *, untouched: bool) -> None:
        callbacks = self._callbacks
        if callbacks is not None:
            self._end(whole=self._is_sent)
            callbacks.on_failure(error, untouched=untouched)

    def _end(self, *, whole: bool) -> None:
        """Leave the connection. Without a `whole` request and response the stream is reset."""
        self._callbacks = None
        self.uploading = self.is_full = False
        self._unsent.clear()
        self._events.clear()
        if self._repeating is not None:
            self._repeating.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.taken(self._number, self._held_bytes)
        self._connection.leave(self._number, whole=whole)

    # Time, as in `Http1Connection`

    def _watch(self) -> None:
        if self._is_reading and (self.is_full or not self.uploading):
            self._deadline = self._loop.time() + self._connection.timeout_seconds
        else:
            self._deadline = math.inf

    def _check_silence(self) -> None:
        self._timer = None
        left = self._deadline - self._loop.time()
        if left <= 0:
            self._connection.doubt()
            self._is_sent = False
            self._give_failure(UpstreamTimeout("the backend was silent for too long"), untouched=False)
        else:
            seconds = min(left, self._connection.timeout_seconds)
            self._timer = self._loop.call_later(seconds, self._check_silence)


def _closed() -> UpstreamUnavailable:
    return UpstreamUnavailable("the backend closed the connection", kind="reset")

"""One request and its response on an HTTP/2 connection: coroutines on the events of h2."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any, Final, NamedTuple, Protocol

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http import grammar
from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import MAX_FIELDS, MAX_HEAD_BYTES, MAX_INFORMATIONAL

_MAX_HELD_HEADS: Final = 64
_LENGTH = re.compile(grammar.DECIMAL)
_LENGTH_DIFFERS: Final = "the backend sent a body of another length than it said"
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class StreamConnection(Protocol):
    """The connection of a stream."""

    @property
    def timeout_seconds(self) -> float: ...

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


class Http2Head(NamedTuple):
    """The head of a response, final or interim. `is_all` is true if nothing follows."""

    status: int
    headers: HeaderList
    is_all: bool


class Http2Stream:
    """One request on a connection, and its response. One task may wait for the response, and one send the body.

    `untouched`: it failed before any byte of a response, on a connection that had served before. `refused`: it failed,
    and the backend says that it has not begun to work on it (RFC 9113 section 8.7). `is_over`: the response is
    complete.
    """

    def __init__(self, connection: StreamConnection, number: int, *, has_body: bool, to_head_request: bool) -> None:
        self._connection = connection
        self._number = number
        self._heads: deque[Http2Head] = deque()
        self._parts: deque[tuple[bytes, int]] = deque()
        self._news = asyncio.Event()
        self._error: UpstreamUnavailable | None = None
        self._is_sent = not has_body
        self._is_cut_short = False
        self._head_count = 0
        self._is_bodiless = to_head_request
        # What is to come of the body, where the response says how long it is.
        self._left: int | None = None
        self.has_room = asyncio.Event()
        self.continue_received = asyncio.Event()
        self.heard = False
        self.refused = False
        self.untouched = False
        self.is_over = False
        self.trailers: HeaderList = []

    # Awaited by the caller

    async def head(self) -> Http2Head:
        """Return the next head, interim or final."""
        while not self._heads:
            await self._next_news()
        return self._heads.popleft()

    async def part(self) -> bytes | None:
        """Return the next part of the body, None at its end."""
        while not self._parts:
            if self.is_over:
                return None
            await self._next_news()
        data, size = self._parts.popleft()
        self._connection.taken(self._number, size)
        return data

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Return when the transport has all of `data`. Raises the stream's failure, and UpstreamTimeout if the backend
        takes nothing for too long."""
        while True:
            if self._error is not None:
                raise self._error
            if self.is_over:
                return
            room = self._connection.room(self._number)
            if room >= len(data):
                self._connection.send(self._number, data, end=end)
                self._is_sent |= end
                return
            if room > 0:
                self._connection.send(self._number, data[:room], end=False)
                data = data[room:]
                continue
            self.has_room.clear()
            try:
                await self._in_time(self.has_room)
            except UpstreamTimeout:
                self._connection.doubt()
                raise

    def send_trailers(self, trailers: HeaderList) -> None:
        if self._error is None and not self.is_over:
            self._connection.send_trailers(self._number, trailers)
            self._is_sent = True

    def close(self) -> None:
        """Close the stream, at any point, and no other."""
        for _, size in self._parts:
            self._connection.taken(self._number, size)
        self._parts.clear()
        self._connection.leave(self._number, whole=self.is_over and self._is_sent)

    def send_no_more(self) -> None:
        """Stop the upload: the backend responds without the rest of the body, so its silence counts from now on."""
        self._is_cut_short = True
        self._news.set()

    def give_up(self) -> None:
        """Reset the stream, so that the backend does not take an incomplete request for a complete one."""
        if not self.is_over:
            self._connection.leave(self._number, whole=False)
            self.fail(UpstreamUnavailable("the request broke off", kind="reset"))

    async def _next_news(self) -> None:
        if self._error is not None:
            raise self._error
        self._news.clear()
        while True:
            # Until the request is complete, the backend may be waiting for the client.
            was_owed = self._is_sent or self._is_cut_short
            try:
                await self._in_time(self._news)
                return
            except UpstreamTimeout:
                if was_owed:
                    self._connection.doubt()
                    raise

    async def _in_time(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._connection.timeout_seconds):
                await event.wait()
        except TimeoutError as error:
            raise UpstreamTimeout("the backend was silent for too long") from error

    # Called by the connection

    def take(self, event: Event) -> None:
        self.heard = True
        if isinstance(event, (ResponseReceived, InformationalResponseReceived)):
            self._take_head(event.headers or [], is_all=getattr(event, "stream_ended", None) is not None)
        elif isinstance(event, DataReceived):
            self._take_data(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, TrailersReceived):
            self.trailers = [(bytes(name), bytes(value)) for name, value in event.headers or []]
            if not _is_valid(self.trailers):
                self._broken()
        elif isinstance(event, StreamEnded):
            if self._left:
                self._broken(_LENGTH_DIFFERS)
            else:
                self.is_over = True
                self.continue_received.set()
                self.has_room.set()
        elif isinstance(event, StreamReset):
            self._take_reset(event)
        elif isinstance(event, WindowUpdated):
            self.has_room.set()
        self._news.set()

    def _take_head(self, headers: list[Any], *, is_all: bool) -> None:
        (name, status), *rest = [(bytes(name), bytes(value)) for name, value in headers] or [(b"", b"")]
        lengths = [value for field, value in rest if field == b"content-length"]
        is_sound = (
            name == b":status"
            and _STATUS.fullmatch(status) is not None
            and status != b"101"
            and _is_valid(rest)
            and len(lengths) <= 1
            and all(_LENGTH.fullmatch(length) for length in lengths)
        )
        self._head_count += 1
        if is_sound and status[:1] != b"1" and lengths and not self._is_bodiless and status not in {b"204", b"304"}:
            self._left = int(lengths[0])
            if is_all and self._left:
                self._broken(_LENGTH_DIFFERS)
                return
        if not is_sound or self._head_count > MAX_INFORMATIONAL or len(self._heads) >= _MAX_HELD_HEADS:
            self._broken()
            return
        self.continue_received.set()
        self._heads.append(Http2Head(int(status), rest, is_all))

    def _take_reset(self, event: StreamReset) -> None:
        if self.is_over and event.error_code == ErrorCodes.NO_ERROR:
            # The response is complete, and no more of the body is wanted (RFC 9113 section 8.1).
            self._is_sent = True
            return
        refused = event.error_code == ErrorCodes.REFUSED_STREAM
        if refused:
            self.heard = False
        self.fail(UpstreamUnavailable("the backend reset the stream", kind="reset"), refused=refused)

    def _take_data(self, data: bytes, size: int) -> None:
        if self._left is not None:
            self._left -= len(data)
        if self._left is not None and self._left < 0:
            self._connection.taken(self._number, size)
            self._broken(_LENGTH_DIFFERS)
        elif data:
            self._parts.append((data, size))
        else:
            # Held, frames without data would fill the memory, which no window bounds (CVE-2019-9518).
            self._connection.taken(self._number, size)

    def _broken(self, why: str = "the backend sent a header that HTTP/2 does not allow") -> None:
        self._connection.leave(self._number, whole=False)
        self.fail(UpstreamUnavailable(why, kind="protocol"))

    def fail(self, error: UpstreamUnavailable, *, refused: bool = False) -> None:
        if self._error is None and not self.is_over:
            self._error = error
            self.refused = refused
            self.untouched = not self.heard and self._number > 1
        self._connection.leave(self._number, whole=True)
        for event in (self._news, self.has_room, self.continue_received):
            event.set()


def _is_valid(headers: HeaderList) -> bool:
    """Tell whether HTTP/2 allows these fields in a response (RFC 9113 section 8.2) and their number is within the
    limit."""
    # As HTTP/1 has it, line ends included.
    size_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    return (
        size_bytes <= MAX_HEAD_BYTES
        and len(headers) <= MAX_FIELDS
        and all(
            is_token(name) and name == name.lower() and name not in _OF_A_CONNECTION and is_field_value(value)
            for name, value in headers
        )
    )

"""One HTTP/2 connection to the backend (RFC 9113): frames by h2, the streams upon it as something that can be awaited.

httpcore has HTTP/2 too, but for one user: a request that is given up neither resets its stream nor gives back its
window, one slow reader takes the window of all, one silence ends everybody's answers, and nothing bounds the wait for
one of a hundred streams. Here every stream has a window and a clock of its own, and what ends one ends no other.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.headers import HeaderList, is_token
from gatekeeper.proxy.answer import MAX_FIELDS, MAX_HEAD_BYTES, MAX_INFORMATIONAL
from gatekeeper.proxy.liveness import keep_alive
from gatekeeper.proxy.pool import IDLE_SECONDS

MAX_STREAMS: Final = 100
"""How many requests one connection carries at once, where the backend allows as many."""

# What is held of an answer that is read more slowly than it comes. All streams together fill the connection's window
# exactly, so that no slow reader is in another's way.
_WINDOW_BYTES: Final = 128 * 1024
_DEFAULT_WINDOW_BYTES: Final = 65_535
_MAX_HELD_HEADS: Final = 64
# nginx ends a connection with its thousandth request, and a body that was on its way just then is lost.
_MAX_STREAMS_EVER: Final = 900
_WHOLE_NUMBER = re.compile(rb"[0-9]{1,18}")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class Head(NamedTuple):
    """The head of an answer, final or interim; `is_all` if nothing follows."""

    status: int
    headers: HeaderList
    is_all: bool


class _Frames(H2Connection):
    """h2, but a connection that the backend winds up (GOAWAY) still carries the answers that are on their way."""

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class Http2Connection(asyncio.Protocol):
    """A connection to the backend. `offered` tells, once it is made, whether the backend took HTTP/2 (ALPN, RFC 7301);
    `ready` is done when it has said how much it takes, or fails. `timeout_seconds` bounds every silence of a stream."""

    def __init__(self, *, timeout_seconds: float, on_lost: Callable[[Http2Connection], None]) -> None:
        self.timeout_seconds: Final = timeout_seconds
        self.offered = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_lost = on_lost
        self._frames = _frames()
        self._streams: dict[int, Stream] = {}
        self._opened = 0
        self._is_winding_up = False
        self._is_lost = False
        self._can_write = True
        self._heard_at = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    @property
    def has_room(self) -> bool:
        """Whether it takes another request."""
        most = min(MAX_STREAMS, self._frames.remote_settings.max_concurrent_streams)
        return not (self._is_winding_up or self._is_lost) and self._frames.open_outbound_streams < most

    def open(self, headers: HeaderList, *, has_body: bool) -> Stream:
        """A stream that begins with these fields, pseudo-header fields first, which must be clean: a field that h2
        refused half-way would put the two ends' tables of fields (RFC 7541) at odds."""
        self._stay()
        self._opened += 1
        self._is_winding_up |= self._opened >= _MAX_STREAMS_EVER
        number = self._frames.get_next_available_stream_id()
        stream = self._streams[number] = Stream(self, number, has_body=has_body)
        try:
            self._frames.send_headers(number, headers, end_stream=not has_body)
        except ProtocolError as error:
            self._break(UpstreamUnavailable("the connection to the backend broke", kind="protocol"))
            raise UpstreamUnavailable("the connection to the backend broke", kind="protocol") from error
        self._flush()
        return stream

    def abort(self) -> None:
        self._transport.abort()

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        keep_alive(transport)
        secured = transport.get_extra_info("ssl_object")
        self.offered = secured is not None and secured.selected_alpn_protocol() == "h2"
        if self.offered:
            self._frames.initiate_connection()
            self._frames.increment_flow_control_window(MAX_STREAMS * _WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
            self._flush()

    def data_received(self, data: bytes) -> None:
        if self._is_lost:
            return
        self._heard_at = asyncio.get_running_loop().time()
        try:
            for event in self._frames.receive_data(data):
                self._take(event)
        except ProtocolError as error:
            self._flush()
            self._break(UpstreamUnavailable(f"the backend broke HTTP/2: {type(error).__name__}", kind="protocol"))
            return
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._stay()
        self._fail(UpstreamUnavailable("the backend closed the connection", kind="reset"))
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._tell_of_room()

    # What the streams do

    def room(self, number: int) -> int:
        """How many bytes may be sent on this stream now."""
        if not self._can_write:
            return 0
        return min(self._frames.local_flow_control_window(number), self._frames.max_outbound_frame_size)

    def send(self, number: int, data: bytes, *, end: bool) -> None:
        self._frames.send_data(number, data, end_stream=end)
        self._flush()

    def send_trailers(self, number: int, trailers: HeaderList) -> None:
        self._frames.send_headers(number, trailers, end_stream=True)
        self._flush()

    def taken(self, number: int, size: int) -> None:
        """So many bytes have been read, and as many more may come."""
        if not self._is_lost and size:
            self._frames.acknowledge_received_data(size, number)
            self._flush()

    def leave(self, number: int, *, whole: bool) -> None:
        """The stream is done with: `whole`, or given up and reset."""
        if self._streams.pop(number, None) is None or self._is_lost:
            return
        if not whole:
            self._frames.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        if not self._streams:
            if self._is_winding_up:
                self._transport.close()
            else:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.close)

    def doubt(self) -> None:
        """A stream has waited for too long. Where all the connection was silent, it takes no more requests: it may be
        dead, which the system would tell much later."""
        quiet_seconds = asyncio.get_running_loop().time() - self._heard_at
        self._is_winding_up |= quiet_seconds >= self.timeout_seconds

    # The rest

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._wind_up(event)
        elif isinstance(event, RemoteSettingsChanged):
            if not self.ready.done():
                self.ready.set_result(None)
            self._tell_of_room()
        elif isinstance(event, WindowUpdated) and event.stream_id == 0:
            self._tell_of_room()
        elif (stream := self._streams.get(getattr(event, "stream_id", 0) or 0)) is not None:
            stream.take(event)

    def _wind_up(self, event: ConnectionTerminated) -> None:
        self._is_winding_up = True
        last = event.last_stream_id or 0
        for number, stream in list(self._streams.items()):
            if number > last:
                stream.fail(UpstreamUnavailable("the backend is closing the connection", kind="reset"), refused=True)
        if not self._streams:
            self._transport.close()

    def _break(self, error: UpstreamUnavailable) -> None:
        self._is_lost = True
        self._fail(error)
        # What is in the buffer tells the backend why; it need not be read.
        self._transport.close()
        asyncio.get_running_loop().call_later(1.0, self._transport.abort)

    def _fail(self, error: UpstreamUnavailable) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()
        for stream in list(self._streams.values()):
            stream.fail(error)

    def _tell_of_room(self) -> None:
        for stream in self._streams.values():
            stream.has_room.set()

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _flush(self) -> None:
        if data := self._frames.data_to_send():
            self._transport.write(data)


class Stream:
    """One request on a connection, and its answer. One task may wait for the answer, and one send the body.

    `untouched`: it failed, and nothing of an answer had come on a connection that had served before; `refused`: it
    failed, and the backend says that it has not begun to work on it (RFC 9113 section 8.7); `is_over`: the answer is
    complete.
    """

    def __init__(self, connection: Http2Connection, number: int, *, has_body: bool) -> None:
        self._connection = connection
        self._number = number
        self._heads: deque[Head] = deque()
        self._parts: deque[tuple[bytes, int]] = deque()
        self._news = asyncio.Event()
        self._error: UpstreamUnavailable | None = None
        self._is_sent = not has_body
        self._is_cut_short = False
        self._head_count = 0
        self.has_room = asyncio.Event()
        self.going_on = asyncio.Event()
        self.heard = False
        self.refused = False
        self.untouched = False
        self.is_over = False
        self.trailers: HeaderList = []

    # What is awaited

    async def head(self) -> Head:
        """The next head, interim or final."""
        while not self._heads:
            await self._next_news()
        return self._heads.popleft()

    async def part(self) -> bytes | None:
        """The next part of the body; None at its end."""
        while not self._parts:
            if self.is_over:
                return None
            await self._next_news()
        data, size = self._parts.popleft()
        self._connection.taken(self._number, size)
        return data

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Returns when all of it is with the transport. Raises what the stream failed with, and UpstreamTimeout where
        the backend takes none of it for too long."""
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
        """Ends the stream, and no other, at whatever point it is."""
        for _, size in self._parts:
            self._connection.taken(self._number, size)
        self._parts.clear()
        self._connection.leave(self._number, whole=self.is_over and self._is_sent)

    def send_no_more(self) -> None:
        """The backend answers without the rest of the request: now it is the one who owes."""
        self._is_cut_short = True
        self._news.set()

    def give_up(self) -> None:
        """The request will never be complete: the backend must not take for whole what was only begun."""
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

    # What the connection tells

    def take(self, event: Event) -> None:
        self.heard = True
        if isinstance(event, (ResponseReceived, InformationalResponseReceived)):
            self._take_head(event.headers or [], is_all=getattr(event, "stream_ended", None) is not None)
        elif isinstance(event, DataReceived):
            self._parts.append((event.data or b"", event.flow_controlled_length or 0))
        elif isinstance(event, TrailersReceived):
            self.trailers = [(bytes(name), bytes(value)) for name, value in event.headers or []]
            if not _is_clean(self.trailers):
                self._broken()
        elif isinstance(event, StreamEnded):
            self.is_over = True
            self.going_on.set()
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
            and _is_clean(rest)
            and len(lengths) <= 1
            and all(_WHOLE_NUMBER.fullmatch(length) for length in lengths)
        )
        self._head_count += 1
        if not is_sound or self._head_count > MAX_INFORMATIONAL or len(self._heads) >= _MAX_HELD_HEADS:
            self._broken()
            return
        self.going_on.set()
        self._heads.append(Head(int(status), rest, is_all))

    def _take_reset(self, event: StreamReset) -> None:
        if self.is_over and event.error_code == ErrorCodes.NO_ERROR:
            # The answer is complete, and no more of the body is wanted (RFC 9113 section 8.1).
            self._is_sent = True
            return
        refused = event.error_code == ErrorCodes.REFUSED_STREAM
        if refused:
            self.heard = False
        self.fail(UpstreamUnavailable("the backend reset the stream", kind="reset"), refused=refused)

    def _broken(self) -> None:
        self._connection.leave(self._number, whole=False)
        self.fail(UpstreamUnavailable("the backend sent a header that HTTP/2 does not allow", kind="protocol"))

    def fail(self, error: UpstreamUnavailable, *, refused: bool = False) -> None:
        if self._error is None and not self.is_over:
            self._error = error
            self.refused = refused
            self.untouched = not self.heard and self._number > 1
        self._connection.leave(self._number, whole=True)
        for event in (self._news, self.has_room, self.going_on):
            event.set()


def _frames() -> _Frames:
    frames = _Frames(
        H2Configuration(
            client_side=True,
            header_encoding=None,
            # Of a bad field in one answer h2 makes the end of all: they are looked at here.
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
        )
    )
    frames.local_settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        },
    )
    return frames


def _is_clean(headers: HeaderList) -> bool:
    """Whether HTTP/2 allows these fields in an answer (RFC 9113 section 8.2), and they are not too many."""
    return len(headers) <= MAX_FIELDS and all(
        is_token(name) and name == name.lower() and name not in _OF_A_CONNECTION and not _CONTROL.search(value)
        for name, value in headers
    )

"""One HTTP/2 connection to the backend (RFC 9113): frames by h2, streams by `http2_stream`.

httpcore has HTTP/2 too, but for one user: a request that is given up neither resets its stream nor gives back its
window, one slow reader takes the window of all, one silence ends everybody's answers, and nothing bounds the wait for
one of a hundred streams. Here every stream has a window and a clock of its own, and what ends one ends no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    Event,
    RemoteSettingsChanged,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from gatekeeper.errors import UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import MAX_HEAD_BYTES
from gatekeeper.net import enable_keepalive
from gatekeeper.upstream.http2_stream import Http2Stream
from gatekeeper.upstream.pool import IDLE_SECONDS

MAX_STREAMS: Final = 100
"""How many requests one connection carries at once, where the backend allows as many."""

# What is held of an answer that is read more slowly than it comes. All streams together fill the connection's window
# exactly, so that no slow reader is in another's way.
_WINDOW_BYTES: Final = 128 * 1024
_DEFAULT_WINDOW_BYTES: Final = 65_535
# nginx winds a connection up with its thousandth request, and a long body that is on its way just then is lost.
_MAX_STREAMS_EVER: Final = 900


class _GracefulH2(H2Connection):
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
        self._streams: dict[int, Http2Stream] = {}
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

    def open(self, headers: HeaderList, *, has_body: bool) -> Http2Stream:
        """A stream that begins with these fields, pseudo-header fields first, which must be clean: a field that h2
        refused half-way would put the two ends' tables of fields (RFC 7541) at odds."""
        self._stay()
        self._opened += 1
        self._is_winding_up |= self._opened >= _MAX_STREAMS_EVER
        number = self._frames.get_next_available_stream_id()
        stream = self._streams[number] = Http2Stream(self, number, has_body=has_body)
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
        enable_keepalive(transport)
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


def _frames() -> _GracefulH2:
    frames = _GracefulH2(
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

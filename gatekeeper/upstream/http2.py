"""One HTTP/2 connection to the backend (RFC 9113): frames by h2, requests by `http2_stream`.

It serves many users at once: every stream has its own window and timeout, an abandoned one is reset and gives its
window back, and the failure of one does not end another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings

from gatekeeper.errors import UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import MAX_HEAD_BYTES
from gatekeeper.net import enable_keepalive
from gatekeeper.upstream.http2_stream import Http2Request
from gatekeeper.upstream.pool import IDLE_SECONDS

_log = logging.getLogger("gatekeeper")

MAX_STREAMS: Final = 100
"""The most requests on one connection at once; the backend may allow fewer."""

# The part of a response that is buffered for a slow reader.
_WINDOW_BYTES: Final = 128 * 1024
# All streams together fill half of the window of the connection, so that no slow reader blocks another: h2 gives back
# what was read only when that is the other half.
_CONNECTION_WINDOW_BYTES: Final = 2 * MAX_STREAMS * _WINDOW_BYTES
_DEFAULT_WINDOW_BYTES: Final = 65_535
# A backend that reads nothing may have frames sent that want a reply (PING, SETTINGS, DATA of a stream that was reset;
# CVE-2019-9512, CVE-2019-9515). Beside the replies wait at most the heads of `MAX_STREAMS` requests.
_MAX_UNREAD_BYTES: Final = 8 * 1024 * 1024
# nginx closes a connection with its thousandth request, and loses a long body that is being sent then.
_MAX_REQUESTS: Final = 900


# A head beyond `MAX_HEAD_BYTES` fails its stream. One that is not even decoded ends the connection, because the field
# tables (RFC 7541) of both sides would differ; CONTINUATION frames may be so many bytes at most.
_MAX_DECODED_BYTES: Final = 1024 * 1024


class _GracefulH2(H2Connection):
    """h2, except that after GOAWAY the connection still carries the responses in flight, and that a response which is
    not as long as it said does not end the others (RFC 9113 section 8.1.1): `http2_stream` counts."""

    def _begin_new_stream(self, *arguments: Any) -> Any:
        stream: Any = super()._begin_new_stream(*arguments)
        stream._initialize_content_length = lambda _: None  # noqa: SLF001 - there is no other way to switch it off
        return stream

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class Http2Connection(asyncio.Protocol):
    """A connection to the backend. Once it is made, `is_http2` is false if the backend chose another protocol over TLS
    (ALPN, RFC 7301); then only `transport` is of use. `ready` is done when its settings have arrived, or fails.
    `timeout_seconds` bounds every silence of a stream. Beyond
    `age_seconds` it takes no further request."""

    def __init__(
        self, *, timeout_seconds: float, age_seconds: float, on_lost: Callable[[Http2Connection], None]
    ) -> None:
        self.timeout_seconds: Final = timeout_seconds
        self.scheme = b"http"
        self.is_receiving = False
        self.is_http2 = False
        self.transport: asyncio.Transport
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expires_at = time.monotonic() + age_seconds
        self._on_lost = on_lost
        self._frames = _make_h2()
        self._streams: dict[int, Http2Request] = {}
        self._opened = 0
        self._is_closing = False
        self._is_lost = False
        self._can_write = True
        self._heard_at = 0.0
        self._idle: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        """True if the connection takes another request."""
        most = min(MAX_STREAMS, self._frames.remote_settings.max_concurrent_streams)
        if self._is_closing or self._is_lost or self.transport.is_closing() or time.monotonic() >= self._expires_at:
            return False
        return self._frames.open_outbound_streams < most

    def abort(self) -> None:
        self.transport.abort()

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not a subclass.
        self.transport = cast("asyncio.Transport", transport)
        enable_keepalive(transport)
        secured = transport.get_extra_info("ssl_object")
        self.scheme = b"http" if secured is None else b"https"
        self.is_http2 = secured is None or secured.selected_alpn_protocol() == "h2"
        if self.is_http2:
            self._frames.initiate_connection()
            self._frames.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
            self._flush()

    def data_received(self, data: bytes) -> None:
        if self._is_lost:
            return
        self._heard_at = asyncio.get_running_loop().time()
        if not self.ready.done() and data.startswith(b"HTTP/1."):
            # To h2 it is the beginning of a long frame.
            self._break(UpstreamUnavailable("the backend does not speak HTTP/2: it speaks HTTP/1.1", kind="protocol"))
            return
        self.is_receiving = True
        touched = set()
        try:
            for event in self._frames.receive_data(data):
                if (request := self._take(event)) is not None:
                    touched.add(request)
        except ProtocolError as error:
            self.is_receiving = False
            self._flush()
            self._break(UpstreamUnavailable(f"the backend broke HTTP/2: {type(error).__name__}", kind="protocol"))
            return
        self.is_receiving = False
        for request in touched:
            request.end_batch()
        self._send_on()
        self._flush()
        if not self._can_write and self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._break(UpstreamUnavailable("the backend reads no replies", kind="protocol"))
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._cancel_idle_timer()
        self._fail(UpstreamUnavailable("the backend closed the connection", kind="reset"))
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._send_on()

    # Called by the requests

    def open(self, stream: Http2Request, fields: HeaderList, *, end: bool) -> int:
        """Open a stream with these fields, and return its number. They must be valid: if h2 rejected a field half-way,
        the field tables (RFC 7541) of both sides would differ."""
        self._cancel_idle_timer()
        self._opened += 1
        self._is_closing |= self._opened >= _MAX_REQUESTS
        number = self._frames.get_next_available_stream_id()
        self._streams[number] = stream
        try:
            self._frames.send_headers(number, fields, end_stream=end)
        except ProtocolError:
            # Not from within the call: its caller does not know the stream yet.
            error = UpstreamUnavailable("the connection to the backend broke", kind="protocol")
            asyncio.get_running_loop().call_soon(self._break, error)
        self._flush()
        return number

    def room(self, number: int) -> int:
        """Return how many bytes may be sent on this stream now."""
        if not self._can_write or self._is_lost:
            return 0
        return min(self._frames.local_flow_control_window(number), self._frames.max_outbound_frame_size)

    def send(self, number: int, data: bytes, *, end: bool) -> None:
        self._frames.send_data(number, data, end_stream=end)
        self._flush()

    def send_trailers(self, number: int, trailers: HeaderList) -> None:
        self._frames.send_headers(number, trailers, end_stream=True)
        self._flush()

    def taken(self, number: int, size: int) -> None:
        """Give `size` bytes that were read back to the window."""
        if not self._is_lost and size:
            self._frames.acknowledge_received_data(size, number)
            self._flush()

    def leave(self, number: int, *, whole: bool) -> None:
        """Remove the stream: `whole` if it is complete, else it is reset."""
        if self._streams.pop(number, None) is None or self._is_lost:
            return
        if not whole:
            # The backend may have reset it in the meantime.
            with suppress(StreamClosedError):
                self._frames.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        if not self._streams:
            if self._is_closing or time.monotonic() >= self._expires_at:
                self.transport.close()
            else:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.transport.close)

    def doubt(self) -> None:
        """Handle a stream's timeout. If the entire connection was silent, it takes no more requests: it may be dead,
        which the system reports much later."""
        quiet_seconds = asyncio.get_running_loop().time() - self._heard_at
        self._is_closing |= quiet_seconds >= self.timeout_seconds

    # Events

    def _take(self, event: Event) -> Http2Request | None:
        """Take an event, and return the request that it concerns."""
        if isinstance(event, ConnectionTerminated):
            self._begin_closing(event)
        elif isinstance(event, RemoteSettingsChanged) and not self.ready.done():
            self.ready.set_result(None)
        elif (request := self._streams.get(getattr(event, "stream_id", 0) or 0)) is not None:
            try:
                request.take(event)
            except ProtocolError:
                raise
            except Exception:  # noqa: BLE001 - a bug in one request must not end the others
                _log.exception("internal error")
                request.fail(UpstreamUnavailable("internal error", kind="protocol"))
            return request
        elif isinstance(event, DataReceived):
            # Of a stream that has failed since it arrived; its window is everybody's.
            self.taken(event.stream_id or 0, event.flow_controlled_length or 0)
        return None

    def _begin_closing(self, event: ConnectionTerminated) -> None:
        self._is_closing = True
        last = event.last_stream_id or 0
        for number, stream in list(self._streams.items()):
            if number > last:
                stream.fail(UpstreamUnavailable("the backend is closing the connection", kind="reset"), refused=True)
        if not self._streams:
            self.transport.close()

    def _break(self, error: UpstreamUnavailable) -> None:
        self._is_lost = True
        self._fail(error)
        # The buffer holds the reason for the backend, which need not read it.
        self.transport.close()
        asyncio.get_running_loop().call_later(1.0, self.transport.abort)

    def _fail(self, error: UpstreamUnavailable) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()
        for stream in list(self._streams.values()):
            stream.fail(error)

    def _send_on(self) -> None:
        for request in list(self._streams.values()):
            request.go_on()

    def _cancel_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _flush(self) -> None:
        if self.is_receiving:
            return
        if data := self._frames.data_to_send():
            self.transport.write(data)


def _make_h2() -> _GracefulH2:
    frames = _GracefulH2(
        H2Configuration(
            client_side=True,
            header_encoding=None,
            # h2 would end all responses for one bad field: `http2_stream` checks them instead.
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
    frames.decoder.max_header_list_size = _MAX_DECODED_BYTES
    return frames

"""The relay of an open WebSocket: bytes pass from one side to the other, and frames are read to know where they end.

Heads are checked before they pass on (`http/websocket_frames.py`); payloads, masks included, pass on as they are: pings
and pongs, messages however they are cut or compressed, and close frames. So a closing handshake is one between client
and backend, and nothing is answered here. A frame of our own is a close frame, written between two frames of the other
side: after a violation, when a side is lost, when the session ends, and when the server shuts down; or a pong, to a
side that is not read from.

There is no task and no copy of a message. A side that reads slowly stops the other (`pause_writing`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from gatekeeper.errors import UpstreamUnavailable
from gatekeeper.http.websocket_frames import (
    GOING_AWAY,
    INTERNAL_ERROR,
    SERVICE_RESTART,
    TOO_BIG,
    CloseFrame,
    FrameReader,
    Violation,
    serialize_close,
    serialize_pong,
)
from gatekeeper.net import is_broken

# How long a side may take for its half of the closing handshake, and a backend to close the connection after it.
_CLOSE_SECONDS: Final = 5.0
# How long a side that must be closed may take for the frame that it is in the middle of sending.
_FRAME_SECONDS: Final = 0.3
# How long a side may read nothing of what came before its close frame.
_STALL_SECONDS: Final = 60.0
_WATCH_SECONDS: Final = 1.0
_LOOKS_A_PONG: Final = 20
_LOST: Final = CloseFrame(INTERNAL_ERROR, "the connection to the backend was lost")
_clock = time.monotonic


class OpenConnection(Protocol):
    """A connection after its handshake. `held` arrived meanwhile."""

    transport: asyncio.Transport
    held: bytes
    is_lost: bool


class Activity(Protocol):
    """The stream whose session lives on while messages move (`sessions/open_streams.py`)."""

    moved_at: float


class _Leg(asyncio.Protocol):
    """One side: what it sends is passed on to `other`. `is_open` is true until a close frame is written to it, or is to
    be, or it is lost."""

    __slots__ = (
        "_activity",
        "_is_paused",
        "_looks",
        "_masks",
        "_progress_at",
        "_stall_seconds",
        "_timer",
        "_unsent_bytes",
        "_watch",
        "close_sent",
        "is_gone",
        "is_open",
        "is_over",
        "other",
        "reader",
        "relay",
        "sent_bytes",
        "transport",
        "waiting",
    )
    other: _Leg

    def __init__(self, relay: Relay, connection: OpenConnection, reader: FrameReader, *, masks: bool) -> None:
        self.relay = relay
        self.transport = connection.transport
        self.reader = reader
        self.is_open = True
        self.is_gone = False
        self.sent_bytes = 0
        self._activity = relay.activity
        self._masks = masks
        # Our close frame, while a frame of the other side is not complete.
        self.waiting: bytes | None = None
        self.is_over = self.close_sent = self._is_paused = False
        self._looks = 0
        self._stall_seconds = _STALL_SECONDS
        self._unsent_bytes = 0
        self._progress_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    # Called by the transport

    def data_received(self, data: bytes) -> None:
        other, reader = self.other, self.reader
        if not other.is_open:
            self._data_after_close(data)
            return
        passed = reader.feed(data)
        if passed:
            other.transport.write(passed)
            other.sent_bytes += len(passed)
        if reader.moved:
            self._activity.moved_at = _clock()
        if reader.end is not None:
            self._frames_ended(reader.end)

    def eof_received(self) -> None:
        # A WebSocket without a sending side is over: the transport closes.
        self._over()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_gone = True
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        self._over()
        self.relay.leg_gone()

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        self.other.resume_reading()

    # Called by the other side and by the relay

    def pause_reading(self) -> None:
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()
            if self._watch is None:
                self._watch = self.relay.loop.call_later(_WATCH_SECONDS, self._look_after)

    def begin_reading(self) -> None:
        """Read on after the handshake, unless what came with it has filled the other side already."""
        if not self._is_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def resume_reading(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def close(self, close: CloseFrame | Violation) -> None:
        """Write a close frame as soon as the frame that is being written is complete, and then wait for the end of the
        connection. It has no effect after a close frame."""
        if not self.is_open:
            return
        self.is_open = False
        self.waiting = serialize_close(close, masked=self._masks)
        if self.other.reader.left <= 0:
            self.write_waiting()
        elif self.other.is_over:
            self.shut()
        else:
            self._timer = self.relay.loop.call_later(_FRAME_SECONDS, self.shut)

    def shut(self) -> None:
        """Close the connection without a close frame, when what was written before has been read."""
        self.is_open = False
        self.waiting = None
        self._stall_seconds = _CLOSE_SECONDS
        self.transport.close()
        self._begin_wait()

    def close_passed(self) -> None:
        """Note that the close frame of the other side has been written."""
        self.is_open = False
        self.close_sent = True
        self._begin_wait()
        self.settle()

    def write_waiting(self) -> None:
        assert self.waiting is not None  # noqa: S101 - of the caller
        self.transport.write(self.waiting)
        self.waiting = None
        self.close_sent = True
        self._begin_wait()
        # What the other side sends from now on is dropped.
        self.other.resume_reading()
        self.settle()

    def settle(self) -> None:
        """Close the connection to a client that has closed too. A backend does that itself (RFC 6455 section 7.1.1),
        and so does a client that broke the rules, for it may still be sending: a socket that is closed with unread
        bytes resets the connection, and the close frame might never be read."""
        if not self.close_sent or self.reader.end is None or self._masks:
            return
        if isinstance(self.reader.end, Violation) and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    # The end

    def _frames_ended(self, end: CloseFrame | Violation) -> None:
        """Handle the last frame of this side, while the other one is open."""
        if isinstance(end, CloseFrame):
            self.other.close_passed()
            self.settle()
        elif self is self.relay.client:
            self.close(end)
            self.other.close(end)
        else:
            self.relay.failed("broke the protocol", kind="protocol")
            self.close(end)
            what = "sent a message that is too big" if end.code == TOO_BIG else "broke the protocol"
            self.other.close(CloseFrame(INTERNAL_ERROR, f"the backend {what}"))

    def _data_after_close(self, data: bytes) -> None:
        """Complete the frame that the other side's close frame waits for. All else is dropped; only the reply to the
        close frame of this side counts."""
        other, left = self.other, self.reader.left
        self.reader.feed(data)
        if other.waiting is not None:
            other.transport.write(data[:left])
            if len(data) >= left:
                other.write_waiting()
        if self.reader.end is not None:
            self.settle()

    def _over(self) -> None:
        """Tell the other side, once, that nothing more comes of this one."""
        if self.is_over:
            return
        self.is_over = True
        self.is_open = False
        self.waiting = None
        other = self.other
        if other.is_over:
            return
        if self is self.relay.client or other.waiting is not None:
            # Broken off for the one is broken off for the other, unless its close frame is on the way.
            if not other.close_sent:
                other.shut()
        elif other.is_open:
            if isinstance(other.reader.end, CloseFrame):
                # A backend that does not reply to the client's close frame.
                other.close(other.reader.end)
            else:
                self.relay.failed("closed the connection", kind="reset")
                other.close(_LOST)

    def _begin_wait(self) -> None:
        """Wait for the end of the connection."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.is_gone:
            self._progress_at = self.relay.loop.time()
            self._timer = self.relay.loop.call_later(_CLOSE_SECONDS, self._look)

    def _look(self) -> None:
        now, unsent = self.relay.loop.time(), self.transport.get_write_buffer_size()
        if unsent != self._unsent_bytes:
            self._unsent_bytes, self._progress_at = unsent, now
        if now - self._progress_at < (self._stall_seconds if unsent else _CLOSE_SECONDS):
            self._timer = self.relay.loop.call_later(_CLOSE_SECONDS, self._look)
        else:
            self.transport.abort()

    def _look_after(self) -> None:
        """Check whether a side that is not read from is still there: its transport is not notified when it leaves. The
        host of one that has left responds to a pong with a reset; no end has to respond (RFC 6455 section 5.5.3)."""
        self._watch = None
        if self.is_gone:
            return
        if not self._is_paused:
            self._looks = 0
        elif is_broken(self.transport):
            self.is_open = False
            self.transport.abort()
        else:
            self._looks += 1
            if self._looks % _LOOKS_A_PONG == 0 and self.is_open and self.other.reader.left == 0:
                self.transport.write(serialize_pong(masked=self._masks))
            self._watch = self.relay.loop.call_later(_WATCH_SECONDS, self._look_after)


class Relay:
    """One open WebSocket, from both handshakes to the end of both connections.

    `compressed`: both agreed on permessage-deflate. `activity` notes when messages move. `on_failure` gets a failure of
    the backend, at most once. `over` is set at the end.
    """

    def __init__(
        self,
        client: OpenConnection,
        backend: OpenConnection,
        *,
        compressed: bool,
        activity: Activity,
        on_failure: Callable[[UpstreamUnavailable], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.activity = activity
        self.over = asyncio.Event()
        self._on_failure = on_failure
        self._connections = client, backend
        self.client = _Leg(self, client, FrameReader(masked=True, compressed=compressed), masks=False)
        self.backend = _Leg(self, backend, FrameReader(masked=False, compressed=compressed), masks=True)
        self.client.other, self.backend.other = self.backend, self.client

    def __repr__(self) -> str:
        return f"<Relay [{'over' if self.over.is_set() else 'open'}]>"

    @property
    def bytes_out(self) -> int:
        """The bytes that the client was sent."""
        return self.client.sent_bytes

    def start(self) -> None:
        """Take both connections over."""
        legs = self.client, self.backend
        for leg in legs:
            leg.transport.set_protocol(leg)
        for leg, connection in zip(legs, self._connections, strict=True):
            if connection.is_lost:
                leg.connection_lost(None)
            elif connection.held:
                leg.data_received(connection.held)
        for leg in legs:
            leg.begin_reading()

    def end(self, close: CloseFrame) -> None:
        """Close both sides; `close` is for the client. To the backend its client goes away."""
        self.client.close(close)
        self.backend.close(CloseFrame(GOING_AWAY, close.reason))

    def shut_down(self) -> None:
        self.end(CloseFrame(SERVICE_RESTART))

    def abort(self) -> None:
        """Close both connections at once."""
        self.client.transport.abort()
        self.backend.transport.abort()

    # Called by the sides

    def failed(self, what: str, *, kind: str) -> None:
        self._on_failure(UpstreamUnavailable(f"the backend {what} of an open WebSocket", kind=kind))

    def leg_gone(self) -> None:
        if self.client.is_gone and self.backend.is_gone:
            self.over.set()

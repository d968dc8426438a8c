"""The connection of a client: reading, order, timeouts, and responses without the application.

A connection is always in one phase. Requests are handled in order; a bounded amount of data that is sent ahead is held.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeAlias, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from gatekeeper.http.request_body import BODY_TOO_LARGE, Body, ChunkedBody, SizedBody
from gatekeeper.http.request_head import HeadReader, Limits, RequestHead, RequestRejected, parse_head
from gatekeeper.http.types import ASGIApp
from gatekeeper.http.websocket_handshake import asks_for_websocket, check_handshake
from gatekeeper.net import age_of_one
from gatekeeper.server.deadline import Deadline, StallTimer
from gatekeeper.server.exchange import Exchange
from gatekeeper.server.half_close import HalfClose
from gatekeeper.server.rejection import INCOMPLETE, INTERNAL_ERROR, TIMED_OUT, RenderError, reject
from gatekeeper.server.responders import DirectResponders
from gatekeeper.server.scope import ScopeFactory
from gatekeeper.server.websocket import ClientWebSocket

_HIGH_WATER_BYTES: Final = 64 * 1024
# As Go's net/http: so much of an unread body is read over to keep the connection; more ends it.
_MAX_DRAINED_BYTES: Final = 256 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)
FastPath: TypeAlias = Callable[[Exchange], bool]
OnClientLeft: TypeAlias = "Callable[[asyncio.Task[None]], None]"


class _Phase(Enum):
    HEAD = "waiting for a head"
    BODY = "inside a body"
    RESPONSE = "waiting for the response"
    LINGER = "closing; further data is dropped"


# Read several times for each request, and slow as attributes of an Enum.
_HEAD, _BODY, _RESPONSE, _LINGER = _Phase


class HttpServerProtocol(asyncio.Protocol):
    """HTTP/1 under uvicorn. Made by `factory.http_protocol`, which sets the class attributes."""

    __slots__ = (
        "_app_state",
        "_body",
        "_config",
        "_connections",
        "_deadline",
        "_drained_bytes",
        "_exchange",
        "_expires_at",
        "_half_close",
        "_head",
        "_held",
        "_idle",
        "_loop",
        "_phase",
        "_read_paused",
        "_reader",
        "_scopes",
        "_stall",
        "_state",
        "_transport",
        "writable",
    )

    responders: DirectResponders
    _limits: Limits
    _render_error: RenderError
    _on_overload: Callable[[], None]
    _fast_path: FastPath
    _on_client_left: OnClientLeft
    # Of all connections together: they change when the server is about to stop.
    announces_close = False
    idle_seconds: float
    # Long enough to read a response, too short to occupy connections (RFC 9112 section 9.6).
    linger_seconds = 2.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._state = server_state
        # uvicorn types it as a set of its own classes; it uses their number and their `shutdown`.
        self._connections = cast("set[asyncio.Protocol]", server_state.connections)
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._phase = _HEAD
        self._idle = False
        self._reader = HeadReader(self._limits)
        self._head: RequestHead | None = None
        self._body: Body | None = None
        self._exchange: Exchange | None = None
        self._held = b""
        self._drained_bytes = 0
        self._read_paused = False
        self._half_close: HalfClose | None = None
        self.writable: asyncio.Event | None = None
        self._deadline = Deadline(self._loop, self._expired)
        self._stall = StallTimer(self._loop, self._limits.write_timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._phase.value}>"

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= self._limits.max_connections:
            self._phase = _LINGER
            self._transport.abort()
            self._on_overload()
            return
        self._connections.add(self)
        self._expires_at = self._loop.time() + age_of_one(self._limits.keepalive_max_age)
        self._scopes = ScopeFactory(
            transport,
            root_path=self._config.root_path,
            asgi_version=self._config.asgi_version,
            app_state=self._app_state,
        )
        self._deadline.set(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._phase = _LINGER
        self._deadline.cancel()
        if self._half_close is not None:
            self._half_close.cancel()
        # Forgotten, because it refers to this: neither waits for the collector.
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()
            if exchange.task is not None:
                self._on_client_left(exchange.task)
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        try:
            if self._phase is _HEAD:
                self._read_head(data)
            elif self._phase is _BODY:
                self._read_body(data)
            elif self._phase is _RESPONSE:
                self._hold(data)
        except RequestRejected as rejected:
            self._reject(rejected)

    def eof_received(self) -> bool:
        """Note that the client has closed its sending side (RFC 9293 section 3.6): it gets the responses to what it
        sent whole. Return False where nothing more is due, and the transport closes."""
        if self._phase is not _LINGER and self._half_close is None:
            self._half_close = HalfClose(self._loop, self._transport)
            self._end_input()
        return self._phase is not _LINGER and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()
        self._stall.watch(self._transport, self._reset)

    def resume_writing(self) -> None:
        if self.writable is not None:
            self.writable.set()
            self.writable = None
            if self._exchange is not None and self._exchange.responder is not None:
                self._exchange.responder.client_writable()
        self._stall.cancel()

    def announce_close(self) -> None:
        """Let the response in flight be the last one, if it can still say so."""
        if self._exchange is not None and not self._exchange.started:
            self._exchange.keep_alive = False

    def shutdown(self) -> None:
        """Called by uvicorn when the server shuts down: finish the request in flight. An idle connection is closed when
        a request that is on its way has had the time to arrive."""
        of_all = type(self)
        of_all.announces_close = True
        # A client has so long for a last request on an idle connection, and then to close it.
        of_all.idle_seconds = of_all.linger_seconds = min(1.0, (self._config.timeout_graceful_shutdown or 4) / 4)
        self.announce_close()
        if self._phase is _HEAD:
            self._idle = True
            self._deadline.set(self.idle_seconds)
        elif self._exchange is not None and self._exchange.complete:
            self._close()

    # Reading

    def _read_head(self, data: bytes) -> None:
        found = self._reader.feed(data)
        if found is None:
            if self._idle:
                self._idle = False
                self._deadline.set(self._limits.header_timeout)
            return
        raw, rest = found
        self._idle = False
        self._deadline.clear()
        try:
            self._head = head = parse_head(raw, self._limits)
        except RequestRejected:
            # The error response is written with what was read.
            self._reader.buffer += raw
            raise
        if asks_for_websocket(head):
            self._upgrade(head, rest)
        else:
            self._begin(head, rest)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """Start an exchange. From here on the request belongs to the application, unless its body is too large from the
        start."""
        limit, length = self._limits.max_body_bytes, head.section.length
        if limit is not None and length is not None and length > limit:
            raise RequestRejected(413, BODY_TOO_LARGE)
        exchange = Exchange(self, head, self._scopes, self._state.default_headers)
        if self.announces_close or self._loop.time() >= self._expires_at:
            exchange.keep_alive = False
        if length == 0:
            self._phase = _RESPONSE
            self._exchange = exchange
            if rest:
                self._hold(rest)
        else:
            self._phase = _BODY
            self._body = ChunkedBody(head, self._limits) if length is None else SizedBody(length)
            self._drained_bytes = 0
            if rest:
                self._read_body(rest, exchange)
            elif not exchange.waits_for_permission:
                self._deadline.set(self._limits.body_timeout)
            self._exchange = exchange
        if not self._fast_path(exchange):
            self.run(exchange)

    def _read_body(self, data: bytes, exchange: Exchange | None = None) -> None:
        exchange = exchange or self._exchange
        body = self._body
        assert exchange is not None  # noqa: S101 - of this phase
        assert body is not None  # noqa: S101
        part, rest = body.feed(data)
        exchange.feed(part, last=body.complete, trailers=body.trailers)
        if body.complete:
            self._phase = _RESPONSE
            self._deadline.clear()
            self._body = None
            if rest:
                self._hold(rest)
            if exchange.complete:
                self._next()
        elif exchange.complete:
            self._drained_bytes += len(data)
            self._drain(body)
        elif exchange.buffered_bytes > _HIGH_WATER_BYTES:
            # From now on the application sets the pace.
            self._pause_reading()
            self._deadline.clear()
        else:
            self._deadline.set(self._limits.body_timeout)

    def _end_input(self) -> None:
        """Nothing follows what was read and what is held."""
        exchange = self._exchange
        if self._phase is _RESPONSE and exchange is not None:
            # With a request that is held, that one's response is the last.
            exchange.keep_alive = exchange.keep_alive and bool(self._held)
        elif self._phase is _HEAD and not self._reader.buffer:
            self._finish()
        elif self._phase is not _LINGER:
            self._reject(RequestRejected(400, INCOMPLETE))

    def _drain(self, body: Body) -> None:
        """Read over the rest of a body after the response, within limits, to get to the next request."""
        if self._drained_bytes + body.remaining_bytes > _MAX_DRAINED_BYTES:
            self._close()
        else:
            self._deadline.set(self._limits.body_timeout)
            self._resume_reading()

    def _hold(self, data: bytes) -> None:
        """Hold data that arrives before its turn."""
        self._held += data
        if len(self._held) > _HIGH_WATER_BYTES:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    # Called by the exchange

    def run(self, exchange: Exchange, app: ASGIApp | None = None) -> None:
        task = exchange.task = self._loop.create_task(exchange.run(app or self._config.loaded_app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def call_soon(self, do: Callable[[], None]) -> None:
        self._loop.call_soon(do)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def want_body(self) -> None:
        if self._phase is _BODY and self._read_paused:
            self._deadline.set(self._limits.body_timeout)
            self._resume_reading()

    def send_continue(self) -> None:
        if self._phase is _BODY:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._deadline.set(self._limits.body_timeout)

    def response_complete(self) -> None:
        self._state.total_requests += 1
        exchange = self._exchange
        if self._transport.is_closing() or self._phase is _LINGER or exchange is None:
            return
        if not exchange.keep_alive:
            self._close(linger=self.announces_close)
        elif self._phase is _RESPONSE:
            self._next()
        elif self._body is not None:
            self._drain(self._body)

    def response_failed(self) -> None:
        exchange = self._exchange
        if exchange is None or self._transport.is_closing():
            return
        if exchange.started:
            self._truncate(exchange)
        else:
            self._reject(RequestRejected(500, INTERNAL_ERROR))

    def _next(self) -> None:
        """Go on to the next request, which may have arrived already."""
        self._phase = _HEAD
        self._exchange = self._head = None
        self._resume_reading()
        if self._held:
            held, self._held = self._held, b""
            self._deadline.set(self._limits.header_timeout)
            self.data_received(held)
            if self._half_close is not None:
                self._end_input()
        else:
            self._idle = True
            # A connection that has just come of age waits for a request to say so to.
            until = (now := self._loop.time()) + self.idle_seconds
            self._deadline.set_at(until if until <= self._expires_at else max(now + 1.0, self._expires_at))

    # Closing

    def _reject(self, rejected: RequestRejected) -> None:
        """Respond in place of the application, and end the connection."""
        exchange = self._exchange
        if exchange is not None and exchange.complete:
            self._close()
            return
        if exchange is not None and exchange.started:
            exchange.disconnect()
            self._truncate(exchange)
            return
        scope = exchange.reject() if exchange is not None else None
        read = self._head or bytes(self._reader.buffer)
        self.write(reject(self._render_error, rejected, read, self._limits, self._scopes.client, scope))
        if exchange is not None:
            exchange.disconnect()
        self._close(linger=True)

    def _truncate(self, exchange: Exchange) -> None:
        """End a response in the middle, so that the client can tell (RFC 9112 section 8)."""
        if exchange.ends_with_connection:
            self._reset()
        else:
            self._finish()

    def _reset(self) -> None:
        """End the connection with RST, which no client takes for a regular end."""
        self._phase = _LINGER
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def _finish(self) -> None:
        """Close once the client has read everything."""
        self._phase = _LINGER
        self._transport.close()
        self._stall.watch(self._transport, self._reset)

    def _close(self, *, linger: bool = False) -> None:
        """End the connection. While data is still arriving, close only the sending side at first: a socket that is
        closed with unread bytes resets the connection, and the client may never see the response (RFC 9112 section
        9.6)."""
        unread = (linger or self._body is not None or bool(self._held)) and self._half_close is None
        self._phase = _LINGER
        self._held = b""
        self._reader.buffer.clear()
        if unread and self._transport.can_write_eof():
            self._transport.write_eof()
            self._resume_reading()
            self._deadline.set(self.linger_seconds)
        else:
            self._finish()

    def _upgrade(self, head: RequestHead, rest: bytes) -> None:
        """Hand the connection over to the WebSocket protocol."""
        check_handshake(head)
        if rest:
            # RFC 6455 section 4.1: the client must wait for the response; data that comes earlier may be a request.
            raise RequestRejected(400, "There is data before the WebSocket handshake was answered")
        self._deadline.cancel()
        self._stall.cancel()
        self._connections.discard(self)
        websocket = ClientWebSocket(self._transport, head, self._state, self._on_client_left)
        websocket.start(self._config.loaded_app, self._scopes)
        self._phase = _LINGER
        if self._half_close is not None:
            self._half_close.cancel()
            websocket.eof_received()

    # Time

    def _expired(self) -> None:
        if self._phase is _LINGER:
            self._finish()
        elif self._idle:
            # A request may have been sent meanwhile: its client sees a regular end, not a reset.
            self._close(linger=True)
        else:
            self._reject(RequestRejected(408, TIMED_OUT))

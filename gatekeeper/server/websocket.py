"""The client's side of a WebSocket, until the open connection is taken over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, cast

from uvicorn.server import ServerState

from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import get
from gatekeeper.http.request_head import RequestHead
from gatekeeper.http.spelling import USUAL
from gatekeeper.http.types import ASGIApp, Message, Scope
from gatekeeper.http.websocket_frames import CloseFrame
from gatekeeper.http.websocket_handshake import KEY, accept_of
from gatekeeper.net import enable_keepalive
from gatekeeper.server.half_close import HalfClose
from gatekeeper.server.response_lines import status_line
from gatekeeper.server.scope import ScopeFactory

WEBSOCKET: Final = "gatekeeper.websocket"
"""The ASGI extension of `websocket` scopes: `["connection"]` is the `ClientWebSocket`, `["headers"]` are those of the
handshake with their names as they were read."""

_log = logging.getLogger("uvicorn.error")
_MAX_HELD_BYTES: Final = 64 * 1024
_OF_THE_RESPONSE: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})


class OpenWebSocket(Protocol):
    """An owner of an open WebSocket: the relay."""

    def end(self, close: CloseFrame) -> None:
        """Close both sides, the client's with `close`, each at the end of the frame that is being written to it."""

    def shut_down(self) -> None:
        """Close both sides, because the server shuts down."""


class ClientWebSocket(asyncio.Protocol):
    """A connection whose client asked for a WebSocket. It speaks ASGI: the application accepts, or refuses by HTTP.

    An accepted WebSocket sends and receives no messages here: its owner takes it over and reads from `transport`,
    beginning with `held`. `receive` then waits for nothing, and `websocket.close` is passed on. It is one of uvicorn's
    connections for as long as the application runs; `on_client_left` is called with its task if the client leaves
    before the response.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        head: RequestHead,
        state: ServerState,
        on_client_left: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self.transport = transport
        self.held = b""
        self.is_lost = False
        self._head = head
        self._state = state
        self._on_client_left = on_client_left
        self._is_connected = self._has_responded = self._is_stopping = False
        self._ended = asyncio.Event()
        self._open: OpenWebSocket | None = None
        self._refusal: Message | None = None
        self._body = b""
        self._half_close: HalfClose | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, app: ASGIApp, scopes: ScopeFactory) -> None:
        """Take the connection over from the HTTP protocol, and run the application."""
        enable_keepalive(self.transport)
        self.transport.set_protocol(self)
        scope = scopes.make_websocket(self._head)
        scope["extensions"][WEBSOCKET] = {"connection": self, "headers": self._head.section.spelled}
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope))
        # uvicorn types them as sets of its own classes; it uses their number, `shutdown` and `cancel`.
        cast("set[Any]", self._state.connections).add(self)
        self._state.tasks.add(self._task)
        self._task.add_done_callback(self._done)

    def take_over(self, opened: OpenWebSocket) -> None:
        """Hand the open connection to `opened`, whose protocol the transport gets."""
        self._open = opened
        if self._is_stopping:
            opened.shut_down()

    # Called by uvicorn, at the shutdown

    def shutdown(self) -> None:
        """Close an open WebSocket. A handshake has time for its response, as any request."""
        self._is_stopping = True
        if self._open is not None:
            self._open.shut_down()

    # Called by the transport, until the connection is taken over

    def data_received(self, data: bytes) -> None:
        if self._refusal is None:
            # RFC 6455 section 4.1: the client should wait. It is heard once it is accepted.
            self.held += data
            if len(self.held) > _MAX_HELD_BYTES:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection for the response to the handshake: a refusal is delivered whole."""
        if self._has_responded or not self.transport.can_write_eof():
            return False
        if self._half_close is None:
            self._half_close = HalfClose(asyncio.get_running_loop(), self.transport)
        return True

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        self._ended.set()
        if self._half_close is not None:
            self._half_close.cancel()
        if self._task is not None and not self._has_responded:
            self._on_client_left(self._task)

    # The application

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # noqa: BLE001 - an application may raise anything
            _log.exception("application raised an exception")

    def _done(self, task: asyncio.Task[None]) -> None:
        self._state.tasks.discard(task)
        cast("set[Any]", self._state.connections).discard(self)
        if not self._has_responded and not self.is_lost:
            self._respond(500, (), b"")
        self.transport.close()

    async def _receive(self) -> Message:
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        await self._ended.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.close" and self._open is not None:
            self._open.end(CloseFrame(message.get("code", 1000), message.get("reason") or ""))
        elif self.is_lost:
            raise OSError("the client has left")
        elif kind == "websocket.accept" and not self._has_responded:
            self._accept(message)
        elif kind == "websocket.close" and not self._has_responded:
            self._respond(403, (), b"")
        elif kind == "websocket.http.response.start" and not self._has_responded and self._refusal is None:
            self._refusal = message
        elif kind == "websocket.http.response.body" and not self._has_responded and self._refusal is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                start = self._refusal
                self._respond(start["status"], start.get("headers", ()), self._body, start.get("reason"))
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' of a WebSocket.")

    def _accept(self, message: Message) -> None:
        key = get(self._head.headers, KEY) or b""
        headers = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept_of(key))]
        if (chosen := message.get("subprotocol")) is not None:
            headers.append((b"Sec-WebSocket-Protocol", chosen.encode("latin-1")))
        self._write(status_line(101), [*headers, *message.get("headers", ())], b"")
        if self._half_close is not None:
            # A WebSocket without a sending client is over.
            self._half_close.cancel()
            self.transport.close()

    def _respond(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, reason: bytes | None = None
    ) -> None:
        """Refuse the handshake, and close the connection once the client has read that."""
        kept = [pair for pair in headers if pair[0].lower() not in _OF_THE_RESPONSE]
        if status not in {204, 304}:
            kept.append((b"Content-Length", b"%d" % len(body)))
        kept.append((b"Connection", b"close"))
        self._write(status_line(status, reason), kept, body)
        self._ended.set()
        self.transport.close()

    def _write(self, line: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [line]
        for name, value in headers:
            if not is_token(name) or not is_field_value(value):
                raise RuntimeError("Invalid header name or value in a response.")
            lines.append(b"%b: %b\r\n" % (USUAL.get(name, name), value))
        self._has_responded = True
        self.transport.write(b"".join((*lines, b"\r\n", body)))

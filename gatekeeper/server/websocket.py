"""The client's side of a WebSocket: uvicorn's protocol, with limits where it has none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_head import RequestHead
from gatekeeper.http.websocket_frames import MAX_MESSAGE_BYTES, StrictServerProtocol
from gatekeeper.http.websocket_handshake import serialize_handshake
from gatekeeper.net import CLIENT_LEFT, enable_keepalive, is_broken
from gatekeeper.server.half_close import HalfClose

_WATCH_SECONDS: Final = 1.0
# One message of the largest size, and thousands of pongs.
_MAX_UNSENT_BYTES: Final = MAX_MESSAGE_BYTES + 1024 * 1024


class WebSocketServerProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol with strict frames, TCP keep-alive and bounded buffers. `on_client_left` is called with the
    task of an application whose client has disconnected."""

    on_client_left: Callable[[asyncio.Task[None]], None] | None = None
    _task: asyncio.Task[None] | None = None
    # The headers of the handshake, with their names as they were read.
    # Set by our own HTTP protocol. Under another one the names are as the scope has them.
    spelled: HeaderList | None = None

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self.conn = StrictServerProtocol(max_size=config.ws_max_size, logger=logging.getLogger("uvicorn.error"))
        self._left = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._half_close: HalfClose | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        enable_keepalive(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._half_close is not None:
            self._half_close.cancel()
        if self._task is not None and self.on_client_left is not None:
            self.on_client_left(self._task)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the response to a handshake: a refusal is delivered whole. A WebSocket without a
        sending client is over."""
        if self.handshake_complete or not self.transport.can_write_eof():
            return False
        self._half_close = HalfClose(self.loop, self.transport)
        return True

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self._half_close is not None and self.handshake_complete:
            self.transport.close()

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CLIENT_LEFT] = {"left": self._left, "headers": self.spelled or list(self.scope["headers"])}
        self._task = asyncio.current_task()
        await super().run_asgi()

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        if self.read_paused and self._watch is None:
            self._watch = self.loop.call_later(_WATCH_SECONDS, self._look_after)

    def _look_after(self) -> None:
        """Check whether the client is still there: a transport that does not read is not notified when it leaves."""
        self._watch = None
        if self.read_paused and not self.disconnected:
            if is_broken(self.transport):
                self.transport.abort()
            else:
                self._watch = self.loop.call_later(_WATCH_SECONDS, self._look_after)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        # Events that arrived before a fault count, too.
        self.handle_events()
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()

    def handle_cont(self, event: Frame) -> None:
        # One buffer: the limit on a message's size does not bound a list of empty or short fragments.
        frames: list[Any] = self.frames
        if not isinstance(frames[0], bytearray):
            frames[0] = bytearray(frames[0])
        frames[0] += event.data
        if event.fin:
            frames[0] = bytes(frames[0])
            self.send_receive_event_to_app()

    def handle_ping(self) -> None:
        super().handle_ping()
        # Pongs pile up for a client that sends pings and never reads.
        if self.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self.transport.abort()


def websocket_protocol(callback: Callable[[asyncio.Task[None]], None]) -> type[WebSocketServerProtocol]:
    """Return the class for `uvicorn.Config(ws=…)`.

    `callback` is called with the task of an application whose client has disconnected.
    """

    class ConfiguredWebSocketProtocol(WebSocketServerProtocol):
        on_client_left = staticmethod(callback)

    return ConfiguredWebSocketProtocol


def hand_over(
    transport: asyncio.Transport, head: RequestHead, config: Config, state: ServerState, app_state: dict[str, Any]
) -> asyncio.Protocol:
    """Give the connection with the checked handshake `head` to a WebSocket protocol, and return that."""
    made: Any = config.ws_protocol_class
    websocket: Any = made(config=config, server_state=state, app_state=app_state)
    websocket.spelled = head.section.spelled
    websocket.connection_made(transport)
    websocket.data_received(serialize_handshake(head))
    transport.set_protocol(websocket)
    return cast("asyncio.Protocol", websocket)

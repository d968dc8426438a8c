"""Forwarding of a WebSocket: its handshake, and the relay of what follows.

The backend's handshake comes first, and the client is accepted only after the backend has accepted, so that a refusal
is still an HTTP response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.departure import CancelWhenClientLeaves
from gatekeeper.forward.relay import Relay
from gatekeeper.http.forwarding import response_headers
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.types import Message, Receive, Scope, Send
from gatekeeper.server.websocket import WEBSOCKET, ClientWebSocket
from gatekeeper.upstream.interface import Failure, Upstream, UpstreamRequest
from gatekeeper.upstream.websocket import BackendWebSocket, HandshakeRefused, open_websocket

_HANDSHAKE_PREFIX: Final = b"sec-websocket-"


class WebSocketTunnel:
    """Forwards WebSockets to the backend behind `upstream`.

    `on_upstream` gets the seconds until the response to each handshake, which are also stored in
    `scope["state"]["upstream_seconds"]`; `on_error` gets each failure, also those of open WebSockets. The bytes that
    the client was sent are stored in `scope["state"]["bytes_out"]`.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        on_upstream: Callable[[float], None] | None = None,
        on_error: Callable[[Failure], None] | None = None,
    ) -> None:
        self._upstream = upstream
        self._on_upstream = on_upstream
        self._on_error = on_error

    def __repr__(self) -> str:
        return f"<WebSocketTunnel to {self._upstream!r}>"

    async def run(self, request: UpstreamRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one `websocket` scope of our own server from its handshake to its close.

        `request` is the handshake as an HTTP request. Raises UpstreamUnavailable, UpstreamTimeout or
        RequestNotForwardable, each before anything is sent to the client.
        """
        await receive()  # `websocket.connect`
        end = asyncio.create_task(_end(receive))
        backend: BackendWebSocket | HandshakeRefused | None = None
        try:
            async with CancelWhenClientLeaves(_Client(end)):
                backend = await self._open(request, scope)
            if isinstance(backend, BackendWebSocket):
                await self._serve(backend, scope, send)
            elif backend is not None:
                await _refuse(backend, send)
        finally:
            end.cancel()
            if isinstance(backend, BackendWebSocket):
                backend.handshake.transport.abort()

    async def _open(self, request: UpstreamRequest, scope: Scope) -> BackendWebSocket | HandshakeRefused:
        started = time.perf_counter()
        try:
            backend = await open_websocket(self._upstream, request)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise
        seconds = time.perf_counter() - started
        scope.setdefault("state", {})["upstream_seconds"] = seconds
        if self._on_upstream is not None:
            self._on_upstream(seconds)
        return backend

    async def _serve(self, backend: BackendWebSocket, scope: Scope, send: Send) -> None:
        client: ClientWebSocket = scope["extensions"][WEBSOCKET]["connection"]
        try:
            await send({"type": "websocket.accept", "subprotocol": None, "headers": _accepting(backend)})
        except OSError:
            return
        relay = Relay(
            client,
            backend.handshake,
            compressed=backend.is_compressed,
            activity=scope.get("gatekeeper.stream") or _Unbound(),
            on_failure=self._failed,
        )
        relay.start()
        client.take_over(relay)
        try:
            await relay.over.wait()
        finally:
            relay.abort()
            scope["state"]["bytes_out"] = relay.bytes_out

    def _failed(self, error: Failure) -> None:
        if self._on_error is not None:
            self._on_error(error)


class _Unbound:
    """The activity of a WebSocket without a session, for which no store is asked."""

    moved_at = 0.0


class _Client:
    """The client during the handshake."""

    def __init__(self, end: asyncio.Task[Message]) -> None:
        self._end = end

    async def left(self) -> None:
        # Not awaited itself: it waits on after the handshake, for when the session ends.
        await asyncio.wait({self._end})


async def _end(receive: Receive) -> Message:
    """Receive the end of the client or of its session: as a relay reads the messages, there is nothing else."""
    return await receive()


def _accepting(backend: BackendWebSocket) -> HeaderList:
    """Return the headers of the 101 for the client: what the backend chose, and its own."""
    headers: HeaderList = []
    if backend.subprotocol is not None:
        headers.append((b"Sec-WebSocket-Protocol", backend.subprotocol))
    if backend.extension is not None:
        headers.append((b"Sec-WebSocket-Extensions", backend.extension))
    passed = response_headers(backend.headers, 101)
    return headers + [pair for pair in passed if not pair[0].lower().startswith(_HANDSHAKE_PREFIX)]


async def _refuse(refusal: HandshakeRefused, send: Send) -> None:
    headers = response_headers(refusal.headers, refusal.status)
    start = {"type": "websocket.http.response.start", "status": refusal.status, "headers": headers}
    try:
        await send({**start, "reason": refusal.reason})
        await send({"type": "websocket.http.response.body", "body": refusal.body, "more_body": False})
    except OSError:
        pass  # the client has left

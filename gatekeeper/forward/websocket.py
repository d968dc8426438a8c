"""Forwarding of a WebSocket: the client's connection, which the ASGI server has, and one to the backend.

The backend's handshake comes first, and the client is accepted only after the backend has accepted, so that a refusal
is still an HTTP response. Then messages are forwarded in both directions, each as one frame, in their order.

RFC 6455 is kept on each connection separately. A ping is answered on the connection it came from, and none is sent to
the backend; a fragmented message is forwarded as one frame (section 5.4); no extension is offered to the backend, so
nothing is compressed. There is no timeout once a WebSocket is open. If one side reads slowly, the other is read from
slowly: each direction buffers one message, one read of `READ_BYTES`, and what the transports buffer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from websockets.exceptions import InvalidState
from websockets.frames import CloseCode

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.departure import CancelWhenClientLeaves
from gatekeeper.http.forwarding import response_headers
from gatekeeper.http.types import Message, Receive, Scope, Send
from gatekeeper.net import CLIENT_LEFT
from gatekeeper.upstream.http1 import Failure
from gatekeeper.upstream.interface import Upstream, UpstreamRequest
from gatekeeper.upstream.websocket import BackendWebSocket, HandshakeRefused, WebSocketClose, open_websocket

# The close code of a client may arrive this much later than the failure to send to it.
_CLOSE_CODE_SECONDS: Final = 0.5
_HANDSHAKE_PREFIX: Final = b"sec-websocket-"


class CloseFrames(NamedTuple):
    """The close frame for each side. None: the connection is closed without one."""

    for_client: WebSocketClose | None = None
    for_backend: WebSocketClose | None = None


class WebSocketTunnel:
    """Forwards WebSockets to the backend behind `upstream`.

    `on_upstream` gets the seconds until the response to each handshake, which are also stored in
    `scope["state"]["upstream_seconds"]`; `on_error` gets each failure, also those of open WebSockets.
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
        """Serve one `websocket` scope from its handshake to its close.

        `request` is the handshake as an HTTP request. Raises UpstreamUnavailable, UpstreamTimeout or
        RequestNotForwardable, each before anything is sent to the client.
        """
        await receive()  # `websocket.connect`
        offered = (scope.get("extensions") or {}).get(CLIENT_LEFT)
        async with _WebSocketClient(receive, send, offered["left"] if offered else asyncio.Event()) as client:
            backend: BackendWebSocket | HandshakeRefused | None = None
            async with CancelWhenClientLeaves(client):
                backend = await self._open(request, scope)
            if isinstance(backend, BackendWebSocket):
                await self._serve(client, backend)
            elif backend is not None:
                await client.refuse(backend, in_http="websocket.http.response" in scope.get("extensions", {}))

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

    async def _serve(self, client: _WebSocketClient, backend: BackendWebSocket) -> None:
        try:
            await client.accept(backend)
            frames = await _forward_messages(client, backend)
            if backend.failure is not None:
                what = "broke the protocol" if backend.failure == "protocol" else "closed the connection"
                self._failed(UpstreamUnavailable(f"the backend {what} of an open WebSocket", kind=backend.failure))
            # At the same time: a client that still has messages to read must not delay the close of the backend.
            await asyncio.gather(client.close(frames.for_client), backend.close(frames.for_backend))
        finally:
            backend.abort()

    def _failed(self, error: Failure) -> None:
        if self._on_error is not None:
            self._on_error(error)


async def _forward_messages(client: _WebSocketClient, backend: BackendWebSocket) -> CloseFrames:
    """Forward messages until one side closes or fails."""
    up = asyncio.create_task(_forward_up(client, backend))
    down = asyncio.create_task(_forward_down(client, backend))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if down.done() and (ending := down.result()) is not None:
            return CloseFrames(for_client=ending)
        if not up.done():
            # Sending to the client failed; its last message has the close code.
            await asyncio.wait({up}, timeout=_CLOSE_CODE_SECONDS)
        return CloseFrames(for_backend=up.result() if up.done() else None)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _forward_up(client: _WebSocketClient, backend: BackendWebSocket) -> WebSocketClose | None:
    """Forward messages from the client to the backend. Returns the close of the client; never returns if the backend
    takes no more."""
    try:
        while True:
            message = await client.next()
            if message["type"] == "websocket.disconnect":
                return _close_of(message)
            backend.write(message)
            if backend.is_full:
                async with CancelWhenClientLeaves(client):
                    await backend.drained()
    except (OSError, InvalidState):
        # The backend is closing or lost: `_forward_down` reads which of them, and the close code.
        await asyncio.Event().wait()
        raise


async def _forward_down(client: _WebSocketClient, backend: BackendWebSocket) -> WebSocketClose | None:
    """Forward messages from the backend to the client. Returns the close of the backend, or None if the client takes no
    more."""
    while messages := await backend.read():
        for message in messages:
            if not await client.send(message):
                return None
    return backend.ending


def _close_of(message: Message) -> WebSocketClose | None:
    """Return the close frame that a `websocket.disconnect` stands for; None if the connection broke off.

    uvicorn sets `reason`, possibly empty, only for a close frame: the client's, or its own after an error of the client
    (1002, 1007, 1009); the two cannot be distinguished. 1012 without a reason is the shutdown of uvicorn, which is
    1001 (going away) for the backend. 1005 without a reason is a connection that broke off.
    """
    code, reason = message.get("code", CloseCode.NO_STATUS_RCVD), message.get("reason")
    if code == CloseCode.ABNORMAL_CLOSURE or (code == CloseCode.NO_STATUS_RCVD and reason is None):
        return None
    if code == CloseCode.SERVICE_RESTART and reason is None:
        return WebSocketClose(CloseCode.GOING_AWAY)
    return WebSocketClose(None if code == CloseCode.NO_STATUS_RCVD else code, reason or "")


class _WebSocketClient:
    """The client, behind an ASGI server. A server that notices a disconnection without reading sets `has_left`."""

    def __init__(self, receive: Receive, send: Send, has_left: asyncio.Event) -> None:
        self._receive = receive
        self._send = send
        self._has_left = has_left
        self._next_message: asyncio.Task[Message] | None = None

    async def __aenter__(self) -> _WebSocketClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._next_message is not None:
            self._next_message.cancel()
            await asyncio.gather(self._next_message, return_exceptions=True)

    async def next(self) -> Message:
        if self._next_message is None:
            return await self._receive()
        message = await self._next_message
        self._next_message = None
        return message

    async def left(self) -> None:
        """Return when the client has disconnected.

        Receives one message ahead for `next`. If that is not the disconnection, only `has_left` can report it.
        """
        if self._next_message is None:
            self._next_message = asyncio.create_task(_received(self._receive))
        left = asyncio.create_task(self._has_left.wait())
        try:
            # The task is not awaited itself: a message must not be lost if `left` is cancelled.
            await asyncio.wait({self._next_message, left}, return_when=asyncio.FIRST_COMPLETED)
            if not left.done() and self._next_message.result()["type"] != "websocket.disconnect":
                await left
        finally:
            left.cancel()

    async def accept(self, backend: BackendWebSocket) -> None:
        headers = [pair for pair in response_headers(backend.headers, 101) if _is_forwarded(pair[0])]
        await self._send_event({"type": "websocket.accept", "subprotocol": backend.subprotocol, "headers": headers})

    async def refuse(self, refusal: HandshakeRefused, *, in_http: bool) -> None:
        if not in_http:
            # A server responds with 403 to a close before the handshake (ASGI specification).
            await self._send_event({"type": "websocket.close", "code": CloseCode.POLICY_VIOLATION, "reason": ""})
            return
        headers = response_headers(refusal.headers, refusal.status)
        start = {"type": "websocket.http.response.start", "status": refusal.status, "headers": headers}
        body = {"type": "websocket.http.response.body", "body": refusal.body, "more_body": False}
        if await self._send_event(start):
            await self._send_event(body)

    async def send(self, message: str | bytes) -> bool:
        """Return False if the client takes no more."""
        kind = "text" if isinstance(message, str) else "bytes"
        return await self._send_event({"type": "websocket.send", kind: message})

    async def close(self, ending: WebSocketClose | None) -> None:
        if ending is None:
            return
        # In ASGI a missing code is 1000. None is not in the specification; uvicorn sends a close frame without a code
        # for it, as the backend did.
        await self._send_event({"type": "websocket.close", "code": ending.code, "reason": ending.reason})

    async def _send_event(self, message: Message) -> bool:
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # ASGI defines OSError for a client that is gone. uvicorn raises RuntimeError after it has closed the
            # WebSocket for a protocol error of the client, until the connection is closed.
            return False
        return True


def _is_forwarded(name: bytes) -> bool:
    name = name.lower()
    return not name.startswith(_HANDSHAKE_PREFIX) and name != b"content-length"


async def _received(receive: Receive) -> Message:
    return await receive()

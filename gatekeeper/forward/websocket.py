"""A WebSocket through the proxy: the server in front has one leg, a connection to the backend is the other.

The backend is asked first, and the client is accepted only when the backend has accepted, so that a refusal is still an
HTTP answer. Then messages pass, each whole, in their order, both ways.

Each leg keeps RFC 6455 for itself. Pings are answered on the leg they came on and none is sent to the backend unasked;
a message arrives in one frame whatever frames it came in (section 5.4); no extension is offered to the backend, so
nothing is compressed. There is no time-out once a WebSocket is open. Who reads slowly is read from slowly by the other:
per direction one message, one read of `READ_BYTES` and the transports' own buffers are all that is held.
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
from gatekeeper.upstream.interface import Upstream, UpstreamRequest
from gatekeeper.upstream.websocket import BackendWebSocket, HandshakeRefused, WebSocketClose, open_websocket

# How long after the client's leg broke its close code may take to arrive here.
_LAST_WORD_SECONDS: Final = 0.5
_OF_THE_HANDSHAKE: Final = b"sec-websocket-"


class Ends(NamedTuple):
    """What each side is to be told when the other has ended. Without anything to say, a connection just ends."""

    for_client: WebSocketClose | None = None
    for_backend: WebSocketClose | None = None


class WebSocketTunnel:
    """Passes WebSockets on to the backend behind `upstream`.

    `on_upstream` is told the seconds until the answer to each handshake, `on_error` the kind of each failure, those of
    open WebSockets too; the seconds also go to `scope["state"]["upstream_seconds"]`.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        on_upstream: Callable[[float], None] | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._upstream = upstream
        self._on_upstream = on_upstream
        self._on_error = on_error

    def __repr__(self) -> str:
        return f"<WebSocketTunnel to {self._upstream!r}>"

    async def carry(self, request: UpstreamRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one `websocket` scope from its handshake to its end.

        `request` is the handshake as an HTTP request. Raises UpstreamUnavailable, UpstreamTimeout or
        RequestNotForwardable, all of them before anything was sent to the client.
        """
        await receive()  # `websocket.connect`
        offered = (scope.get("extensions") or {}).get(CLIENT_LEFT)
        async with _Client(receive, send, offered["left"] if offered else asyncio.Event()) as client:
            answer: BackendWebSocket | HandshakeRefused | None = None
            async with CancelWhenClientLeaves(client):
                answer = await self._asked(request, scope)
            if isinstance(answer, BackendWebSocket):
                await self._carry_messages(client, answer)
            elif answer is not None:
                await client.refuse(answer, in_http="websocket.http.response" in scope.get("extensions", {}))

    async def _asked(self, request: UpstreamRequest, scope: Scope) -> BackendWebSocket | HandshakeRefused:
        started = time.perf_counter()
        try:
            answer = await open_websocket(self._upstream, request)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error.kind)
            raise
        seconds = time.perf_counter() - started
        scope.setdefault("state", {})["upstream_seconds"] = seconds
        if self._on_upstream is not None:
            self._on_upstream(seconds)
        return answer

    async def _carry_messages(self, client: _Client, backend: BackendWebSocket) -> None:
        try:
            await client.accept(backend)
            ends = await _both_ways(client, backend)
            if backend.failure is not None:
                self._failed(backend.failure)
            # Together: a client that has not read yet what came before its close must not hold the backend.
            await asyncio.gather(client.close(ends.for_client), backend.close(ends.for_backend))
        finally:
            backend.abort()

    def _failed(self, kind: str) -> None:
        if self._on_error is not None:
            self._on_error(kind)


async def _both_ways(client: _Client, backend: BackendWebSocket) -> Ends:
    """Carries messages until one leg ends."""
    up = asyncio.create_task(_carry_up(client, backend))
    down = asyncio.create_task(_carry_down(client, backend))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if down.done() and (ending := down.result()) is not None:
            return Ends(for_client=ending)
        if not up.done():
            # The client's leg is broken; why, is in what it sent last.
            await asyncio.wait({up}, timeout=_LAST_WORD_SECONDS)
        return Ends(for_backend=up.result() if up.done() else None)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _carry_up(client: _Client, backend: BackendWebSocket) -> WebSocketClose | None:
    """From the client to the backend. Returns how the client ended, and never where the backend takes no more."""
    try:
        while True:
            message = await client.next()
            if message["type"] == "websocket.disconnect":
                return _ending_of(message)
            backend.write(message)
            if backend.is_full:
                async with CancelWhenClientLeaves(client):
                    await backend.drained()
    except (OSError, InvalidState):
        # Closing or lost; which, and with what code, is read on the way down.
        await asyncio.Event().wait()
        raise


async def _carry_down(client: _Client, backend: BackendWebSocket) -> WebSocketClose | None:
    """From the backend to the client. Returns how the backend ended, or None where the client takes no more."""
    while messages := await backend.read():
        for message in messages:
            if not await client.send(message):
                return None
    return backend.ending


def _ending_of(message: Message) -> WebSocketClose | None:
    """What `websocket.disconnect` means.

    uvicorn gives a `reason`, be it empty, only for a close frame: the client's, or the one with which uvicorn itself
    failed the client (1002, 1007, 1009), which cannot be told apart. 1012 without one is uvicorn's own end, and towards
    the backend that is a client that goes away. 1005 without one is a connection that broke off.
    """
    code, reason = message.get("code", CloseCode.NO_STATUS_RCVD), message.get("reason")
    if code == CloseCode.ABNORMAL_CLOSURE or (code == CloseCode.NO_STATUS_RCVD and reason is None):
        return None
    if code == CloseCode.SERVICE_RESTART and reason is None:
        return WebSocketClose(CloseCode.GOING_AWAY)
    return WebSocketClose(None if code == CloseCode.NO_STATUS_RCVD else code, reason or "")


class _Client:
    """The client's leg, at the other side of an ASGI server. Its end cancels what is still asked of it. `has_left` is
    set by a server that can tell."""

    def __init__(self, receive: Receive, send: Send, has_left: asyncio.Event) -> None:
        self._receive = receive
        self._send = send
        self._has_left = has_left
        self._early: asyncio.Task[Message] | None = None

    async def __aenter__(self) -> _Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._early is not None:
            self._early.cancel()
            await asyncio.gather(self._early, return_exceptions=True)

    async def next(self) -> Message:
        if self._early is None:
            return await self._receive()
        message = await self._early
        self._early = None
        return message

    async def left(self) -> None:
        """Returns when the client has left. One message is received ahead for it; if that is one that says something,
        no more is heard than what the server tells beside."""
        if self._early is None:
            self._early = asyncio.create_task(_received(self._receive))
        left = asyncio.create_task(self._has_left.wait())
        try:
            # Not awaited itself: what has come must not be lost when this is cancelled.
            await asyncio.wait({self._early, left}, return_when=asyncio.FIRST_COMPLETED)
            if not left.done() and self._early.result()["type"] != "websocket.disconnect":
                await left
        finally:
            left.cancel()

    async def accept(self, backend: BackendWebSocket) -> None:
        headers = [pair for pair in response_headers(backend.headers, 101) if _crosses_back(pair[0])]
        await self._tell({"type": "websocket.accept", "subprotocol": backend.subprotocol, "headers": headers})

    async def refuse(self, refusal: HandshakeRefused, *, in_http: bool) -> None:
        if not in_http:
            # A server makes of a close before the handshake a 403 (ASGI specification).
            await self._tell({"type": "websocket.close", "code": CloseCode.POLICY_VIOLATION, "reason": ""})
            return
        headers = response_headers(refusal.headers, refusal.status)
        start = {"type": "websocket.http.response.start", "status": refusal.status, "headers": headers}
        body = {"type": "websocket.http.response.body", "body": refusal.body, "more_body": False}
        if await self._tell(start):
            await self._tell(body)

    async def send(self, message: str | bytes) -> bool:
        """False if the client takes no more."""
        kind = "text" if isinstance(message, str) else "bytes"
        return await self._tell({"type": "websocket.send", kind: message})

    async def close(self, ending: WebSocketClose | None) -> None:
        if ending is None:
            return
        # To ASGI a code that is missing is 1000. None is not in the specification; uvicorn makes of it the close
        # frame without a code that the backend sent.
        await self._tell({"type": "websocket.close", "code": ending.code, "reason": ending.reason})

    async def _tell(self, message: Message) -> bool:
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # OSError is what ASGI wants where the client is gone. uvicorn raises RuntimeError between the moment it
            # has failed a client for breaking the protocol and the end of the connection.
            return False
        return True


def _crosses_back(name: bytes) -> bool:
    return not name.startswith(_OF_THE_HANDSHAKE) and name != b"content-length"


async def _received(receive: Receive) -> Message:
    return await receive()

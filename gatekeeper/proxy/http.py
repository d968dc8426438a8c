"""Requests pass to the backend and answers come back, both as streams: the innermost application of the sidecar."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, TypeAlias

from gatekeeper.client_address import TrustedProxies, canonical
from gatekeeper.errors import Reason, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.headers import get
from gatekeeper.proxy.headers import Arrival, request_headers, response_headers
from gatekeeper.proxy.upstream import Upstream, UpstreamRequest, UpstreamResponse

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_NOT_FORWARDED: Final = b'{"detail":"WebSockets are not passed on","code":"not_implemented"}'


class ResponseTruncated(Exception):
    """The backend broke off in the middle of an answer that has begun.

    It leaves the application on purpose: the server then closes the client's connection without the end of the
    message, and only so can the client tell a part from the whole (RFC 9112 section 8). `kind` is `reset`, `protocol`
    or `timeout`.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ClientDisconnected(Exception):
    """The client left in the middle of its request body."""


class Proxy:
    """ASGI application that passes every request on to one backend.

    It expects a scope whose `headers` are already clean: spoofed identity headers removed, ours set, the request id
    set. `own_headers` are their names, lower-case. `on_upstream` is told the seconds until the head of each answer,
    `on_error` the kind of each failure (`connect`, `timeout`, `reset`, `protocol`); the seconds also go to
    `scope["state"]["upstream_seconds"]`.

    Before an answer has begun it raises what `Upstream.send` raises, after that `ResponseTruncated`. When the client
    leaves, the request to the backend is cancelled and the application returns. WebSockets are refused.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        trusted_proxies: TrustedProxies,
        own_headers: frozenset[bytes] = frozenset(),
        on_upstream: Callable[[float], None] | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._upstream = upstream
        self._trusted_proxies = trusted_proxies
        self._own_headers = own_headers
        self._on_upstream = on_upstream
        self._on_error = on_error

    def __repr__(self) -> str:
        return f"<Proxy to {self._upstream!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._forward(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
        else:
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._upstream.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(receive, has_body=_has_body(scope))
        request = UpstreamRequest(
            method=scope["method"],
            target=_target(scope),
            headers=request_headers(scope["headers"], self._arrival(scope), self._own_headers),
            body=client if client.has_body else None,
        )
        complete = False
        async with _WhileClientStays(client):
            response = await self._answer_of(request, scope)
            try:
                await self._pass_back(response, send)
            finally:
                await response.aclose()
            complete = True
        # Outside, for with the end of the answer servers report the client as gone.
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer_of(self, request: UpstreamRequest, scope: Scope) -> UpstreamResponse:
        started = time.perf_counter()
        try:
            response = await self._upstream.send(request)
            await _check_status(response)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise
        seconds = time.perf_counter() - started
        scope.setdefault("state", {})["upstream_seconds"] = seconds
        if self._on_upstream is not None:
            self._on_upstream(seconds)
        return response

    async def _pass_back(self, response: UpstreamResponse, send: Send) -> None:
        headers = response_headers(response.headers, response.status)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        try:
            async for part in response.body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise ResponseTruncated(str(error), kind=error.kind) from error

    def _failed(self, error: UpstreamUnavailable | UpstreamTimeout) -> None:
        if self._on_error is not None:
            self._on_error(error.kind)

    def _arrival(self, scope: Scope) -> Arrival:
        peer: str | None = scope["client"][0] if scope.get("client") else None
        return Arrival(
            peer=None if peer is None else canonical(peer),
            client=self._trusted_proxies.client(peer, scope["headers"]),
            scheme=scope.get("scheme", "http"),
            trusted=self._trusted_proxies.trusts(peer),
        )


class _Client:
    """The client's side of one request: its body, and the news that it has left.

    There is one stream of messages for both, so nothing else may call `receive`. The body is asked for only when the
    backend's side wants it, which is what makes `Expect: 100-continue` mean something.
    """

    def __init__(self, receive: Receive, *, has_body: bool) -> None:
        self.has_body = has_body
        self._receive = receive
        self._body_over = asyncio.Event()
        self._more = has_body
        self._gone = False
        if not has_body:
            self._body_over.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                await self.aclose()
                raise ClientDisconnected
            if not message.get("more_body", False):
                await self.aclose()
            if body := message.get("body", b""):
                return bytes(body)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._more = False
        self._body_over.set()

    async def left(self) -> None:
        """Returns when the client has left. What remains of a body that nobody wants is read and forgotten."""
        await self._body_over.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"


class _WhileClientStays:
    """Cancels its block when the client leaves, and then goes on behind it as if nothing had happened.

    `asyncio.timeout` with a departure for a deadline; cancellation from outside passes through.
    """

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"  # noqa: S101
        self._task = task
        self._cancellations = task.cancelling()
        self._watcher: asyncio.Task[None] = asyncio.create_task(self._client.left())
        self._inside = True
        self._watcher.add_done_callback(self._cancel_block)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._inside = False
        if not self._left:
            self._watcher.cancel()
            return kind is ClientDisconnected
        others = self._task.uncancel() > self._cancellations
        self._watcher.result()
        return kind is ClientDisconnected or (kind is asyncio.CancelledError and not others)

    def _cancel_block(self, watcher: asyncio.Task[None]) -> None:
        if self._inside and not watcher.cancelled():
            self._left = True
            self._task.cancel()


async def _check_status(response: UpstreamResponse) -> None:
    # 101 was not asked for, and beyond 599 there are no statuses (RFC 9110 section 15).
    if not 200 <= response.status <= 599:
        await response.aclose()
        raise UpstreamUnavailable(f"the backend answered with status {response.status}", kind="protocol")


def _has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return get(headers, b"transfer-encoding") is not None or get(headers, b"content-length") not in (None, b"0")


def _target(scope: Scope) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """501, or where the server has no HTTP answers to handshakes, a close before the accept, which it makes a 403."""
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1011, "reason": ""})
        return
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(_NOT_FORWARDED)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    status = Reason.NOT_IMPLEMENTED.status
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": _NOT_FORWARDED, "more_body": False})

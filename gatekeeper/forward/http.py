"""The proxy: streams requests to the backend and its responses back. The innermost ASGI application of the sidecar."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.departure import CancelWhenClientLeaves, ClientDisconnected
from gatekeeper.forward.websocket import WebSocketTunnel
from gatekeeper.http.client_address import TrustedProxies, canonical
from gatekeeper.http.forwarding import (
    Arrival,
    request_headers,
    request_trailers,
    response_headers,
    response_trailers,
    takes_trailers,
)
from gatekeeper.http.headers import HeaderList, get
from gatekeeper.http.spelling import written_names
from gatekeeper.http.types import Message, Receive, Scope, Send
from gatekeeper.server.websocket import WEBSOCKET
from gatekeeper.upstream.coroutines import UpstreamResponse, send
from gatekeeper.upstream.interface import Failure, Upstream, UpstreamRequest

# The schemes of WebSocket handshakes, as browsers see the origin and proxies write `X-Forwarded-Proto`.
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}

# `TE` is a hop-by-hop field (RFC 9110 section 10.1.4).
_TAKES_TRAILERS: HeaderList = [(b"te", b"trailers"), (b"connection", b"te")]


class ResponseTruncated(Exception):
    """The backend broke off a response that had begun.

    The application raises it on purpose: the server then closes the client's connection without completing the message,
    by which the client recognises that the response is incomplete (RFC 9112 section 8). `kind` is `reset`, `protocol`
    or `timeout`.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Proxy:
    """ASGI application that forwards every request to one backend.

    The `headers` of a scope must be clean already: identity headers of the client removed, those of Gatekeeper and the
    request id set. `own_headers` are the names of the latter, lower-case, and
    `own_spelling` has them as they are written. `on_upstream` gets the seconds until the head
    of each response, which are also stored in `scope["state"]["upstream_seconds"]`; `on_error` gets each failure.

    Until a response has begun it raises the errors of `Upstream.send`, after that `ResponseTruncated`. When the client
    disconnects, the request to the backend is cancelled and the application returns. A WebSocket that has been accepted
    ends with a close frame and never raises.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        trusted_proxies: TrustedProxies,
        own_headers: frozenset[bytes] = frozenset(),
        own_spelling: Mapping[bytes, bytes] | None = None,
        on_upstream: Callable[[float], None] | None = None,
        on_error: Callable[[Failure], None] | None = None,
    ) -> None:
        self._upstream = upstream
        self._trusted_proxies = trusted_proxies
        self._own_headers = own_headers
        self._spelling = own_spelling or {}
        self._on_upstream = on_upstream
        self._on_error = on_error
        self._tunnel = WebSocketTunnel(upstream, on_upstream=on_upstream, on_error=on_error)

    def __repr__(self) -> str:
        return f"<Proxy to {self._upstream!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._forward(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._tunnel.run(self._handshake(scope), scope, receive, send)
        else:
            await self._run_lifespan(receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._upstream.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _RequestBody(receive, has_body=_has_body(scope), own_headers=self._own_headers)
        capabilities = _ClientCapabilities(scope, send)
        headers = request_headers(scope["headers"], arrival(scope, self._trusted_proxies), self._own_headers)
        if capabilities.trailers:
            headers += _TAKES_TRAILERS
        request = UpstreamRequest(
            method=scope["method"],
            target=target(scope),
            headers=headers,
            names=self._names(headers, scope, "gatekeeper.http"),
            body=client if client.has_body else None,
            on_informational=capabilities.inform if capabilities.informational else None,
        )
        response: UpstreamResponse | None = None
        complete = False
        async with CancelWhenClientLeaves(client):
            response = await self._ask_backend(request, scope)
            try:
                await self._send_response(response, capabilities)
            finally:
                await response.aclose()
            complete = True
        # Outside of the block: once a response is complete, servers report a disconnection.
        if complete and response is not None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await capabilities.end(response)

    def _handshake(self, scope: Scope) -> UpstreamRequest:
        headers = request_headers(scope["headers"], arrival(scope, self._trusted_proxies), self._own_headers)
        names = self._names(headers, scope, WEBSOCKET)
        return UpstreamRequest(method="GET", target=target(scope), headers=headers, body=None, names=names)

    def _names(self, headers: HeaderList, scope: Scope, extension: str) -> list[bytes]:
        """Return the names of `headers` as they are written: those of the client as they were read, where the server
        says how."""
        received = ((scope.get("extensions") or {}).get(extension) or {}).get("headers", ())
        return written_names(headers, received, self._spelling)

    async def _ask_backend(self, request: UpstreamRequest, scope: Scope) -> UpstreamResponse:
        started = time.perf_counter()
        try:
            response = await send(self._upstream, request)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise
        seconds = time.perf_counter() - started
        scope.setdefault("state", {})["upstream_seconds"] = seconds
        if self._on_upstream is not None:
            self._on_upstream(seconds)
        return response

    async def _send_response(self, response: UpstreamResponse, capabilities: _ClientCapabilities) -> None:
        await capabilities.start(response)
        try:
            async for chunk in response.body:
                await capabilities.send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise ResponseTruncated(str(error), kind=error.kind) from error

    def _failed(self, error: Failure) -> None:
        if self._on_error is not None:
            self._on_error(error)


class _ClientCapabilities:
    """The optional features of responses that the server and the client support: ASGI extensions `gatekeeper.http` and
    `http.response.trailers`.

    `trailers`: the client accepts trailers. `informational`: interim responses (1xx) reach the client.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        extensions = scope.get("extensions") or {}
        self.send = send
        self._reason = "gatekeeper.http" in extensions
        self.informational = self._reason and scope.get("http_version") != "1.0"
        self.trailers = (
            "http.response.trailers" in extensions
            and scope.get("http_version") != "1.0"
            and takes_trailers(scope["headers"])
        )

    async def inform(self, status: int, headers: HeaderList) -> None:
        passed = response_headers(headers, status)
        await self.send({"type": "gatekeeper.http.informational", "status": status, "headers": passed})

    async def start(self, response: UpstreamResponse) -> None:
        headers = response_headers(response.headers, response.status)
        message: Message = {"type": "http.response.start", "status": response.status, "headers": headers}
        if self._reason:
            message["reason"] = response.reason
        if self.trailers and response.may_have_trailers:
            message["trailers"] = True
        await self.send(message)

    async def end(self, response: UpstreamResponse) -> None:
        """Send the trailers, after the body."""
        if self.trailers and response.may_have_trailers:
            passed = response_trailers(response.trailers)
            await self.send({"type": "http.response.trailers", "headers": passed, "more_trailers": False})


class _RequestBody:
    """The request body of one client, and its disconnection.

    Both arrive in the same stream of messages, so nothing else may call `receive`. The body is received only when the
    backend's side reads it, so that `Expect: 100-continue` works (RFC 9110 section 10.1.1).
    """

    def __init__(self, receive: Receive, *, has_body: bool, own_headers: frozenset[bytes]) -> None:
        self.has_body = has_body
        self.trailers: HeaderList = []
        self._own_headers = own_headers
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
                if trailers := message.get("trailers"):
                    self.trailers = request_trailers(trailers, self._own_headers)
                await self.aclose()
            if body := message.get("body", b""):
                return bytes(body)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._more = False
        self._body_over.set()

    async def left(self) -> None:
        """Return when the client has disconnected. The rest of a body that the backend does not read is dropped."""
        await self._body_over.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"


def _has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return get(headers, b"transfer-encoding") is not None or get(headers, b"content-length") not in (None, b"0")


def arrival(scope: Scope, trusted_proxies: TrustedProxies) -> Arrival:
    """Return the connection that the request of a scope came from."""
    peer: str | None = scope["client"][0] if scope.get("client") else None
    scheme: str = scope.get("scheme", "http")
    return Arrival(
        peer=None if peer is None else canonical(peer),
        client=trusted_proxies.client(peer, scope["headers"]),
        scheme=_HTTP_SCHEMES.get(scheme, scheme),
        trusted=trusted_proxies.trusts(peer),
    )


def target(scope: Scope) -> bytes:
    """Return path and query for the backend, byte for byte as the client sent them."""
    query: bytes = scope["query_string"]
    extension = (scope.get("extensions") or {}).get("gatekeeper.http")
    if extension is not None:
        # Only the extension keeps a `?` without a query. If the queries differ, a token was removed from the scope's.
        received: bytes = extension["target"]
        if received.partition(b"?")[2] == query:
            return received
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path

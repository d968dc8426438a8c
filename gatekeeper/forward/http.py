"""Requests pass to the backend and answers come back, both as streams: the innermost application of the sidecar."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

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
from gatekeeper.http.types import Message, Receive, Scope, Send
from gatekeeper.upstream.interface import Upstream, UpstreamRequest, UpstreamResponse

# As what browsers know them, and proxies name them in `X-Forwarded-Proto`.
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


# A hop's own (RFC 9110 section 10.1.4).
_TAKES_TRAILERS: HeaderList = [(b"te", b"trailers"), (b"connection", b"te")]


class ResponseTruncated(Exception):
    """The backend broke off in the middle of an answer that has begun.

    It leaves the application on purpose: the server then closes the client's connection without the end of the
    message, and only so can the client tell a part from the whole (RFC 9112 section 8). `kind` is `reset`, `protocol`
    or `timeout`.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Proxy:
    """ASGI application that passes every request on to one backend.

    It expects a scope whose `headers` are already clean: spoofed identity headers removed, ours set, the request id
    set. `own_headers` are their names, lower-case. `on_upstream` is told the seconds until the head of each answer,
    `on_error` the kind of each failure (`connect`, `timeout`, `reset`, `protocol`); the seconds also go to
    `scope["state"]["upstream_seconds"]`.

    Before an answer has begun it raises what `Upstream.send` raises, after that `ResponseTruncated`. When the client
    leaves, the request to the backend is cancelled and the application returns. A WebSocket that has been accepted ends
    with a close frame and never raises.
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
        self._tunnel = WebSocketTunnel(upstream, on_upstream=on_upstream, on_error=on_error)

    def __repr__(self) -> str:
        return f"<Proxy to {self._upstream!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._forward(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._tunnel.carry(self._handshake(scope), scope, receive, send)
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
        client = _Client(receive, has_body=_has_body(scope), own_headers=self._own_headers)
        offered = _ClientCapabilities(scope, send)
        headers = request_headers(scope["headers"], arrival(scope, self._trusted_proxies), self._own_headers)
        request = UpstreamRequest(
            method=scope["method"],
            target=target(scope),
            headers=headers + _TAKES_TRAILERS if offered.trailers else headers,
            body=client if client.has_body else None,
            on_informational=offered.inform if offered.informational else None,
        )
        response: UpstreamResponse | None = None
        complete = False
        async with CancelWhenClientLeaves(client):
            response = await self._answer_of(request, scope)
            try:
                await self._pass_back(response, offered)
            finally:
                await response.aclose()
            complete = True
        # Outside, for with the end of the answer servers report the client as gone.
        if complete and response is not None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await offered.end(response)

    def _handshake(self, scope: Scope) -> UpstreamRequest:
        # uvicorn gives the names of a WebSocket's headers as the client spelt them.
        received = [(name.lower(), value) for name, value in scope["headers"]]
        came = arrival({**scope, "headers": received}, self._trusted_proxies)
        headers = request_headers(received, came, self._own_headers)
        return UpstreamRequest(method="GET", target=target(scope), headers=headers, body=None)

    async def _answer_of(self, request: UpstreamRequest, scope: Scope) -> UpstreamResponse:
        started = time.perf_counter()
        try:
            response = await self._upstream.send(request)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise
        seconds = time.perf_counter() - started
        scope.setdefault("state", {})["upstream_seconds"] = seconds
        if self._on_upstream is not None:
            self._on_upstream(seconds)
        return response

    async def _pass_back(self, response: UpstreamResponse, offered: _ClientCapabilities) -> None:
        send = offered.send
        await offered.start(response)
        try:
            async for part in response.body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._failed(error)
            raise ResponseTruncated(str(error), kind=error.kind) from error

    def _failed(self, error: UpstreamUnavailable | UpstreamTimeout) -> None:
        if self._on_error is not None:
            self._on_error(error.kind)


class _ClientCapabilities:
    """What the server in front can pass on beyond the least that ASGI has: by the extensions `gatekeeper.http` and
    `http.response.trailers`.

    `trailers`: the client wants them and can be given them; `informational`: interim answers reach it.
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
        """After the body."""
        if self.trailers and response.may_have_trailers:
            passed = response_trailers(response.trailers)
            await self.send({"type": "http.response.trailers", "headers": passed, "more_trailers": False})


class _Client:
    """The client's side of one request: its body, and the news that it has left.

    There is one stream of messages for both, so nothing else may call `receive`. The body is asked for only when the
    backend's side wants it, which is what makes `Expect: 100-continue` mean something.
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
        """Returns when the client has left. What remains of a body that nobody wants is read and forgotten."""
        await self._body_over.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"


def _has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return get(headers, b"transfer-encoding") is not None or get(headers, b"content-length") not in (None, b"0")


def arrival(scope: Scope, trusted_proxies: TrustedProxies) -> Arrival:
    """How the request of a scope came in."""
    peer: str | None = scope["client"][0] if scope.get("client") else None
    scheme: str = scope.get("scheme", "http")
    return Arrival(
        peer=None if peer is None else canonical(peer),
        client=trusted_proxies.client(peer, scope["headers"]),
        scheme=_HTTP_SCHEMES.get(scheme, scheme),
        trusted=trusted_proxies.trusts(peer),
    )


def target(scope: Scope) -> bytes:
    """Path and query for the backend, byte for byte."""
    query: bytes = scope["query_string"]
    offered = (scope.get("extensions") or {}).get("gatekeeper.http")
    if offered is not None:
        # The only one that knows of a bare `?`. A token that was in the query has been taken out of the other only.
        whole: bytes = offered["target"]
        if whole.partition(b"?")[2] == query:
            return whole
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path

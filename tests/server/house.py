"""A server with an application behind it that records its requests, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gatekeeper.http.headers import request_id
from gatekeeper.http.websocket_frames import CloseFrame
from gatekeeper.server import ErrorResponse, Limits, RejectedRequest, http_protocol
from gatekeeper.server.websocket import WEBSOCKET, ClientWebSocket
from tests.servers import RawClient, serve_asgi
from tests.waiting import HANG_SECONDS
from tests.waiting import until as until

CODES = {
    400: "bad_request",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    414: "uri_too_long",
    426: "upgrade_required",
    431: "headers_too_large",
    500: "internal_error",
}

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


class Talk(asyncio.Protocol):
    """Takes a WebSocket over, and sends short messages back that are masked with zeros."""

    def __init__(self, connection: ClientWebSocket) -> None:
        self._connection = connection
        self.over = asyncio.Event()
        connection.transport.set_protocol(self)
        connection.take_over(self)
        if connection.is_lost:
            self.over.set()

    def data_received(self, data: bytes) -> None:
        self._connection.transport.write(bytes((data[0], data[1] & 0x7F)) + data[6:])

    def connection_lost(self, _: Exception | None) -> None:
        self.over.set()

    def end(self, close: CloseFrame) -> None:
        self._connection.transport.close()

    def shut_down(self) -> None:
        self._connection.transport.close()


class House:
    """The application: it reads every body and responds with what it got. `requests` are the scopes, `bodies` the
    bodies, `left` counts clients that left before the response, `refusals` are the requests that the server rejected.

    `/early` responds before it reads, `/slow` waits `slow_seconds` first, `/begin` begins a response and then reads,
    `/stream` sends as much as the client reads, `/wait` waits until the client has left, `/drip` sends a byte now and
    then until it has, `/fail` fails, `/half` fails in the middle.
    """

    url: str

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.refusals: list[RejectedRequest] = []
        self.left = 0
        self.running = 0
        self.slow_seconds = 0.3

    def refuse(self, refusal: RejectedRequest) -> ErrorResponse:
        self.refusals.append(refusal)
        body = json.dumps({"detail": refusal.detail, "code": CODES[refusal.status]}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id(refusal.headers).encode()),
        ]
        return ErrorResponse(headers, body)

    @property
    def paths(self) -> list[str]:
        return [scope["path"] for scope in self.requests]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.requests.append(scope)
        self.running += 1
        try:
            if scope["type"] == "websocket":
                await self._talk(scope, receive, send)
            else:
                await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _talk(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await Talk(scope["extensions"][WEBSOCKET]["connection"]).over.wait()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/fail":
            raise ZeroDivisionError
        if path == "/early":
            await _reply(send, b"early")
            return
        if path in {"/begin", "/half"}:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if path == "/half":
            raise ZeroDivisionError
        if path == "/slow":
            await asyncio.sleep(self.slow_seconds)
        if path == "/stream":
            await self._stream(send)
            return
        if path == "/wait" or path == "/drip":
            await self._wait(receive, send if path == "/drip" else None)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        if path == "/begin":
            await send({"type": "http.response.body", "body": b"ended"})
        elif path == "/unknown-length":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            await _reply(send, b"%s:%s" % (path.encode(), body))

    async def _wait(self, receive: Any, send: Any) -> None:
        if send is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        left = asyncio.create_task(receive())
        while not left.done():
            if send is not None:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.wait({left}, timeout=0.02)
        assert left.result()["type"] == "http.disconnect"
        self.left += 1

    async def _stream(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with suppress(OSError):
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _reply(send: Callable[[Any], Awaitable[None]], body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"x-request-id", b"app")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def open_house(limits: Limits | None = None, **settings: Any) -> Iterator[House]:
    house = House()
    with serve_asgi(house, http=http_protocol(limits or Limits(), house.refuse), **settings) as url:
        house.url = url
        yield house


async def answer(client: RawClient) -> tuple[int, dict[str, list[str]], bytes]:
    """Return the next response with `Content-Length`: status, headers by name, body."""
    head = (await client.until(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")[:-2]
    headers: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    size = int(headers["content-length"][0])
    async with asyncio.timeout(HANG_SECONDS):
        return int(lines[0].split()[1]), headers, await client.reader.readexactly(size)

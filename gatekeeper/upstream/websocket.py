"""The backend's side of a WebSocket: a connection of its own, and the handshake on it."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from typing import Final

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList, get, get_all
from gatekeeper.http.request_writer import serialize_head
from gatekeeper.http.response_parser import (
    MAX_HEAD_BYTES,
    MAX_INFORMATIONAL,
    BadResponse,
    ResponseHead,
    ResponseParser,
    parse_head,
)
from gatekeeper.http.websocket_handshake import (
    EXTENSIONS,
    KEY,
    PROTOCOLS,
    BadHandshake,
    check_response,
    offered_compression,
)
from gatekeeper.upstream.connector import SeparateConnection
from gatekeeper.upstream.interface import Upstream, UpstreamRequest

_MAX_REFUSAL_BYTES: Final = 1024 * 1024
_SWITCHING_PROTOCOLS: Final = 101

# Replaced for the backend's side. A handshake has no body, so it has no length and no expectation.
_OF_ONE_SIDE: Final = frozenset(
    {b"content-length", b"expect", b"sec-websocket-accept", EXTENSIONS, KEY, b"sec-websocket-version"}
)


class BackendHandshake(asyncio.Protocol):
    """A handshake with the backend, and its response.

    After `response` has returned a 101, nothing is read from `transport` until another protocol is set, which begins
    with `held`; `is_lost` tells whether the connection has broken meanwhile. After any other head, `body` is complete.
    """

    def __init__(self, line: SeparateConnection) -> None:
        self.transport = line.transport
        self.held = b""
        self.is_lost = False
        self.body = b""
        self._timeout_seconds = line.timeout_seconds
        self._heads_left = MAX_INFORMATIONAL
        self._head: ResponseHead | None = None
        self._parser = ResponseParser(self)
        loop = asyncio.get_running_loop()
        self._response: asyncio.Future[ResponseHead] = loop.create_future()
        self._silence = loop.call_later(self._timeout_seconds, self._fail, _silent())

    async def response(self, head: bytes) -> ResponseHead:
        """Send the head of the handshake and return that of the response. Raises UpstreamUnavailable, and
        UpstreamTimeout for any silence."""
        self.transport.set_protocol(self)
        self.transport.write(head)
        self.transport.resume_reading()
        try:
            return await self._response
        finally:
            self._silence.cancel()

    # Called by the transport

    def data_received(self, data: bytes) -> None:
        self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(self._timeout_seconds, self._fail, _silent())
        try:
            self._read(data)
        except BadResponse as error:
            self._fail(UpstreamUnavailable(f"the backend broke HTTP in a handshake: {error}", kind="protocol"))

    def eof_received(self) -> None:
        if self._head is None:
            self._fail(UpstreamUnavailable("the backend closed the connection", kind="reset"))
        elif not self._parser.feed_eof():
            self._fail(UpstreamUnavailable("the backend broke off a handshake", kind="protocol"))

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        self.eof_received()

    def _read(self, data: bytes) -> None:
        if self._head is not None:
            self._parser.feed(data)
            return
        data = self.held + data
        while (end := data.find(b"\r\n\r\n") + 4) >= 4 and end <= MAX_HEAD_BYTES:
            head = parse_head(data[:end])
            if head.status == _SWITCHING_PROTOCOLS:
                self.held = data[end:]
                self.transport.pause_reading()
                self._succeed(head)
                return
            if head.status >= 200:
                # The parser reads it once more, and then the body.
                self._head, self.held = head, b""
                self._parser.begin(to_head_request=False)
                self._parser.feed(data)
                return
            self._heads_left -= 1
            data = data[end:]
        if len(data) >= MAX_HEAD_BYTES or self._heads_left < 0:
            raise BadResponse("a head that is too long, or endless interim responses")
        self.held = data

    # Called by the parser, for a final response

    def on_informational(self, head: ResponseHead) -> None:
        """Never called: interim responses are read before."""

    def on_head(self, head: ResponseHead) -> None:
        """Do nothing: the head is known."""

    def on_data(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > _MAX_REFUSAL_BYTES:
            self._parser.stop()
            raise BadResponse("too long a body")

    def on_end(self, _: HeaderList) -> None:
        assert self._head is not None  # noqa: S101 - the parser begins with it
        self._succeed(self._head)

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        self.on_data(body)
        self._succeed(head)

    def _succeed(self, head: ResponseHead) -> None:
        self._silence.cancel()
        if not self._response.done():
            self._response.set_result(head)

    def _fail(self, error: UpstreamUnavailable | UpstreamTimeout) -> None:
        self._silence.cancel()
        if not self._response.done():
            self._response.set_exception(error)


class BackendWebSocket:
    """An accepted handshake: `headers` are those of the 101, `handshake` has the connection."""

    def __init__(self, handshake: BackendHandshake, headers: HeaderList) -> None:
        self.handshake = handshake
        self.headers = headers
        lowered = [(name.lower(), value) for name, value in headers]
        chosen = get_all(lowered, EXTENSIONS)
        self.subprotocol = get(lowered, PROTOCOLS)
        self.extension = chosen[0] if chosen else None
        self.is_compressed = self.extension is not None


class HandshakeRefused:
    """The backend's HTTP response to a handshake that it does not accept."""

    def __init__(self, head: ResponseHead, body: bytes) -> None:
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self.body = body


async def open_websocket(upstream: Upstream, request: UpstreamRequest) -> BackendWebSocket | HandshakeRefused:
    """Connect, send the handshake, and check the response. The caller closes the connection of a WebSocket."""
    line = await upstream.dial()
    result: BackendWebSocket | HandshakeRefused | None = None
    try:
        result = await _shake_hands(line, request)
    finally:
        if not isinstance(result, BackendWebSocket):
            line.transport.abort()
    return result


async def _shake_hands(line: SeparateConnection, request: UpstreamRequest) -> BackendWebSocket | HandshakeRefused:
    # Of this side alone: an accept that fits it was computed for it.
    key = b64encode(os.urandom(16))
    sent = _serialized(request, key, line.authority)
    handshake = BackendHandshake(line)
    head = await handshake.response(sent)
    if head.status == _SWITCHING_PROTOCOLS:
        try:
            lowered = [(name.lower(), value) for name, value in head.headers]
            check_response(lowered, key=key, offered=request.headers)
        except BadHandshake as error:
            raise UpstreamUnavailable(f"the backend broke the WebSocket handshake: {error}", kind="protocol") from error
        return BackendWebSocket(handshake, head.headers)
    if head.status < 300:
        # It would be the response to a plain request, which the client did not make.
        raise UpstreamUnavailable(f"the backend responded to a handshake with {head.status}", kind="protocol")
    return HandshakeRefused(head, handshake.body)


def _serialized(request: UpstreamRequest, key: bytes, authority: bytes) -> bytes:
    names = request.names or [name for name, _ in request.headers]
    kept = [
        (written, pair) for written, pair in zip(names, request.headers, strict=True) if pair[0] not in _OF_ONE_SIDE
    ]
    kept += [
        (name, (name.lower(), value))
        for name, value in (
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Sec-WebSocket-Key", key),
        )
    ]
    if offer := offered_compression(request.headers):
        kept.append((b"Sec-WebSocket-Extensions", (EXTENSIONS, offer)))
    return serialize_head(
        "GET",
        request.target,
        [pair for _, pair in kept],
        authority=authority,
        has_body=False,
        names=[written for written, _ in kept],
    ).head


def _silent() -> UpstreamTimeout:
    return UpstreamTimeout("the backend was silent for too long (handshake)")

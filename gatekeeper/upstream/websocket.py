"""The backend's side of a WebSocket: the handshake over HTTP, then messages, on one connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, NamedTuple

import h11
from websockets.datastructures import Headers as HandshakeHeaders
from websockets.exceptions import InvalidHandshake, PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response as HandshakeResponse
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList, get, get_all
from gatekeeper.http.request_writer import RequestNotForwardable
from gatekeeper.http.types import Message
from gatekeeper.http.websocket_frames import MAX_MESSAGE_BYTES, StrictClientProtocol
from gatekeeper.upstream.connector import BackendStreams
from gatekeeper.upstream.interface import Upstream, UpstreamRequest, as_written

READ_BYTES: Final = 64 * 1024
"""The most bytes of one read."""

_MAX_HEAD_BYTES: Final = 100 * 1024
_MAX_REFUSAL_BYTES: Final = 1024 * 1024
# How long a backend may take for its half of the closing handshake.
_CLOSE_SECONDS: Final = 5.0
# Pongs are sent without waiting: a backend that writes may not read at the same time, and if it were not read from
# until it has read a pong, both sides would block. Beyond this limit it is a flood, and reading from it stops.
_MAX_UNSENT_BYTES: Final = MAX_MESSAGE_BYTES + 1024 * 1024

# Replaced for the backend's side. A handshake has no body, so it has no length and no expectation.
_OF_ONE_SIDE: Final = frozenset(
    {
        b"content-length",
        b"expect",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-version",
    }
)
_PROTOCOLS: Final = b"sec-websocket-protocol"

# The library logs frames at DEBUG and wants an address that it never uses.
_quiet = logging.getLogger("gatekeeper.http.websocket_frames")
_quiet.setLevel(logging.WARNING)
_NOWHERE: Final = WebSocketURI(secure=False, host="localhost", port=80, path="", query="")


class WebSocketClose(NamedTuple):
    """The close of one side, to be passed to the other. `code` is None for a close frame without one (1005)."""

    code: int | None
    reason: str = ""


class HandshakeRefused(NamedTuple):
    """The backend's HTTP response to a handshake that it does not accept."""

    status: int
    headers: HeaderList
    body: bytes


class BackendWebSocket:
    """The backend's side: the protocol of the websockets library on an upgraded connection.

    `failure` is the kind of a failure (`reset`, `protocol`), None without one.
    """

    def __init__(self, line: BackendStreams, protocol: StrictClientProtocol, headers: HeaderList, begun: bytes) -> None:
        self.headers = headers
        self.subprotocol: str | None = protocol.subprotocol
        self.failure: str | None = None
        self._reader = line.reader
        self._writer = line.writer
        self._timeout_seconds = line.timeout_seconds
        self._protocol = protocol
        self._parts = bytearray()
        self._is_text = False
        self._is_over = False
        if begun:
            self._feed(begun)

    @property
    def ending(self) -> WebSocketClose:
        """The close for the client, once `read` has returned nothing.

        A close frame is passed on unchanged. Anything else is the backend's fault, and the client gets 1011: 1006 must
        not be sent (RFC 6455 section 7.4.1), 1002, 1007 and 1009 would blame the client, and some libraries reject 1014
        as unknown.
        """
        close = self._protocol.close_rcvd
        if self.failure is None and close is not None:
            return WebSocketClose(None if close.code == CloseCode.NO_STATUS_RCVD else close.code, close.reason)
        if isinstance(self._protocol.parser_exc, PayloadTooBig):
            return WebSocketClose(CloseCode.INTERNAL_ERROR, "the backend sent a message that is too big")
        if self.failure == "protocol":
            return WebSocketClose(CloseCode.INTERNAL_ERROR, "the backend broke the protocol")
        return WebSocketClose(CloseCode.INTERNAL_ERROR, "the connection to the backend was lost")

    async def read(self) -> list[str | bytes]:
        """Return the next messages, as many as arrived together; none at the end."""
        while True:
            events: list[Any] = self._protocol.events_received()
            messages = [message for frame in events if (message := self._message(frame)) is not None]
            if messages or self._is_over:
                return messages
            self._feed(await self._received())

    def write(self, message: Message) -> None:
        """Send the message of a `websocket.receive` event. Raises InvalidState if the backend's side is closing."""
        text: str | None = message.get("text")
        if text is not None:
            self._protocol.send_text(text.encode())
        else:
            self._protocol.send_binary(message["bytes"])
        self._flush()

    @property
    def is_full(self) -> bool:
        # Also true of a lost connection, for which `drained` then raises.
        return self._unsent_bytes > READ_BYTES or self._writer.transport.is_closing()

    async def drained(self) -> None:
        """Return when the backend takes more. Raises OSError if it never will."""
        await self._writer.drain()

    async def close(self, ending: WebSocketClose | None) -> None:
        """Send `ending`, wait for the backend's close frame, and close, at most `_CLOSE_SECONDS` after the backend has
        taken what was written before. With None, only that is still sent."""
        try:
            # A backend that reads slowly gets all messages that the client sent before it closed. A client that broke
            # off may not hold memory for long.
            async with asyncio.timeout(_CLOSE_SECONDS if ending is None else self._timeout_seconds):
                await self.drained()
            async with asyncio.timeout(_CLOSE_SECONDS):
                if ending is not None and self._protocol.state is OPEN:
                    self._protocol.send_close(ending.code, ending.reason)
                    self._flush()
                if ending is not None or self._is_over:
                    # The server closes the connection, so that the client need not wait in TIME_WAIT (section 7.1.1).
                    await self._wait_for_close()
                self._writer.close()
                await self._writer.wait_closed()
        except OSError:  # a time-out is one
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()

    async def _wait_for_close(self) -> None:
        while data := await self._received():
            self._protocol.receive_data(data)
            self._protocol.events_received()
            self._flush()

    @property
    def _unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    async def _received(self) -> bytes:
        """Return the next bytes; empty at the end of the connection."""
        try:
            if self._unsent_bytes > _MAX_UNSENT_BYTES:
                await self.drained()
            return await self._reader.read(READ_BYTES)
        except OSError:
            return b""

    def _feed(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            # A failure, unless there was a close frame.
            self._protocol.receive_eof()
        self._flush()
        if (error := self._protocol.parser_exc) is not None:
            self.failure = "reset" if isinstance(error, EOFError) else "protocol"
        self._is_over = error is not None or self._protocol.close_rcvd is not None

    def _flush(self) -> None:
        # Empty data stands for the end of the stream; `close` closes it.
        if data := b"".join(self._protocol.data_to_send()):
            self._writer.write(data)

    def _message(self, frame: Frame) -> str | bytes | None:
        """Return the message that this frame completes, if it does."""
        if frame.opcode is Opcode.TEXT or frame.opcode is Opcode.BINARY:
            self._is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                return _decoded(frame.data, is_text=self._is_text)
        elif frame.opcode is not Opcode.CONT:
            return None
        self._parts += frame.data
        if not frame.fin:
            return None
        data, self._parts = self._parts, bytearray()
        return _decoded(data, is_text=self._is_text)


def _decoded(data: bytes | bytearray | memoryview, *, is_text: bool) -> str | bytes:
    return str(data, "utf-8") if is_text else bytes(data)


async def open_websocket(upstream: Upstream, request: UpstreamRequest) -> BackendWebSocket | HandshakeRefused:
    """Connect, send the handshake, and check the response (RFC 6455 section 4.1)."""
    line = await upstream.dial()
    result: BackendWebSocket | HandshakeRefused | None = None
    try:
        result = await _shake_hands(line, request)
    finally:
        if not isinstance(result, BackendWebSocket):
            line.writer.transport.abort()
    return result


async def _shake_hands(line: BackendStreams, request: UpstreamRequest) -> BackendWebSocket | HandshakeRefused:
    offered = b",".join(get_all(request.headers, _PROTOCOLS)).decode("latin-1")
    protocol = StrictClientProtocol(
        _NOWHERE,
        subprotocols=[Subprotocol(item.strip()) for item in offered.split(",") if item.strip()] or None,
        state=OPEN,
        max_size=MAX_MESSAGE_BYTES,
        logger=_quiet,
    )
    handshake = _HandshakeRequest(line)
    head = await handshake.response_to(_handshake(request, protocol.key, line.authority))
    headers: HeaderList = [(bytes(name), bytes(value)) for name, value in head.headers.raw_items()]
    try:
        # It also rejects fields that the server could not send.
        fields = HandshakeHeaders([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        if isinstance(head, h11.InformationalResponse):
            protocol.process_response(HandshakeResponse(head.status_code, "", fields))
            return BackendWebSocket(line, protocol, headers, handshake.rest())
    except InvalidHandshake as error:
        # Not the text of the error, which may quote the response.
        name = type(error).__name__
        raise UpstreamUnavailable(f"the backend broke the WebSocket handshake ({name})", kind="protocol") from error
    if not 300 <= head.status_code < 600:
        # A success would be that of a plain request, which the client did not make. Statuses end at 599 (RFC 9110
        # section 15).
        raise UpstreamUnavailable(f"the backend responded to a handshake with {head.status_code}", kind="protocol")
    return HandshakeRefused(head.status_code, headers, await handshake.body())


def _handshake(request: UpstreamRequest, key: str, authority: bytes) -> h11.Request:
    headers = [pair for pair in as_written(request) if pair[0].lower() not in _OF_ONE_SIDE]
    if get(request.headers, b"host") is None:
        headers.insert(0, (b"Host", authority))
    headers += [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", key.encode()),
    ]
    try:
        return h11.Request(method=b"GET", target=request.target, headers=headers)
    except h11.LocalProtocolError as error:
        raise RequestNotForwardable from error


class _HandshakeRequest:
    """The HTTP part of a connection to the backend: one request and its response. Raises UpstreamUnavailable, and
    UpstreamTimeout for any silence."""

    def __init__(self, line: BackendStreams) -> None:
        self._line = line
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def response_to(self, request: h11.Request) -> h11.Response | h11.InformationalResponse:
        """Send the request and return the final response, or 101."""
        head = self._http.send(request) + self._http.send(h11.EndOfMessage())
        self._line.writer.write(head)
        while True:
            event = await self._next()
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                return event

    async def body(self) -> bytes:
        """Return the full body of a final response."""
        body = b""
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > _MAX_REFUSAL_BYTES:
                raise UpstreamUnavailable("the backend refused a handshake with too long a body", kind="protocol")
        return body

    def rest(self) -> bytes:
        """Return the bytes after 101, which are WebSocket frames."""
        return self._http.trailing_data[0]

    async def _next(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._line.timeout_seconds):
                    data = await self._line.reader.read(READ_BYTES)
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise UpstreamUnavailable("the backend closed the connection", kind="reset")
                self._http.receive_data(data)
        except TimeoutError as error:
            raise UpstreamTimeout("the backend was silent for too long (handshake)") from error
        except OSError as error:
            raise UpstreamUnavailable("the backend closed the connection", kind="reset") from error
        except h11.RemoteProtocolError as error:
            raise UpstreamUnavailable("the backend broke off or broke HTTP in a handshake", kind="protocol") from error
        return event

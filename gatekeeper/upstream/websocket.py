"""The backend's leg of a WebSocket: the handshake over HTTP, then messages, on one connection."""

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
from gatekeeper.http.websocket_frames import StrictClientProtocol
from gatekeeper.upstream.connector import BackendStreams
from gatekeeper.upstream.interface import Upstream, UpstreamRequest

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The largest message, in either direction; the server in front is to be given the same limit for the client's."""

READ_BYTES: Final = 64 * 1024
"""What is read at once."""

_MAX_HEAD_BYTES: Final = 100 * 1024
_MAX_REFUSAL_BYTES: Final = 1024 * 1024
# How long a backend may take for its half of the closing handshake.
_CLOSE_SECONDS: Final = 5.0
# Pongs wait for nobody: a backend that is writing may not be reading just then, and if it were not read from until it
# has read a pong, neither side would move again. Beyond this it is a flood, and the backend is read from no more.
_MAX_UNSENT_BYTES: Final = MAX_MESSAGE_BYTES + 1024 * 1024

# Made anew for the backend's leg. The handshake has no body that a length, or an expectation, could be about.
_OF_ONE_LEG: Final = frozenset(
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
    """How one leg ended, for the other to be told. `code` is None for a close frame without one (1005)."""

    code: int | None
    reason: str = ""


class HandshakeRefused(NamedTuple):
    """The backend's HTTP answer to a handshake that it does not accept."""

    status: int
    headers: HeaderList
    body: bytes


class BackendWebSocket:
    """The backend's leg: the library's protocol on a connection that has been upgraded.

    `failure` is the kind of a failure (`reset`, `protocol`), None while and if there is none.
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
        self._ended = False
        if begun:
            self._feed(begun)

    @property
    def ending(self) -> WebSocketClose:
        """What the client is told when `read` has come to the end.

        A close frame passes as it is. Anything else is the backend's fault and not the client's, which is told 1011:
        1006 must not be sent (RFC 6455 section 7.4.1), 1002, 1007 and 1009 would blame the client, and 1014 some
        libraries refuse as unknown.
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
        """The next messages, as many as came together; none at the end."""
        while True:
            events: list[Any] = self._protocol.events_received()
            messages = [message for frame in events if (message := self._message(frame)) is not None]
            if messages or self._ended:
                return messages
            self._feed(await self._received())

    def write(self, message: Message) -> None:
        """Passes on a `websocket.receive`. Raises InvalidState when the backend's leg is closing."""
        text: str | None = message.get("text")
        if text is not None:
            self._protocol.send_text(text.encode())
        else:
            self._protocol.send_binary(message["bytes"])
        self._flush()

    @property
    def is_full(self) -> bool:
        # Also true of a connection that is lost, of which `drained` then tells.
        return self._unsent_bytes > READ_BYTES or self._writer.transport.is_closing()

    async def drained(self) -> None:
        """Returns when the backend takes more. Raises OSError when it never will."""
        await self._writer.drain()

    async def close(self, ending: WebSocketClose | None) -> None:
        """Says `ending`, hears the backend out, and is gone `_CLOSE_SECONDS` after the backend has taken what was
        written before. With None, only that still goes out."""
        try:
            # What a client said before it closed is not lost on a backend that reads slowly. A client that broke off
            # may not hold on to memory for long.
            async with asyncio.timeout(_CLOSE_SECONDS if ending is None else self._timeout_seconds):
                await self.drained()
            async with asyncio.timeout(_CLOSE_SECONDS):
                if ending is not None and self._protocol.state is OPEN:
                    self._protocol.send_close(ending.code, ending.reason)
                    self._flush()
                if ending is not None or self._ended:
                    # The server closes the connection, so that the client need not wait in TIME_WAIT (section 7.1.1).
                    await self._heard_out()
                self._writer.close()
                await self._writer.wait_closed()
        except OSError:  # a time-out is one
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Nothing more is said or heard."""
        self._writer.transport.abort()

    async def _heard_out(self) -> None:
        while data := await self._received():
            self._protocol.receive_data(data)
            self._protocol.events_received()
            self._flush()

    @property
    def _unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    async def _received(self) -> bytes:
        """What comes next; empty is the end of the connection."""
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
            # Without a close frame before it, a failure.
            self._protocol.receive_eof()
        self._flush()
        if (error := self._protocol.parser_exc) is not None:
            self.failure = "reset" if isinstance(error, EOFError) else "protocol"
        self._ended = error is not None or self._protocol.close_rcvd is not None

    def _flush(self) -> None:
        # An empty one stands for the end of the stream; closing is what `close` does.
        if data := b"".join(self._protocol.data_to_send()):
            self._writer.write(data)

    def _message(self, frame: Frame) -> str | bytes | None:
        """The message that this frame completes."""
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
    """Connects, asks, and judges the answer (RFC 6455 section 4.1)."""
    line = await upstream.dial()
    answer: BackendWebSocket | HandshakeRefused | None = None
    try:
        answer = await _shaken_hands(line, request)
    finally:
        if not isinstance(answer, BackendWebSocket):
            line.writer.transport.abort()
    return answer


async def _shaken_hands(line: BackendStreams, request: UpstreamRequest) -> BackendWebSocket | HandshakeRefused:
    offered = b",".join(get_all(request.headers, _PROTOCOLS)).decode("latin-1")
    protocol = StrictClientProtocol(
        _NOWHERE,
        subprotocols=[Subprotocol(item.strip()) for item in offered.split(",") if item.strip()] or None,
        state=OPEN,
        max_size=MAX_MESSAGE_BYTES,
        logger=_quiet,
    )
    asking = _HandshakeRequest(line)
    head = await asking.answer_to(_handshake(request, protocol.key, line.authority))
    headers = [(bytes(name), bytes(value)) for name, value in head.headers]
    try:
        # It also refuses what the server in front could not send on.
        told = HandshakeHeaders([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        if isinstance(head, h11.InformationalResponse):
            protocol.process_response(HandshakeResponse(head.status_code, "", told))
            return BackendWebSocket(line, protocol, headers, asking.rest())
    except InvalidHandshake as error:
        raise UpstreamUnavailable(f"the backend broke the WebSocket handshake: {error}", kind="protocol") from error
    if not 300 <= head.status_code < 600:
        # A success is that of a request without an upgrade: to the client no answer to what it asked. From 600 on there
        # are no statuses (RFC 9110 section 15).
        raise UpstreamUnavailable(f"the backend answered a handshake with {head.status_code}", kind="protocol")
    return HandshakeRefused(head.status_code, headers, await asking.body())


def _handshake(request: UpstreamRequest, key: str, authority: bytes) -> h11.Request:
    headers = [pair for pair in request.headers if pair[0] not in _OF_ONE_LEG]
    if get(headers, b"host") is None:
        headers.insert(0, (b"host", authority))
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
    """The HTTP part of a connection to the backend: one request, and its answer. Raises UpstreamUnavailable and
    UpstreamTimeout, the latter for any silence."""

    def __init__(self, line: BackendStreams) -> None:
        self._line = line
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def answer_to(self, request: h11.Request) -> h11.Response | h11.InformationalResponse:
        """The final answer, or 101."""
        head = self._http.send(request) + self._http.send(h11.EndOfMessage())
        self._line.writer.write(head)
        while True:
            event = await self._next()
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                return event

    async def body(self) -> bytes:
        """Of a final answer, whole."""
        body = b""
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > _MAX_REFUSAL_BYTES:
                raise UpstreamUnavailable("the backend refused a handshake at too great a length", kind="protocol")
        return body

    def rest(self) -> bytes:
        """What came after 101, and is WebSocket."""
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
            raise UpstreamUnavailable(f"the backend broke off or broke HTTP: {error}", kind="protocol") from error
        return event

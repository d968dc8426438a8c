"""One request and its response, between an ASGI application and a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from gatekeeper.http.grammar import TOKEN_BYTES, is_field_value
from gatekeeper.http.headers import REQUEST_ID, HeaderList
from gatekeeper.http.request_head import RequestHead
from gatekeeper.http.spelling import USUAL
from gatekeeper.http.types import ASGIApp, Message, Scope
from gatekeeper.server.responders import ClientConnection, DirectResponder
from gatekeeper.server.response_lines import (
    CHUNKED,
    CLOSE,
    LENGTH,
    NO_BODY,
    OF_THE_CONNECTION,
    first_line,
    section_lines,
    status_line,
)
from gatekeeper.server.scope import EXTENSION, ScopeFactory

# The logger that serve.py filters and operators know, whichever protocol class runs.
_log = logging.getLogger("uvicorn.error")

_START: Final = "http.response.start"
_BODY: Final = "http.response.body"
_TRAILERS: Final = "http.response.trailers"
_INFORMATIONAL: Final = "gatekeeper.http.informational"

_BODILESS: Final = frozenset({204, 304})


class Exchange:
    """`receive` and `send` for one request.

    `started` and `complete` concern the response. After `gone`, the client's disconnection, nothing more is sent, and
    the application gets `http.disconnect`. `task` is the application's, or `responder` responds.
    """

    __slots__ = (
        "_connection",
        "_corked",
        "_default_headers",
        "_end_received",
        "_event",
        "_expected",
        "_expects_continue",
        "_framing",
        "_has_trailers",
        "_is_event_stream",
        "_parts",
        "_remaining_bytes",
        "_request_complete",
        "_scope",
        "_trailers",
        "buffered_bytes",
        "complete",
        "gone",
        "head",
        "keep_alive",
        "responder",
        "scopes",
        "started",
        "task",
    )

    def __init__(
        self, connection: ClientConnection, head: RequestHead, scopes: ScopeFactory, default_headers: HeaderList
    ) -> None:
        self._connection = connection
        self.head = head
        self.scopes = scopes
        self._scope: Scope | None = None
        self._default_headers = default_headers
        section = head.section
        self.keep_alive = section.keep_alive
        self._expects_continue = section.expects_continue
        self._corked: list[bytes] | None = None
        self._event: asyncio.Event | None = None
        self._parts: list[bytes] = []
        self._trailers: HeaderList = []
        self.buffered_bytes = 0
        self._request_complete = section.length == 0
        self._end_received = False
        self.gone = self.started = self.complete = False
        self._expected = _START
        self._framing = NO_BODY
        self._remaining_bytes = 0
        self._has_trailers = self._is_event_stream = False
        self.responder: DirectResponder | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def scope(self) -> Scope:
        """The scope for the application."""
        if self._scope is None:
            self._scope = self.scopes.make(self.head)
        return self._scope

    @property
    def is_full(self) -> bool:
        """True while the client has yet to read what was sent."""
        return self._connection.writable is not None

    @property
    def has_arrived(self) -> bool:
        """True if all of the body has arrived."""
        return self._request_complete

    @property
    def trailers(self) -> HeaderList:
        """The trailers of the request, once its body has arrived."""
        return self._trailers

    @property
    def waits_for_permission(self) -> bool:
        """True while the client holds its body back until `100 Continue`."""
        return self._expects_continue

    @property
    def ends_with_connection(self) -> bool:
        """True if the client takes the end of the connection for the end of the response."""
        return self._framing is CLOSE

    async def run(self, app: ASGIApp) -> None:
        """Run the application. An exception is logged and ends the connection.

        The scope has the exchange meanwhile: an application may leave the response to a `responder`.
        """
        scope = self.scope
        scope["extensions"][EXTENSION]["exchange"] = self
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self.end_event_stream():
                self.abort_response()
            raise
        except Exception:  # noqa: BLE001 - an application may raise anything
            _log.exception("application raised an exception")
            self.abort_response()
        else:
            if not self.complete and not self.gone and self.responder is None:
                _log.error("application returned without completing its response")
                self.abort_response()
        finally:
            del scope["extensions"][EXTENSION]["exchange"]

    def abort_response(self) -> None:
        """Break the response off so that the client can tell."""
        self.uncork()
        if not self.complete and not self.gone:
            self._connection.response_failed()

    def end_event_stream(self) -> bool:
        """End an event stream regularly when the server shuts down, and return True; False for any other response. The
        client then reconnects elsewhere, and drops an incomplete event (HTML standard, section 9.2.6)."""
        if not self._is_event_stream or self._expected != _BODY or self.gone or self._framing is LENGTH:
            return False
        self.keep_alive = self._has_trailers = False
        self.send_body(b"", last=True)
        return True

    # Without an application

    def attach(self, responder: DirectResponder) -> None:
        """Let `responder` respond from now on."""
        self.responder = responder
        self._connection.responders.add(responder)

    def detach(self, responder: DirectResponder) -> None:
        """Remove `responder`, which has responded or never will."""
        self.responder = None
        self._connection.responders.discard(responder)

    def run_application(self, app: ASGIApp | None = None) -> None:
        """Let the application respond, or `app`."""
        self._connection.run(self, app)

    def take_body(self) -> bytes:
        """Return what has arrived of the body since the last call."""
        parts = self._parts
        if not parts:
            return b""
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.buffered_bytes = 0
        return body

    def put_back(self, part: bytes) -> None:
        """Put back what was taken of the body, for the next who takes it."""
        if part:
            self._parts.insert(0, part)
            self.buffered_bytes += len(part)

    async def wait_writable(self) -> None:
        """Return when the client takes data, or has left."""
        if self._connection.writable is not None:
            await self._connection.writable.wait()

    def want_body(self) -> None:
        """Have more of the body read; a client that waits for permission to send it gets that."""
        if self._expects_continue and not self.started and not self.gone:
            self._expects_continue = False
            self._connection.send_continue()
        self._connection.want_body()

    # Called by the connection

    def feed(self, part: bytes, *, last: bool, trailers: HeaderList) -> None:
        """Take more of the body. After the response it is dropped."""
        if self.complete or self.gone:
            return
        # RFC 9110 section 10.1.1: no 100 once the client sends by itself.
        self._expects_continue = False
        if part:
            self._parts.append(part)
            self.buffered_bytes += len(part)
        self._request_complete = last
        self._trailers = trailers
        self._wake()
        if self.responder is not None:
            self.responder.body_arrived()

    def reject(self) -> Scope:
        """Return the scope by which the server words its rejection of the body. `disconnect` follows."""
        if self.responder is not None:
            self.responder.rejected(self.scope)
        return self.scope

    def disconnect(self) -> None:
        """Stop sending: the client has left, or gets no further response."""
        self.gone = True
        self._wake()
        if self.responder is not None:
            self.responder.client_left()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    # Called by the application

    async def receive(self) -> Message:
        """ASGI `receive`."""
        while not self._has_message():
            self.want_body()
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        body = self.take_body()
        self._end_received = self._request_complete
        message: Message = {"type": "http.request", "body": body, "more_body": not self._request_complete}
        if self._request_complete and self._trailers:
            message["trailers"] = self._trailers
        return message

    def _has_message(self) -> bool:
        return self.gone or self.complete or bool(self._parts) or (self._request_complete and not self._end_received)

    async def send(self, message: Message) -> None:
        """ASGI `send`."""
        await self.wait_writable()
        if self.gone:
            return
        if self.complete:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}', after the response was completed.")
        kind = message["type"]
        if kind == _INFORMATIONAL and not self.started:
            self.send_informational(message["status"], message.get("headers", ()))
        elif kind != self._expected:
            raise RuntimeError(f"Expected ASGI message '{self._expected}', but got '{kind}'.")
        elif kind == _BODY:
            self.send_body(message.get("body", b""), last=not message.get("more_body", False))
        elif kind == _START:
            trailers = message.get("trailers", False)
            self.send_head(message["status"], message.get("headers", ()), message.get("reason"), trailers=trailers)
        else:
            self.send_trailers(message.get("headers", ()), last=not message.get("more_trailers", False))

    def send_informational(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send an interim response (RFC 9110 section 15.2)."""
        if status == HTTPStatus.CONTINUE:
            if self._expects_continue:
                self._expects_continue = False
                self._connection.send_continue()
            return
        if not HTTPStatus.PROCESSING <= status < HTTPStatus.OK:
            raise RuntimeError(f"The status of an interim response must be 100 or 102 to 199, not {status}.")
        if self.head.version == "1.1":
            self._write(b"".join((status_line(status), *section_lines(headers), b"\r\n")))

    def send_head(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        reason: bytes | None,
        *,
        hold: bool = False,
        trailers: bool = False,
    ) -> None:
        """Start a response. With `hold` the head is sent with the end of the response, or at `uncork`; with `trailers`
        the body is followed by `send_trailers`."""
        self._has_trailers = trailers
        line = first_line(status, reason)
        if self._expects_continue:
            # The client may or may not send its body now: the bytes that follow would be ambiguous.
            self._expects_continue = self.keep_alive = False
        content = [line]
        connection = self._take_headers([*self._default_headers, *headers], content)
        self._choose_framing(status, content)
        if not self.keep_alive:
            if connection != b"close":
                content.append(b"Connection: close\r\n")
        elif self.head.version == "1.0" and connection is None:
            content.append(b"Connection: keep-alive\r\n")
        content.append(b"\r\n")
        self.started = True
        self._expected = _BODY
        # Most responses are complete within this turn of the loop, and are then sent in one piece.
        self._corked = content
        if not hold:
            self._connection.call_soon(self.uncork)

    def _take_headers(self, headers: HeaderList, content: list[bytes]) -> bytes | None:
        """Append the headers to `content`. Return the value of `Connection`, or `close` if any of them says so."""
        connection: bytes | None = None
        for name, value in headers:
            key = name.lower()
            if key in OF_THE_CONNECTION:
                if key == b"transfer-encoding":
                    # The connection chooses the framing; chunked is the only transfer coding it knows.
                    if value.lower() != b"chunked":
                        raise RuntimeError("Transfer-Encoding of a response must be chunked.")
                    continue
                if key == b"content-length":
                    self._set_length(value)
                elif connection != b"close":
                    connection = b"close" if b"close" in value.lower().replace(b" ", b"").split(b",") else value
            elif key == b"content-type":
                self._is_event_stream = value.lower().startswith(b"text/event-stream")
            content += (USUAL[key] if key == REQUEST_ID else name, b": ", value, b"\r\n")
        if b"".join(content[1::4]).translate(None, TOKEN_BYTES) or not is_field_value(b"".join(content[3::4])):
            raise RuntimeError("Invalid header name or value in a response.")
        if connection == b"close":
            self.keep_alive = False
        return connection

    def _set_length(self, value: bytes) -> None:
        if self._framing is LENGTH or not value.isdigit():
            raise RuntimeError("Content-Length of a response must be one number.")
        self._framing, self._remaining_bytes = LENGTH, int(value)

    def _choose_framing(self, status: int, content: list[bytes]) -> None:
        """Choose how the end of the response is marked (RFC 9112 section 6.3)."""
        if self.head.method == "HEAD" or status in _BODILESS:
            self._framing = NO_BODY
        elif self._framing is not LENGTH and self.head.version == "1.1":
            self._framing = CHUNKED
            content.append(b"Transfer-Encoding: chunked\r\n")
        elif self._framing is not LENGTH:
            self._framing = CLOSE
            self.keep_alive = False

    def send_full_response(self, head_lines: bytes, headers: bytes, body: bytes, *, chunked: bool) -> None:
        """Send a full response: the output of `response_head_lines`, which includes `Content-Length` unless it is
        `chunked`, further header lines, and the body. Not for responses to HEAD, nor chunked for HTTP/1.0."""
        end = b"\r\n"
        if self._expects_continue:
            # As in `send_head`.
            self._expects_continue = self.keep_alive = False
        if not self.keep_alive:
            end = b"Connection: close\r\n\r\n"
        elif self.head.version == "1.0":
            end = b"Connection: keep-alive\r\n\r\n"
        if chunked:
            end = b"Transfer-Encoding: chunked\r\n" + end
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.started = self.complete = True
        self._connection.write(b"".join((head_lines, headers, end, body)))
        self._connection.response_complete()

    def send_body(self, body: bytes, *, last: bool) -> None:
        """Send a part of the body. Raises RuntimeError if it contradicts `Content-Length`."""
        if self._framing is LENGTH:
            self._remaining_bytes -= len(body)
            if self._remaining_bytes < 0 or (last and self._remaining_bytes):
                raise RuntimeError("Response content differs from its Content-Length.")
        elif self._framing is CHUNKED:
            end = b"\r\n"
            if last:
                end = b"\r\n0\r\n" if self._has_trailers else b"\r\n0\r\n\r\n"
            body = b"%x\r\n%b%b" % (len(body), body, end) if body else end[2:]
        if body and self._framing is not NO_BODY:
            self._write(body)
        if last and self._has_trailers:
            self._expected = _TRAILERS
        elif last:
            self._end()

    def send_trailers(self, headers: Iterable[tuple[bytes, bytes]], *, last: bool) -> None:
        """Send trailers. Only chunked framing has room for them (RFC 9112 section 7.1.2); else they are dropped."""
        if self._framing is CHUNKED:
            self._write(b"".join((*section_lines(headers), b"\r\n" if last else b"")))
        if last:
            self._end()

    def _write(self, data: bytes) -> None:
        if self._corked is None:
            self._connection.write(data)
        else:
            self._corked.append(data)

    def uncork(self) -> None:
        """Send what was held back."""
        corked, self._corked = self._corked, None
        if corked is not None and not self.gone:
            self._connection.write(b"".join(corked))

    def _end(self) -> None:
        self.uncork()
        self.complete = True
        self._wake()
        self._connection.response_complete()

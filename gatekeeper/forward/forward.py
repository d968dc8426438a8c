"""Forwarding of one request by callbacks alone, without a task or ASGI messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from gatekeeper.auth.renewals import Renewals
from gatekeeper.errors import GatekeeperError, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.direct_services import DirectServices, InternalError
from gatekeeper.forward.head_lines import cached_head_lines, head_lines, known_head_lines
from gatekeeper.forward.held import HeldResponse
from gatekeeper.forward.upload import Upload
from gatekeeper.http.forwarding import response_headers, response_trailers
from gatekeeper.http.headers import REQUEST_ID, HeaderList
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.request_writer import SerializedHead
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.http.types import ASGIApp, Receive, Scope, Send
from gatekeeper.models import Claims, EndReason
from gatekeeper.server import EXTENSION, Exchange
from gatekeeper.server.responders import DirectResponder
from gatekeeper.sessions.current_stream import OpenStream
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.upstream.interface import BackendConnection, Failure, ResponseCallbacks
from gatekeeper.web.outcome import Refused, conclude, unforwarded
from gatekeeper.web.request import IncomingRequest, read
from gatekeeper.web.respond import ResponseSender
from gatekeeper.web.session_end import GRACE_SECONDS, is_of_events, last_event

_log = logging.getLogger("gatekeeper")


class Forward:
    """Forwards one request: the request to the backend, the response to the client.

    One object per request, which implements an interface for each party that calls it; each has a section below.

    - `ResponseCallbacks`, called by the backend's connection: the response.
    - `DirectResponder`, called by the server: the client's connection, and the drain.
    - `OpenStream`, called by the open streams: the end of the session.

    `claims` are those of the session, to which tokens of the response are given; None without one. With
    `takes_trailers` the client accepts trailers.
    """

    __slots__ = (
        "_body",
        "_claims",
        "_connecting",
        "_connection",
        "_ended",
        "_exchange",
        "_expects",
        "_has_trailers",
        "_is_chunked",
        "_is_of_events",
        "_is_uploading",
        "_outgoing",
        "_reason",
        "_record",
        "_retried",
        "_sent_at",
        "_services",
        "_takes_trailers",
        "_upload",
        "ends_own_session",
        "moved_at",
        "session_id",
    )

    def __init__(
        self,
        services: DirectServices,
        exchange: Exchange,
        record: RequestRecord,
        claims: Claims | None,
        *,
        takes_trailers: bool = False,
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._record = record
        self._claims = claims
        self._takes_trailers = takes_trailers
        self._connection: BackendConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._outgoing = self._body = b""
        self._upload: Upload | None = None
        self._reason: EndReason | None = None
        self._retried = self._is_of_events = self._has_trailers = self._ended = False
        self._sent_at = 0.0
        self.session_id = 0
        self.moved_at = time.monotonic()
        self.ends_own_session = False

    def bind(self, user: str, session_id: int) -> None:
        """Let the end of a session end the request."""
        self.session_id = session_id
        self._services.streams.add(user, self)

    def pass_on(self, written: SerializedHead, *, has_body: bool) -> None:
        """Send a request that the pipeline has passed, with this head."""
        exchange = self._exchange
        exchange.attach(self)
        if exchange.gone:
            self._finish()
            return
        try:
            self.send(written.head, has_body=has_body, chunked=written.length is None, expects=written.expects)
        except Exception:  # noqa: BLE001 - the client would get no response
            self._internal_error()

    def done(self) -> bool:
        """Tell whether the request is finished."""
        return self._ended

    # The request to the backend

    def send(self, head: bytes, *, has_body: bool, chunked: bool, expects: bool) -> None:
        """Send the request. With `expects` the backend is asked first whether it wants the body."""
        exchange = self._exchange
        self._outgoing = head
        self._expects = expects
        self._is_chunked = chunked
        self._is_uploading = has_body and (chunked or expects or not exchange.has_arrived)
        if self._is_uploading or not exchange.has_arrived:
            self._upload = Upload(exchange, self._services.own_headers)
        elif has_body:
            self._body = exchange.take_body()
        self._sent_at = time.perf_counter()
        connection = self._services.upstream.take_idle()
        if connection is not None:
            self._start(connection)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(fresh=False))

    async def _connect(self, *, fresh: bool) -> None:
        try:
            connection = await self._services.upstream.acquire(fresh=fresh)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._connecting = None
            self._upstream_failed(error)
        except Exception:  # noqa: BLE001 - the client would get no response
            self._connecting = None
            self._internal_error()
        else:
            self._start(connection)

    def _start(self, connection: BackendConnection) -> None:
        self._connecting = None
        self._connection = connection
        connection.start(
            self._outgoing,
            self,
            body=self._body,
            to_head_request=self._exchange.head.method == "HEAD",
            uploading=self._is_uploading,
            chunked=self._is_chunked,
        )
        if self._upload is not None:
            self._upload.begin(connection, waits=self._expects)

    # ResponseCallbacks: the response, from the connection to the backend

    takes_full_response = True

    def on_informational(self, head: ResponseHead) -> None:
        if head.status != 100:
            self._exchange.send_informational(head.status, response_headers(head.headers, head.status))
            self._pause_if_client_is_full()
        elif self._upload is not None:
            self._upload.go_on()

    def on_head(self, head: ResponseHead) -> None:
        self._note_head()
        renewals, claims, connection = self._services.renewals, self._claims, self._connection
        if claims and renewals and connection and renewals.may_be_in(head.status, head.headers):
            held = HeldResponse(self, connection)
            connection.pause_reading()
            self._hold(renewals, claims, head, partial(held.release, head))
        else:
            self.begin_response(head)

    def _note_head(self) -> None:
        self._record.upstream_seconds = time.perf_counter() - self._sent_at
        if self._upload is not None:
            self._upload.go_on()

    def _hold(self, renewals: Renewals, claims: Claims, head: ResponseHead, go_on: Callable[[], None]) -> None:
        """Give tokens that the response hands out to the session before it goes on."""

        async def join() -> None:
            sent = self._exchange.head
            await renewals.join(claims, self.session_id, head.headers, sent=sent.headers, target=sent.target)
            self._connecting = None
            try:
                if not self._ended:
                    go_on()
            except Exception:  # noqa: BLE001 - the client would get no response
                self._internal_error()

        self._connecting = asyncio.get_running_loop().create_task(join())

    def forget_connection(self) -> None:
        """Take note that the connection to the backend is no longer this request's."""
        self._connection = None

    def begin_response(self, head: ResponseHead) -> None:
        """Send the head of a response that is not complete."""
        record = self._record
        record.status = head.status
        headers = response_headers(head.headers, head.status)
        headers.append((REQUEST_ID, record.request_id.encode()))
        self._is_of_events = head.length is None and is_of_events(headers)
        exchange = self._exchange
        if self._takes_trailers:
            self._has_trailers = head.is_chunked and not head.is_bodiless and exchange.head.method != "HEAD"
        exchange.send_head(head.status, headers, head.reason, hold=True, trailers=self._has_trailers)
        if self._reason is not None:
            self._cut_response(self._reason)

    def on_data(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        self._exchange.send_body(data, last=False)
        self.moved_at = time.monotonic()
        self._pause_if_client_is_full()

    def _pause_if_client_is_full(self) -> None:
        if self._exchange.is_full and self._connection is not None:
            self._connection.pause_reading()

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        self._connection = None
        self._record.upstream_seconds = time.perf_counter() - self._sent_at
        lines = known_head_lines(head)
        if lines is None:
            renewals = self._services.renewals
            if renewals is None or not renewals.may_be_in(head.status, head.headers):
                lines = cached_head_lines(head)
            else:
                # Not cached: each of them is to be looked at.
                lines = head_lines(head)
                if self._claims is not None:
                    go_on = partial(self._send_full_response, head, lines, body)
                    self._hold(renewals, self._claims, head, go_on)
                    return
        self._send_full_response(head, lines, body)

    def _send_full_response(self, head: ResponseHead, lines: bytes, body: bytes) -> None:
        exchange, record = self._exchange, self._record
        if head.is_chunked and (self._reason is not None or exchange.head.version == "1.0"):
            # A stream of events that is cut, or a response that ends with the connection.
            self.begin_response(head)
            if not self._ended:
                self.on_data(body)
                self.on_end([])
            return
        record.status, record.bytes_out = head.status, len(body)
        self._finish()
        exchange.send_full_response(lines, b"%b\r\n" % record.request_id.encode(), body, chunked=head.is_chunked)

    def on_batch_end(self) -> None:
        self._exchange.uncork()

    def on_end(self, trailers: HeaderList) -> None:
        self._connection = None
        exchange, has_trailers = self._exchange, self._has_trailers
        self._finish()
        exchange.send_body(b"", last=True)
        if has_trailers:
            exchange.send_trailers(response_trailers(trailers), last=True)

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        self._connection = None
        head = self._exchange.head
        if untouched and not self._retried and head.method in SAFE_METHODS and head.length == 0:
            self._retried = True
            self._connecting = asyncio.get_running_loop().create_task(self._connect(fresh=True))
        else:
            self._upstream_failed(error)

    def on_writable(self) -> None:
        if self._upload is not None:
            self._upload.proceed()

    # Failures, and the end of the request

    def _upstream_failed(self, error: Failure) -> None:
        self._services.telemetry.upstream_failed(error)
        self._fail(error)

    def _fail(self, error: GatekeeperError) -> None:
        """Send an error response, or break off a response that has begun, so that the client notices (RFC 9112 section
        8)."""
        exchange, record = self._exchange, self._record
        if exchange.started:
            self._finish()
            exchange.abort_response()
            return
        conclude(record, "error", error.reason)
        self._refuse(unforwarded(error))

    def _internal_error(self) -> None:
        _log.exception("internal error", extra={"request_id": self._record.request_id})
        if not self._ended:
            self._fail(InternalError())

    def _refuse(self, refused: Refused) -> None:
        """Send an error response in place of the backend's."""
        exchange = self._exchange
        incoming = read(exchange.scope, self._services.rules.trusted)
        incoming = structs.replace(incoming, request_id=self._record.request_id)
        self._let_go()
        exchange.run_application(self._error_response(incoming, refused))

    def _error_response(self, incoming: IncomingRequest, refused: Refused) -> ASGIApp:
        """Return an application that sends the error response."""

        async def app(scope: Scope, _: Receive, send: Send) -> None:
            try:
                sender = ResponseSender(send, self._record)
                await self._services.responder.send(scope, sender, incoming, refused)
            finally:
                self._services.telemetry.finished(self._record)

        return app

    def _finish(self) -> None:
        """Record the request as finished, and detach from client, session and backend. Further calls do nothing."""
        if not self._ended:
            self._let_go()
            self._services.telemetry.finished(self._record)

    def _let_go(self) -> None:
        """Detach from client, session and backend."""
        self._ended = True
        self._exchange.detach(self)
        self._services.streams.remove(self)
        if self._connection is not None or self._connecting is not None or self._upload is not None:
            self._leave_backend()

    def _leave_backend(self) -> None:
        """Abort the request to the backend, if there is one."""
        if self._upload is not None:
            self._upload.stop()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    # DirectResponder: the client and the drain, from the server

    def client_left(self) -> None:
        self._finish()

    def body_arrived(self) -> None:
        if self._upload is not None:
            self.moved_at = time.monotonic()
            self._upload.proceed()

    def rejected(self, scope: Scope) -> None:
        scope["extensions"][EXTENSION]["record"] = self._record

    def client_writable(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def cancel(self) -> None:
        """Respond with an error, or break the response off: the drain deadline has passed."""
        if self._ended:
            return
        if self._exchange.started:
            exchange = self._exchange
            self._finish()
            if not exchange.end_event_stream():
                exchange.abort_response()
            return
        self._fail(UpstreamTimeout("the server is shutting down"))

    # OpenStream: the end of the session, from the open streams

    def end(self, reason: EndReason) -> None:
        """Cut the response, once it has begun."""
        if self._ended or self._reason is not None:
            return
        self._reason = reason
        # Wait for a response that has not begun: this may be the request that ends the session, such as a logout.
        if self._exchange.started:
            self._cut_response(reason)

    def _cut_response(self, reason: EndReason) -> None:
        if self._is_of_events:
            exchange, event = self._exchange, last_event(reason)
            self._record.bytes_out += len(event)
            self._finish()
            exchange.send_body(event, last=True)
        else:
            # Give a short response time to finish.
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._cut)

    def _cut(self) -> None:
        if not self._ended:
            exchange = self._exchange
            self._finish()
            exchange.abort_response()


if TYPE_CHECKING:

    def _interfaces(forward: Forward) -> tuple[ResponseCallbacks, DirectResponder, OpenStream]:
        """Let the type checker compare the class with its interfaces. As base classes they would cost a `__dict__`."""
        return forward, forward, forward

"""Forwarding of one plain request by callbacks alone, without a task or ASGI messages (see `plan.py`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs

from gatekeeper.auth.renewals import Renewals
from gatekeeper.errors import (
    GatekeeperError,
    StoreUnavailable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gatekeeper.forward.direct_services import DirectServices, InternalError
from gatekeeper.forward.head_lines import cached_head_lines, head_lines, known_head_lines
from gatekeeper.forward.held import HeldResponse
from gatekeeper.forward.prepared import Plan
from gatekeeper.forward.upload import Upload
from gatekeeper.http.forwarding import response_headers
from gatekeeper.http.headers import REQUEST_ID, HeaderList, random_uuid
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.response_parser import ResponseHead
from gatekeeper.http.types import ASGIApp, Receive, Scope, Send
from gatekeeper.models import CheckResult, Claims, EndReason
from gatekeeper.server import EXTENSION, Exchange
from gatekeeper.server.responders import DirectResponder
from gatekeeper.sessions.current_stream import OpenStream
from gatekeeper.store.command import Command, ReplyReceiver
from gatekeeper.store.errors import unavailable_from
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.upstream.interface import BackendConnection, Failure, ResponseCallbacks
from gatekeeper.web.outcome import conclude, unforwarded
from gatekeeper.web.request import CHECKED, IncomingRequest, read
from gatekeeper.web.respond import ResponseSender
from gatekeeper.web.session_end import GRACE_SECONDS, is_of_events, last_event

_log = logging.getLogger("gatekeeper")


class DirectForward:
    """Forwards one request: session check, request to the backend, response to the client.

    One object per request, which implements an interface for each party that calls it; each has a section below.

    - `ReplyReceiver`, called by the store's connection: the result of the session check.
    - `ResponseCallbacks`, called by the backend's connection: the response.
    - `DirectResponder`, called by the server: the client's connection, and the drain.
    - `OpenStream`, called by the open streams: the end of the session.
    """

    __slots__ = (
        "_body",
        "_claims",
        "_connecting",
        "_connection",
        "_ended",
        "_exchange",
        "_is_of_events",
        "_outgoing",
        "_plan",
        "_reason",
        "_record",
        "_retried",
        "_sent_at",
        "_services",
        "_touch",
        "_upload",
        "ends_own_session",
        "moved_at",
        "session_id",
    )

    def __init__(
        self, services: DirectServices, exchange: Exchange, plan: Plan, claims: Claims, touch: Command
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._plan = plan
        self._claims = claims
        self._touch = touch
        head = exchange.head
        self._record = RequestRecord(
            method=head.method,
            path=head.target.partition(b"?")[0].decode("ascii"),
            request_id=plan.request_id or random_uuid(),
            client_ip=plan.client_ip,
            started_at=time.perf_counter(),
        )
        self._connection: BackendConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._outgoing = self._body = b""
        self._upload: Upload | None = None
        self._reason: EndReason | None = None
        self._retried = self._is_of_events = self._ended = False
        self._sent_at = 0.0
        self.session_id = 0
        self.moved_at = time.monotonic()
        self.ends_own_session = False

    def begin(self) -> None:
        """Send the session check. Called once, by `DirectRoute`."""
        services = self._services
        services.telemetry.began(self._record)
        self._exchange.attach(self)
        try:
            services.gate.send_for(self, self._touch)
        except StoreUnavailable as error:
            self._run_application(error)

    # ReplyReceiver: the result of the session check, from the connection to the store

    def done(self) -> bool:
        return self._ended

    def set_exception(self, exception: BaseException, /) -> None:
        self._run_application(unavailable_from(exception))

    def set_result(self, result: Any, /) -> None:
        try:
            self._take_check(result)
        except Exception:  # noqa: BLE001 - the store's connection must read on for other requests
            self._internal_error()

    def _take_check(self, reply: Any) -> None:
        """Forward the request if its session is active and was touched, else let the application respond."""
        try:
            checked = self._services.gate.checked(self._claims, self._touch, reply)
        except StoreUnavailable as error:
            self._run_application(error)
            return
        if checked.outcome != "touched":
            self._run_application(checked)
            return
        record = self._record
        record.decided_seconds = time.perf_counter() - record.started_at
        record.user_id = self._claims.user
        record.session_id = self.session_id = checked.session_id
        conclude(record, "allow")
        if self._exchange.gone:
            self._finish()
            return
        self._services.streams.add(self._claims.user, self)
        self._send()

    def _run_application(self, checked: CheckResult | StoreUnavailable) -> None:
        """Let the application serve the request. It gets the result of the check, and records the request itself."""
        if self._record.status:
            # The server has rejected the body meanwhile.
            self._finish()
            return
        self._ended = True
        self._exchange.detach(self)
        self._services.telemetry.left(self._record)
        self._exchange.scope[CHECKED] = checked
        self._exchange.run_application()

    # The request to the backend

    def _send(self) -> None:
        services, plan, exchange = self._services, self._plan, self._exchange
        head = exchange.head
        if not exchange.has_arrived or head.section.length is None or plan.expects:
            self._upload = Upload(exchange, services.own_headers)
        elif head.section.length:
            self._body = exchange.take_body()
        self._outgoing = b"".join(
            (
                head.method.encode(),
                b" ",
                head.target,
                b" HTTP/1.1",
                plan.before,
                plan.identity_of(services.rules.identity, self._claims, self.session_id),
                self._record.request_id.encode(),
                plan.after,
            )
        )
        self._sent_at = time.perf_counter()
        connection = services.upstream.take_idle()
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
        upload, head, out, body = self._upload, self._exchange.head, self._outgoing, self._body
        is_head, uploading, chunked = head.method == "HEAD", upload is not None, head.section.length is None
        connection.start(out, self, body=body, to_head_request=is_head, uploading=uploading, chunked=chunked)
        if upload is not None:
            upload.begin(connection, waits=self._plan.expects)

    # ResponseCallbacks: the response, from the connection to the backend

    takes_full_response = True

    def on_informational(self, head: ResponseHead) -> None:
        if head.status != 100:
            self._exchange.send_informational(head.status, response_headers(head.headers, head.status))
            self._pause_if_client_is_full()
        elif self._upload is not None:
            self._upload.go_on()

    def on_head(self, head: ResponseHead) -> None:
        record = self._record
        record.upstream_seconds = time.perf_counter() - self._sent_at
        if self._upload is not None:
            self._upload.go_on()
        renewals, connection = self._services.renewals, self._connection
        if renewals is not None and connection is not None and renewals.may_be_in(head.status, head.headers):
            self._hold(renewals, head, partial(HeldResponse(self, connection).release, head))
        else:
            self.begin_response(head)

    def _hold(self, renewals: Renewals, head: ResponseHead, go_on: Callable[[], None]) -> None:
        """Give tokens that the response hands out to the session before it goes on."""

        async def join() -> None:
            sent = self._exchange.head
            await renewals.join(self._claims, self.session_id, head.headers, sent=sent.headers, target=sent.target)
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
        self._exchange.send_head(head.status, headers, head.reason, hold=True)
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
            if renewals is not None and renewals.may_be_in(head.status, head.headers):
                self._hold(renewals, head, partial(self._send_full_response, head, head_lines(head), body))
                return
            lines = cached_head_lines(head)
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
        exchange = self._exchange
        self._finish()
        exchange.send_body(b"", last=True)

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
        self._leave_backend()
        conclude(record, "error", error.reason)
        incoming = read(exchange.scope, self._services.rules.trusted)
        incoming = structs.replace(incoming, request_id=record.request_id)
        self._ended = True
        self._services.streams.remove(self)
        exchange.detach(self)
        exchange.run_application(self._error_response(incoming, error))

    def _internal_error(self) -> None:
        _log.exception("internal error", extra={"request_id": self._record.request_id})
        if not self._ended:
            self._fail(InternalError())

    def _error_response(self, incoming: IncomingRequest, error: GatekeeperError) -> ASGIApp:
        """Return an application that sends the error response."""

        async def app(scope: Scope, _: Receive, send: Send) -> None:
            try:
                sender = ResponseSender(send, self._record)
                await self._services.responder.send(scope, sender, incoming, unforwarded(error))
            finally:
                self._services.telemetry.finished(self._record)

        return app

    def _finish(self) -> None:
        """Record the request as finished, and detach from client, session and backend. Further calls do nothing."""
        if self._ended:
            return
        self._ended = True
        self._exchange.detach(self)
        self._services.streams.remove(self)
        if self._connection is not None or self._connecting is not None or self._upload is not None:
            self._leave_backend()
        self._services.telemetry.finished(self._record)

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
        # Before the session check has a result, wait for it: the request is recorded with its verdict.
        if self.session_id:
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

    def _interfaces(forward: DirectForward) -> tuple[ReplyReceiver, ResponseCallbacks, DirectResponder, OpenStream]:
        """Let the type checker compare the class with its interfaces. As base classes they would cost a `__dict__`."""
        return forward, forward, forward, forward

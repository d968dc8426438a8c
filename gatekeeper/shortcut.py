"""Plain requests, straight through: from the client's connection to the backend's and back, by callbacks alone.

Most requests of most APIs have no body, a token that was found good before, and a session that lives. Such a one needs
its verdict and the hop, and for neither a task or an ASGI message:

    front → Shortcut → Gate.recognised → SessionStore.send ─ touched → Connection → Carriage → front

Everything else is the application's, which is given what the store has said already (`scope["gatekeeper.checked"]`), so
that there is one verdict, and one round trip to it, whichever way a request takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gatekeeper.engine import Engine
from gatekeeper.errors import (
    GatekeeperError,
    StoreUnavailable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gatekeeper.front import Exchange
from gatekeeper.headers import REQUEST_ID, HeaderList
from gatekeeper.models import Claims, EndReason
from gatekeeper.paths import BadPath, Kind
from gatekeeper.proxy.answer import Head
from gatekeeper.proxy.connection import Connection, Failure
from gatekeeper.proxy.headers import request_headers, response_headers
from gatekeeper.proxy.http import arrival, target
from gatekeeper.proxy.native import RETRIED_METHODS, NativeUpstream
from gatekeeper.proxy.outgoing import RequestNotForwardable, outgoing
from gatekeeper.sessions.connection import Prepared
from gatekeeper.telemetry import Exchange as Record
from gatekeeper_middleware import GatekeeperMiddleware
from gatekeeper_middleware.outcome import conclude
from gatekeeper_middleware.scope import CHECKED, Incoming, read
from gatekeeper_middleware.streams import LEFT_SECONDS, is_of_events, last_event

_UNPLAIN_METHODS: Final = frozenset({"OPTIONS", "TRACE", "CONNECT"})
_UNPLAIN_HEADERS: Final = frozenset({b"te", b"upgrade", b"expect", b"x-http-method-override"})


class Shortcut:
    """Called with every request without a body: True where it is carried from here."""

    def __init__(
        self, engine: Engine, app: GatekeeperMiddleware, upstream: NativeUpstream, own_headers: frozenset[bytes]
    ) -> None:
        self.engine = engine
        self.app = app
        self.upstream = upstream
        self.own_headers = own_headers

    def __repr__(self) -> str:
        return f"<Shortcut to {self.upstream!r}>"

    def __call__(self, exchange: Exchange) -> bool:
        engine, scope = self.engine, exchange.scope
        if not engine.started or engine.cookie_transport or scope["method"] in _UNPLAIN_METHODS:
            return False
        if not _UNPLAIN_HEADERS.isdisjoint([name for name, _ in scope["headers"]]):
            return False
        incoming = read(scope, engine.trusted)
        try:
            if engine.paths.classify(incoming.method, incoming.path) is not Kind.PROTECTED:
                return False
        except BadPath:
            return False
        recognised = engine.gate.recognised(incoming.facts(engine.origins, own=False))
        if recognised is None:
            return False
        claims, touch = recognised
        try:
            reply = engine.gate.send(touch)
        except StoreUnavailable:
            return False
        Carriage(self, exchange, incoming, claims).wait_for(touch, reply)
        return True


class Carriage:
    """One request on its way: a `Carrier` to the front, a `Sink` to the backend's connection, a `Stream` to its
    session."""

    __slots__ = (
        "_claims",
        "_connecting",
        "_connection",
        "_ended",
        "_exchange",
        "_incoming",
        "_is_of_events",
        "_outgoing",
        "_reason",
        "_record",
        "_retried",
        "_sent_at",
        "_shortcut",
        "ends_itself",
        "moved_at",
        "session_id",
    )

    def __init__(self, shortcut: Shortcut, exchange: Exchange, incoming: Incoming, claims: Claims) -> None:
        self._shortcut = shortcut
        self._exchange = exchange
        self._incoming = incoming
        self._claims = claims
        self._record = Record(
            method=incoming.method,
            path=incoming.path.decode("latin-1"),
            request_id=incoming.request_id,
            client_ip=incoming.client.ip_address,
            started_at=time.perf_counter(),
        )
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._outgoing = b""
        self._reason: EndReason | None = None
        self._retried = self._is_of_events = self._ended = False
        self._sent_at = 0.0
        self.session_id = 0
        self.moved_at = time.monotonic()
        self.ends_itself = False
        shortcut.engine.telemetry.began(self._record)
        exchange.carry(self)

    # The verdict

    def wait_for(self, touch: Prepared, reply: asyncio.Future[Any]) -> None:
        def judged(reply: asyncio.Future[Any]) -> None:
            self._judged(touch, reply)

        reply.add_done_callback(judged)

    def _judged(self, touch: Prepared, reply: asyncio.Future[Any]) -> None:
        gate = self._shortcut.engine.gate
        try:
            checked: Any = gate.checked(touch, reply.result())
        except StoreUnavailable as error:
            checked = error
        if self._ended:
            return
        if isinstance(checked, StoreUnavailable) or checked.word != "touched":
            # Not for this way. The application counts it as its own.
            self._exchange.drop(self)
            self._shortcut.engine.telemetry.left(self._record)
            self._exchange.scope[CHECKED] = checked
            self._exchange.hand_over()
            return
        record = self._record
        record.decided_seconds = time.perf_counter() - record.started_at
        record.user_id = self._claims.user
        record.session_id = self.session_id = checked.session_id
        conclude(record, "allow")
        self._shortcut.engine.streams.add(self._claims.user, self)
        self._send()

    # The request

    def _send(self) -> None:
        shortcut, scope = self._shortcut, self._exchange.scope
        engine, claims = shortcut.engine, self._claims
        headers = engine.identity.without_spoofed(self._incoming.headers)
        if not engine.forward_authorization:
            headers = engine.sources.strip(headers)
        headers.extend(engine.identity.values(claims.user, self.session_id, claims.roles, claims.claims))
        headers.append((REQUEST_ID, self._record.request_id.encode()))
        passed = request_headers(headers, arrival(scope, engine.trusted), shortcut.own_headers)
        authority = shortcut.upstream.authority
        try:
            request = outgoing(self._incoming.method, target(scope), passed, authority=authority, has_body=False)
        except RequestNotForwardable as error:
            self._fail(error)
            return
        self._outgoing = request.head
        connection = shortcut.upstream.pool.take_idle()
        if connection is not None:
            self._start(connection)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(fresh=False))

    async def _connect(self, *, fresh: bool) -> None:
        try:
            connection = await self._shortcut.upstream.pool.acquire(fresh=fresh)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._upstream_failed(error)
        else:
            self._start(connection)

    def _start(self, connection: Connection) -> None:
        self._connecting = None
        self._connection = connection
        self._sent_at = time.perf_counter()
        connection.start(self._outgoing, self, to_head_request=self._incoming.method == "HEAD")

    # The answer

    def on_informational(self, head: Head) -> None:
        if head.status != 100:
            self._exchange.send_informational(head.status, response_headers(head.headers, head.status))

    def on_head(self, head: Head) -> None:
        record = self._record
        record.upstream_seconds = time.perf_counter() - self._sent_at
        record.status = head.status
        headers = response_headers(head.headers, head.status)
        headers.append((REQUEST_ID, record.request_id.encode()))
        self._is_of_events = head.length is None and is_of_events(headers)
        self._exchange.send_head(head.status, headers, head.reason)
        if self._reason is not None:
            self._cut_answer(self._reason)

    def on_data(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        self._exchange.send_body(data, last=False)
        self.moved_at = time.monotonic()
        if self._exchange.is_full and self._connection is not None:
            self._connection.pause_reading()

    def on_end(self, trailers: HeaderList) -> None:
        self._connection = None
        exchange = self._exchange
        self._finish()
        exchange.send_body(b"", last=True)

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        self._connection = None
        if untouched and not self._retried and self._incoming.method in RETRIED_METHODS:
            self._retried = True
            self._connecting = asyncio.get_running_loop().create_task(self._connect(fresh=True))
        else:
            self._upstream_failed(error)

    def on_writable(self) -> None:
        """There is no body to write."""

    # Ends

    def _upstream_failed(self, error: Failure) -> None:
        self._shortcut.engine.telemetry.metrics.upstream_failed(error.kind)
        self._fail(error)

    def _fail(self, error: GatekeeperError) -> None:
        """Without an answer, one in the words of the gate; in the middle of one, its end, so that a client can tell."""
        exchange, record = self._exchange, self._record
        if exchange.started:
            self._finish()
            exchange.break_off()
            return
        conclude(record, "error", error.reason)
        answer = self._shortcut.app.failure(self._incoming, record, error)
        self._ended = True
        self._shortcut.engine.streams.remove(self)
        exchange.drop(self)
        exchange.hand_over(self._told(answer))

    def _told(self, answer: Callable[[Any, Any], Awaitable[None]]) -> Callable[[Any, Any, Any], Awaitable[None]]:
        async def app(scope: Any, _: Any, send: Any) -> None:
            try:
                await answer(scope, send)
            finally:
                self._shortcut.engine.telemetry.finished(self._record)

        return app

    def _finish(self) -> None:
        """It is over, whichever way."""
        if self._ended:
            return
        self._ended = True
        self._exchange.drop(self)
        self._shortcut.engine.streams.remove(self)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._shortcut.engine.telemetry.finished(self._record)

    # What the front tells

    def client_left(self) -> None:
        self._finish()

    def client_writable(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def cancel(self, msg: str = "") -> None:
        """The server ends. As that of a task, not at once."""
        asyncio.get_running_loop().call_soon(self._cancelled)

    def _cancelled(self) -> None:
        if self._ended:
            return
        if self._exchange.started:
            exchange = self._exchange
            self._finish()
            if not exchange.end_event_stream():
                exchange.break_off()
            return
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail(UpstreamTimeout("the server ends"))

    # What the session's end does

    def end(self, reason: EndReason) -> None:
        if self._ended or self._reason is not None:
            return
        self._reason = reason
        # An answer that has not begun is waited for: it may be that of the request whose own doing this is.
        if self._exchange.started:
            self._cut_answer(reason)

    def _cut_answer(self, reason: EndReason) -> None:
        if self._is_of_events:
            exchange = self._exchange
            self._finish()
            exchange.send_body(last_event(reason), last=True)
        else:
            # One that is short is whole.
            asyncio.get_running_loop().call_later(LEFT_SECONDS, self._cut)

    def _cut(self) -> None:
        if not self._ended:
            exchange = self._exchange
            self._finish()
            exchange.break_off()

"""The ASGI side of the pipeline: each request is decided once and answered once, by Gatekeeper or by the application
behind it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from gatekeeper.auth.renewals import Renewals
from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.http.headers import REQUEST_ID
from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.models import Problem
from gatekeeper.runtime import Runtime
from gatekeeper.sessions.current_stream import serving
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.store.embedded import EmbeddedStoreFailed
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.web.observe import ResponseObserver, ResponseReading, run
from gatekeeper.web.outcome import Passed, Refused, conclude, unforwarded
from gatekeeper.web.pipeline import Pipeline
from gatekeeper.web.request import SERVER, CurrentSession, IncomingRequest, read
from gatekeeper.web.respond import Responder, ResponseSender
from gatekeeper.web.rules import RequestRules
from gatekeeper.web.session_end import SESSION_ENDED, SessionBoundRequest

_log = logging.getLogger("gatekeeper")
# RFC 6455 section 7.4.1
_GOING_AWAY: Final = 1001


class Forwarding(Protocol):
    """Carries a request on in place of `app`, by the `exchange` of its server."""

    async def __call__(
        self, exchange: Any, incoming: IncomingRequest, record: RequestRecord, passed: Passed
    ) -> None: ...


class Handler:
    """An ASGI application for `http` and `websocket` scopes around `app`, the application behind.

    `mounted`: `app` is an application of this process, whose exceptions are its own and whose requests may end their
    own session; else it is the proxy of the sidecar, whose exceptions are bugs of ours. `extras` go into its scope.
    `forward` takes the HTTP requests instead, and lets the handler return before they are over.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        runtime: Runtime,
        pipeline: Pipeline,
        responder: Responder,
        rules: RequestRules,
        streams: OpenStreams,
        telemetry: Telemetry,
        mounted: bool,
        renewals: Renewals | None = None,
        forward: Forwarding | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._pipeline = pipeline
        self._responder = responder
        self._rules = rules
        self._streams = streams
        self._telemetry = telemetry
        self._mounted = mounted
        self._renewals = renewals
        self._forward = forward
        self._extras = extras or {}
        # A backend behind the proxy has another connection than the client's: that one goes away.
        self._close_code = SESSION_ENDED if mounted else _GOING_AWAY

    def __repr__(self) -> str:
        return f"<Handler {self._pipeline!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = read(scope, self._rules.trusted)
        record = RequestRecord(
            method=incoming.method,
            path=incoming.full_path,
            request_id=incoming.request_id,
            client_ip=incoming.client.ip_address,
            started_at=time.perf_counter(),
            websocket=incoming.websocket,
        )
        self._telemetry.began(record)
        if (server := (scope.get("extensions") or {}).get(SERVER)) is not None:
            # A server that refuses the rest of a request by itself finds its record here.
            server["record"] = record
        is_finished = True
        try:
            is_finished = await self._handle(scope, receive, ResponseSender(send, record), incoming, record)
        finally:
            if is_finished:
                self._telemetry.finished(record)

    async def _handle(
        self, scope: Scope, receive: Receive, sender: ResponseSender, incoming: IncomingRequest, record: RequestRecord
    ) -> bool:
        """The one place where exceptions become responses: a request is answered once. Returns False if it is still
        under way, and its forward finishes it."""
        try:
            if not self._runtime.started:
                await self._start()
            outcome = await self._pipeline.decide(incoming, record, receive)
            record.decided_seconds = time.perf_counter() - record.started_at
            if not isinstance(outcome, Passed):
                await self._responder.send(scope, sender, incoming, outcome)
                return True
        except Exception:
            _log.exception("internal error", extra={"request_id": incoming.request_id})
            conclude(record, "error", Reason.INTERNAL_ERROR)
            if sender.started:
                raise
            await self._responder.send(scope, sender, incoming, self._pipeline.internal_error(incoming))
            return True
        return await self._pass(scope, receive, sender, incoming, record, outcome)

    async def _start(self) -> None:
        """Start under a server without lifespan. A store that fails to start is one that is away: what needs it is 503,
        and the next request tries again."""
        try:
            await self._runtime.start()
        except EmbeddedStoreFailed as error:
            _log.error("embedded store did not start: %s", error)

    async def _pass(
        self,
        scope: Scope,
        receive: Receive,
        sender: ResponseSender,
        incoming: IncomingRequest,
        record: RequestRecord,
        passed: Passed,
    ) -> bool:
        headers = [pair for pair in passed.headers if pair[0] != REQUEST_ID]
        headers.append((REQUEST_ID, incoming.request_id.encode()))
        inner: dict[str, Any] = {**scope, "headers": headers, "gatekeeper": passed.session, **self._extras}
        inner["state"] = state = dict(scope.get("state") or {})
        try:
            if self._forward is not None and not incoming.websocket:
                await self._forward(scope["extensions"][SERVER]["exchange"], incoming, record, passed)
                return False
            if incoming.websocket:
                _hide_websocket_token(inner, self._rules.sources)
            elif self._rules.reads_query(incoming):
                inner["query_string"] = self._rules.sources.strip_query(incoming.query)
            await self._run(inner, passed.replay or receive, sender, scope, incoming, record, passed)
        except GatekeeperError as error:
            if sender.started:
                raise
            conclude(record, "error", error.reason)
            await self._responder.send(scope, sender, incoming, unforwarded(error))
        except Exception:
            if sender.started or self._mounted:
                raise
            _log.exception("internal error", extra={"request_id": incoming.request_id})
            conclude(record, "error", Reason.INTERNAL_ERROR)
            await self._responder.send(scope, sender, incoming, Refused(Problem(reason=Reason.INTERNAL_ERROR)))
        except asyncio.CancelledError:
            # The server shuts down and waits no longer. Left to itself, it would answer 500 in words of its own.
            if not sender.started:
                conclude(record, "error", Reason.UPSTREAM_TIMEOUT)
                await self._responder.send(scope, sender, incoming, Refused(Problem(reason=Reason.UPSTREAM_TIMEOUT)))
            raise
        finally:
            if incoming.websocket or self._mounted:
                record.upstream_seconds = state.get("upstream_seconds")
                record.bytes_out += state.get("bytes_out", 0)
        return True

    async def _run(
        self,
        inner: dict[str, Any],
        receive: Receive,
        sender: ResponseSender,
        scope: Scope,
        incoming: IncomingRequest,
        record: RequestRecord,
        passed: Passed,
    ) -> None:
        """Run the application behind; a response that may hold tokens is read before it goes on."""
        if passed.observation is None:
            if passed.session is None or not passed.session.session_id:
                await self._app(inner, receive if passed.body else _without_body(receive), sender)
            else:
                if self._renewals is not None and not (passed.session.degraded or incoming.websocket):
                    sender.before_head = self._renewals.of(
                        passed.session.claims, passed.session.session_id, sent=incoming.headers, target=incoming.query
                    )
                await self._run_bound(inner, receive, sender, passed.session)
            return

        async def refuse(problem: Problem) -> None:
            refused = Refused(problem, token_sent=True, language=passed.language)
            await self._responder.send(scope, sender, incoming, refused)

        reading = ResponseReading(
            passed.observation, telemetry=self._telemetry, reader=self._rules.responses, record=record
        )
        observer = ResponseObserver(sender, reading, refuse=refuse)
        await run(self._app, inner, receive, observer, passed.observation)

    async def _run_bound(
        self, inner: dict[str, Any], receive: Receive, sender: ResponseSender, session: CurrentSession
    ) -> None:
        """Run the application behind for as long as the session lives."""
        websocket = inner["type"] == "websocket"
        bound = SessionBoundRequest(
            session.session_id, receive, sender, websocket=websocket, close_code=self._close_code
        )
        self._streams.add(session.user, bound)
        try:
            if self._mounted:
                with serving(session.user, bound):
                    await bound.run(self._app, inner)
            else:
                # The relay of a WebSocket passes no messages through `receive`: it notes here when they move.
                inner["gatekeeper.stream"] = bound
                await bound.run(self._app, inner)
        finally:
            self._streams.remove(bound)


def _without_body(receive: Receive) -> Receive:
    """Give an empty body, then the client's departure; what the client sends is dropped."""
    ended = False

    async def receiving() -> Message:
        nonlocal ended
        if not ended:
            ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            pass
        return message

    return receiving


def _hide_websocket_token(inner: dict[str, Any], sources: TokenSources) -> None:
    """Take a token out of the query and the subprotocols: it is for the gate, not for logs and applications behind."""
    inner["query_string"] = sources.strip_query(inner.get("query_string", b""))
    inner["headers"] = sources.strip_bearer_subprotocol(inner["headers"])
    offered = [value for name, value in inner["headers"] if name == b"sec-websocket-protocol"]
    inner["subprotocols"] = [item.strip() for value in offered for item in value.decode("latin-1").split(",")]

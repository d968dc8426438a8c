"""The gate as ASGI middleware: pure ASGI, the same in the sidecar (around its proxy) and in an application.

A request goes one way: read → what is its path → verdict → answered here, or passed to the application behind with a
new scope: the client's identity headers gone, Gatekeeper's own in their place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gatekeeper.build import build
from gatekeeper.dialects import fastapi
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.errors import (
    GatekeeperError,
    KeysUnavailable,
    Reason,
    StoreUnavailable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gatekeeper.http.headers import DEGRADED, REQUEST_ID, HeaderList
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.http.types import ASGIApp, Message, Receive, Scope, Send
from gatekeeper.models import Problem, Verdict
from gatekeeper.runtime import Engine
from gatekeeper.sessions.open_streams import serving
from gatekeeper.settings import Settings as Settings
from gatekeeper.settings import load as load
from gatekeeper.store.embedded import EmbeddedStoreFailed
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.web import cookies
from gatekeeper.web.endpoints import Endpoints
from gatekeeper.web.observe import ResponseObserver, observe, run
from gatekeeper.web.operations import Operations
from gatekeeper.web.outcome import (
    Passed,
    Refused,
    Served,
    conclude,
    conclude_failed,
    failed,
    identify,
    identify_as,
    problem_of,
    refuse,
)
from gatekeeper.web.request import ENGINE, SERVER, CurrentSession, IncomingRequest, read, without_credentials
from gatekeeper.web.respond import ResponseSender, problem_headers, send_answer
from gatekeeper.web.session_end import SESSION_ENDED, SessionBoundRequest

_log = logging.getLogger("gatekeeper")
_BYPASSES: Final = frozenset({PathKind.LOGIN, PathKind.REFRESH, PathKind.LOGOUT})
_LIKE: Final = {
    PathKind.LOGIN: PathKind.LIKE_LOGIN,
    PathKind.REFRESH: PathKind.LIKE_REFRESH,
    PathKind.LIKE_LOGIN: PathKind.LIKE_LOGIN,
    PathKind.LIKE_REFRESH: PathKind.LIKE_REFRESH,
}
# Protected paths that a backend may read as one where people sign in: judged, and then read as that.
_LOOKALIKES: Final = {PathKind.LIKE_LOGIN: PathKind.LOGIN, PathKind.LIKE_REFRESH: PathKind.REFRESH}
# RFC 6455 section 7.4.1
_GOING_AWAY: Final = 1001
_UNTUNNELLED: Final = frozenset({"TRACE", "CONNECT"})


class GatekeeperMiddleware:
    """Sessions in front of any ASGI 3 application.

    `settings` default to the environment (`ConfigError` lists every problem). The sidecar gives a ready `engine`.
    """

    def __init__(self, app: ASGIApp, settings: Settings | None = None, *, engine: Engine | None = None) -> None:
        self._app = app
        self._engine = engine or build(settings or load(), mode="middleware", application=app)
        self._operations = Operations(self._engine)
        self._endpoints = Endpoints(self._engine)

    def __repr__(self) -> str:
        return f"<GatekeeperMiddleware {self._engine!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        incoming = read(scope, self._engine.trusted)
        record = RequestRecord(
            method=incoming.method,
            path=incoming.path.decode("latin-1"),
            request_id=incoming.request_id,
            client_ip=incoming.client.ip_address,
            started_at=time.perf_counter(),
            websocket=incoming.websocket,
        )
        telemetry = self._engine.telemetry
        telemetry.began(record)
        if (server := (scope.get("extensions") or {}).get(SERVER)) is not None:
            # A server that answers by itself what is wrong with the rest of a request says so here.
            server["record"] = record
        try:
            await self._handle(scope, receive, ResponseSender(send, record), incoming, record)
        finally:
            telemetry.finished(record)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starts and ends the engine with the application. A server without lifespan starts it at the first request."""

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._engine.start()
            return message

        async def sending(message: Message) -> None:
            if message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
                await self._engine.aclose()
            await send(message)

        await self._app(scope, receiving, sending)

    async def _handle(
        self, scope: Scope, receive: Receive, reply: ResponseSender, incoming: IncomingRequest, record: RequestRecord
    ) -> None:
        """The one door: whatever happens, a request is answered once."""
        try:
            outcome = await self._decide(incoming, record, receive)
            record.decided_seconds = time.perf_counter() - record.started_at
            if not isinstance(outcome, Passed):
                await self._answer(scope, reply, incoming, outcome)
                return
        except Exception:
            _log.exception("internal error", extra={"request_id": incoming.request_id})
            conclude(record, "error", Reason.INTERNAL_ERROR)
            if reply.started:
                raise
            await self._answer(scope, reply, incoming, self._internal_error(incoming))
            return
        await self._pass(scope, receive, reply, incoming, record, outcome)

    def _internal_error(self, incoming: IncomingRequest) -> Refused:
        """Our bug, in the shape of whatever was asked."""
        problem = Problem(reason=Reason.INTERNAL_ERROR)
        try:
            kind = self._engine.paths.classify(incoming.method, incoming.path)
        except BadPath:
            return Refused(problem)
        return failed(problem, kind)

    async def _decide(
        self, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served | Passed:
        if not self._engine.started:
            try:
                await self._engine.start()
            except EmbeddedStoreFailed as error:
                # A store that is away, like any other: what needs it is 503, and the next request tries again.
                _log.error("%s", error)
        if incoming.method in _UNTUNNELLED:
            return refuse(record, Problem(reason=Reason.METHOD_NOT_ALLOWED, detail="This method is not allowed"))
        try:
            kind = self._engine.paths.classify(incoming.method, incoming.path)
        except BadPath as error:
            return refuse(record, Problem(reason=Reason.BAD_REQUEST, detail=str(error)))
        endpoint = kind.route.target if isinstance(kind, RouteMatch) else None
        try:
            if isinstance(endpoint, Endpoint):
                record.route = endpoint.path
                language = self._operations.language(incoming)
                return await self._endpoints.serve(endpoint, incoming, record, receive, language)
            if isinstance(kind, RouteMatch):
                return await self._operations.serve(kind, incoming, record, receive)
            if incoming.is_preflight:
                answered = self._operations.preflight(incoming, record)
                if answered is not None:
                    return answered
            if kind is PathKind.RESERVED:
                record.route = "/_gatekeeper/{path}"
                return refuse(record, Problem(reason=Reason.NOT_FOUND), fastapi)
            return await self._forward(kind, incoming, record, receive)
        except (StoreUnavailable, KeysUnavailable, UpstreamUnavailable, UpstreamTimeout) as error:
            # Could not find out: neither let through nor "not signed in".
            self._engine.telemetry.failed(error)
            conclude_failed(record, error)
            return failed(Problem(reason=error.reason), kind)

    async def _forward(
        self, kind: PathKind, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Passed:
        """Whatever is the application's."""
        clean = self._engine.identity.without_spoofed(incoming.headers)
        if incoming.overrides_method:
            # The backend may take it for another method than the rule named.
            named = self._engine.paths.classify("POST", incoming.path)
            kind = _LIKE.get(named, PathKind.PROTECTED) if isinstance(named, PathKind) else PathKind.PROTECTED
        elif kind in _BYPASSES and incoming.websocket:
            # Nobody signs in by a WebSocket.
            kind = PathKind.PROTECTED
        if self._engine.cookie_transport:
            clean = cookies.without_refresh_token(clean)
        if kind in _BYPASSES:
            conclude(record, "bypass")
            return await self._observe(kind, Passed(clean), incoming, record, receive)
        if kind is not PathKind.PUBLIC and incoming.is_preflight:
            conclude(record, "bypass")
            return Passed(without_credentials(clean), body=False)
        try:
            verdict = await self._judge(incoming)
        except (StoreUnavailable, KeysUnavailable) as error:
            if kind is not PathKind.PUBLIC:
                raise
            self._engine.telemetry.failed(error)
            verdict = Verdict(token_source="unjudged")  # noqa: S106 - a source, no token
        identify(record, verdict)
        if verdict.admitted:
            conclude(record, "allow")
            passed = self._admitted(clean, verdict)
            if kind in _LOOKALIKES and not incoming.websocket:
                return await self._observe(_LOOKALIKES[kind], passed, incoming, record, receive)
            return passed
        if kind is PathKind.PUBLIC:
            conclude(record, "bypass")
            return Passed(clean if verdict.token_source is None else self._engine.sources.strip_tokens(clean))
        return refuse(record, problem_of(verdict), None, verdict)

    async def _judge(self, incoming: IncomingRequest) -> Verdict:
        """The verdict on what is forwarded; where the operator allows it, without the store while that is away. Raises
        `StoreUnavailable` and `KeysUnavailable`."""
        gate, telemetry = self._engine.gate, self._engine.telemetry
        facts = incoming.facts(self._engine.origins, own=False)
        identified = await gate.identify(facts)
        if identified.claims is None:
            return identified
        try:
            return await gate.admit(identified, identified.claims, facts.client, facts.checked)
        except StoreUnavailable as error:
            verdict = gate.without_store(identified, error)
            telemetry.failed(error)
            if verdict.admitted:
                telemetry.metrics.passed_degraded()
            return verdict

    async def _observe(
        self, kind: PathKind, passed: Passed, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Passed:
        """A login, refresh or logout of the application's own, on its way: what it says is read."""
        observed = await observe(self._engine, kind, incoming, receive)
        if isinstance(observed, Problem):
            return refuse(record, observed)
        observation, visit, again = observed
        problem = await observation.before()
        identify_as(record, observation.who)
        if problem is not None:
            return refuse(record, problem, token_sent=True, language=visit.language)
        watched = observation if kind is not PathKind.LOGOUT else None
        return msgspec.structs.replace(passed, receive=again, observation=watched, language=visit.language)

    def _admitted(self, headers: HeaderList, verdict: Verdict) -> Passed:
        claims, session_id = verdict.claims, verdict.session_id
        assert claims is not None  # noqa: S101 - an admitted verdict has them
        if not self._engine.forward_authorization:
            headers = self._engine.sources.strip_tokens(headers)
        elif verdict.more_tokens:
            # A backend that looks elsewhere first, and less closely, must not find a token that nobody judged.
            headers = self._engine.sources.strip_tokens(headers, keep_source=verdict.token_source)
        headers.extend(self._engine.identity.values(claims.user, session_id, claims.roles, claims.claims))
        if verdict.degraded:
            headers.append((DEGRADED, b"1"))
        session = CurrentSession(
            user=claims.user,
            session_id=session_id or 0,
            roles=claims.roles,
            is_admin=claims.is_admin,
            claims=claims,
            degraded=verdict.degraded,
        )
        return Passed(headers, session)

    def failure(
        self, incoming: IncomingRequest, record: RequestRecord, error: GatekeeperError
    ) -> Callable[..., Awaitable[None]]:
        """What answers (`scope`, `send`) a request that was admitted and could not be forwarded."""

        async def answer(scope: Scope, send: Send) -> None:
            await self._answer(scope, ResponseSender(send, record), incoming, _unforwarded(error))

        return answer

    async def _answer(
        self, scope: Scope, reply: ResponseSender, incoming: IncomingRequest, outcome: Refused | Served
    ) -> None:
        body: Any = None
        if isinstance(outcome, Refused):
            status = outcome.problem.reason.status
            wording = self._operations.wording(incoming, outcome.operation, {}, outcome.language)
            body = self._engine.router.word(outcome.problem, outcome.dialect, wording)
            headers = problem_headers(outcome.problem, token_sent=outcome.token_sent)
        elif outcome.answer is None:
            status, headers = 204, list(outcome.headers)
        else:
            status, body, headers = outcome.answer.status, outcome.answer.body, list(outcome.headers)
        if not isinstance(outcome, Served) or outcome.answer is not None:
            headers += self._engine.origins.cors_headers(incoming.headers)
        await send_answer(
            reply,
            status=status,
            body=body,
            headers=headers,
            head=incoming.method == "HEAD",
            websocket=incoming.websocket,
            extension="websocket.http.response" in scope.get("extensions", {}),
        )

    async def _pass(
        self,
        scope: Scope,
        receive: Receive,
        reply: ResponseSender,
        incoming: IncomingRequest,
        record: RequestRecord,
        passed: Passed,
    ) -> None:
        headers = [pair for pair in passed.headers if pair[0] != REQUEST_ID]
        headers.append((REQUEST_ID, incoming.request_id.encode()))
        inner: dict[str, Any] = {**scope, "headers": headers, "gatekeeper": passed.session, ENGINE: self._engine}
        inner["state"] = state = dict(scope.get("state") or {})
        try:
            if incoming.websocket:
                _hide_websocket_token(inner, self._engine.sources)
            await self._run(inner, passed.receive or receive, reply, scope, incoming, record, passed)
        except GatekeeperError as error:
            if reply.started:
                raise
            conclude(record, "error", error.reason)
            await self._answer(scope, reply, incoming, _unforwarded(error))
        except Exception:
            # Mounted, the application's exceptions are the application's; in the sidecar they are our bugs.
            if reply.started or self._engine.telemetry.metrics.mode == "middleware":
                raise
            _log.exception("internal error", extra={"request_id": incoming.request_id})
            conclude(record, "error", Reason.INTERNAL_ERROR)
            await self._answer(scope, reply, incoming, Refused(Problem(reason=Reason.INTERNAL_ERROR)))
        except asyncio.CancelledError:
            # The server ends and waits no longer. Left to itself, it would answer 500 in words of its own.
            if not reply.started:
                conclude(record, "error", Reason.UPSTREAM_TIMEOUT)
                await self._answer(scope, reply, incoming, Refused(Problem(reason=Reason.UPSTREAM_TIMEOUT)))
            raise
        finally:
            record.upstream_seconds = state.get("upstream_seconds")

    async def _run(
        self,
        inner: dict[str, Any],
        receive: Receive,
        reply: ResponseSender,
        scope: Scope,
        incoming: IncomingRequest,
        record: RequestRecord,
        passed: Passed,
    ) -> None:
        """The application behind; an answer that may hold tokens is looked at before it is passed on."""
        if passed.observation is None:
            if passed.session is None or not passed.session.session_id:
                await self._app(inner, receive if passed.body else _without_body(receive), reply)
            else:
                await self._run_held(inner, receive, reply, passed.session)
            return

        async def answer(problem: Problem) -> None:
            refused = Refused(problem, token_sent=True, language=passed.language)
            await self._answer(scope, reply, incoming, refused)

        watch = ResponseObserver(reply, passed.observation, engine=self._engine, record=record, answer=answer)
        await run(self._app, inner, receive, watch)

    async def _run_held(
        self, inner: dict[str, Any], receive: Receive, reply: ResponseSender, session: CurrentSession
    ) -> None:
        """The application behind, for as long as the session lasts."""
        mounted = self._engine.telemetry.metrics.mode == "middleware"
        websocket = inner["type"] == "websocket"
        # A backend behind a proxy has another connection than the client's: that goes away.
        told_code = SESSION_ENDED if mounted else _GOING_AWAY
        passage = SessionBoundRequest(session.session_id, receive, reply, websocket=websocket, told_code=told_code)
        self._engine.streams.add(session.user, passage)
        try:
            if mounted:
                with serving(session.user, passage):
                    await passage.run(self._app, inner)
            else:
                await passage.run(self._app, inner)
        finally:
            self._engine.streams.remove(passage)


def _unforwarded(error: GatekeeperError) -> Refused:
    # A request that cannot be forwarded says what is wrong with it; of a backend's fault nothing is told.
    detail = str(error) if error.reason is Reason.BAD_REQUEST else ""
    return Refused(Problem(reason=error.reason, detail=detail))


def _without_body(receive: Receive) -> Receive:
    """An empty body, then the end of the client; what the client sends is dropped."""
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
    """A token in the query or among the subprotocols is for the gate, not for logs and applications behind it."""
    inner["query_string"] = sources.strip_query(inner.get("query_string", b""))
    inner["headers"] = sources.strip_bearer_subprotocol(inner["headers"])
    offered = [value for name, value in inner["headers"] if name == b"sec-websocket-protocol"]
    inner["subprotocols"] = [item.strip() for value in offered for item in value.decode("latin-1").split(",")]

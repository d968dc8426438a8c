"""The pipeline: one request, decided. A host carries the outcome out.

A request goes one way: the kind of its path → the verdict → an outcome. It is refused or served here, or passed to the
application behind with clean headers: the client's identity headers gone, Gatekeeper's own in their place.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.observed_sign_in import observation
from gatekeeper.auth.services import SignInServices
from gatekeeper.dialects import fastapi
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.errors import (
    KeysUnavailable,
    Reason,
    StoreUnavailable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.methods import ALLOWED_METHODS
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.http.types import Receive
from gatekeeper.models import Problem, Verdict
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.web import cookies
from gatekeeper.web.judge import Judge, admitted_headers, anonymous_headers, opaque_headers
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
from gatekeeper.web.request import CurrentSession, IncomingRequest, without_credentials
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules
from gatekeeper.web.sign_in_request import read_sign_in

_SIGN_IN_PATHS: Final = frozenset({PathKind.LOGIN, PathKind.REFRESH, PathKind.LOGOUT})
# With a method override the backend may read the request as a POST, and so as a sign-in.
_LIKE: Final = {
    PathKind.LOGIN: PathKind.LIKE_LOGIN,
    PathKind.REFRESH: PathKind.LIKE_REFRESH,
    PathKind.LIKE_LOGIN: PathKind.LIKE_LOGIN,
    PathKind.LIKE_REFRESH: PathKind.LIKE_REFRESH,
}
# Protected paths that a backend may read as a sign-in path: judged, and then observed as one.
_LOOKALIKES: Final = {PathKind.LIKE_LOGIN: PathKind.LOGIN, PathKind.LIKE_REFRESH: PathKind.REFRESH}
# Where an opaque Bearer may be the backend's to judge.
_OPAQUE_KINDS: Final = frozenset({PathKind.PROTECTED, PathKind.PUBLIC})
_UNTUNNELLED: Final = frozenset({"TRACE", "CONNECT"})
_METHOD_NOT_ALLOWED: Final = Problem(
    reason=Reason.METHOD_NOT_ALLOWED, detail="This method is not allowed", headers=((b"allow", ALLOWED_METHODS),)
)


class OwnPathServer(Protocol):
    """Serves some of Gatekeeper's own paths: `Operations` those of the dialects, `Endpoints` sign-ins and OAuth."""

    async def serve(
        self, match: RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served:
        """Serve one request."""
        ...


class PreflightServer(OwnPathServer, Protocol):
    """Serves the preflights for own paths too."""

    def preflight(self, incoming: IncomingRequest, record: RequestRecord) -> Refused | Served | None:
        """Answer a preflight; None for a path of the application."""
        ...


class Pipeline:
    """Decides requests. Holds no state of its own."""

    def __init__(
        self,
        rules: RequestRules,
        responder: Responder,
        *,
        gate: Gate,
        sign_in: SignInServices,
        operations: PreflightServer,
        endpoints: OwnPathServer,
        telemetry: Telemetry,
    ) -> None:
        self._rules = rules
        self._responder = responder
        self._judge = Judge(rules, gate, sign_in.strays, telemetry)
        self._sign_in = sign_in
        self._operations = operations
        self._endpoints = endpoints
        self._telemetry = telemetry

    def __repr__(self) -> str:
        return f"<Pipeline {self._responder!r}>"

    async def decide(
        self, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served | Passed:
        """Decide one request; `receive` gives its body where that has to be read."""
        if incoming.method in _UNTUNNELLED:
            return refuse(record, _METHOD_NOT_ALLOWED)
        try:
            kind = self._rules.paths.classify(incoming.method, incoming.path)
        except BadPath as error:
            return refuse(record, Problem(reason=Reason.BAD_REQUEST, detail=str(error)))
        try:
            return await self._dispatch(kind, incoming, record, receive)
        except (StoreUnavailable, KeysUnavailable, UpstreamUnavailable, UpstreamTimeout) as error:
            # Could not be found out: neither let through nor "not signed in".
            self._telemetry.failed(error)
            conclude_failed(record, error)
            return failed(Problem(reason=error.reason), kind)

    def internal_error(self, incoming: IncomingRequest) -> Refused:
        """The outcome of a bug of ours, in the shape of what was asked."""
        problem = Problem(reason=Reason.INTERNAL_ERROR)
        try:
            kind = self._rules.paths.classify(incoming.method, incoming.path)
        except BadPath:
            return Refused(problem)
        return failed(problem, kind)

    async def _dispatch(
        self, kind: PathKind | RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served | Passed:
        if isinstance(kind, RouteMatch):
            server = self._endpoints if isinstance(kind.route.target, Endpoint) else self._operations
            return await server.serve(kind, incoming, record, receive)
        if incoming.is_preflight and (served := self._operations.preflight(incoming, record)) is not None:
            return served
        if kind is PathKind.RESERVED:
            record.route = "/_gatekeeper/{path}"
            return refuse(record, Problem(reason=Reason.NOT_FOUND), fastapi)
        return await self._forward(kind, incoming, record, receive)

    async def _forward(
        self, kind: PathKind, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Passed:
        """Decide a request to the application."""
        clean = self._rules.identity.without_spoofed(incoming.headers)
        kind = self._effective_kind(kind, incoming)
        if self._rules.cookie_transport:
            clean = cookies.without_refresh_token(clean)
        if kind in _SIGN_IN_PATHS:
            conclude(record, "bypass")
            return await self._observe(kind, Passed(clean), incoming, record, receive)
        if kind is not PathKind.PUBLIC and incoming.is_preflight:
            conclude(record, "bypass")
            return Passed(without_credentials(clean), body=False)
        if kind in _OPAQUE_KINDS and self._rules.opaque.covers(incoming):
            verdict = await self._judge.opaque(incoming)
            if verdict.token_source is not None:
                return refuse(record, problem_of(verdict), None, verdict)
            conclude(record, "bypass")
            return Passed(opaque_headers(self._rules, clean, verdict))
        verdict = await self._judge.verdict(incoming, public=kind is PathKind.PUBLIC)
        identify(record, verdict)
        if verdict.admitted:
            conclude(record, "allow")
            passed = self._admitted(clean, verdict, incoming)
            if kind in _LOOKALIKES and not incoming.websocket:
                return await self._observe(_LOOKALIKES[kind], passed, incoming, record, receive)
            return passed
        if kind is PathKind.PUBLIC and verdict.token_source != "query":  # noqa: S105 - a source, no token
            conclude(record, "bypass")
            return Passed(anonymous_headers(self._rules, clean, verdict))
        return refuse(record, problem_of(verdict), None, verdict)

    def _effective_kind(self, kind: PathKind, incoming: IncomingRequest) -> PathKind:
        """The kind of path that counts, given what the backend may take the request for."""
        if incoming.overrides_method:
            named = self._rules.paths.classify("POST", incoming.path)
            return _LIKE.get(named, PathKind.PROTECTED) if isinstance(named, PathKind) else PathKind.PROTECTED
        # No login is made over a WebSocket.
        return PathKind.PROTECTED if kind in _SIGN_IN_PATHS and incoming.websocket else kind

    async def _observe(
        self, kind: PathKind, passed: Passed, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Passed:
        """Read a login, refresh or logout of the application's own on its way through."""
        counts_logins = self._sign_in.attempts is not None
        read = await read_sign_in(self._rules, kind, incoming, receive, counts_logins=counts_logins)
        if isinstance(read, Problem):
            return refuse(record, read)
        request, replay = read
        observed = observation(kind, self._sign_in, request)
        problem = await observed.before()
        identify_as(record, observed.owner)
        if problem is not None:
            refused = refuse(record, problem, token_sent=True, language=request.language)
            if problem.reason.status >= 500:
                conclude(record, "error", problem.reason)
            return refused
        watched = observed if kind is not PathKind.LOGOUT else None
        return msgspec.structs.replace(passed, replay=replay, observation=watched, language=request.language)

    def _admitted(self, headers: HeaderList, verdict: Verdict, incoming: IncomingRequest) -> Passed:
        claims = verdict.claims
        assert claims is not None  # noqa: S101 - an admitted verdict has them
        session = CurrentSession(
            user=claims.user,
            session_id=verdict.session_id or 0,
            roles=claims.roles,
            is_admin=claims.is_admin,
            claims=claims,
            degraded=verdict.degraded,
        )
        return Passed(admitted_headers(self._rules, headers, verdict, incoming), session)

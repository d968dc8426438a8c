"""Gatekeeper's own operations: from a matched path to an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gatekeeper.auth.gate import Gate
from gatekeeper.auth.sign_out import SignOut
from gatekeeper.dialects.base import Answer, Needs
from gatekeeper.dialects.router import Bound, Router
from gatekeeper.errors import Reason
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.http.types import Receive
from gatekeeper.models import Claims, Problem, Verdict
from gatekeeper.sessions.manager import Manager
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.tokens.credentials import Credentials
from gatekeeper.web.body import read_object
from gatekeeper.web.outcome import Refused, Served, conclude, identify, problem_of, refuse
from gatekeeper.web.request import IncomingRequest
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules

_NO_STRING = Problem(reason=Reason.BAD_REQUEST, detail="access_token must be a string")


class Operations:
    """Serves the operations of the router. Raises `StoreUnavailable` and `KeysUnavailable`."""

    def __init__(
        self,
        rules: RequestRules,
        responder: Responder,
        *,
        gate: Gate,
        sign_out: SignOut,
        manager: Manager,
        router: Router,
    ) -> None:
        self._rules = rules
        self._responder = responder
        self._gate = gate
        self._sign_outs = sign_out
        self._manager = manager
        self._router = router

    async def serve(
        self, matched: RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served:
        """Carry out one operation."""
        record.route = matched.route.template
        if isinstance(matched.route.target, Answer):
            conclude(record, "bypass")
            return Served(self._router.described_below(incoming.root) if incoming.root else matched.route.target)
        bound = bound_of(matched)
        assert bound is not None  # noqa: S101 - a route has no other targets
        if bound.operation.needs is Needs.TOKEN:
            return await self._sign_out(bound, matched, incoming, record, receive)
        verdict, wait_seconds = await self._admit(incoming)
        identify(record, verdict)
        if verdict.claims is None:
            return refuse(record, problem_of(verdict), bound, verdict)
        if wait_seconds:
            return refuse(record, Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait_seconds), bound)
        conclude(record, "allow")
        members = {} if incoming.method in SAFE_METHODS else await read_object(receive, incoming.headers)
        if isinstance(members, Problem):
            return Refused(members, bound.dialect, bound.operation)
        return await self._operate(bound, verdict.claims, verdict.session_id, matched, incoming, record, members)

    async def _sign_out(
        self, bound: Bound, matched: RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served:
        """Carry out an operation that needs a token only: in the request, in its body, or both if they are one
        user's."""
        facts = self._rules.facts(incoming, own=True)
        bearer = await self._gate.identify(facts, ignore_times=True)
        if bearer.claims is None and bearer.reason is not Reason.TOKEN_MISSING:
            return refuse(record, problem_of(bearer), bound, bearer)
        members = await read_object(receive, incoming.headers)
        sent = members.get("access_token") if not isinstance(members, Problem) else None
        if bearer.claims is None and sent is None:
            return refuse(record, problem_of(bearer), bound, bearer)
        if isinstance(members, Problem) or not isinstance(sent, str | None):
            problem = members if isinstance(members, Problem) else _NO_STRING
            return refuse(record, problem, bound)
        named = await self._sign_outs.named(facts, Credentials(access_token=sent), strict=True)
        if isinstance(named, Problem):
            return refuse(record, named, bound, token_sent=True)
        record.user_id = named.user
        address = self._rules.address_of(incoming)
        if wait_seconds := await self._gate.wait_seconds(named.user, address=address):
            return refuse(record, Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait_seconds), bound)
        conclude(record, "allow")
        first, *others = named.tokens
        for claims in others:
            await self._manager.log_out(claims, incoming.client)
        return await self._operate(bound, first, None, matched, incoming, record, members)

    async def _admit(self, incoming: IncomingRequest) -> tuple[Verdict, int]:
        """The verdict, and the seconds that a caller over its rate limit has to wait: one round trip for both."""
        facts = self._rules.facts(incoming, own=True)
        identified = await self._gate.identify(facts)
        if identified.user is None:
            return identified, 0
        address = self._rules.address_of(incoming)
        wait = self._gate.wait_seconds(identified.user, address=address)
        return await asyncio.gather(self._gate.judge(facts), wait)

    async def _operate(
        self,
        bound: Bound,
        claims: Claims,
        session_id: int | None,
        matched: RouteMatch,
        incoming: IncomingRequest,
        record: RequestRecord,
        members: Mapping[str, Any],
    ) -> Refused | Served:
        """Run the operation. "No such session" is a result too, and no verdict on the caller."""
        wording = self._responder.wording(incoming, bound.operation, members=members)
        response = await self._router.serve(
            bound,
            claims=claims,
            session_id=session_id,
            client=incoming.client,
            parameters=matched.parameters,
            query=incoming.query,
            members=members,
            wording=wording,
        )
        if isinstance(response, Answer):
            return Served(response)
        if response.reason is Reason.FORBIDDEN:
            conclude(record, "deny", response.reason)
        return Refused(response, bound.dialect, bound.operation, language=wording.language)

    def preflight(self, incoming: IncomingRequest, record: RequestRecord) -> Refused | Served | None:
        """The response to a preflight for one of Gatekeeper's own operations; None for a path of the application."""
        origins = self._rules.origins
        if not origins:
            return None
        paths = self._rules.paths
        try:
            matched = paths.classify(incoming.preflight_method, incoming.path)
        except BadPath:
            # The request itself is answered 400.
            return None
        if not isinstance(matched, RouteMatch):
            return None
        record.route = matched.route.template
        if not origins.allows(incoming.headers):
            return refuse(record, Problem(reason=Reason.ORIGIN_NOT_ALLOWED), bound_of(matched))
        conclude(record, "bypass")
        return Served(None, origins.preflight_headers(incoming.headers, methods=paths.own_methods(incoming.path)))


def bound_of(kind: RouteMatch | PathKind) -> Bound | None:
    """The operation behind a path, if it is one."""
    target = kind.route.target if isinstance(kind, RouteMatch) else None
    return target if isinstance(target, Bound) else None

"""Gatekeeper's own operations: from a matched path to an answer, with all that such a request may carry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from gatekeeper import messages
from gatekeeper.dialects.base import Answer, Needs, Operation, Wording
from gatekeeper.dialects.router import Bound
from gatekeeper.errors import Reason
from gatekeeper.http.methods import SAFE_METHODS
from gatekeeper.http.paths import BadPath, PathKind, RouteMatch
from gatekeeper.http.types import Receive
from gatekeeper.models import Claims, Problem, Verdict
from gatekeeper.runtime import Engine
from gatekeeper.telemetry.request_record import RequestRecord
from gatekeeper.tokens.credentials import Credentials
from gatekeeper.web.body import read_object
from gatekeeper.web.outcome import Refused, Served, conclude, identify, problem_of, refuse
from gatekeeper.web.request import IncomingRequest

_NO_STRING = Problem(reason=Reason.BAD_REQUEST, detail="access_token must be a string")


class Operations:
    """Serves what the router knows. Raises `StoreUnavailable` and `KeysUnavailable`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def serve(
        self, matched: RouteMatch, incoming: IncomingRequest, record: RequestRecord, receive: Receive
    ) -> Refused | Served:
        """One of Gatekeeper's own operations."""
        record.route = matched.route.template
        if isinstance(matched.route.target, Answer):
            conclude(record, "bypass")
            return Served(matched.route.target)
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
        """An operation of whoever holds a token: in the request, in its body, or both if they are one user's."""
        engine = self._engine
        facts = incoming.facts(engine.origins, own=True)
        bearer = await engine.gate.identify(facts, ignore_expiry=True)
        if bearer.claims is None and bearer.reason is not Reason.TOKEN_MISSING:
            return refuse(record, problem_of(bearer), bound, bearer)
        members = await read_object(receive, incoming.headers)
        sent = members.get("access_token") if not isinstance(members, Problem) else None
        if bearer.claims is None and sent is None:
            return refuse(record, problem_of(bearer), bound, bearer)
        if isinstance(members, Problem) or not isinstance(sent, str | None):
            problem = members if isinstance(members, Problem) else _NO_STRING
            return refuse(record, problem, bound)
        named = await engine.parts.sign_out.named(facts, Credentials(access_token=sent), strict=True)
        if isinstance(named, Problem):
            return refuse(record, named, bound, token_sent=True)
        record.user_id = named.user
        address = engine.address_of(incoming.client.ip_address, incoming.peer)
        if wait_seconds := await engine.gate.wait_seconds(named.user, address=address):
            return refuse(record, Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait_seconds), bound)
        conclude(record, "allow")
        first, *others = named.tokens
        for claims in others:
            await engine.manager.log_out(claims, incoming.client)
        return await self._operate(bound, first, None, matched, incoming, record, members)

    async def _admit(self, incoming: IncomingRequest) -> tuple[Verdict, int]:
        """The verdict, and for how long a caller that asks too often has to wait. One round trip for both."""
        engine = self._engine
        facts = incoming.facts(engine.origins, own=True)
        identified = await engine.gate.identify(facts)
        if identified.user is None:
            return identified, 0
        address = engine.address_of(incoming.client.ip_address, incoming.peer)
        wait = engine.gate.wait_seconds(identified.user, address=address)
        return await asyncio.gather(engine.gate.judge(facts), wait)

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
        """What the operation answers. "No such session" is an answer too, and no verdict on the caller."""
        wording = self.wording(incoming, bound.operation, members)
        answer = await self._engine.router.serve(
            bound,
            claims=claims,
            session_id=session_id,
            client=incoming.client,
            parameters=matched.parameters,
            query=incoming.query,
            wording=wording,
        )
        if isinstance(answer, Answer):
            return Served(answer)
        if answer.reason is Reason.FORBIDDEN:
            conclude(record, "deny", answer.reason)
        return Refused(answer, bound.dialect, bound.operation, language=wording.language)

    def wording(
        self,
        incoming: IncomingRequest,
        operation: Operation | None,
        members: Mapping[str, Any],
        language: str | None = None,
    ) -> Wording:
        """What an answer is worded with: the language that the body asks for, else the header."""
        asked = members.get("language")
        if language is None and isinstance(asked, str):
            language = messages.known(asked)
        return Wording(
            request_id=incoming.request_id,
            now=time.time_ns() // 1000,
            language=language or self.language(incoming),
            operation=operation,
        )

    def language(self, incoming: IncomingRequest) -> str:
        """The one that the headers ask for, else the configured one."""
        return messages.accepted(incoming.language_header, self._engine.language)

    def preflight(self, incoming: IncomingRequest, record: RequestRecord) -> Refused | Served | None:
        """The answer to a preflight for one of Gatekeeper's own operations; None for what is the application's."""
        origins = self._engine.origins
        if not origins:
            return None
        paths = self._engine.paths
        try:
            matched = paths.classify(incoming.preflight_method, incoming.path)
        except BadPath:
            # The request itself will be told so.
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

"""Runs the operation that a request asks for. This is the only place that enforces the tables of the dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from gatekeeper.dialects import DIALECTS
from gatekeeper.dialects.base import Answer, Call, Dialect, Needs, Operation, SessionActions, Wording
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.dialects.error_template import ErrorTemplate
from gatekeeper.dialects.openapi import document
from gatekeeper.dialects.openapi_endpoints import add_endpoints
from gatekeeper.errors import Reason
from gatekeeper.http.paths import Route
from gatekeeper.models import Claims, Client, Policy, Problem
from gatekeeper.sessions.events import Actor

OPENAPI_PATH: Final = "/_gatekeeper/openapi.json"
_FLAGS: Final = {"true": True, "false": False}


class ActingManager(SessionActions, Protocol):
    """The methods of `sessions.manager.Manager` that the router calls. Each coroutine raises `StoreUnavailable`."""

    def by(self, actor: Actor) -> ActingManager:
        """Returns a manager whose audit events name `actor`."""
        ...

    async def record_admin_action(self, operation: str, user: str | None) -> None: ...


class Bound(msgspec.Struct, frozen=True):
    """An operation with its dialect: the target of a route."""

    dialect: Dialect
    operation: Operation


class Query(msgspec.Struct, frozen=True):
    """The query parameters that an operation declares, with their values."""

    flags: Mapping[str, bool]
    texts: Mapping[str, str]


class Router:
    """Serves the operations of the enabled dialects, and their OpenAPI document."""

    def __init__(
        self,
        manager: ActingManager,
        *,
        dialects: Sequence[str],
        error_dialect: str,
        policy: Policy,
        change_password_url: str | None = None,
        debug_for_everybody: bool = False,
        cookies: Sequence[str] = (),
        endpoints: Sequence[Endpoint] = (),
        template: ErrorTemplate | None = None,
    ) -> None:
        self._manager = manager
        self._policy = policy
        self._change_password_url = change_password_url
        self._dialects = [DIALECTS[name] for name in dialects]
        self._fallback = DIALECTS[error_dialect]
        self._template = template
        self._debug_for_everybody = debug_for_everybody
        described = document(
            self._dialects, fallback=self._fallback, debug_for_everybody=debug_for_everybody, cookies=cookies
        )
        add_endpoints(described, endpoints)
        self._described = described
        self._document = Answer(body=msgspec.Raw(msgspec.json.encode(described)))

    def routes(self) -> list[Route]:
        """Returns the routes of the enabled dialects and of the OpenAPI document.

        A template has no trailing slash, even where the dialect writes one: the path table accepts both forms.
        """
        return [
            *(
                Route(operation.method, operation.path.removesuffix("/"), Bound(dialect, operation))
                for dialect in self._dialects
                for operation in dialect.operations
            ),
            Route("GET", OPENAPI_PATH, self._document),
        ]

    def described_below(self, root: str) -> Answer:
        """Returns the OpenAPI document of an application that is mounted below `root`."""
        return Answer(body={**self._described, "servers": [{"url": quote(root.rstrip("/")) or "/"}]})

    async def serve(
        self,
        bound: Bound,
        *,
        claims: Claims,
        session_id: int | None,
        client: Client,
        parameters: Mapping[str, str],
        query: bytes,
        members: Mapping[str, Any],
        wording: Wording,
    ) -> Answer | Problem:
        """Runs an operation and returns its response, or a `Problem`. Raises `StoreUnavailable`.

        The web layer has checked the token and the session. Roles and query parameters are checked here. `query` is
        the raw query string, `parameters` are still percent-encoded.
        """
        operation = bound.operation
        actor = Actor.of(client, claims.user, kind="admin" if operation.needs is Needs.ADMIN else "user")
        if not claims.is_admin and (
            operation.needs is Needs.ADMIN or (operation.needs is Needs.DEBUG and not self._debug_for_everybody)
        ):
            return Problem(reason=Reason.FORBIDDEN)
        found = _query(operation, query)
        if isinstance(found, Problem):
            return found
        if (problem := _fault_of(operation, members)) is not None:
            return problem
        manager = self._manager.by(actor)
        call = Call(
            manager=manager,
            claims=claims,
            session_id=session_id or 0,
            client=client,
            parameters={name: unquote(value) for name, value in parameters.items()},
            flags=found.flags,
            texts=found.texts,
            members=members,
            policy=self._policy,
            change_password_url=self._change_password_url,
            request_id=wording.request_id,
            now=wording.now,
            language=wording.language,
        )
        if operation.needs is Needs.ADMIN:
            user = call.parameters.get("user_id", call.texts.get("user_id"))
            await manager.record_admin_action(f"{operation.method} {operation.path}", user)
        return await operation.handler(call)

    def word(self, problem: Problem, dialect: Dialect | None, wording: Wording) -> Any:
        """Returns the body of an error response in the shape of `dialect`; without one, of `ERROR_BODY`, else of
        `ERROR_DIALECT`."""
        if dialect is None and self._template is not None:
            return self._template.fill(problem, wording)
        return (dialect or self._fallback).word(problem, wording)


def _query(operation: Operation, query: bytes) -> Query | Problem:
    """Reads the declared query parameters; a `Problem` for one that is repeated or has another value than allowed."""
    if not query or not (operation.flags or operation.texts):
        return Query(operation.flags, {})
    flags, texts = dict(operation.flags), dict[str, str]()
    given: set[str] = set()
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in flags:
            if value not in _FLAGS or name in given:
                return _not_once(name, ", as true or false")
            flags[name] = _FLAGS[value]
        elif name in operation.texts:
            if name in given:
                return _not_once(name)
            texts[name] = value
        given.add(name)
    return Query(flags, texts)


def _fault_of(operation: Operation, members: Mapping[str, Any]) -> Problem | None:
    """Names a member that the body has and may not have, or lacks; None where there is none."""
    known = (*operation.accepts, "language")
    if operation.is_strict and (unknown := sorted(set(members) - set(known))):
        shown = ", ".join(each[:40] if each.isprintable() else "?" for each in unknown[:5])
        detail = f"The body has an unknown member ({shown}; accepted: {', '.join(known)})"
        return Problem(reason=Reason.BAD_REQUEST, detail=detail)
    for name in operation.accepts:
        if name not in members:
            return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be given once")
    return None


def _not_once(name: str, how: str = "") -> Problem:
    return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be given once{how}")

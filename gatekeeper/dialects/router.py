"""From a matched path to an answer: the one place where a dialect's table is enforced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from gatekeeper.dialects import DIALECTS
from gatekeeper.dialects.base import Answer, Call, Dialect, Needs, Operation, Wording
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.dialects.openapi import document
from gatekeeper.dialects.openapi_endpoints import add_endpoints
from gatekeeper.errors import Reason
from gatekeeper.http.paths import Route
from gatekeeper.models import Claims, Client, Problem
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.manager import Manager

OPENAPI_PATH: Final = "/_gatekeeper/openapi.json"
_FLAGS: Final = {"true": True, "false": False}


class Bound(msgspec.Struct, frozen=True):
    """An operation with the dialect that it belongs to: the target of a route."""

    dialect: Dialect
    operation: Operation


class Query(msgspec.Struct, frozen=True):
    """The query parameters that an operation names."""

    flags: Mapping[str, bool]
    texts: Mapping[str, str]


class Router:
    """Serves the operations of the enabled dialects, and describes them."""

    def __init__(
        self,
        manager: Manager,
        *,
        dialects: Sequence[str],
        error_dialect: str,
        debug_for_everybody: bool = False,
        cookies: Sequence[str] = (),
        endpoints: Sequence[Endpoint] = (),
    ) -> None:
        self._manager = manager
        self._dialects = [DIALECTS[name] for name in dialects]
        self._fallback = DIALECTS[error_dialect]
        self._debug_for_everybody = debug_for_everybody
        described = document(
            self._dialects, fallback=self._fallback, debug_for_everybody=debug_for_everybody, cookies=cookies
        )
        add_endpoints(described, endpoints)
        self._document = Answer(body=msgspec.Raw(msgspec.json.encode(described)))

    def routes(self) -> list[Route]:
        """Every path that is Gatekeeper's own: the document, and what the enabled dialects claim. Templates are without
        the trailing slash that a dialect may write: a path answers with it and without."""
        return [
            *(
                Route(operation.method, operation.path.removesuffix("/"), Bound(dialect, operation))
                for dialect in self._dialects
                for operation in dialect.operations
            ),
            Route("GET", OPENAPI_PATH, self._document),
        ]

    async def serve(
        self,
        bound: Bound,
        *,
        claims: Claims,
        session_id: int | None,
        client: Client,
        parameters: Mapping[str, str],
        query: bytes,
        wording: Wording,
    ) -> Answer | Problem:
        """The answer to an operation for a caller that has what `operation.needs` asks of the session. Raises
        `StoreUnavailable`."""
        operation = bound.operation
        actor = Actor.of(client, claims.user, kind="admin" if operation.needs is Needs.ADMIN else "user")
        if not claims.is_admin and (
            operation.needs is Needs.ADMIN or (operation.needs is Needs.DEBUG and not self._debug_for_everybody)
        ):
            return Problem(reason=Reason.FORBIDDEN)
        asked = _query(operation, query)
        if isinstance(asked, Problem):
            return asked
        call = Call(
            manager=self._manager.by(actor),
            claims=claims,
            session_id=session_id or 0,
            client=client,
            parameters={name: unquote(value) for name, value in parameters.items()},
            flags=asked.flags,
            texts=asked.texts,
            request_id=wording.request_id,
            now=wording.now,
            language=wording.language,
        )
        if operation.needs is Needs.ADMIN:
            user = call.parameters.get("user_id", call.texts.get("user_id"))
            await call.manager.record_admin_action(f"{operation.method} {operation.path}", user)
        return await operation.handler(call)

    def word(self, problem: Problem, dialect: Dialect | None, wording: Wording) -> Any:
        """The body of an error answer, in the shape of the dialect that was asked, else of `ERROR_DIALECT`."""
        return (dialect or self._fallback).word(problem, wording)


def _query(operation: Operation, query: bytes) -> Query | Problem:
    if not query or not (operation.flags or operation.texts):
        return Query(operation.flags, {})
    flags, texts = dict(operation.flags), dict[str, str]()
    given: set[str] = set()
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in flags:
            if value not in _FLAGS or name in given:
                return _once(name, ", as true or false")
            flags[name] = _FLAGS[value]
        elif name in operation.texts:
            if name in given:
                return _once(name)
            texts[name] = value
        given.add(name)
    return Query(flags, texts)


def _once(name: str, how: str = "") -> Problem:
    return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be given once{how}")

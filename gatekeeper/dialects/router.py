"""From a matched path to an answer: the one place where a dialect's table is enforced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from gatekeeper.dialects import DIALECTS, ERROR_SHAPES
from gatekeeper.dialects.base import Answer, Call, Dialect, Needs, Operation, Problem
from gatekeeper.errors import Reason
from gatekeeper.models import Claims, Client
from gatekeeper.paths import Route
from gatekeeper.sessions.manager import Manager

_FLAGS: Final = {"true": True, "false": False}


class Bound(msgspec.Struct, frozen=True):
    """An operation with the dialect that it belongs to: the target of a route."""

    dialect: Dialect
    operation: Operation


class Router:
    """Serves the operations of the enabled dialects."""

    def __init__(self, manager: Manager, *, dialects: Sequence[str], error_dialect: str) -> None:
        self._manager = manager
        self._dialects = [DIALECTS[name] for name in dialects]
        self._word = ERROR_SHAPES[error_dialect]

    def routes(self) -> list[Route]:
        """Every path that the enabled dialects claim."""
        return [
            Route(operation.method, operation.path, Bound(dialect, operation))
            for dialect in self._dialects
            for operation in dialect.operations
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
        request_id: str,
        now: int,
    ) -> Answer | Problem:
        """The answer to an operation for a caller that has what `operation.needs` asks of the session. Raises
        `StoreUnavailable`."""
        operation = bound.operation
        if operation.needs is Needs.ADMIN and not claims.is_admin:
            return Problem(reason=Reason.FORBIDDEN)
        flags = _flags(operation, query)
        if isinstance(flags, Problem):
            return flags
        call = Call(
            manager=self._manager,
            claims=claims,
            session_id=session_id or 0,
            client=client,
            parameters={name: unquote(value) for name, value in parameters.items()},
            flags=flags,
            request_id=request_id,
            now=now,
        )
        return await operation.handler(call)

    def word(self, problem: Problem, bound: Bound | None, *, request_id: str, now: int) -> Any:
        """The body of an error answer, in the shape of the dialect that was asked, else of `ERROR_DIALECT`."""
        if bound is None:
            return self._word(problem, operation=None, request_id=request_id, now=now)
        return bound.dialect.word(problem, operation=bound.operation, request_id=request_id, now=now)


def _flags(operation: Operation, query: bytes) -> Mapping[str, bool] | Problem:
    if not query or not operation.flags:
        return operation.flags
    flags = dict(operation.flags)
    given: set[str] = set()
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in flags:
            continue
        if value not in _FLAGS or name in given:
            return Problem(reason=Reason.BAD_REQUEST, detail=f"{name} must be given once, as true or false")
        given.add(name)
        flags[name] = _FLAGS[value]
    return flags

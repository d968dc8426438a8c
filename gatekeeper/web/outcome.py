"""The three outcomes of a request: refused here, served here, or passed to the application behind."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gatekeeper.auth.requests import ObservedSignIn, SessionOwner
from gatekeeper.dialects import fastapi
from gatekeeper.dialects.base import Answer, Dialect, Operation
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.dialects.router import Bound
from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.paths import PathKind, RouteMatch
from gatekeeper.models import Problem, Verdict
from gatekeeper.telemetry.request_record import Decision, RequestRecord
from gatekeeper.web.body import Replay
from gatekeeper.web.request import CurrentSession


class Refused(msgspec.Struct, frozen=True):
    """An error response of Gatekeeper's own: worded by `dialect` if the request asked in one, and in `language` if
    its body named one."""

    problem: Problem
    dialect: Dialect | None = None
    operation: Operation | None = None
    token_sent: bool = False
    language: str | None = None


class Served(msgspec.Struct, frozen=True):
    """A response of Gatekeeper's own with `headers`; without a body where `answer` is None."""

    response: Answer | None
    headers: Sequence[tuple[bytes, bytes]] = ()


class Passed(msgspec.Struct, frozen=True):
    """A request that goes on to the application behind: its headers, and its session if there is one. `replay`
    gives a body that was read already, `observation` gets the response."""

    headers: HeaderList
    session: CurrentSession | None = None
    body: bool = True
    replay: Replay | None = None
    observation: ObservedSignIn | None = None
    language: str | None = None


def failed(problem: Problem, kind: RouteMatch | PathKind) -> Refused:
    """`problem` in the shape of the endpoint or operation that was asked."""
    if kind is PathKind.RESERVED:
        return Refused(problem, fastapi)
    target = kind.route.target if isinstance(kind, RouteMatch) else None
    if isinstance(target, Endpoint):
        return Refused(problem, target.dialect)
    return Refused(problem, target.dialect, target.operation) if isinstance(target, Bound) else Refused(problem)


def conclude_failed(record: RequestRecord, error: GatekeeperError) -> None:
    """Record a request that could not be judged: a fault behind Gatekeeper, or too many requests at once."""
    conclude(record, "error" if error.reason.status >= 500 else "deny", error.reason)


def problem_of(verdict: Verdict) -> Problem:
    """The problem that a refusing verdict stands for."""
    why = verdict.why if verdict.reason is Reason.TOKEN_INVALID else ""
    return Problem(reason=verdict.reason, detail=verdict.detail, end_reason=verdict.end_reason, why=why)


def identify(record: RequestRecord, verdict: Verdict) -> None:
    """Record the user and the session of a verdict."""
    record.user_id = verdict.user
    record.session_id = verdict.session_id


def identify_as(record: RequestRecord, owner: SessionOwner) -> None:
    """Record the user and the session of a sign-in."""
    if owner.user is not None:
        record.user_id, record.session_id = owner.user, owner.session_id


def conclude(record: RequestRecord, decision: Decision, reason: Reason | None = None) -> None:
    """Record the decision and its reason."""
    record.decision = decision
    record.reason = "none" if reason is None else reason.code


def refuse(
    record: RequestRecord,
    problem: Problem,
    asked: Bound | Dialect | None = None,
    verdict: Verdict | None = None,
    *,
    token_sent: bool = False,
    language: str | None = None,
) -> Refused:
    """Record a refusal and make its outcome."""
    conclude(record, "deny", problem.reason)
    record.why = problem.why
    dialect, operation = (asked.dialect, asked.operation) if isinstance(asked, Bound) else (asked, None)
    token_sent = token_sent or (verdict is not None and verdict.token_source is not None)
    return Refused(problem, dialect, operation, token_sent, language)


def unforwarded(error: GatekeeperError) -> Refused:
    """The outcome of a request that was admitted and could not be forwarded: the client of a bad request learns what is
    wrong with it, but nothing of a fault of the backend."""
    detail = str(error) if error.reason is Reason.BAD_REQUEST else ""
    return Refused(Problem(reason=error.reason, detail=detail))

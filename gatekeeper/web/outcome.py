"""What becomes of a request: refused here, served here, or passed to the application behind."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gatekeeper.auth.observed_sign_in import ObservedSignIn, SessionOwner
from gatekeeper.dialects import fastapi
from gatekeeper.dialects.base import Answer, Dialect, Operation
from gatekeeper.dialects.endpoints import Endpoint
from gatekeeper.dialects.router import Bound
from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.paths import PathKind, RouteMatch
from gatekeeper.http.types import Receive
from gatekeeper.models import Problem, Verdict
from gatekeeper.telemetry.request_record import Decision, RequestRecord
from gatekeeper.web.request import CurrentSession


class Refused(msgspec.Struct, frozen=True):
    """What is answered here, in error: worded by `dialect`, if one was asked, and in `language`, if the request has
    told one that is not in its headers."""

    problem: Problem
    dialect: Dialect | None = None
    operation: Operation | None = None
    token_sent: bool = False
    language: str | None = None


class Served(msgspec.Struct, frozen=True):
    """What is answered here; without a body where `answer` is None, with `headers` beside."""

    answer: Answer | None
    headers: Sequence[tuple[bytes, bytes]] = ()


class Passed(msgspec.Struct, frozen=True):
    """What goes to the application behind: its headers, and the session if there is one. `receive` gives its body where
    that has been read, `observation` is told of the answer."""

    headers: HeaderList
    session: CurrentSession | None = None
    body: bool = True
    receive: Receive | None = None
    observation: ObservedSignIn | None = None
    language: str | None = None


def failed(problem: Problem, kind: RouteMatch | PathKind) -> Refused:
    """`problem` in the shape of whatever was asked."""
    if kind is PathKind.RESERVED:
        return Refused(problem, fastapi)
    target = kind.route.target if isinstance(kind, RouteMatch) else None
    if isinstance(target, Endpoint):
        return Refused(problem, target.dialect)
    return Refused(problem, target.dialect, target.operation) if isinstance(target, Bound) else Refused(problem)


def conclude_failed(record: RequestRecord, error: GatekeeperError) -> None:
    """Nothing could be found out: what is behind is at fault, or there is too much to find out."""
    conclude(record, "error" if error.reason.status >= 500 else "deny", error.reason)


def problem_of(verdict: Verdict) -> Problem:
    return Problem(reason=verdict.reason, end_reason=verdict.end_reason)


def identify(record: RequestRecord, verdict: Verdict) -> None:
    record.user_id = verdict.user
    record.session_id = verdict.session_id


def identify_as(record: RequestRecord, owner: SessionOwner) -> None:
    if owner.user is not None:
        record.user_id, record.session_id = owner.user, owner.session_id


def conclude(record: RequestRecord, decision: Decision, reason: Reason | None = None) -> None:
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
    conclude(record, "deny", problem.reason)
    dialect, operation = (asked.dialect, asked.operation) if isinstance(asked, Bound) else (asked, None)
    token_sent = token_sent or (verdict is not None and verdict.token_source is not None)
    return Refused(problem, dialect, operation, token_sent, language)

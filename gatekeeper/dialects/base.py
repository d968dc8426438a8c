"""What a dialect is: a table of operations, and how it words sessions and errors.

A dialect translates and never decides. Who may do what stands in the table (`Operation.needs`) and is enforced by the
router; what happens to a session is the manager's.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.models import Claims, Client, EndReason
from gatekeeper.sessions.manager import Manager


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, or a fault, on its way to the client. `detail` overrides the reason's own text."""

    reason: Reason
    detail: str = ""
    end_reason: EndReason | None = None

    @property
    def text(self) -> str:
        return self.detail or self.reason.detail


class Needs(Enum):
    """What a caller must have before an operation is served."""

    NOTHING = "nothing"
    TOKEN = "token"  # noqa: S105 - a good one, the session may be over, `exp` may have passed
    SESSION = "session"
    ADMIN = "admin"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an operation, as its handler sees it. `flags` are the boolean query parameters that the
    operation names; `now` is microseconds since 1970 on this host's clock, for time stamps of answers only."""

    manager: Manager
    claims: Claims
    session_id: int
    client: Client
    parameters: Mapping[str, str]
    flags: Mapping[str, bool]
    request_id: str
    now: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back: `body` is anything msgspec can encode as JSON."""

    status: int = 200
    body: Any


Handler = Callable[[Call], Awaitable[Answer | Problem]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a dialect's table. `flags` names its boolean query parameters with their defaults."""

    method: str
    path: str
    handler: Handler
    needs: Needs = Needs.SESSION
    flags: Mapping[str, bool] = {}


class Dialect(Protocol):
    """One session API."""

    name: str
    operations: Sequence[Operation]

    def word(self, problem: Problem, *, operation: Operation | None, request_id: str, now: int) -> Any:
        """The body of an error answer; `operation` is the one that was asked for, where there was one."""
        ...


_ID: Final = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)
NOT_FOUND: Final = Problem(reason=Reason.SESSION_NOT_FOUND)


def session_id(text: str) -> int | None:
    """A session id as it stands in a path. None: that is no id, and so no session."""
    if not _ID.match(text):
        return None
    number = int(text)
    return number if number < 2**53 else None


def user_number(user: str) -> int | str:
    """A user id as a JSON number where it is canonical decimal of up to 15 digits, else as it is."""
    return int(user) if re.fullmatch(r"0|[1-9][0-9]{0,14}", user, re.ASCII) else user


def instant(microseconds: int, *, digits: int) -> str:
    """ISO 8601 in UTC with `Z` and `digits` (0, 3 or 6) decimals of the second, cut and not rounded."""
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{microseconds % 1_000_000:06d}"[:digits]
    return f"{moment}.{fraction}Z" if fraction else f"{moment}Z"


def detail_and_code(problem: Problem) -> dict[str, Any]:
    """`{"detail", "code"}`, and the end reason where there is one: the shape of `fastapi`, `mockstream`, `users_me`."""
    body: dict[str, Any] = {"detail": problem.text, "code": problem.reason.code}
    if problem.end_reason is not None:
        body["reason"] = problem.end_reason.value
    return body

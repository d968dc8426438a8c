"""What a dialect is: a table of operations, and how it words sessions and errors.

A dialect translates and never decides. Who may do what stands in the table (`Operation.needs`) and is enforced by the
router; what happens to a session is the manager's. Every answer is a typed record, and the OpenAPI document is made
from the same types.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.messages import translate
from gatekeeper.models import Claims, Client, EndReason, Problem
from gatekeeper.sessions.manager import Manager


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """What an error answer is worded with beside the problem. `operation` is the one that was asked for, if there was
    one; `now` is microseconds since 1970 on this host's clock, for time stamps of answers only."""

    request_id: str
    now: int
    language: str
    operation: Operation | None = None

    def say(self, text: str) -> str:
        return translate(text, self.language)


class Needs(Enum):
    """What a caller must have before an operation is served."""

    TOKEN = "token"  # noqa: S105 - a good one; the session may be over, and `exp` may have passed
    SESSION = "session"
    ADMIN = "admin"
    DEBUG = "debug"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an operation, as its handler sees it. `flags` and `texts` are the query parameters that the
    operation names; `now` as in `Wording`."""

    manager: Manager
    claims: Claims
    session_id: int
    client: Client
    parameters: Mapping[str, str]
    flags: Mapping[str, bool]
    texts: Mapping[str, str]
    request_id: str
    now: int
    language: str

    def say(self, text: str) -> str:
        """`text` in the language of the request."""
        return translate(text, self.language)

    @property
    def spare(self) -> int | None:
        """The caller's session where `exclude_current` asks to leave it."""
        return self.session_id if self.flags["exclude_current"] else None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back: `body` is anything msgspec can encode as JSON."""

    status: int = 200
    body: Any


Handler = Callable[[Call], Awaitable[Answer | Problem]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a dialect's table. `returns` is the type of its answer, `flags` names its boolean query parameters
    with their defaults, `texts` the others, `refusals` what it answers beside the errors that all share."""

    method: str
    path: str
    handler: Handler
    summary: str
    returns: Any
    needs: Needs = Needs.SESSION
    flags: Mapping[str, bool] = {}
    texts: Sequence[str] = ()
    refusals: Sequence[Reason] = ()


class Dialect(Protocol):
    """One session API: a module with these names. `Error` is the type of its error answers."""

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[Operation]: ...

    @property
    def Error(self) -> Any: ...  # noqa: N802 - it is a type

    def word(self, problem: Problem, wording: Wording) -> Any:
        """The body of an error answer."""
        ...


_ID: Final = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)
NOT_FOUND: Final = Problem(reason=Reason.SESSION_NOT_FOUND)
LISTS: Final[Mapping[str, bool]] = {"include_inactive": False}
ENDS_ALL: Final[Mapping[str, bool]] = {"exclude_current": False}
ENDS_OTHERS: Final[Mapping[str, bool]] = {"exclude_current": True}


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


class DetailAndCode(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error shape of `fastapi`, `mockstream` and `users_me`; `reason` is how the session ended, where it did."""

    detail: str
    code: str
    reason: EndReason | None = None


def detail_and_code(problem: Problem, wording: Wording) -> DetailAndCode:
    return DetailAndCode(wording.say(problem.text), problem.reason.code, problem.end_reason)

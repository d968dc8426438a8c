"""The parts of a dialect: a table of operations, and functions that put sessions and errors into its shapes.

A dialect translates and never decides. The table says what a caller needs (`Operation.needs`) and the router enforces
it; the session manager carries out what happens to a session. Every response body is a typed record, and the OpenAPI
document is made from the same types.
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
from gatekeeper.models import Claims, Client, EndReason, Policy, Problem, Session


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """The context of an error body, beside the problem itself.

    `operation` is the requested operation if the path belongs to one. `now` is microseconds since 1970 on this host's
    clock; use it for timestamps in responses only.
    """

    request_id: str
    now: int
    language: str
    operation: Operation | None = None

    def say(self, text: str) -> str:
        """Translates `text` into the language of the request."""
        return translate(text, self.language)


class Needs(Enum):
    """The requirement that a caller must meet before an operation runs. The router enforces it."""

    # A token with a good signature. Its session may have ended and its `exp` may have passed: a logout can be repeated.
    TOKEN = "token"  # noqa: S105 - not a credential
    SESSION = "session"
    ADMIN = "admin"
    DEBUG = "debug"


class SessionActions(Protocol):
    """The methods of `sessions.manager.Manager` that a dialect may call. Each raises `StoreUnavailable`."""

    async def sessions(self, user: str, *, include_inactive: bool = False) -> list[Session]: ...

    async def history(self, user: str, *, include_ended: bool) -> list[Session]: ...

    async def get(self, user: str, session_id: int | None) -> Session | None: ...

    async def rename(self, user: str, session_id: int | None, name: str) -> Session | None: ...

    async def report(self, user: str, session_id: int | None) -> Session | None: ...

    async def revoke(
        self, user: str, session_id: int | None, *, by_admin: bool = False, only_live: bool = False
    ) -> Session | None: ...

    async def deactivate(self, user: str, session_id: int | None) -> Session | None: ...

    async def revoke_all(self, user: str, *, spare: int | None = None, by_admin: bool = False) -> int: ...

    async def log_out(self, claims: Claims, client: Client) -> int | None: ...

    async def clean_up(self) -> int: ...


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an operation, as its handler receives it.

    `parameters` are the decoded placeholders of the path. `flags` and `texts` are the query parameters that the
    operation declares, `members` those of the body. `change_password_url` is where
    people change their password. `now` is microseconds since 1970, as in `Wording`.
    """

    manager: SessionActions
    claims: Claims
    session_id: int
    client: Client
    parameters: Mapping[str, str]
    flags: Mapping[str, bool]
    texts: Mapping[str, str]
    members: Mapping[str, Any]
    policy: Policy
    change_password_url: str | None
    request_id: str
    now: int
    language: str

    def say(self, text: str) -> str:
        """Translates `text` into the language of the request."""
        return translate(text, self.language)

    @property
    def spare(self) -> int | None:
        """The id of the caller's session if `exclude_current` is true: that session must stay alive."""
        return self.session_id if self.flags["exclude_current"] else None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response of Gatekeeper's own. `body` is anything that msgspec can encode as JSON."""

    status: int = 200
    body: Any


Handler = Callable[[Call], Awaitable[Answer | Problem]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a dialect's table.

    `returns` is the type of the response body. `flags` are the boolean query parameters with their defaults, `texts`
    the names of the other query parameters, `accepts` the members that its body must have, with their
    schemas; with `is_strict` it may have no others but `language`. `refusals` are the errors of this operation beside
    those that every operation has.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    returns: Any
    needs: Needs = Needs.SESSION
    flags: Mapping[str, bool] = {}
    texts: Sequence[str] = ()
    accepts: Mapping[str, Any] = {}
    is_strict: bool = False
    refusals: Sequence[Reason] = ()


class Dialect(Protocol):
    """One session API: a module with these names. `Error` is the type of its error bodies."""

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[Operation]: ...

    @property
    def Error(self) -> Any: ...  # noqa: N802 - it is a type

    def word(self, problem: Problem, wording: Wording) -> Any:
        """Returns the body of an error response."""
        ...


_ID: Final = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)
# Session ids stay exact as JSON numbers in JavaScript (RFC 8259 section 6).
_ID_LIMIT: Final = 2**53
NOT_FOUND: Final = Problem(reason=Reason.SESSION_NOT_FOUND)
LISTS: Final[Mapping[str, bool]] = {"include_inactive": False}
ENDS_ALL: Final[Mapping[str, bool]] = {"exclude_current": False}
ENDS_OTHERS: Final[Mapping[str, bool]] = {"exclude_current": True}


def session_id(text: str) -> int | None:
    """Reads a session id from a path. Returns None for text that cannot be one, which the manager treats as unknown."""
    if not _ID.match(text):
        return None
    number = int(text)
    return number if number < _ID_LIMIT else None


def user_number(user: str) -> int | str:
    """Returns a user id as a JSON number if it is canonical decimal of up to 15 digits, else unchanged."""
    return int(user) if re.fullmatch(r"0|[1-9][0-9]{0,14}", user, re.ASCII) else user


def instant(microseconds: int, *, digits: int) -> str:
    """Formats microseconds since 1970 as ISO 8601 in UTC, such as `2026-11-21T06:58:33.723Z`.

    `digits` (0, 3 or 6) is the number of decimals of the second; the rest is cut off, not rounded.
    """
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{microseconds % 1_000_000:06d}"[:digits]
    return f"{moment}.{fraction}Z" if fraction else f"{moment}Z"


class DetailAndCode(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error shape of `fastapi`, `mockstream` and `users_me`; `reason` is how the session ended, where it did, and
    `max_age` how old a sign-in may be (RFC 9470)."""

    detail: str
    code: str
    reason: EndReason | None = None
    max_age: int | None = None


def detail_and_code(problem: Problem, wording: Wording) -> DetailAndCode:
    """Words an error for the three dialects that share this shape."""
    return DetailAndCode(wording.say(problem.text), problem.reason.code, problem.end_reason, problem.max_age)

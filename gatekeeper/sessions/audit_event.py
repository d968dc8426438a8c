"""Events of the audit log, as values."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import msgspec

from gatekeeper.sessions.events import Actor, ActorKind

_NAME_CHARACTERS: Final = 256
_REASON_CHARACTERS: Final = 512


class Action(StrEnum):
    """The kind of an event. Its `reason` is the login method of an opening, the end reason of an ended session, the
    device and the address of a reported one, the code of a refusal, or the operation of an administrator."""

    SESSION_OPENED = "session_opened"
    SESSION_ENDED = "session_ended"
    SESSION_REPORTED = "session_reported"
    SESSIONS_LOST = "sessions_lost"
    LIMIT_REFUSED = "limit_refused"
    REFRESHED = "refreshed"
    REFRESH_REFUSED = "refresh_refused"
    LOGIN_FAILED = "login_failed"
    LOGIN_THROTTLED = "login_throttled"
    LOGIN_REFUSED = "login_refused"
    ADMIN_ACTION = "admin_action"


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event, with the fields in the order in which they are written. `ts` is UTC with microseconds; `actor_id` is
    the user who acted, `user_id` the user of the session; `id` tells copies of one event."""

    ts: str
    event: str
    actor: ActorKind
    actor_id: str | None
    user_id: str | None
    session_id: int | None
    reason: str | None
    client_ip: str | None
    request_id: str | None
    user_name: str | None
    id: str


def timestamp(microseconds: int) -> str:
    """Formats an instant as UTC with microseconds."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def printable(text: str, length: int) -> str:
    """Removes unprintable characters, and cuts to `length` characters."""
    return "".join(character for character in text[: 4 * length] if character.isprintable())[:length]


def audit_event(
    event: str,
    actor: Actor,
    *,
    at: int,
    user: str | None = None,
    session_id: int | None = None,
    reason: str | None = None,
    event_id: str | None = None,
) -> AuditEvent:
    """Makes an event of the instant `at` (microseconds since 1970)."""
    return AuditEvent(
        ts=timestamp(at),
        event=event,
        actor=actor.kind,
        actor_id=actor.user_id or None,
        user_id=user,
        session_id=session_id or None,
        reason=printable(reason, _REASON_CHARACTERS) if reason else None,
        client_ip=actor.client_ip or None,
        request_id=actor.request_id or None,
        user_name=printable(actor.user_name, _NAME_CHARACTERS) or None,
        id=event_id or uuid.uuid4().hex,
    )

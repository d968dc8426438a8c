"""The audit trail: who did what to which session, as a bounded stream in the store and as lines of the log.

Never a token, never a password. What somebody typed as a user name is kept where it was theirs; of a login that failed
it is in the log alone: it is whom an attack is on, but may be a password. An event may stand there twice, with the same
`id`: a process that dies between writing it and noting that it is written leaves it to another one, which writes it
again (`outbox.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.events import Actor, ActorKind
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_log = logging.getLogger("gatekeeper.audit")

# About 25 MB.
STREAM_LENGTH: Final = 100_000
_AT_ONCE: Final = 1000
_FOLLOW_SECONDS: Final = 0.5
_NAME_CHARACTERS: Final = 256
_REASON_CHARACTERS: Final = 512


class Action(StrEnum):
    """What happened. `reason` says more: the login method of an opening, the end reason of an end, the code of a
    refusal, the operation of an administrator."""

    SESSION_OPENED = "session_opened"
    SESSION_ENDED = "session_ended"
    SESSIONS_LOST = "sessions_lost"
    LIMIT_REFUSED = "limit_refused"
    REFRESHED = "refreshed"
    REFRESH_REFUSED = "refresh_refused"
    LOGIN_FAILED = "login_failed"
    LOGIN_THROTTLED = "login_throttled"
    LOGIN_REFUSED = "login_refused"
    ADMIN_ACTION = "admin_action"


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event, fields in the order of the lines. `ts` is UTC with microseconds; `actor_id` is the user who acted,
    `user_id` whose session it is; `id` is the same where an event was written twice."""

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


_FIELDS: Final = AuditEvent.__struct_fields__


def timestamp(microseconds: int) -> str:
    """UTC with microseconds."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def printable(text: str, length: int) -> str:
    """Without control characters, and not longer than anybody needs."""
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
    """An event at the instant `at`, in microseconds."""
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


class AuditLog:
    """Writes and reads events. Raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str) -> None:
        self._redis = redis
        self._key: Final = f"{key_prefix}audit".encode()

    def __repr__(self) -> str:
        return f"<AuditLog {self._key.decode()}>"

    async def record(
        self,
        action: Action,
        actor: Actor,
        *,
        user: str | None = None,
        session_id: int | None = None,
        reason: str | None = None,
    ) -> None:
        """An event that changes no session. Returns when the store has it: it is awaited before the answer, so who was
        answered is on record. The log has it in any case."""
        at = time.time_ns() // 1000
        event = audit_event(action.value, actor, at=at, user=user, session_id=session_id, reason=reason)
        _write_log(event)
        await self._append(msgspec.structs.replace(event, user_name=None))

    async def write(self, event: AuditEvent) -> None:
        """To the stream, then to the log."""
        await self._append(event)
        _write_log(event)

    async def _append(self, event: AuditEvent) -> None:
        values = msgspec.structs.asdict(event)
        fields = [part for name, value in values.items() for part in (name, "" if value is None else value)]
        await self._redis.call(command("XADD", self._key, "MAXLEN", "~", STREAM_LENGTH, "*", *fields))

    async def last(self, number: int) -> list[tuple[str, AuditEvent]]:
        """The newest events, oldest first, each with its place in the stream."""
        found = await self._redis.call(command("XREVRANGE", self._key, "+", "-", "COUNT", number))
        return [_read(entry) for entry in reversed(_entries(found))]

    async def read(self, start: str = "-", end: str = "+") -> AsyncIterator[tuple[str, AuditEvent]]:
        """Events in their order, each with its place. `start` and `end` are places in the stream: milliseconds since
        1970, or what came with an event; `(` before one leaves it out."""
        while True:
            found = await self._redis.call(command("XRANGE", self._key, start, end, "COUNT", _AT_ONCE))
            entries = _entries(found)
            for entry in entries:
                yield _read(entry)
            if len(entries) < _AT_ONCE:
                return
            start = f"({entries[-1][0].decode()}"

    async def follow(self, place: str | None) -> AsyncIterator[AuditEvent]:
        """What comes after `place`, without an end; None: from the first event on."""
        while True:
            start = "-" if place is None else f"({place}"
            async for next_place, event in self.read(start):
                place = next_place
                yield event
            await asyncio.sleep(_FOLLOW_SECONDS)


def _write_log(event: AuditEvent) -> None:
    values = msgspec.structs.asdict(event)
    # `event` is what the line is, as of every line of the log.
    line = {"action": values.pop("event"), **values}
    del line["ts"]
    _log.info("audit", extra=line)


def _entries(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise _not_ours()
    return found


def _read(entry: Any) -> tuple[str, AuditEvent]:
    try:
        place, content = entry
        # A client may have made a mapping of the flat list already.
        pairs = content.items() if isinstance(content, dict) else zip(content[::2], content[1::2], strict=True)
        fields = {name.decode(): value.decode(errors="replace") for name, value in pairs}
        values: dict[str, Any] = {name: fields.get(name) or None for name in _FIELDS}
        if values["session_id"] is not None:
            values["session_id"] = int(values["session_id"])
        return place.decode(), msgspec.convert(values, AuditEvent)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
        raise _not_ours() from None


def _not_ours() -> StoreUnavailable:
    return StoreUnavailable("the audit stream holds what is not ours", kind="protocol")

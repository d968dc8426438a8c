"""The audit log: events of sessions with their actors, in a bounded stream of the store and in the process's log.

It never holds a token or a password. A typed user name is kept in the stream where the login succeeded; of a failed
login it is in the process's log alone, because it shows the target of an attack but may be a password. An event may be
in the stream twice, with the same `id`: where a process dies after it wrote the event and before it emptied the outbox,
another process writes it again (outbox.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.audit_event import Action, AuditEvent, audit_event
from gatekeeper.sessions.events import Actor
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_log = logging.getLogger("gatekeeper.audit")

# About 25 MB.
STREAM_LENGTH: Final = 100_000
_AT_ONCE: Final = 1000
_FOLLOW_SECONDS: Final = 0.5


_FIELDS: Final = AuditEvent.__struct_fields__


class AuditLog:
    """Writes and reads events. Every method raises `StoreUnavailable`."""

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
        """Writes an event that changes no session, and returns when the store has it, so that it is on record before
        the client gets a response. The process's log has it even where the store fails."""
        at = time.time_ns() // 1000
        event = audit_event(action.value, actor, at=at, user=user, session_id=session_id, reason=reason)
        _write_log(event)
        await self._append(msgspec.structs.replace(event, user_name=None))

    async def write(self, event: AuditEvent) -> None:
        """Writes an event to the stream, then to the process's log."""
        await self._append(event)
        _write_log(event)

    async def _append(self, event: AuditEvent) -> None:
        values = msgspec.structs.asdict(event)
        fields = [part for name, value in values.items() for part in (name, "" if value is None else value)]
        await self._redis.call(command("XADD", self._key, "MAXLEN", "~", STREAM_LENGTH, "*", *fields))

    async def last(self, number: int) -> list[tuple[str, AuditEvent]]:
        """Returns the newest events, oldest first, each with its stream id."""
        found = await self._redis.call(command("XREVRANGE", self._key, "+", "-", "COUNT", number))
        return [_read(entry) for entry in reversed(_entries(found))]

    async def read(self, start: str = "-", end: str = "+") -> AsyncIterator[tuple[str, AuditEvent]]:
        """Yields events in order, each with its stream id. `start` and `end` are such ids, or milliseconds since 1970;
        `(` before one excludes it (Redis, XRANGE)."""
        while True:
            found = await self._redis.call(command("XRANGE", self._key, start, end, "COUNT", _AT_ONCE))
            entries = _entries(found)
            for entry in entries:
                yield _read(entry)
            if len(entries) < _AT_ONCE:
                return
            start = f"({entries[-1][0].decode()}"

    async def follow(self, stream_id: str | None) -> AsyncIterator[AuditEvent]:
        """Yields the events after `stream_id` (None: all), and then every new one, forever."""
        while True:
            start = "-" if stream_id is None else f"({stream_id}"
            async for next_id, event in self.read(start):
                stream_id = next_id
                yield event
            await asyncio.sleep(_FOLLOW_SECONDS)


def _write_log(event: AuditEvent) -> None:
    values = msgspec.structs.asdict(event)
    # Every line of the process's log has a field `event`, here "audit".
    line = {"action": values.pop("event"), **values}
    del line["ts"]
    _log.info("audit", extra=line)


def _entries(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise _unexpected()
    return found


def _read(entry: Any) -> tuple[str, AuditEvent]:
    try:
        stream_id, content = entry
        # With RESP3 the client returns a mapping in place of the flat list.
        pairs = content.items() if isinstance(content, dict) else zip(content[::2], content[1::2], strict=True)
        fields = {name.decode(): value.decode(errors="replace") for name, value in pairs}
        values: dict[str, Any] = {name: fields.get(name) or None for name in _FIELDS}
        if values["session_id"] is not None:
            values["session_id"] = int(values["session_id"])
        return stream_id.decode(), msgspec.convert(values, AuditEvent)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):
        raise _unexpected() from None


def _unexpected() -> StoreUnavailable:
    return StoreUnavailable("unexpected entry in the audit stream", kind="protocol")

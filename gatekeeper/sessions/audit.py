"""The audit log: events of sessions with their actors, in bounded streams of the store and in the process's log.

Sessions that became idle or expired have a stream of their own: they are most of what happens, and they must not push
out of the log what persons and attackers did. `audit_reader.py` reads both as one.

It never holds a token or a password. A typed user name is kept in the stream where the login succeeded; of a failed
login it is in the process's log alone, because it shows the target of an attack but may be a password. An event may be
in the stream twice, with the same `id`: where a process dies after it wrote the event and before it emptied the outbox,
another process writes it again (outbox.py).
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.audit_event import Action, AuditEvent, audit_event
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.scripts import load
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_log = logging.getLogger("gatekeeper.audit")

TRIM: Final = load("trim_audit")
# About 20 MB.
STREAM_LENGTH: Final = 100_000
_TRIM_SECONDS: Final = 60.0
# The reasons for which sessions end by themselves.
_ROUTINE: Final = frozenset({"idle", "expired"})


class Retention(msgspec.Struct, frozen=True):
    """The bound of the audit log: `events` of each stream, or `seconds`; the other one is None."""

    events: int | None = STREAM_LENGTH
    seconds: float | None = None


def stream_keys(key_prefix: str) -> tuple[bytes, bytes]:
    """Returns the keys of the streams: of everything else, and of sessions that ended by themselves."""
    return f"{key_prefix}audit".encode(), f"{key_prefix}audit:routine".encode()


class AuditLog:
    """Writes events. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str, retention: Retention) -> None:
        self._redis = redis
        self._keys: Final = stream_keys(key_prefix)
        self._retention = retention
        self._bound: Final = () if retention.events is None else ("MAXLEN", "~", retention.events)
        self._trim_at = 0.0

    def __repr__(self) -> str:
        return f"<AuditLog {self._keys[0].decode()}>"

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

    async def trim(self) -> None:
        """Removes events that are older than the retention, at most once a minute. A number of events needs no
        trimming: each new event removes the oldest."""
        seconds = self._retention.seconds
        if seconds is None or time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + _TRIM_SECONDS
        for key in self._keys:
            reply: Any = await self._redis.call(TRIM.command((key,), (round(seconds * 1000),)))
            if not isinstance(reply, list) or reply[0] != key:
                raise StoreUnavailable("reply for another key from the session store", kind="protocol")

    async def _append(self, event: AuditEvent) -> None:
        routine = event.event == Action.SESSION_ENDED and event.reason in _ROUTINE
        values = msgspec.structs.asdict(event)
        fields = [part for name, value in values.items() for part in (name, "" if value is None else value)]
        await self._redis.call(command("XADD", self._keys[routine], *self._bound, "*", *fields))


def _write_log(event: AuditEvent) -> None:
    values = msgspec.structs.asdict(event)
    # Every line of the process's log has a field `event`, here "audit".
    line = {"action": values.pop("event"), **values}
    del line["ts"]
    _log.info("audit", extra=line)

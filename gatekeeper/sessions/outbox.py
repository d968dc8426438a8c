"""A transactional outbox: delivers what the scripts record to the audit log and the token blacklist, at least once.

A script appends entries to the outbox of its user in the same step as the change (scripts/audit.lua). In a Cluster the
stream and the blacklist are on other nodes, which the script cannot write to. A marker, written to an index before the
script runs, names the user whose outbox may have entries. After the script, the process that called it delivers the
entries and removes the marker. Where that process dies first, another one finds the marker (`sweep`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.identifiers import mirrored, read
from gatekeeper.sessions.audit import AuditLog, Retention
from gatekeeper.sessions.audit_event import AuditEvent, audit_event
from gatekeeper.sessions.events import SYSTEM, Actor, ActorKind, Event, EventCounter
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_log = logging.getLogger("gatekeeper.audit")

# The key that backends look up (C-32), without our prefix.
MIRROR: Final = "access_token_blacklist:"
_ENTRIES_A_STEP: Final = 100
_MARKERS_A_STEP: Final = 100
# Longer than a call may take: younger markers may belong to a script that still runs.
_GRACE_SECONDS: Final = 10.0
# Whole numbers are exact in Lua up to here; the store accepts them as an expiry.
_EXACT: Final = 2**53
# Between two log lines about the same kind of fault.
_QUIET_SECONDS: Final = 60.0

# Reasons for which no actor ends a session.
_BY_ITSELF: Final = frozenset({"evicted", "idle", "expired", "refresh_reused"})
_COUNTED: Final = {"idle": Event.IDLE, "expired": Event.EXPIRED}
_KIND_BY_REASON: Final[dict[str, ActorKind]] = {"revoked_by_admin": "admin"}


class _Entry(msgspec.Struct, frozen=True):
    """An entry of an outbox: the event, and the `jti` and expiry (microseconds) of each token for the blacklist."""

    event: AuditEvent
    mirrored: Sequence[tuple[str, int]]


class Outbox:
    """The outboxes of all users; `outbox_key` names the key of one. Methods that are awaited raise
    `StoreUnavailable`."""

    def __init__(
        self, redis: StoreClient, *, key_prefix: str, outbox_key: Callable[[str], bytes], retention: Retention
    ) -> None:
        self.audit_log: Final = AuditLog(redis, key_prefix=key_prefix, retention=retention)
        self.events: EventCounter | None = None
        self._redis = redis
        self._outbox_key = outbox_key
        self._markers: Final = f"{key_prefix}outboxes".encode()
        # More than can wait while the store works; `sweep` finds those that are dropped.
        self._scheduled: deque[bytes] = deque(maxlen=10_000)
        self._woken: asyncio.Event | None = None
        self._quiet_until = 0.0

    def __repr__(self) -> str:
        return f"<Outbox [{len(self._scheduled)} waiting]>"

    @staticmethod
    def marker(user: str) -> bytes:
        """Makes a marker for one call, unique, so that removing it removes no other call's."""
        return f"{secrets.token_hex(8)}:{user}".encode()

    async def mark(self, marker: bytes) -> None:
        """Writes a marker, before the script runs. Durable as the script is, so that both leave in one batch."""
        await self._redis.call(command("ZADD", self._markers, time.time_ns() // 1000, marker, durable=True))

    def schedule(self, marker: bytes) -> None:
        """Has `run` deliver the entries of a call that is done. Returns at once."""
        self._scheduled.append(marker)
        if self._woken is not None:
            self._woken.set()

    async def run(self) -> None:
        """Delivers the entries of this process's calls, until it is cancelled."""
        self._woken = asyncio.Event()
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.flush()
            except Exception:  # noqa: BLE001 - a sweep delivers these entries; later ones need this loop
                _log.exception("internal error")

    async def flush(self) -> None:
        """Delivers the entries of this process's calls now. Where the store fails, they are left to `sweep`."""
        while self._scheduled:
            markers = [self._scheduled.popleft() for _ in range(min(len(self._scheduled), _MARKERS_A_STEP))]
            with suppress(StoreUnavailable):
                await self._deliver_marked(markers)

    async def sweep(self) -> int:
        """Delivers entries that other processes left behind, for up to 100 markers. Returns how many markers it
        found."""
        until = int((time.time() - _GRACE_SECONDS) * 1e6)
        left = command("ZRANGEBYSCORE", self._markers, "-inf", until, "LIMIT", 0, _MARKERS_A_STEP)
        markers = await self._redis.call(left)
        if not isinstance(markers, list):
            raise StoreUnavailable("unexpected reply from the session store", kind="protocol")
        if markers:
            await self._deliver_marked(markers)
        return len(markers)

    async def _deliver_marked(self, markers: Sequence[bytes]) -> None:
        by_user: dict[str, list[bytes]] = {}
        for marker in markers:
            by_user.setdefault(marker.partition(b":")[2].decode(errors="replace"), []).append(marker)
        delivered = await asyncio.gather(*map(self.deliver, by_user), return_exceptions=True)
        faults = [fault for fault in delivered if fault is not None]
        # A fault with one user keeps the markers of that user only.
        done = [each for own, fault in zip(by_user.values(), delivered, strict=True) if fault is None for each in own]
        if done:
            await self._redis.call(command("ZREM", self._markers, *done))
        if faults:
            self._log_fault(faults[0])
            raise faults[0]

    def _log_fault(self, fault: BaseException) -> None:
        """Logs that the store refuses entries. An unreachable store is reported by the breaker."""
        if not isinstance(fault, StoreUnavailable) or fault.kind not in ("refused", "protocol"):
            return
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            _log.error("audit log delivery failed: %s", fault)

    async def deliver(self, user: str) -> None:
        """Delivers all entries in the outbox of a user, and removes them."""
        key = self._outbox_key(user)
        while True:
            packed = await self._redis.call(command("LRANGE", key, 0, _ENTRIES_A_STEP - 1))
            if not isinstance(packed, list):
                raise StoreUnavailable("unexpected reply from the session store", kind="protocol")
            entries = [_parse(user, each) for each in packed]
            parsed = [entry for entry in entries if entry is not None]
            # The blacklist first: a reader of an event finds its tokens there. Events keep their order.
            await asyncio.gather(*(self._mirror(entry, *token) for entry in parsed for token in entry.mirrored))
            await asyncio.gather(*(self.audit_log.write(entry.event) for entry in parsed))
            # Removed by value, not by position: another process may deliver the same outbox.
            removed = await asyncio.gather(*(self._redis.call(command("LREM", key, 1, each)) for each in packed))
            for entry, mine in zip(entries, removed, strict=True):
                if entry is not None and mine:
                    self._count(entry.event)
            if len(packed) < _ENTRIES_A_STEP:
                return

    def _count(self, event: AuditEvent) -> None:
        """Counts sessions that ended by themselves. Others are counted where they are ended."""
        reason = event.reason or ""
        if self.events is not None and event.event == "session_ended" and reason in _COUNTED:
            self.events.count(_COUNTED[reason], "system")

    async def _mirror(self, entry: _Entry, jti: str, expires_at: int) -> None:
        key = f"{MIRROR}{mirrored(read(jti))}".encode()
        await self._redis.call(command("SET", key, entry.event.reason or "", "PXAT", expires_at // 1000 + 1))


def _parse(user: str, packed: bytes) -> _Entry | None:
    try:
        return _read(user, packed)
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        _log.error("audit log skipped an entry of an outbox: it is not in the format of audit.lua")
        return None


def _read(user: str, packed: bytes) -> _Entry:
    event, session_id, at, reason, actor, *tokens = msgspec.msgpack.decode(packed, type=list[Any])
    event_id = sha256(user.encode() + b"\0" + packed).hexdigest()[:32]
    who = msgspec.json.decode(actor, type=Actor) if actor else SYSTEM
    if event == "session_ended" and (not actor or reason in _BY_ITSELF):
        kind = "system" if reason in _BY_ITSELF else _KIND_BY_REASON.get(reason, "user")
        who = msgspec.structs.replace(who, kind=kind)
        # The request in which an idle session was found is not what ended it.
        who = SYSTEM if reason in {"idle", "expired"} else who
    parsed = audit_event(
        event, who, at=int(at), user=user, session_id=int(session_id), reason=reason, event_id=event_id
    )
    mirrored = list(zip(tokens[::2], map(int, tokens[1::2]), strict=True))
    if not all(0 < expires_at <= _EXACT for _, expires_at in mirrored):
        raise ValueError("an expiry out of range")
    return _Entry(parsed, mirrored)

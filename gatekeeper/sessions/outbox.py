"""From the slots of users to the audit stream and the mirror: at least once.

A script leaves its words in the user's own slot, in the same step as the act (`scripts/audit.lua`); in a cluster the
stream and the mirror lie in other slots, which no script can reach. A note in an index, written before the act, says
whose outbox to look into. Right after the act the process that did it carries the words over, and takes the note away.
Where it dies before, another one finds the note (`sweep`).
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
from gatekeeper.sessions.audit import AuditEvent, AuditLog, audit_event
from gatekeeper.sessions.events import SYSTEM, Actor, ActorKind, Event, EventCounter
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command

_log = logging.getLogger("gatekeeper.audit")

# The name that operators look for (C-32), without our prefix.
MIRROR: Final = "access_token_blacklist:"
_ENTRIES_A_STEP: Final = 100
_MARKERS_A_STEP: Final = 100
# Longer than a call may take: an act under way is not a leftover.
_GRACE_SECONDS: Final = 10.0
# Up to this, whole numbers are exact in the scripts, and the store takes them for an expiry.
_EXACT: Final = 2**53
# Between two complaints of a process.
_QUIET_SECONDS: Final = 60.0

_BY_ITSELF: Final = frozenset({"evicted", "idle", "expired", "refresh_reused"})
_COUNTED: Final = {"idle": Event.IDLE, "expired": Event.EXPIRED}
_AS_WHAT: Final[dict[str, ActorKind]] = {"revoked_by_admin": "admin"}


class _Entry(msgspec.Struct, frozen=True):
    event: AuditEvent
    mirrored: Sequence[tuple[str, int]]


class Outbox:
    """The outboxes of all users. `outbox_key` names that of one. Raises `StoreUnavailable` where it is awaited."""

    def __init__(self, redis: StoreClient, *, key_prefix: str, outbox_key: Callable[[str], bytes]) -> None:
        self.audit_log: Final = AuditLog(redis, key_prefix=key_prefix)
        self.events: EventCounter | None = None
        self._redis = redis
        self._outbox_key = outbox_key
        self._markers: Final = f"{key_prefix}outboxes".encode()
        # More than can be waiting while the store answers; what falls out is found by `sweep`.
        self._scheduled: deque[bytes] = deque(maxlen=10_000)
        self._woken: asyncio.Event | None = None
        self._quiet_until = 0.0

    def __repr__(self) -> str:
        return f"<Outbox [{len(self._scheduled)} waiting]>"

    @staticmethod
    def marker(user: str) -> bytes:
        """A note for one act: of its own, so that nobody takes away another's."""
        return f"{secrets.token_hex(8)}:{user}".encode()

    async def mark(self, marker: bytes) -> None:
        """Before the act, and as it over the lane that waits for replicas where there are any: in its batch."""
        await self._redis.call(command("ZADD", self._markers, time.time_ns() // 1000, marker, durable=True))

    def schedule(self, marker: bytes) -> None:
        """After the act: its words are carried over by `run`, while nobody waits."""
        self._scheduled.append(marker)
        if self._woken is not None:
            self._woken.set()

    async def run(self) -> None:
        """Carries over what this process does, until it is cancelled."""
        self._woken = asyncio.Event()
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.flush()
            except Exception:  # noqa: BLE001 - what waits now is carried over by a sweep; what comes, by this
                _log.exception("internal error")

    async def flush(self) -> None:
        """Carries over what this process has done. What the store does not take now, it is asked again by `sweep`."""
        while self._scheduled:
            markers = [self._scheduled.popleft() for _ in range(min(len(self._scheduled), _MARKERS_A_STEP))]
            with suppress(StoreUnavailable):
                await self._deliver_marked(markers)

    async def sweep(self) -> int:
        """Carries over what others have left behind, a bounded number of outboxes; how many notes those were."""
        until = int((time.time() - _GRACE_SECONDS) * 1e6)
        left = command("ZRANGEBYSCORE", self._markers, "-inf", until, "LIMIT", 0, _MARKERS_A_STEP)
        markers = await self._redis.call(left)
        if not isinstance(markers, list):
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        if markers:
            await self._deliver_marked(markers)
        return len(markers)

    async def _deliver_marked(self, markers: Sequence[bytes]) -> None:
        by_user: dict[str, list[bytes]] = {}
        for marker in markers:
            by_user.setdefault(marker.partition(b":")[2].decode(errors="replace"), []).append(marker)
        delivered = await asyncio.gather(*map(self.deliver, by_user), return_exceptions=True)
        faults = [fault for fault in delivered if fault is not None]
        # One user's fault keeps that user's notes only.
        done = [each for own, fault in zip(by_user.values(), delivered, strict=True) if fault is None for each in own]
        if done:
            await self._redis.call(command("ZREM", self._markers, *done))
        if faults:
            self._log_fault(faults[0])
            raise faults[0]

    def _log_fault(self, fault: BaseException) -> None:
        """That the store does not answer, others tell; that it does not take this, nobody else."""
        if not isinstance(fault, StoreUnavailable) or fault.kind not in ("refused", "protocol"):
            return
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            _log.error("audit events wait in the store: %s", fault)

    async def deliver(self, user: str) -> None:
        """Empties the outbox of a user."""
        key = self._outbox_key(user)
        while True:
            packed = await self._redis.call(command("LRANGE", key, 0, _ENTRIES_A_STEP - 1))
            if not isinstance(packed, list):
                raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
            entries = [_parse(user, each) for each in packed]
            parsed = [entry for entry in entries if entry is not None]
            # The mirror is there when the event is; and the events are in their order.
            await asyncio.gather(*(self._mirror(entry, *token) for entry in parsed for token in entry.mirrored))
            await asyncio.gather(*(self.audit_log.write(entry.event) for entry in parsed))
            # By what they say, not by their place: another process may be at it too.
            removed = await asyncio.gather(*(self._redis.call(command("LREM", key, 1, each)) for each in packed))
            for entry, mine in zip(entries, removed, strict=True):
                if entry is not None and mine:
                    self._count(entry.event)
            if len(packed) < _ENTRIES_A_STEP:
                return

    def _count(self, event: AuditEvent) -> None:
        """What came about by itself; acts are counted where they are done."""
        reason = event.reason or ""
        if self.events is not None and event.event == "session_ended" and reason in _COUNTED:
            self.events.count(_COUNTED[reason], "system")

    async def _mirror(self, entry: _Entry, jti: str, expires_at: int) -> None:
        key = f"{MIRROR}{jti}".encode()
        await self._redis.call(command("SET", key, entry.event.reason or "", "PXAT", expires_at // 1000 + 1))


def _parse(user: str, packed: bytes) -> _Entry | None:
    try:
        return _read(user, packed)
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        _log.error("an outbox holds what is not ours")
        return None


def _read(user: str, packed: bytes) -> _Entry:
    event, session_id, at, reason, actor, *tokens = msgspec.msgpack.decode(packed, type=list[Any])
    event_id = sha256(user.encode() + b"\0" + packed).hexdigest()[:32]
    who = msgspec.json.decode(actor, type=Actor) if actor else SYSTEM
    if event == "session_ended" and (not actor or reason in _BY_ITSELF):
        kind = "system" if reason in _BY_ITSELF else _AS_WHAT.get(reason, "user")
        who = msgspec.structs.replace(who, kind=kind)
        # The request in which an idle one was found did not end it.
        who = SYSTEM if reason in {"idle", "expired"} else who
    parsed = audit_event(
        event, who, at=int(at), user=user, session_id=int(session_id), reason=reason, event_id=event_id
    )
    mirrored = list(zip(tokens[::2], map(int, tokens[1::2]), strict=True))
    if not all(0 < expires_at <= _EXACT for _, expires_at in mirrored):
        raise ValueError("no instant")
    return _Entry(parsed, mirrored)

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
from gatekeeper.sessions.audit import AuditEvent, Trail, happened
from gatekeeper.sessions.events import SYSTEM, Acting, Actor, Event, Events
from gatekeeper.store.client import StoreClient

_log = logging.getLogger("gatekeeper.audit")

# The name that operators look for (C-32), without our prefix.
MIRROR: Final = "access_token_blacklist:"
_WORDS_A_STEP: Final = 100
_NOTES_A_STEP: Final = 100
# Longer than a call may take: an act under way is not a leftover.
_GRACE_SECONDS: Final = 10.0
# Up to this, whole numbers are exact in the scripts, and the store takes them for an expiry.
_EXACT: Final = 2**53
# Between two complaints of a process.
_QUIET_SECONDS: Final = 60.0

_BY_ITSELF: Final = frozenset({"evicted", "idle", "expired", "refresh_reused"})
_COUNTED: Final = {"idle": Event.IDLE, "expired": Event.EXPIRED}
_AS_WHAT: Final[dict[str, Actor]] = {"revoked_by_admin": "admin"}


class _Word(msgspec.Struct, frozen=True):
    event: AuditEvent
    mirrored: Sequence[tuple[str, int]]


class Outbox:
    """The outboxes of all users. `outbox_key` names that of one. Raises `StoreUnavailable` where it is awaited."""

    def __init__(self, scripts: StoreClient, *, key_prefix: str, outbox_key: Callable[[str], bytes]) -> None:
        self.trail: Final = Trail(scripts, key_prefix=key_prefix)
        self.events: Events | None = None
        self._scripts = scripts
        self._outbox_key = outbox_key
        self._notes: Final = f"{key_prefix}outboxes".encode()
        # More than can be waiting while the store answers; what falls out is found by `sweep`.
        self._waiting: deque[bytes] = deque(maxlen=10_000)
        self._woken: asyncio.Event | None = None
        self._quiet_until = 0.0

    def __repr__(self) -> str:
        return f"<Outbox [{len(self._waiting)} waiting]>"

    @staticmethod
    def note(user: str) -> bytes:
        """A note for one act: of its own, so that nobody takes away another's."""
        return f"{secrets.token_hex(8)}:{user}".encode()

    async def remember(self, note: bytes) -> None:
        """Before the act, and as it over the lane that waits for replicas where there are any: in its batch."""
        await self._scripts.write("ZADD", self._notes, time.time_ns() // 1000, note)

    def soon(self, note: bytes) -> None:
        """After the act: its words are carried over by `run`, while nobody waits."""
        self._waiting.append(note)
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
        while self._waiting:
            notes = [self._waiting.popleft() for _ in range(min(len(self._waiting), _NOTES_A_STEP))]
            with suppress(StoreUnavailable):
                await self._carry(notes)

    async def sweep(self) -> int:
        """Carries over what others have left behind, a bounded number of outboxes; how many notes those were."""
        until = int((time.time() - _GRACE_SECONDS) * 1e6)
        notes = await self._scripts.command("ZRANGEBYSCORE", self._notes, "-inf", until, "LIMIT", 0, _NOTES_A_STEP)
        if not isinstance(notes, list):
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        if notes:
            await self._carry(notes)
        return len(notes)

    async def _carry(self, notes: Sequence[bytes]) -> None:
        by_user: dict[str, list[bytes]] = {}
        for note in notes:
            by_user.setdefault(note.partition(b":")[2].decode(errors="replace"), []).append(note)
        carried = await asyncio.gather(*map(self.carry, by_user), return_exceptions=True)
        faults = [fault for fault in carried if fault is not None]
        # One user's fault keeps that user's notes only.
        done = [each for own, fault in zip(by_user.values(), carried, strict=True) if fault is None for each in own]
        if done:
            await self._scripts.command("ZREM", self._notes, *done)
        if faults:
            self._complain(faults[0])
            raise faults[0]

    def _complain(self, fault: BaseException) -> None:
        """That the store does not answer, others tell; that it does not take this, nobody else."""
        if not isinstance(fault, StoreUnavailable) or fault.kind not in ("refused", "protocol"):
            return
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            _log.error("audit events wait in the store: %s", fault)

    async def carry(self, user: str) -> None:
        """Empties the outbox of a user."""
        key = self._outbox_key(user)
        while True:
            packed = await self._scripts.command("LRANGE", key, 0, _WORDS_A_STEP - 1)
            if not isinstance(packed, list):
                raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
            words = [_understood(user, each) for each in packed]
            told = [word for word in words if word is not None]
            # The mirror is there when the event is; and the events are in their order.
            await asyncio.gather(*(self._mirror(word, *token) for word in told for token in word.mirrored))
            await asyncio.gather(*(self.trail.write(word.event) for word in told))
            # By what they say, not by their place: another process may be at it too.
            removed = await asyncio.gather(*(self._scripts.command("LREM", key, 1, each) for each in packed))
            for word, mine in zip(words, removed, strict=True):
                if word is not None and mine:
                    self._count(word.event)
            if len(packed) < _WORDS_A_STEP:
                return

    def _count(self, event: AuditEvent) -> None:
        """What came about by itself; acts are counted where they are done."""
        reason = event.reason or ""
        if self.events is not None and event.event == "session_ended" and reason in _COUNTED:
            self.events.count(_COUNTED[reason], "system")

    async def _mirror(self, word: _Word, jti: str, expires_at: int) -> None:
        key = f"{MIRROR}{jti}".encode()
        await self._scripts.command("SET", key, word.event.reason or "", "PXAT", expires_at // 1000 + 1)


def _understood(user: str, packed: bytes) -> _Word | None:
    try:
        return _read(user, packed)
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        _log.error("an outbox holds what is not ours")
        return None


def _read(user: str, packed: bytes) -> _Word:
    event, session_id, at, reason, acting, *tokens = msgspec.msgpack.decode(packed, type=list[Any])
    event_id = sha256(user.encode() + b"\0" + packed).hexdigest()[:32]
    who = msgspec.json.decode(acting, type=Acting) if acting else SYSTEM
    if event == "session_ended" and (not acting or reason in _BY_ITSELF):
        actor = "system" if reason in _BY_ITSELF else _AS_WHAT.get(reason, "user")
        who = msgspec.structs.replace(who, actor=actor)
        # The request in which an idle one was found did not end it.
        who = SYSTEM if reason in {"idle", "expired"} else who
    told = happened(event, who, at=int(at), user=user, session_id=int(session_id), reason=reason, event_id=event_id)
    mirrored = list(zip(tokens[::2], map(int, tokens[1::2]), strict=True))
    if not all(0 < expires_at <= _EXACT for _, expires_at in mirrored):
        raise ValueError("no instant")
    return _Word(told, mirrored)

"""Open streams by user. A stream is cut when its session ends: by a revocation (revocations.py), or by asking.

Every forwarded request is a stream while it lasts; most are over before the first tick. For the others the store is
asked about the sessions of a user together, one script for each user, a few users at a time: soon after the stream
began, then every `INTERVAL_SECONDS`, and at the moment at which a session would be over. So a revocation whose message
was lost takes effect, idle and expired sessions end in time, and bytes that moved count as activity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Final

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.current_stream import OpenStream
from gatekeeper.sessions.revocations import Revocation
from gatekeeper.sessions.store import SessionState, SessionStore

_log = logging.getLogger("gatekeeper")

INTERVAL_SECONDS: Final = 3.0
# Most streams are short requests, over before the first question.
_FIRST_SECONDS: Final = 0.5
# For this long after a revocation, a request that was admitted before it may still arrive here.
_RECENT_SECONDS: Final = 5.0
_TICK_SECONDS: Final = 0.25
# Checks of requests queue behind these questions, so there are few at a time.
_USERS_AT_ONCE: Final = 64
_SESSIONS_AT_ONCE: Final = 200
_clock = time.monotonic


class _Held:
    """The streams of one user. Bytes that moved until `reported_at` have been counted as activity."""

    __slots__ = ("due_at", "reported_at", "streams", "user")

    def __init__(self, user: str, now: float) -> None:
        self.user = user
        self.streams: set[OpenStream] = set()
        self.due_at = now + _FIRST_SECONDS
        self.reported_at = now


class OpenStreams:
    """The open streams of this process. `watch` must run, or streams are cut by revocations alone."""

    def __init__(self, store: SessionStore, *, idle_seconds: float | None) -> None:
        self._store = store
        # Requests since the last tick, each with its user; most are over before the next tick.
        self._new: dict[OpenStream, str] = {}
        self._users: dict[str, _Held] = {}
        self._held: dict[OpenStream, _Held] = {}
        # When each user's last revocation arrived.
        self._recent: dict[str, float] = {}
        # Often enough that activity is reported before the session would count as idle.
        self._interval = min(INTERVAL_SECONDS, (idle_seconds or INTERVAL_SECONDS * 3) / 3)
        self._tick = min(_TICK_SECONDS, self._interval)

    def __repr__(self) -> str:
        return f"<OpenStreams [{len(self)} open]>"

    def __len__(self) -> int:
        return len(self._new) + len(self._held)

    def add(self, user: str, stream: OpenStream) -> None:
        """Adds a request that begins. It may be cut until `remove`."""
        self._new[stream] = user

    def remove(self, stream: OpenStream) -> None:
        """Removes a request that is over."""
        if self._new.pop(stream, None) is None and (held := self._held.pop(stream, None)) is not None:
            held.streams.discard(stream)
            if not held.streams:
                del self._users[held.user]

    def revoke(self, revocation: Revocation) -> None:
        """Cuts the streams that a revocation applies to. For requests since the last tick, the next tick asks the
        store."""
        self._recent[revocation.user] = _clock()
        held = self._users.get(revocation.user)
        if held is not None:
            for stream in [stream for stream in held.streams if revocation.applies_to(stream.session_id)]:
                _end(stream, revocation.reason)

    def check_all(self) -> None:
        """Asks about all sessions at the next tick, because revocations may have been missed."""
        for held in self._users.values():
            held.due_at = 0.0

    async def watch(self) -> None:
        """Asks about sessions when they are due, until it is cancelled."""
        while True:
            try:
                self._hold_new()
                await self._ask_all()
            except Exception:  # noqa: BLE001 - the task must outlive any fault
                _log.exception("internal error")
            now = _clock()
            next_due = min((held.due_at for held in self._users.values()), default=now + self._tick)
            await asyncio.sleep(min(self._tick, max(0.005, next_due - now)))

    def _hold_new(self) -> None:
        now = _clock()
        self._recent = {user: at for user, at in self._recent.items() if now - at < _RECENT_SECONDS}
        for stream, user in self._new.items():
            held = self._users.get(user)
            if held is None:
                held = self._users[user] = _Held(user, now)
            if user in self._recent:
                held.due_at = 0.0
            held.streams.add(stream)
            self._held[stream] = held
        self._new.clear()

    async def _ask_all(self) -> None:
        now = _clock()
        due = [held for held in self._users.values() if held.due_at <= now]
        for start in range(0, len(due), _USERS_AT_ONCE):
            await asyncio.gather(*(self._ask(held) for held in due[start : start + _USERS_AT_ONCE]))

    async def _ask(self, held: _Held) -> None:
        now = _clock()
        moved: dict[int, float | None] = {}
        for stream in held.streams:
            ago = now - stream.moved_at if stream.moved_at > held.reported_at else None
            known = moved.get(stream.session_id)
            moved[stream.session_id] = ago if known is None else known if ago is None else min(known, ago)
        before, held.reported_at, held.due_at = held.reported_at, now, now + self._interval
        ids = list(moved)
        for start in range(0, len(ids), _SESSIONS_AT_ONCE):
            part = {session_id: moved[session_id] for session_id in ids[start : start + _SESSIONS_AT_ONCE]}
            try:
                states = await self._store.session_states(held.user, part)
            except StoreUnavailable:
                # The movement is reported with the next question.
                held.reported_at = before
                return
            self._settle(held, states)

    def _settle(self, held: _Held, states: Iterable[SessionState]) -> None:
        now = _clock()
        for state in states:
            if state.end_reason is None:
                # A little later than the store says, because its clock and ours differ.
                held.due_at = min(held.due_at, now + state.seconds_left + 0.002)
                continue
            for stream in [stream for stream in held.streams if stream.session_id == state.session_id]:
                _end(stream, state.end_reason)


def _end(stream: OpenStream, reason: EndReason) -> None:
    if not stream.ends_own_session:
        stream.end(reason)

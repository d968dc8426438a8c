"""Open streams by user, and what ends them: what is announced (`ends.py`), and what is found out by asking.

Every admitted request that is passed on is here while it lasts; most are over before the first tick. Of the others each
user's sessions are asked about together, one script a user, a few users at a time: soon after the stream began, then
every `INTERVAL_SECONDS`, and at the moment at which one would be over. So an announcement that was lost is made good,
idle and expired sessions end in their time, and bytes that moved count as activity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.revocations import Revocation
from gatekeeper.sessions.store import SessionState, SessionStore

_log = logging.getLogger("gatekeeper")

INTERVAL_SECONDS: Final = 3.0
# A young stream is mostly a short request.
_FIRST_SECONDS: Final = 0.5
# For so long after an end, a verdict that was found before it may still be on its way here.
_RECENT_SECONDS: Final = 5.0
_TICK_SECONDS: Final = 0.25
# Requests wait behind these, so they are few at a time.
_USERS_AT_ONCE: Final = 64
_SESSIONS_AT_ONCE: Final = 200
_clock = time.monotonic


class OpenStream(Protocol):
    """A request under way, as whoever carries it shows it. `moved_at` is when bytes last moved, by `time.monotonic`;
    `ends_own_session` that its own doing ends its session, so that its answer is to be whole."""

    session_id: int
    moved_at: float
    ends_own_session: bool

    def end(self, reason: EndReason) -> None:
        """Its session is over. Called once or more often; must not raise and must not wait."""


class _Held:
    """The streams of one user. `reported_at` is up to when their bytes have been counted as activity."""

    __slots__ = ("due_at", "reported_at", "streams", "user")

    def __init__(self, user: str, now: float) -> None:
        self.user = user
        self.streams: set[OpenStream] = set()
        self.due_at = now + _FIRST_SECONDS
        self.reported_at = now


class OpenStreams:
    """The streams of this process. `watch` must run for anything to be found out by asking."""

    def __init__(self, store: SessionStore, *, idle_seconds: float | None) -> None:
        self._store = store
        # Requests that began since the last tick, each with its user: most are over before the next.
        self._new: dict[OpenStream, str] = {}
        self._users: dict[str, _Held] = {}
        self._held: dict[OpenStream, _Held] = {}
        # When users were last told to have lost a session.
        self._recent: dict[str, float] = {}
        # So often that no movement is told only after the silence that it interrupted.
        self._interval = min(INTERVAL_SECONDS, (idle_seconds or INTERVAL_SECONDS * 3) / 3)
        self._tick = min(_TICK_SECONDS, self._interval)

    def __repr__(self) -> str:
        return f"<OpenStreams [{len(self)} open]>"

    def __len__(self) -> int:
        return len(self._new) + len(self._held)

    def add(self, user: str, stream: OpenStream) -> None:
        """A request begins: its session may be ended until `remove`."""
        self._new[stream] = user

    def remove(self, stream: OpenStream) -> None:
        """A request is over."""
        if self._new.pop(stream, None) is None and (held := self._held.pop(stream, None)) is not None:
            held.streams.discard(stream)
            if not held.streams:
                del self._users[held.user]

    def revoke(self, revocation: Revocation) -> None:
        """An end that was announced. Of requests that have only just begun, the next tick asks."""
        self._recent[revocation.user] = _clock()
        held = self._users.get(revocation.user)
        if held is not None:
            for stream in [stream for stream in held.streams if revocation.applies_to(stream.session_id)]:
                _end(stream, revocation.reason)

    def check_all(self) -> None:
        """Announcements may have been missed: everything is asked about now."""
        for held in self._users.values():
            held.due_at = 0.0

    async def watch(self) -> None:
        """Asks about sessions when it is time to. Runs until it is cancelled."""
        while True:
            try:
                self._hold_new()
                await self._ask_all()
            except Exception:  # noqa: BLE001 - without it, a lost announcement is lost for good
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
                # Nothing was found out, so nothing changes; the movement is told the next time.
                held.reported_at = before
                return
            self._settle(held, states)

    def _settle(self, held: _Held, states: Iterable[SessionState]) -> None:
        now = _clock()
        for state in states:
            if state.end_reason is None:
                # A moment later than the store would say so: its clock and ours do not tick together.
                held.due_at = min(held.due_at, now + state.seconds_left + 0.002)
                continue
            for stream in [stream for stream in held.streams if stream.session_id == state.session_id]:
                _end(stream, state.end_reason)


def _end(stream: OpenStream, reason: EndReason) -> None:
    if not stream.ends_own_session:
        stream.end(reason)


# The stream in whose task, or thread, an application is at work.
_under_way: ContextVar[tuple[str, OpenStream] | None] = ContextVar("_under_way", default=None)


@contextmanager
def serving(user: str, stream: OpenStream) -> Iterator[None]:
    """What the block ends, the stream ends itself."""
    token = _under_way.set((user, stream))
    try:
        yield
    finally:
        _under_way.reset(token)


def expect_own_end(user: str, session_id: int | None = None, *, spare: int | None = None) -> None:
    """To be called before one session of `user`, or every one but `spare`, is ended: where it is that of the request
    under way, the answer to that is to be whole."""
    found = _under_way.get()
    if found is None or found[0] != user:
        return
    own = found[1].session_id
    if own == session_id or (session_id is None and own != spare):
        found[1].ends_own_session = True

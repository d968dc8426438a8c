"""What this process was told of sessions that are over, for the time in which the store cannot be asked.

Fed by what the process sees itself (refusals, ends made through it) and by what is published of ends elsewhere. It is
bounded: where something had to be forgotten that could still matter, nobody is believed until it cannot any more.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from gatekeeper.models import Claims, EndReason

_MOST_USERS: Final = 100_000
# Of one user: references seen, and ends told.
_MOST_NAMES: Final = 1_000


class EndedSession(msgspec.Struct, frozen=True):
    """A session is over; `end_reason` is None where nobody said how."""

    end_reason: EndReason | None


class _User(msgspec.Struct):
    """What is known of one user: sessions by token reference, ends by session id and by reference, each oldest first.
    `before`: every session opened until then (microseconds) is over, but the `spared_id` one."""

    sessions: dict[str, int] = {}
    ended: dict[int | str, EndedSession] = {}
    before: int = 0
    spared_id: int = 0
    before_reason: EndReason | None = None


class RevokedCache:
    """The memory. `most_users` 0 remembers nothing, for a process that never needs it. `kept_seconds` is how long an
    end may matter: as long as tokens of that session may turn up."""

    def __init__(
        self, *, kept_seconds: float = 0.0, most_users: int = _MOST_USERS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._most_users = most_users
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._gaps_until = float("-inf")

    @property
    def is_enabled(self) -> bool:
        """Whether it is worth telling it anything."""
        return self._most_users > 0

    def __repr__(self) -> str:
        return f"<RevokedCache [{len(self._users)} users]>"

    def add_live(self, user: str, reference: str, session_id: int) -> None:
        """A token of that reference passed, for that session."""
        if not self._most_users:
            return
        known = self._user(user)
        if known.sessions.get(reference) != session_id:
            known.sessions[reference] = session_id
            # A login has opened a session anew under that reference (`h:` alone has that).
            known.ended.pop(reference, None)
            if len(known.sessions) > _MOST_NAMES:
                del known.sessions[next(iter(known.sessions))]

    def add_ended(self, user: str, session_id: int, reason: EndReason | None) -> None:
        """That session is over."""
        self._add(user, session_id, reason)

    def add_ended_reference(self, user: str, reference: str, reason: EndReason | None) -> None:
        """The session of that token reference is over, or there is none to be."""
        self._add(user, reference, reason)
        session_id = self.session_of(user, reference)
        if session_id is not None:
            self._add(user, session_id, reason)

    def add_ended_sid(self, user: str, sid: str, reason: EndReason | None) -> None:
        """The sessions of that sign-in at a provider are over."""
        known = self._users.get(user)
        references = [name for name in known.sessions if name.startswith(f"{sid}:")] if known else []
        for reference in (sid, *references):
            self.add_ended_reference(user, reference, reason)

    def add_all_ended(self, user: str, before: int, spared_id: int | None, reason: EndReason | None) -> None:
        """Every session of that user opened until `before` (microseconds) is over, but the `spared_id` one."""
        if not self._most_users:
            return
        known = self._user(user)
        known.before, known.spared_id, known.before_reason = max(before, known.before), spared_id or 0, reason
        for session_id in {*known.sessions.values()} - {known.spared_id}:
            self._add(user, session_id, reason)

    def session_of(self, user: str, reference: str) -> int | None:
        """The session that a token reference names, as far as this process has seen."""
        known = self._users.get(user)
        return known.sessions.get(reference) if known else None

    def find_ended(self, claims: Claims) -> EndedSession | None:
        """How the session of this token ended; None where nobody told this process that it did."""
        known = self._users.get(claims.user)
        if known is None:
            return None
        session_id = known.sessions.get(claims.reference)
        told = known.ended.get(claims.reference)
        if told is None and session_id is not None:
            told = known.ended.get(session_id)
        if told is not None:
            return told
        # A session seen since was marked, if it was not the one spared; of any other the token's age has to tell.
        if session_id is None and known.before and (claims.issued_at or 0) * 1e6 <= known.before:
            return EndedSession(known.before_reason)
        return None

    @property
    def has_gaps(self) -> bool:
        """Whether it had to forget an end that may still matter."""
        return self._clock() < self._gaps_until

    def _add(self, user: str, name: int | str, reason: EndReason | None) -> None:
        if not self._most_users:
            return
        known = self._user(user)
        known.ended.setdefault(name, EndedSession(reason))
        if len(known.ended) > _MOST_NAMES:
            del known.ended[next(iter(known.ended))]
            self._forgot()

    def _user(self, user: str) -> _User:
        known = self._users.get(user)
        if known is not None:
            self._users.move_to_end(user)
            return known
        known = self._users[user] = _User()
        if len(self._users) > self._most_users:
            _, forgotten = self._users.popitem(last=False)
            if forgotten.ended or forgotten.before:
                self._forgot()
        return known

    def _forgot(self) -> None:
        self._gaps_until = self._clock() + self._kept_seconds

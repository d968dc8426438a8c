"""Ended sessions that this process knows of, for an outage of the store.

Filled by refusals and ends in this process, and by revocations that others publish. It is bounded: after an entry was
dropped that may still matter, `has_gaps` is true, and no token passes during an outage, until it can no longer matter.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from gatekeeper.models import Claims, EndReason

_MOST_USERS: Final = 100_000
# For one user: live references, and ended sessions.
_MOST_NAMES: Final = 1_000


class EndedSession(msgspec.Struct, frozen=True):
    """An ended session; `end_reason` is None where it is unknown."""

    end_reason: EndReason | None


class _Reopened(msgspec.Struct):
    """A reference under which a login has opened another session: a token issued until `before` (seconds) is of the
    ended one, unless it was admitted since (`digests`)."""

    ended: EndedSession
    before: float
    digests: set[str] = set()


class _User(msgspec.Struct):
    """The sessions of one user: ids by token reference, and ended ones by id, reference or digest of a token, each
    oldest first. Every session opened until `before` (microseconds) has ended, except `spared_id`."""

    sessions: dict[str, int] = {}
    ended: dict[int | str, EndedSession] = {}
    reopened: dict[str, _Reopened] = {}
    before: int = 0
    spared_id: int = 0
    before_reason: EndReason | None = None


class RevokedCache:
    """A bounded cache of ended sessions. `most_users` 0 disables it. `kept_seconds` is how long an entry matters: as
    long as tokens of the session may be presented."""

    def __init__(
        self,
        *,
        kept_seconds: float = 0.0,
        most_users: int = _MOST_USERS,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._most_users = most_users
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._gaps_until = float("-inf")

    @property
    def is_enabled(self) -> bool:
        """Tells whether the cache keeps anything."""
        return self._most_users > 0

    def __repr__(self) -> str:
        return f"<RevokedCache [{len(self._users)} users]>"

    def add_live(self, user: str, reference: str, session_id: int, digest: str = "") -> None:
        """Adds a live session, after a token with that reference, whose payload has that digest, passed."""
        if not self._most_users:
            return
        known = self._user(user)
        previous = known.sessions.get(reference)
        if previous != session_id:
            known.sessions[reference] = session_id
            # A login has opened another session under the same reference.
            ended = known.ended.pop(reference, None) or (known.ended.get(previous) if previous is not None else None)
            if ended is not None:
                known.reopened[reference] = _Reopened(ended, self._wall_clock())
            if len(known.sessions) > _MOST_NAMES:
                del known.sessions[next(iter(known.sessions))]
            if len(known.reopened) > _MOST_NAMES:
                del known.reopened[next(iter(known.reopened))]
                self._note_gap()
        reopened = known.reopened.get(reference)
        if reopened is not None and len(reopened.digests) < _MOST_NAMES:
            reopened.digests.add(digest)

    def add_ended(self, user: str, session_id: int, reason: EndReason | None) -> None:
        """Adds an ended session."""
        self._add(user, session_id, reason)

    def add_ended_reference(self, user: str, reference: str, reason: EndReason | None) -> None:
        """Adds the session of a token reference as ended. There need not have been one."""
        self._add(user, reference, reason)
        session_id = self.session_of(user, reference)
        if session_id is not None:
            self._add(user, session_id, reason)

    def add_refused(self, claims: Claims, session_id: int, reason: EndReason | None) -> None:
        """Adds the session of a refused token as ended: that of its reference, or one that had the reference before."""
        known = self._users.get(claims.user)
        live = known.sessions.get(claims.reference) if known else None
        if session_id and known is not None and live not in {None, session_id} and live not in known.ended:
            self._add(claims.user, session_id, reason)
            self._add(claims.user, claims.digest, reason)
        else:
            self.add_ended_reference(claims.user, claims.reference, reason)

    def add_ended_sid(self, user: str, sid: str, reason: EndReason | None, *, issued_at: float | None = None) -> None:
        """Adds the sessions of one sign-in at an identity provider as ended, which reported it at `issued_at`
        (seconds)."""
        known = self._users.get(user)
        references = [name for name in known.sessions if name.startswith(f"{sid}:")] if known else []
        for reference in (sid, *references):
            reopened = known.reopened.get(reference) if known else None
            # Of a later session under the reference, the channel tells (revocations.py).
            if reopened is None or issued_at is None or issued_at > reopened.before:
                self.add_ended_reference(user, reference, reason)

    def add_all_ended(self, user: str, before: int, spared_id: int | None, reason: EndReason | None) -> None:
        """Adds every session of a user opened until `before` (microseconds) as ended, except `spared_id`."""
        if not self._most_users:
            return
        known = self._user(user)
        known.before, known.spared_id, known.before_reason = max(before, known.before), spared_id or 0, reason
        for session_id in {*known.sessions.values()} - {known.spared_id}:
            self._add(user, session_id, reason)

    def session_of(self, user: str, reference: str) -> int | None:
        """The session that a token reference names, as far as this process knows."""
        known = self._users.get(user)
        return known.sessions.get(reference) if known else None

    def find_ended(self, claims: Claims) -> EndedSession | None:
        """The ended session of a token; None where this process does not know that it has ended."""
        known = self._users.get(claims.user)
        if known is None:
            return None
        session_id = known.sessions.get(claims.reference)
        found = known.ended.get(claims.reference) or known.ended.get(claims.digest)
        if found is None and session_id is not None:
            found = known.ended.get(session_id)
        if found is not None:
            return found
        reopened = known.reopened.get(claims.reference)
        if reopened is not None and claims.digest not in reopened.digests:
            return reopened.ended if (claims.issued_at or 0) <= reopened.before else None
        # Sessions known then were added one by one. For an unknown one, the age of its token decides.
        if session_id is None and known.before and (claims.issued_at or 0) * 1e6 <= known.before:
            return EndedSession(known.before_reason)
        return None

    @property
    def has_gaps(self) -> bool:
        """Tells whether an entry was dropped that may still matter."""
        return self._clock() < self._gaps_until

    def _add(self, user: str, name: int | str, reason: EndReason | None) -> None:
        if not self._most_users:
            return
        known = self._user(user)
        known.ended.setdefault(name, EndedSession(reason))
        if len(known.ended) > _MOST_NAMES:
            del known.ended[next(iter(known.ended))]
            self._note_gap()

    def _user(self, user: str) -> _User:
        known = self._users.get(user)
        if known is not None:
            self._users.move_to_end(user)
            return known
        known = self._users[user] = _User()
        if len(self._users) > self._most_users:
            _, forgotten = self._users.popitem(last=False)
            if forgotten.ended or forgotten.before:
                self._note_gap()
        return known

    def _note_gap(self) -> None:
        self._gaps_until = self._clock() + self._kept_seconds

"""Requests during an outage of the store, where `ON_STORE_FAILURE=allow_verified` lets verified tokens pass."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims
from gatekeeper.sessions.revoked_cache import EndedSession, RevokedCache
from gatekeeper.store.breaker import STORE_WIDE_FAULTS, Breaker

# A refused call and an unexpected reply are no outage: the fault may be in the data of this very session.
_OUTAGES: Final = STORE_WIDE_FAULTS | {"timeout", "connection", "too_many_clients", "cluster_down", "open"}


class KnownSession(msgspec.Struct, frozen=True):
    """The state of a session as this process remembers it: `ended` if it has ended, and its id if it was ever seen."""

    ended: EndedSession | None
    session_id: int | None


class DegradedMode:
    """Decides if a request may pass in spite of a fault of the store: for `most_seconds` from the first failed call."""

    def __init__(self, breaker: Breaker, revoked: RevokedCache, *, most_seconds: float) -> None:
        self._breaker = breaker
        self._revoked = revoked
        self._most_seconds = most_seconds

    def __repr__(self) -> str:
        return f"<DegradedMode [{self._most_seconds:g} s] {self._breaker!r} {self._revoked!r}>"

    def allows(self, error: StoreUnavailable) -> bool:
        """Tells whether a verified token alone is enough now."""
        failing = self._breaker.failing_seconds
        return (
            error.kind in _OUTAGES
            and failing is not None
            and failing <= self._most_seconds
            and not self._revoked.has_gaps
        )

    def known_session(self, claims: Claims) -> KnownSession:
        """Returns what this process remembers of the session of a token."""
        return KnownSession(self._revoked.find_ended(claims), self._revoked.session_of(claims.user, claims.reference))

"""What passes while the store cannot be asked, where the operator allows that: `ON_STORE_FAILURE=allow_verified`."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims
from gatekeeper.sessions.revoked_cache import EndedSession, RevokedCache
from gatekeeper.store.breaker import STORE_WIDE_FAULTS, Breaker

# A call that the store refused, and an answer that is not ours, are no outage: what is wrong there could be this very
# session.
_OUTAGES: Final = STORE_WIDE_FAULTS | {"timeout", "connection", "too_many_clients", "cluster_down", "open"}


class KnownSession(msgspec.Struct, frozen=True):
    """What is known of a session without the store: `ended` where it has ended, and its id if it was ever seen."""

    ended: EndedSession | None
    session_id: int | None


class DegradedMode:
    """Decides whether a fault of the store may be passed over: for `most_seconds` from the first failed call on."""

    def __init__(self, breaker: Breaker, revoked: RevokedCache, *, most_seconds: float) -> None:
        self._breaker = breaker
        self._revoked = revoked
        self._most_seconds = most_seconds

    def __repr__(self) -> str:
        return f"<DegradedMode [{self._most_seconds:g} s] {self._breaker!r} {self._revoked!r}>"

    def allows(self, error: StoreUnavailable) -> bool:
        """Whether a token alone is enough now."""
        failing = self._breaker.failing_seconds
        return (
            error.kind in _OUTAGES
            and failing is not None
            and failing <= self._most_seconds
            and not self._revoked.has_gaps
        )

    def known_session(self, claims: Claims) -> KnownSession:
        """What this process was told of the session of a token."""
        return KnownSession(self._revoked.find_ended(claims), self._revoked.session_of(claims.user, claims.reference))

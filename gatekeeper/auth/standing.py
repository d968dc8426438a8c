"""The standing of tokens that are good by themselves: looked up without adopting or touching a session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gatekeeper.auth.requests import Standing
from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims
from gatekeeper.sessions.degraded import DegradedMode
from gatekeeper.sessions.sign_ins import SignIns


class Standings:
    """Looks tokens up, all at once."""

    def __init__(self, sign_ins: SignIns, degraded: DegradedMode | None) -> None:
        self._sign_ins = sign_ins
        self._degraded = degraded

    async def of(self, tokens: Sequence[Claims]) -> list[Standing]:
        """Look tokens up in one round trip. While the store is away and the operator allows it, this process's own
        memory decides; else raises `StoreUnavailable`."""
        try:
            return list(await asyncio.gather(*map(self._look_up, tokens)))
        except StoreUnavailable as error:
            if self._degraded is None or not self._degraded.allows(error):
                raise
            return [self._remembered(claims, self._degraded) for claims in tokens]

    async def _look_up(self, claims: Claims) -> Standing:
        linked = await self._sign_ins.lookup(claims.user, claims=claims)
        if linked.outcome == "unknown":
            too_old = bool(linked.not_before) and (claims.issued_at or 0) <= linked.not_before
            return Standing(too_old, None, (claims.user, claims.reference))
        return Standing(linked.outcome == "ended", linked.end_reason, (claims.user, linked.session_id))

    @staticmethod
    def _remembered(claims: Claims, degraded: DegradedMode) -> Standing:
        known = degraded.known_session(claims)
        session = (claims.user, known.session_id or claims.reference)
        return Standing(known.ended is not None, known.ended.end_reason if known.ended else None, session)

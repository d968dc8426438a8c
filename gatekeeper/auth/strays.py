"""Stray tokens: good tokens where no source looks, of sessions that are over or of other users.

A backend may look in more places than Gatekeeper does. So a token there that verifies, and whose session is over,
is removed from headers and cookies, and refused in the query (rule 3.23). What does not verify is the backend's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from gatekeeper.auth.requests import RequestFacts, Standing, StandingLookup
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.http.headers import Headers
from gatekeeper.models import Claims, Removal, Verdict
from gatekeeper.tokens.strays import IN_COOKIE, IN_HEADER, IN_QUERY, StrayPlaces, merged
from gatekeeper.tokens.verifier import Verifier

# Each costs a signature and a look-up.
_MOST: Final = 4
# Each costs the reading of its claims.
_MOST_EXAMINED: Final = 64


class Stray(msgspec.Struct, frozen=True):
    """A stray token that verifies: its text, its places and its claims."""

    text: str
    places: int
    claims: Claims


class StrayTokens:
    """Finds and judges the stray tokens of a request."""

    def __init__(self, places: StrayPlaces, verifier: Verifier, standings: StandingLookup) -> None:
        self._places = places
        self._verifier = verifier
        self._standings = standings

    def __repr__(self) -> str:
        return f"<StrayTokens in {self._places!r}>"

    def find(self, facts: RequestFacts, *, public: bool) -> dict[str, int]:
        """Return the texts of a request that may be stray tokens, with their places: usually none."""
        found = self._places.in_headers(facts.headers)
        if b"." in facts.query or b"%2" in facts.query:
            source = facts.websocket or facts.event_stream
            found = merged(found, self._places.in_query(facts.query, public=public, source=source))
        if not found:
            return found
        examined = list(found.items())[:_MOST_EXAMINED]
        plausible = {text: places for text, places in examined if self._verifier.may_verify(text)}
        # No request in use has more; their number alone makes them too many.
        return plausible | dict(list(found.items())[_MOST_EXAMINED:])

    def rules_out_direct_route(self, headers: Headers) -> bool:
        """Return true where some request with these headers may have a stray token, under whatever keys."""
        found = self._places.in_headers(headers)
        return len(found) > _MOST_EXAMINED or any(self._verifier.has_form(text) for text in found)

    def in_query(self, query: bytes) -> bool:
        """Return true where a query may hold a stray token."""
        return (b"." in query or b"%2" in query) and bool(self._places.in_query(query))

    async def verified(self, found: Mapping[str, int]) -> list[Stray]:
        """Verify what was found, unless it is too much. Raises `KeysUnavailable`."""
        if len(found) > _MOST:
            return []
        return [stray for text, places in found.items() if (stray := await self._verified(text, places))]

    async def judge(
        self, found: Mapping[str, int], strays: list[Stray], *, user: str | None, public: bool
    ) -> tuple[Verdict | None, Removal]:
        """Judge what was found beside the token of `user`: a refusal or None, and what is removed from the request.
        Raises `StoreUnavailable`."""
        if len(found) > _MOST:
            why = "more than four tokens where no source looks"
            in_query = any(places & IN_QUERY for places in found.values())
            refused = Verdict(reason=Reason.TOKEN_INVALID, user=user, token_source="query", why=why)  # noqa: S106 - a source
            refusal = None if public and not in_query else refused
            return refusal, all_of(found)
        standings = await self._standings.of([stray.claims for stray in strays]) if strays else []
        return _removal(list(zip(strays, standings, strict=True)), user)

    async def _verified(self, text: str, places: int) -> Stray | None:
        try:
            return Stray(text, places, await self._verifier.verify_once(text))
        except TokenRejected:
            return None


def all_of(found: Mapping[str, int]) -> Removal:
    """Return the removal of everything that was found."""
    return Removal(
        headers=frozenset(text for text, places in found.items() if places & IN_HEADER),
        cookies=frozenset(text for text, places in found.items() if places & IN_COOKIE),
    )


def _removal(strays: list[tuple[Stray, Standing]], user: str | None) -> tuple[Verdict | None, Removal]:
    removed: dict[str, int] = {}
    refusal: Verdict | None = None
    for stray, standing in strays:
        if standing.is_over:
            removed[stray.text] = stray.places
            if stray.places & IN_QUERY and refusal is None:
                reason = standing.end_reason
                refusal = Verdict(
                    reason=reason.refusal if reason else Reason.SESSION_REVOKED_OR_INVALID,
                    end_reason=reason,
                    user=user,
                    token_source="query",  # noqa: S106 - a source, no token
                    why="the query holds a token whose session is over",
                )
        elif user is not None and stray.claims.user != user:
            removed[stray.text] = stray.places & IN_HEADER
    return refusal, all_of(removed)

"""The gate: from the facts of a request to a verdict. It asks the token source, the verifier and the store, in this
order, each at most once.

A refusal is a value. An exception means that no verdict could be reached (`StoreUnavailable`, `KeysUnavailable`); it
is never a reason to let a request pass, and is never reported to a client as "not signed in".
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from gatekeeper.auth.requests import RequestFacts, StandingLookup
from gatekeeper.auth.twins import MOST_VERIFIED, choose
from gatekeeper.errors import Reason, StoreUnavailable, TokenRejected
from gatekeeper.models import CheckResult, Claims, Client, Removal, Verdict
from gatekeeper.sessions.degraded import DegradedMode
from gatekeeper.sessions.events import Event, EventCounter
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.command import Command, ReplyReceiver
from gatekeeper.store.rate_limit import RateLimiter
from gatekeeper.tokens.sources import MalformedCredential, PresentedToken, TokenSources
from gatekeeper.tokens.token_warnings import TokenWarnings
from gatekeeper.tokens.verifier import Verifier

TWO_USERS: Final = "credentials of two users"
# Behind one address there are several people.
_ADDRESS_FACTOR: Final = 4


class Exemptions:
    """Users, or `role:<name>`, without device limit and idle time-out: service accounts."""

    def __init__(self, entries: Collection[str]) -> None:
        self._roles = frozenset(entry.removeprefix("role:") for entry in entries if entry.startswith("role:"))
        self._users = frozenset(entry for entry in entries if not entry.startswith("role:"))
        self._any = bool(entries)

    def covers(self, claims: Claims) -> bool:
        """True if the user or one of the roles is exempt."""
        if not self._any:
            return False
        return claims.user in self._users or not self._roles.isdisjoint(claims.roles)


class Gate:
    """Judges requests. Keeps no state: sessions are known to the store alone."""

    def __init__(
        self,
        *,
        sources: TokenSources,
        verifier: Verifier,
        store: SessionStore,
        events: EventCounter,
        exempt: Exemptions,
        standings: StandingLookup,
        limiter: RateLimiter | None = None,
        degraded: DegradedMode | None = None,
        warnings: TokenWarnings | None = None,
    ) -> None:
        self._sources = sources
        self._verifier = verifier
        self._store = store
        self._events = events
        self._exempt = exempt
        self._standings = standings
        self._limiter = limiter
        self._degraded = degraded
        self._warnings = warnings or TokenWarnings()

    async def judge(self, facts: RequestFacts) -> Verdict:
        """Judge a request in one round trip to the store. Raises `StoreUnavailable` and `KeysUnavailable`."""
        identified = await self.identify(facts)
        if identified.claims is None:
            return identified
        return await self.admit(identified, identified.claims, facts.client, facts.checked)

    def token_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The only token of an HTTP request; None where it has none, several, or a malformed one."""
        try:
            found = self._sources.find(headers)
        except TokenRejected:
            return None
        return None if found is None or found.others or found.twins else found.token

    def recognised(self, token: str) -> tuple[Claims, Command] | None:
        """Look a token up among those that were verified and admitted before: its claims, and the check of its
        session as a command for `send_for` and `checked`. None for any other token, which `judge` has to see."""
        claims = self._verifier.cached(token)
        if claims is None:
            return None
        touch = self._store.touch(claims, exempt=self._exempt.covers(claims))
        return None if touch is None else (claims, touch)

    def send_for(self, reply: ReplyReceiver, touch: Command) -> None:
        """Send a check to the store; `reply` receives the result for `checked`, or a `StoreUnavailable`. Raises
        `StoreUnavailable` where it cannot be sent."""
        self._store.send_for(reply, touch)

    def checked(self, claims: Claims, touch: Command, reply: Any) -> CheckResult:
        """Read the store's reply to a check. Any outcome but `touched` is for `judge` to go on with. Raises
        `StoreUnavailable`."""
        return self._store.read_check(claims, touch, reply)

    async def admit(
        self,
        identified: Verdict,
        claims: Claims,
        client: Client,
        checked: CheckResult | StoreUnavailable | None = None,
    ) -> Verdict:
        """Find, judge and touch the session that `claims` name, or open one. Raises `StoreUnavailable`."""
        if isinstance(checked, StoreUnavailable):
            raise checked
        if checked is None or checked.outcome in {"absent", "older"}:
            checked = await self._store.check(claims, client, exempt=self._exempt.covers(claims))
        self._count(checked)
        return _judged(identified, checked)

    def without_store(self, identified: Verdict, error: StoreUnavailable) -> Verdict:
        """Judge a forwarded request while the store is away: a good token passes, unless this process knows that its
        session has ended. Raises `error` where the operator does not allow that."""
        claims = identified.claims
        if claims is None or not self.allows_verified(error):
            raise error
        assert self._degraded is not None  # noqa: S101 - or it would not be allowed
        known = self._degraded.known_session(claims)
        if known.ended is not None:
            over = CheckResult("ended", known.session_id or 0, known.ended.end_reason, 0)
            return _judged(identified, over)
        return msgspec.structs.replace(
            identified, admitted=True, degraded=True, session_id=known.session_id, reason=Reason.TOKEN_MISSING
        )

    def allows_verified(self, error: StoreUnavailable) -> bool:
        """True if a good token suffices now, since the store is away and the operator allows it."""
        return self._degraded is not None and self._degraded.allows(error)

    async def wait_seconds(self, user: str, *, address: str | None) -> int:
        """Count one call of Gatekeeper's own endpoints. Returns 0, or the seconds that the caller has to wait. With
        `address` None the call is counted by user only. Sent beside `judge` it shares that round trip. Raises
        `StoreUnavailable`."""
        if self._limiter is None:
            return 0
        waits = [self._limiter.wait_seconds(f"user:{user}")]
        if address is not None:
            waits.append(self._limiter.wait_seconds(f"address:{address}", factor=_ADDRESS_FACTOR))
        return max(await asyncio.gather(*waits))

    async def identify(self, facts: RequestFacts, *, ignore_times: bool = False) -> Verdict:
        """Verify the token without asking for its session; never admits. `claims` is set if the token is good, with
        `ignore_times` also if `iat`, `nbf` or `exp` is its only fault. Raises `KeysUnavailable`."""
        try:
            found = self._sources.find(
                facts.headers, query=facts.query, websocket=facts.websocket, event_stream=facts.event_stream
            )
        except TokenRejected as rejected:
            fault = "malformed" if isinstance(rejected, MalformedCredential) else "ambiguous"
            return Verdict(reason=rejected.reason, token_source=fault, why=rejected.why)
        if found is None:
            return self._without_token(facts)
        removal = None
        if found.twins:
            try:
                choice = await choose(
                    [found.token, *found.twins], self._verifier, self._standings, ignore_times=ignore_times
                )
            except TokenRejected as rejected:
                return Verdict(reason=rejected.reason, token_source="ambiguous", why=rejected.why)  # noqa: S106 - a source, no token
            found = msgspec.structs.replace(found, token=choice.token, twins=())
            removal = Removal(twins=choice.left_out)
        if not facts.cookie_allowed and found.source.startswith("cookie:"):
            return Verdict(reason=Reason.ORIGIN_NOT_ALLOWED, token_source=found.source)
        try:
            claims = self._verifier.cached(found.token) or await self._verifier.verify(
                found.token, ignore_start=ignore_times, ignore_expiry=ignore_times
            )
        except TokenRejected as rejected:
            if rejected.reason is Reason.TOKEN_INVALID and not ignore_times:
                self._warnings.refused(rejected.why, found.token)
            return Verdict(reason=rejected.reason, token_source=found.source, why=rejected.why)
        if found.others and await self._disagree(found, claims):
            return Verdict(reason=Reason.TOKEN_INVALID, token_source=found.source, why=TWO_USERS)
        return Verdict(
            reason=Reason.SESSION_REVOKED_OR_INVALID,
            claims=claims,
            user=claims.user,
            token_source=found.source,
            more_tokens=bool(found.others),
            removal=removal,
        )

    def _without_token(self, facts: RequestFacts) -> Verdict:
        """The verdict on a request without a token. Where `Authorization` has a scheme that no source reads, the error
        says which one is expected."""
        if not self._sources.schemes or not self._sources.unread_scheme(facts.headers):
            return Verdict(reason=Reason.TOKEN_MISSING)
        expected = " or ".join(scheme or "the token alone" for scheme in self._sources.schemes)
        return Verdict(
            reason=Reason.TOKEN_MISSING,
            why="Authorization has another scheme than the configured ones",
            detail=f"{Reason.TOKEN_MISSING.detail} (expected in Authorization: {expected})",
        )

    async def unusable(self, facts: RequestFacts) -> list[tuple[str, bool]]:
        """Find the well-signed tokens of a request that `identify` gets no claims from: they contradict each other, or
        break a rule other than their times. Each comes with True if it is good by itself. Raises `KeysUnavailable`."""
        found: list[tuple[str, bool]] = []
        candidates = [token for token in self._sources.candidates(facts.headers) if self._verifier.may_be_signed(token)]
        if len(candidates) > MOST_VERIFIED:
            # Too many to find the good one among them: they contradict each other.
            return [(candidates[0], True)]
        for token in candidates:
            try:
                await self._verifier.verify(token, ignore_start=True, ignore_expiry=True)
            except TokenRejected as rejected:
                if rejected.is_signed:
                    found.append((token, False))
            else:
                found.append((token, True))
        return found

    async def _disagree(self, found: PresentedToken, claims: Claims) -> bool:
        """True if a token in another source is good too and names another user."""
        others = [token for token in found.others if self._verifier.may_verify(token)]
        if len(others) > MOST_VERIFIED:
            return True
        for token in others:
            try:
                other = await self._verifier.verify_once(token)
            except TokenRejected:
                continue
            if other.user != claims.user:
                return True
        return False

    def _count(self, checked: CheckResult) -> None:
        if checked.outcome == "opened":
            self._events.count(Event.OPENED, "user")
            if checked.evicted:
                self._events.count(Event.EVICTED, "system", checked.evicted)
        elif checked.outcome == "full":
            self._events.count(Event.LIMIT_REFUSED, "system")


def _judged(identified: Verdict, checked: CheckResult) -> Verdict:
    user, source = identified.user, identified.token_source
    if checked.outcome in {"touched", "opened"}:
        return Verdict(
            admitted=True,
            claims=identified.claims,
            user=user,
            session_id=checked.session_id,
            token_source=source,
            more_tokens=identified.more_tokens,
            removal=identified.removal,
        )
    if checked.outcome == "crowded":
        return Verdict(reason=Reason.RATE_LIMITED, user=user, session_id=checked.session_id, token_source=source)
    if checked.outcome == "full":
        return Verdict(reason=Reason.SESSION_LIMIT_EXCEEDED, user=user, token_source=source)
    # A session that is over, or none at all.
    reason = checked.end_reason.refusal if checked.end_reason else Reason.SESSION_REVOKED_OR_INVALID
    return Verdict(
        reason=reason,
        end_reason=checked.end_reason,
        user=user,
        session_id=checked.session_id or None,
        token_source=source,
    )

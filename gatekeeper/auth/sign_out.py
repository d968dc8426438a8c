"""Signing out: finding the sessions that the tokens of a request name, and ending them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gatekeeper.auth.gate import TWO_USERS, Gate
from gatekeeper.auth.links import holder_of
from gatekeeper.auth.requests import RequestFacts
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Claims, Problem
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.tokens.credentials import Credentials
from gatekeeper.tokens.verifier import Verifier


class SignOutTargets(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions that a request signs out of, by its tokens; all of one user."""

    user: str
    tokens: Sequence[Claims] = ()
    digests: Sequence[str] = ()


CANNOT_END: Final = Problem(reason=Reason.STORE_UNAVAILABLE, detail="The session of this token cannot be ended")


class SignOut:
    """Finds and ends the sessions that a request names by its own token and by those in its body. A token whose only
    fault is its `iat`, `nbf` or `exp` counts: a host's clock may be late, and ending admits no request. Raises
    `StoreUnavailable` and `KeysUnavailable`."""

    def __init__(self, *, gate: Gate, verifier: Verifier, sign_ins: SignIns, manager: Manager) -> None:
        self._gate = gate
        self._verifier = verifier
        self._sign_ins = sign_ins
        self._manager = manager

    async def named(self, facts: RequestFacts, sent: Credentials, *, strict: bool) -> SignOutTargets | Problem:
        """Find the sessions that the request names. With `strict`, a bad token is a `Problem`, and so is none at
        all; without it a bad token is ignored if it is not well signed, and `TOKEN_MISSING` means that no session is
        named. Tokens of two users are always a `Problem`."""
        verdict = await self._gate.identify(facts, ignore_times=True)
        unusable: list[str] = []
        if verdict.claims is None and verdict.reason is not Reason.TOKEN_MISSING:
            if strict:
                return Problem(reason=verdict.reason, why=verdict.why)
            for token, is_good in await self._gate.unusable(facts):
                if is_good:
                    # It does not decide, or contradicts another one.
                    return Problem(reason=Reason.TOKEN_INVALID, why=verdict.why or TWO_USERS)
                unusable.append(token)
        tokens = [] if verdict.claims is None else [verdict.claims]
        if sent.access_token is not None:
            try:
                tokens.append(await self._verifier.verify(sent.access_token, ignore_start=True, ignore_expiry=True))
            except TokenRejected as rejected:
                if strict:
                    return Problem(reason=rejected.reason, why=rejected.why)
                if rejected.is_signed:
                    unusable.append(sent.access_token)
        return await self._targets(tokens, sent.refresh_token, unusable)

    async def _targets(
        self, tokens: Sequence[Claims], refresh_token: str | None, unusable: Sequence[str]
    ) -> SignOutTargets | Problem:
        """The sessions of these access tokens, of a refresh token, and of what may be one: backends exist whose refresh
        tokens are JWTs of the same key, and go to the logout as the bearer."""
        holders: dict[str, str] = {}
        for token in [*unusable, *([refresh_token] if refresh_token is not None else [])]:
            if holder := await holder_of(self._sign_ins, token):
                user, digested = holder
                holders[digested] = user
        users = {*(claims.user for claims in tokens), *holders.values()}
        if len(users) > 1:
            return Problem(reason=Reason.TOKEN_INVALID, why=TWO_USERS)
        if not users and unusable:
            return CANNOT_END
        if not users:
            return Problem(reason=Reason.TOKEN_MISSING if refresh_token is None else Reason.REFRESH_TOKEN_INVALID)
        return SignOutTargets(user=users.pop(), tokens=tokens, digests=list(holders))

    async def end(self, named: SignOutTargets, facts: RequestFacts) -> int | None:
        """End the sessions. Returns the id of one that was live, else None."""
        ended = None
        manager = self._manager.by(Actor.of(facts.client, named.user))
        for claims in {(claims.reference, claims.digest): claims for claims in named.tokens}.values():
            ended = await manager.log_out(claims, facts.client) or ended
        for digested in named.digests:
            linked = await self._sign_ins.lookup(named.user, digest=digested)
            if linked.outcome in {"live", "crowded"}:
                await manager.log_out_session(named.user, linked.session_id)
                ended = linked.session_id
        return ended

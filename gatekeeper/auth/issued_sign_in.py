"""Sign-ins where Gatekeeper issues the tokens, for a backend that only knows passwords (rule 5.7).

The backend checks passwords (`LOGIN_CHECK_URL`); access tokens are JWTs (RFC 9068), refresh tokens are opaque and
rotate at each use (RFC 9700 section 4.14.2).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gatekeeper import identifiers
from gatekeeper.auth.gate import TWO_USERS
from gatekeeper.auth.requests import IssuedTokens, SessionOwner, SignInRequest
from gatekeeper.auth.services import SignInServices, counted, record, record_failed_login
from gatekeeper.auth.sign_out import SignOut
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Client, Problem, Session
from gatekeeper.sessions.audit_event import Action
from gatekeeper.sessions.events import Actor, Event
from gatekeeper.sessions.sign_ins import RefreshToken, Rotation, Successor
from gatekeeper.tokens.issuer import AccessTokenIssuer, IssuedToken, digest, new_refresh_token, new_sid, seal, unseal
from gatekeeper.tokens.login_check import LoginCheck

# A failed login is answered at the next multiple of this time, so that the time does not tell an unknown name, which
# the backend finds out sooner, from a wrong password.
_FAILURE_SECONDS: Final = 0.5


class IssuedSignIn:
    """Logs in, refreshes and logs out. Without a `check` no password is accepted: the application signs users in by
    the Python API. Raises `StoreUnavailable`, `KeysUnavailable`, `UpstreamUnavailable` and `UpstreamTimeout`."""

    def __init__(
        self,
        services: SignInServices,
        sign_out: SignOut,
        *,
        check: LoginCheck | None,
        access_tokens: AccessTokenIssuer,
        session_seconds: float,
    ) -> None:
        self._services = services
        self._sign_out = sign_out
        self._check = check
        self._access_tokens = access_tokens
        self._session_seconds = session_seconds

    @property
    def access_seconds(self) -> int:
        """The life of an access token in seconds, if its session lives as long."""
        return self._access_tokens.ttl_seconds

    def __repr__(self) -> str:
        return f"<IssuedSignIn {self._access_tokens!r}>"

    async def login(
        self,
        request: SignInRequest,
        members: Mapping[str, Any],
        owner: SessionOwner,
        *,
        headers: Sequence[tuple[str, str]],
    ) -> IssuedTokens | Problem:
        """Check a password and sign the user in. `headers` go to the backend that checks it."""
        if not (isinstance(members.get("username"), str) and isinstance(members.get("password"), str)):
            return Problem(reason=Reason.BAD_REQUEST, detail="username and password must be strings")
        attempts = self._services.attempts
        if attempts is None:
            return await self._logged_in(request, members, owner, headers)
        if wait := await attempts.wait_seconds(request.user_names, request.address):
            await record(self._services, Action.LOGIN_THROTTLED, request, owner)
            return Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait)
        with attempts.in_progress(request.user_names):
            pair = await self._logged_in(request, members, owner, headers)
        if isinstance(pair, IssuedTokens):
            await attempts.succeeded(request.user_names, request.address)
        return pair

    async def _logged_in(
        self,
        request: SignInRequest,
        members: Mapping[str, Any],
        owner: SessionOwner,
        headers: Sequence[tuple[str, str]],
    ) -> IssuedTokens | Problem:
        began = time.monotonic()
        assert self._check is not None  # noqa: S101 - or there is no path that leads here
        checked = await self._check.check(members, headers=headers)
        if checked is None:
            if self._services.attempts is not None:
                await self._services.attempts.failed(request.user_names, request.address)
            await record_failed_login(self._services, request, owner)
            await asyncio.sleep(_FAILURE_SECONDS - (time.monotonic() - began) % _FAILURE_SECONDS)
            return Problem(reason=Reason.INVALID_CREDENTIALS)
        return await self.sign_in(checked.user, request, owner, claims=checked.claims)

    async def sign_in(
        self, user: str, request: SignInRequest, owner: SessionOwner, *, claims: Mapping[str, Any]
    ) -> IssuedTokens | Problem:
        """Open a session and issue its tokens, for a user who has been authenticated. `claims` go into its access
        tokens. The session of a token that the request carries ends first: one device, one session."""
        owner.user = user
        sid, expires_at = new_sid(), time.time() + self._session_seconds
        issued = self.sign(user, sid=sid, claims=claims, session_expires_at=expires_at)
        refresh = new_refresh_token()
        # Tokens have whole seconds, and a session may live for less than one.
        read = await self._services.verifier.verify(issued.token, ignore_expiry=True)
        bearer = (await self._services.gate.identify(request.facts, ignore_times=True)).claims
        signed_in = await self._services.sign_ins.log_in(
            read,
            request.client,
            exempt=self._services.exempt.covers(read),
            refresh=RefreshToken(digest(refresh)),
            presented=bearer if bearer is not None and bearer.user == read.user else None,
            kept_claims=msgspec.json.encode(claims).decode() if claims else "",
            user_name=request.sent.user_name or "",
        )
        owner.session_id = signed_in.session_id or None
        problem = counted(self._services.events, signed_in)
        if problem is not None:
            if signed_in.outcome != "full":
                await record(self._services, Action.LOGIN_REFUSED, request, owner, reason=problem.reason.code)
            return problem
        await self._end_previous_session(user, request, signed_in.session_id)
        if issued.expires_at > signed_in.expires_at:
            # The store's clock is behind this host's.
            issued = self.sign(user, sid=sid, claims=claims, session_expires_at=signed_in.expires_at, jti=issued.jti)
        return self._pair(issued.token, refresh, signed_in.expires_at)

    async def _end_previous_session(self, user: str, request: SignInRequest, session_id: int) -> None:
        """End the session of a refresh cookie that the request carries, as that of an access token ends."""
        presented = digest(request.sent.refresh_token) if request.sent.refresh_token is not None else None
        if presented is None or await self._services.sign_ins.user_of(presented) != user:
            return
        linked = await self._services.sign_ins.lookup(user, digest=presented)
        if linked.outcome in {"live", "crowded"} and linked.session_id != session_id:
            actor = Actor.of(request.client, user)
            await self._services.manager.by(actor).log_out_session(user, linked.session_id)

    def sign(
        self, user: str, *, sid: str, claims: Mapping[str, Any], session_expires_at: float, jti: str | None = None
    ) -> IssuedToken:
        """Sign an access token of the session that `sid` names and that expires at `session_expires_at` (seconds),
        without asking the store. Raises `ValueError` for claims that make no token."""
        return self._access_tokens.issue(user, sid=sid, claims=claims, session_expires_at=session_expires_at, jti=jti)

    async def access_token(self, session: Session, client: Client, *, claims: Mapping[str, Any]) -> str | Problem:
        """Issue one more access token of a session, which moves its activity."""
        try:
            issued = self.sign(
                session.user,
                sid=identifiers.read(session.reference),
                claims=claims,
                session_expires_at=session.expires_at / 1e6,
            )
            read = await self._services.verifier.verify(issued.token)
        except TokenRejected as rejected:
            # The session was opened by a token that Gatekeeper did not issue, whose reference is no `sid`.
            return Problem(reason=rejected.reason, why=rejected.why)
        signed_in = await self._services.sign_ins.refresh(
            read, client, exempt=self._services.exempt.covers(read), refresh=None, linked=session.id
        )
        return counted(self._services.events, signed_in) or issued.token

    async def refresh(self, request: SignInRequest, owner: SessionOwner) -> IssuedTokens | Problem:
        """Rotate a refresh token: new tokens for the current one, the same tokens again for one that was rotated a
        moment ago."""
        presented = request.sent.refresh_token
        if presented is None:
            return Problem(reason=Reason.TOKEN_MISSING)
        digested = digest(presented)
        user = await self._services.sign_ins.user_of(digested)
        if user is None:
            return Problem(reason=Reason.REFRESH_TOKEN_INVALID)
        bearer = (await self._services.gate.identify(request.facts, ignore_times=True)).claims
        if bearer is not None and bearer.user != user:
            return Problem(reason=Reason.TOKEN_INVALID, why=TWO_USERS)
        owner.user = user
        wait = await self._services.gate.wait_seconds(user, address=request.address)
        if wait:
            return Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait)
        actor = Actor.of(request.client, user)
        rotation = await self._services.sign_ins.lookup_refresh_token(user, digested, actor=actor)
        if rotation.outcome != "current":
            return await self._rotated(rotation, presented, request, owner)
        pair, successor = self._successor(user, rotation, presented)
        rotated = await self._services.sign_ins.rotate(user, digested, successor, actor=actor)
        if rotated.outcome != "rotated":
            return await self._rotated(rotated, presented, request, owner)
        owner.session_id = rotated.session_id
        return pair

    def _successor(self, user: str, rotation: Rotation, presented: str) -> tuple[IssuedTokens, Successor]:
        claims = msgspec.json.decode(rotation.claims) if rotation.claims else {}
        issued = self._access_tokens.issue(
            user, sid=rotation.reference, claims=claims, session_expires_at=rotation.expires_at
        )
        refresh = new_refresh_token()
        pair = self._pair(issued.token, refresh, rotation.expires_at)
        sealed = seal(presented, msgspec.json.encode(pair))
        return pair, Successor(digest(refresh), issued.jti, issued.expires_at, sealed)

    def _pair(self, access_token: str, refresh_token: str, session_expires_at: float) -> IssuedTokens:
        seconds = max(0, int(session_expires_at - time.time()))
        return IssuedTokens(access_token, refresh_token, self._access_tokens.ttl_seconds, seconds)

    async def _rotated(
        self, rotation: Rotation, presented: str, request: SignInRequest, owner: SessionOwner
    ) -> IssuedTokens | Problem:
        """Answer a refresh token that is not the current one, or is it no more."""
        owner.session_id = rotation.session_id or None
        if rotation.outcome == "repeated":
            content = unseal(presented, rotation.sealed)
            if content is not None:
                return msgspec.json.decode(content, type=IssuedTokens)
        if rotation.outcome == "reused":
            self._services.events.count(Event.REFRESH_REUSED, "system")
        elif rotation.outcome == "ended":
            await record(self._services, Action.REFRESH_REFUSED, request, owner, reason=rotation.end_reason)
        return Problem(reason=Reason.REFRESH_TOKEN_INVALID, end_reason=rotation.end_reason)

    async def logout(self, request: SignInRequest, owner: SessionOwner) -> Problem | None:
        """End the sessions that the request's tokens name."""
        named = await self._sign_out.named(request.facts, request.sent, strict=True)
        if isinstance(named, Problem):
            return named
        owner.user = named.user
        wait = await self._services.gate.wait_seconds(named.user, address=request.address)
        if wait:
            return Problem(reason=Reason.RATE_LIMITED, retry_after_seconds=wait)
        owner.session_id = await self._sign_out.end(named, request.facts)
        return None

    async def aclose(self) -> None:
        if self._check is not None:
            await self._check.aclose()

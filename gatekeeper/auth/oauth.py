"""OAuth and OpenID Connect over the same sessions: token revocation (RFC 7009), token introspection (RFC 7662) and the
receiver of OpenID Connect Back-Channel Logout 1.0."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any, Final

from gatekeeper.auth.links import holder_of
from gatekeeper.auth.requests import SessionOwner
from gatekeeper.auth.services import SignInServices
from gatekeeper.auth.sign_out import CANNOT_END
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Claims, Client, Problem
from gatekeeper.sessions.events import Actor
from gatekeeper.store.replay import ReplayGuard
from gatekeeper.tokens.logout_token import LogoutToken, LogoutTokenVerifier

# RFC 7662 section 2.2, as far as a token may carry it.
_DESCRIBED: Final = ("scope", "client_id", "username", "exp", "iat", "nbf", "sub", "aud", "iss", "jti")
INACTIVE: Final[Mapping[str, Any]] = {"active": False}


class IntrospectionClients:
    """The clients that may revoke and introspect: ids with their secrets."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.replace(secrets)

    def replace(self, secrets: Mapping[str, str]) -> None:
        """Know these clients from now on, and no other."""
        self._digests = {name: _sha256(secret) for name, secret in secrets.items()}

    def __repr__(self) -> str:
        return f"<IntrospectionClients {', '.join(sorted(self._digests))}>"

    def knows(self, name: str, secret: str) -> bool:
        """Compare an id and a secret in a time that does not depend on which of them is wrong."""
        expected = self._digests.get(name, _sha256(""))
        return hmac.compare_digest(expected, _sha256(secret)) and name in self._digests


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TokenEndpoints:
    """Revocation and introspection. Raises `StoreUnavailable` and `KeysUnavailable`."""

    def __init__(self, services: SignInServices, *, adopts_unknown: bool, issues: bool) -> None:
        """`issues`: refresh tokens are Gatekeeper's own and good for one use."""
        self._services = services
        self._issues = issues
        self._adopts_unknown = adopts_unknown

    async def introspect(self, token: str) -> Mapping[str, Any]:
        """Describe a token as it stands now; `{"active": false}` for one that is not good. Moves no activity and
        opens no session, since the caller is not the user."""
        try:
            claims = await self._services.verifier.verify(token)
        except TokenRejected:
            return await self._refresh_token(token)
        linked = await self._services.sign_ins.lookup(claims.user, claims=claims)
        if linked.outcome == "unknown":
            adoptable = self._adopts_unknown and (not linked.not_before or (claims.issued_at or 0) > linked.not_before)
            return _described(claims) if adoptable else INACTIVE
        return INACTIVE if linked.outcome == "ended" else _described(claims)

    async def _refresh_token(self, token: str) -> Mapping[str, Any]:
        holder = await holder_of(self._services.sign_ins, token)
        if holder is None:
            return INACTIVE
        user, digested = holder
        linked = await self._services.sign_ins.lookup(user, digest=digested)
        if linked.outcome not in {"live", "crowded"}:
            return INACTIVE
        if self._issues and not linked.is_newest:
            return INACTIVE
        return {"active": True, "token_type": "refresh_token", "sub": user, "exp": int(linked.expires_at)}

    async def revoke(self, token: str, client: Client, owner: SessionOwner) -> Problem | None:
        """End the session that an access or refresh token names. A token that names none is no error (RFC 7009
        section 2.2); one that is well signed and cannot be read is a problem (section 2.2.1: 503, the token is still
        good)."""
        try:
            claims = await self._services.verifier.verify(token, ignore_start=True, ignore_expiry=True)
        except TokenRejected as rejected:
            await self._revoke_refresh_token(token, client, owner)
            return CANNOT_END if rejected.is_signed and owner.user is None else None
        owner.user, owner.session_id = claims.user, await self._services.manager.log_out(claims, client)
        return None

    async def _revoke_refresh_token(self, token: str, client: Client, owner: SessionOwner) -> None:
        holder = await holder_of(self._services.sign_ins, token)
        if holder is None:
            return
        owner.user, digested = holder
        linked = await self._services.sign_ins.lookup(owner.user, digest=digested)
        if linked.outcome in {"live", "crowded"}:
            manager = self._services.manager.by(Actor.of(client, owner.user))
            await manager.log_out_session(owner.user, linked.session_id)
            owner.session_id = linked.session_id


def _described(claims: Claims) -> Mapping[str, Any]:
    said = {name: claims.claims[name] for name in _DESCRIBED if name in claims.claims}
    return {"active": True, "token_type": "Bearer", **said, "sub": claims.user}


class BackChannelLogout:
    """Ends sessions on the word of an identity provider. Raises `StoreUnavailable` and `KeysUnavailable`."""

    def __init__(
        self,
        services: SignInServices,
        tokens: LogoutTokenVerifier,
        used: ReplayGuard,
        *,
        sub_is_user: bool,
        session_seconds: float,
    ) -> None:
        self._services = services
        self._tokens = tokens
        self._used = used
        self._sub_is_user = sub_is_user
        self._session_seconds = session_seconds

    async def log_out(self, token: str, *, client: Client, owner: SessionOwner) -> Problem | None:
        """End what a logout token names: the sessions of its `sid`, else all of its `sub`. Returns None when they
        have ended."""
        try:
            logout = await self._tokens.verify(token)
        except TokenRejected:
            return Problem(reason=Reason.BAD_REQUEST, detail="The logout token is not valid")
        if await self._used.is_used(logout.jti):
            return Problem(reason=Reason.BAD_REQUEST, detail="The logout token has been used")
        # Remembered after the end, so that a provider may repeat a token when the store failed. The same token twice at
        # once does no harm: ending twice changes nothing.
        await self._end(logout, client, owner)
        await self._used.record_use(logout.jti, expires_at=logout.expires_at)
        return None

    async def _end(self, logout: LogoutToken, client: Client, owner: SessionOwner) -> None:
        manager = self._services.manager.by(Actor.of(client, None, kind="system"))
        owner.user = logout.sub if self._sub_is_user else None
        if logout.sid is None:
            if owner.user is not None:
                await manager.log_out_everywhere(owner.user)
            return
        owner.user = owner.user or await self._services.sign_ins.user_of_sid(logout.sid)
        if owner.user is not None:
            until = time.time() + self._session_seconds
            await manager.log_out_sid(owner.user, logout.sid, tokens_expire_at=until, issued_at=logout.issued_at)

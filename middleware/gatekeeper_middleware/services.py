"""Tokens and sessions for code of the application, under the names that such services usually have.

    tokens = TokenService(engine_of(request), request)
    access_token = await tokens.create_access_token(user)

One instance belongs to one request: it keeps the second token of a pair until that is asked for. `user` is an object
with an `id`, a mapping with `"id"`, or the id itself, an integer or a string; its `roles`, if there are any, go into
access tokens. `jti` identifies a session: the value from `extract_jti_from_token` or `SessionInfo.jti`, or the `jti` of
the newest token of the session.

Every method raises `ServiceUnavailable` if the store or the keys do not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.requests import IssuedTokens, SessionOwner
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.identifiers import as_given
from gatekeeper.models import Problem, Session, Verdict
from gatekeeper.sessions.manager import Manager
from gatekeeper.tokens.claims import unverified_reference
from gatekeeper.tokens.jws import unverified_payload
from gatekeeper.web.engine import Engine
from gatekeeper.web.request import CurrentSession
from gatekeeper.web.services import Services
from gatekeeper_middleware.context import ServiceContext, engine_of, roles_of, scope_of, user_id, user_id_or_none
from gatekeeper_middleware.faults import AuthenticationError, ServiceUnavailable, refused
from gatekeeper_middleware.schemas import SessionInfo

__all__ = [
    "AuthenticationError",
    "ServiceUnavailable",
    "SessionInfo",
    "SessionService",
    "TokenService",
    "engine_of",
    "extract_jti_from_request",
    "extract_jti_from_token",
]

_NO_SESSION = Problem(reason=Reason.SESSION_REVOKED_OR_INVALID)


def extract_jti_from_token(token: str) -> str:
    """Return the identifier of a token's session: its `sid`, else its `jti`, else a hash of its payload.

    The token is NOT verified, and an attacker can write any value into it. Use it to find a session of a user who is
    already authenticated, never to authenticate a user. Raises `AuthenticationError` for text that is not a token.
    """
    try:
        return as_given(unverified_reference(unverified_payload(token)))
    except TokenRejected as rejected:
        raise AuthenticationError from rejected


def extract_jti_from_request(request: Any) -> str:
    """Return the identifier of a request's session, from its token, which the middleware has verified. Raises
    `AuthenticationError` if the request was admitted without a token."""
    context = ServiceContext(engine_of(request), request)
    session: CurrentSession | None = scope_of(request)["gatekeeper"]
    if session is None:
        raise refused(Problem(reason=Reason.TOKEN_MISSING), context.language())
    return as_given(session.claims.reference)


class SessionService:
    """The sessions of users. For an unknown user or session, methods return an empty result and raise no error."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self._context = ServiceContext(engine, request)

    def __repr__(self) -> str:
        return f"<SessionService {self._context!r}>"

    @property
    def _manager(self) -> Manager:
        return self._context.manager

    async def is_session_valid(self, jti: str, user_id: int | str) -> bool:
        """Return True if the session is active. Does not count as activity."""
        found = await self._find(jti, user_id)
        return found is not None and found.is_active

    async def get_session(self, jti: str, user_id: int | str) -> SessionInfo | None:
        """Return the session, also one that has ended (`revoked_at`), for as long as the store keeps it. Does not count
        as activity."""
        found = await self._find(jti, user_id)
        return None if found is None else SessionInfo.of(found)

    async def update_session_activity(self, jti: str, user_id: int | str) -> bool:
        """Record activity in the session, as every admitted request does by itself. False if no such session is
        active."""
        found = await self._find(jti, user_id, touch=True)
        return found is not None and found.is_active

    async def _find(self, jti: str, user: int | str, *, touch: bool = False) -> Session | None:
        owner = user_id_or_none(user)
        if owner is None:
            return None
        with self._context.errors_in(self._context.language()):
            return await self._manager.find(owner, jti, touch=touch)

    async def revoke_session(self, jti: str, user_id: int | str, language: str = "en") -> bool:
        """Sign the session out: its tokens are refused from now on with `access_token_blacklisted`, even if no request
        has used one yet. False if the session was not active. `language` is that of an error."""
        user = user_id_or_none(user_id)
        if user is None:
            return False
        with self._context.errors_in(self._context.language(language)):
            found = await self._manager.find(user, jti)
            if found is None:
                await self._manager.log_out_unseen(user, jti, self._context.client)
                return False
            ended = await self._manager.log_out_session(user, found.id)
        return ended is not None

    async def delete_session(self, session: int | str, user_id: int | str, *, by_admin: bool = False) -> bool:
        """Revoke a session, given by its integer `id` or its `jti`, and remove it from every list; its tokens are
        refused with `session_revoked_or_invalid`. False if there was none to revoke."""
        user = user_id_or_none(user_id)
        if user is None:
            return False
        with self._context.errors_in(self._context.language()):
            if isinstance(session, str):
                found = await self._manager.find(user, session)
                session = 0 if found is None else found.id
            ended = await self._manager.revoke(user, session, by_admin=by_admin)
        return ended is not None

    async def get_user_sessions(self, user_id: int | str, *, include_inactive: bool = False) -> list[SessionInfo]:
        """Return the active sessions, latest activity first, at most 1,000. `include_inactive` adds ended sessions,
        except those that `delete_session` removed."""
        user = user_id_or_none(user_id)
        if user is None:
            return []
        with self._context.errors_in(self._context.language()):
            found = await self._manager.sessions(user, include_inactive=include_inactive)
        return [SessionInfo.of(session) for session in found]

    async def get_user_active_sessions(self, user_id: int | str) -> list[SessionInfo]:
        """Return the active sessions, latest activity first, at most 1,000."""
        return await self.get_user_sessions(user_id)

    async def get_session_count(self, user_id: int | str) -> int:
        """Return the number of active sessions, counted up to 1,000."""
        return len(await self.get_user_sessions(user_id))

    async def cleanup_expired_sessions(self) -> int:
        """Remove the idle and the expired sessions of all users from the lists now. Returns their number."""
        with self._context.errors_in(self._context.language()):
            return await self._manager.clean_up()

    async def enforce_max_sessions(self, user_id: int | str) -> int:
        """End the sessions over the device limit, by the configured policy, and return their number. Opening a session
        already keeps the limit: there are some only after the setting was lowered."""
        user = user_id_or_none(user_id)
        if user is None:
            return 0
        with self._context.errors_in(self._context.language()):
            return await self._manager.enforce_limit(user)

    async def create_session(self, user: Any, *, claims: Mapping[str, Any] | None = None) -> SessionInfo:
        """Open a session without a token; `TokenService.create_access_token(user, session.jti)` makes one later.
        `claims`, and errors, are as in that method."""
        pair = await _sign_in(self._context, user, claims)
        owner, reference = user_id(user), extract_jti_from_token(pair.access_token)
        found = await self._find(reference, owner)
        if found is None:
            raise refused(_NO_SESSION, self._context.language())
        return SessionInfo.of(found)


class TokenService:
    """Access and refresh tokens. `create_…` and `refresh_tokens` raise RuntimeError unless `GATEKEEPER_TOKENS=issue`:
    otherwise the application issues its tokens itself."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self._services = engine.services
        self._context = ServiceContext(engine, request)
        self._unclaimed: dict[tuple[str, str], str] = {}
        self.session_service = SessionService(engine, request)

    def __repr__(self) -> str:
        return f"<TokenService {self._context!r}>"

    @property
    def expires_in(self) -> int:
        """The lifetime of an access token in seconds."""
        return issuing_of(self._services).access_seconds

    async def create_access_token(
        self, user: Any, jti: str | None = None, *, claims: Mapping[str, Any] | None = None
    ) -> str:
        """Return an access token of a new session, or of the active session `jti`. `claims` are added to it; those of a
        new session are also added to tokens from later refreshes.

        The next `create_refresh_token` for the same user returns the refresh token of the same new session. If the
        request itself has a token of that user, the new session replaces the session of that token. Raises
        `AuthenticationError` if the device limit is reached (`session_limit_exceeded`), or `jti` is not active.
        """
        if jti is None:
            return await self._token_of_pair(user, "access_token", claims)
        issuing, language = issuing_of(self._services), self._context.language()
        with self._context.errors_in(language):
            session = await self._services.manager.find(user_id(user), jti)
            if session is None:
                raise refused(_NO_SESSION, language)
            token = await issuing.access_token(
                session, self._context.client, claims=claims_of(self._services, user, claims)
            )
        if isinstance(token, Problem):
            raise refused(token, language)
        return token

    async def create_refresh_token(self, user: Any, *, claims: Mapping[str, Any] | None = None) -> str:
        """Return a refresh token of the session of the last `create_access_token`, else of a new one. It can be used
        once: see `refresh_tokens`."""
        return await self._token_of_pair(user, "refresh_token", claims)

    async def _token_of_pair(
        self, user: Any, kind: Literal["access_token", "refresh_token"], claims: Mapping[str, Any] | None
    ) -> str:
        """Return one token of a pair, and keep the other for the next call."""
        owner = user_id(user)
        unclaimed = self._unclaimed.pop((owner, kind), None)
        if unclaimed is not None:
            return unclaimed
        pair = await _sign_in(self._context, user, claims)
        tokens = {"access_token": pair.access_token, "refresh_token": pair.refresh_token}
        wanted = tokens.pop(kind)
        self._unclaimed |= {(owner, other): token for other, token in tokens.items()}
        return wanted

    async def refresh_tokens(self, token: str, language: str = "en") -> dict[str, Any]:
        """Exchange a refresh token for a new pair, and record activity in the session.

        The same token gets the same pair again within `GATEKEEPER_REFRESH_REUSE_WINDOW`; after that, using it again
        ends the session. Returns `access_token`, `refresh_token`, `token_type` and `expires_in` (seconds). Raises
        `AuthenticationError`, worded in `language`.
        """
        issuing, language = issuing_of(self._services), self._context.language(language)
        with self._context.errors_in(language):
            pair = await issuing.refresh(self._context.sign_in_request(refresh_token=token), SessionOwner())
        if isinstance(pair, Problem):
            raise refused(pair, language)
        return {
            "access_token": pair.access_token,
            "refresh_token": pair.refresh_token,
            "token_type": "bearer",
            "expires_in": pair.expires_in,
        }

    async def validate_token(self, token: str, language: str | None = None) -> dict[str, Any]:
        """Return the payload of an access token, if a request with it would be admitted now.

        The token is verified, its session is checked, and activity is recorded, as for a request. The application has
        to check by itself that the user is active. Raises `AuthenticationError`.
        """
        language = self._context.language(language)
        with self._context.errors_in(language):
            try:
                claims = await self._services.verifier.verify(token)
            except TokenRejected as rejected:
                raise refused(Problem(reason=rejected.reason), language) from rejected
            identified = Verdict(reason=_NO_SESSION.reason, claims=claims, user=claims.user)
            verdict = await self._services.gate.admit(identified, claims, self._context.client)
        if not verdict.admitted:
            raise refused(Problem(reason=verdict.reason, end_reason=verdict.end_reason), language)
        return dict(claims.claims)


async def _sign_in(context: ServiceContext, user: Any, claims: Mapping[str, Any] | None) -> IssuedTokens:
    """Open a session and return its first pair of tokens."""
    issuing, language = issuing_of(context.services), context.language()
    with context.errors_in(language):
        pair = await issuing.sign_in(
            user_id(user), context.sign_in_request(), SessionOwner(), claims=claims_of(context.services, user, claims)
        )
    if isinstance(pair, Problem):
        raise refused(pair, language)
    return pair


def issuing_of(services: Services) -> IssuedSignIn:
    """Return the service that issues tokens. Raises RuntimeError unless `GATEKEEPER_TOKENS=issue`."""
    if services.issued is None:
        raise RuntimeError(
            "Gatekeeper issues no tokens here: GATEKEEPER_TOKENS is observe, so the application signs its own"
        )
    return services.issued


def claims_of(services: Services, user: Any, claims: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the claims for access tokens of a user: the roles, and the further `claims`."""
    roles = roles_of(user)
    return {**({services.verifier.roles_claim: roles} if roles else {}), **(claims or {})}

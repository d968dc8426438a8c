"""Tokens and sessions for the application itself, under the names that services of this kind have.

    tokens = TokenService(engine_of(request), request)
    access_token = await tokens.create_access_token(user)

One instance belongs to one request: it remembers the other half of a pair that it has made. A user is an object with an
`id`, a mapping with `"id"`, or the id, an integer or a string; `roles`, where there are any, go into access tokens. A
session is named by what `extract_jti_from_token` and `SessionInfo.jti` give, or by the `jti` of its newest token.

Every method raises `ServiceUnavailable` where the store or the keys do not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.requests import IssuedTokens, SessionOwner
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Problem, Session, Verdict
from gatekeeper.sessions.manager import Manager
from gatekeeper.tokens.claims import unverified_reference
from gatekeeper.tokens.jws import unverified_payload
from gatekeeper.web.engine import Engine
from gatekeeper.web.request import CurrentSession
from gatekeeper.web.services import Services
from gatekeeper_middleware.caller import Caller, engine_of, known_id, roles_of, scope_of, user_id
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
    """What names the session of a token: its `sid`, else its `jti`, else a hash of what it says.

    The token is NOT verified: anybody can write one with any name in it. Good for finding a session of a user who is
    known otherwise, never for finding out who somebody is. Raises `AuthenticationError` for what is no token.
    """
    try:
        return unverified_reference(unverified_payload(token))
    except TokenRejected as rejected:
        raise AuthenticationError from rejected


def extract_jti_from_request(request: Any) -> str:
    """What names the session of a request; of its token, which the gate has verified. Raises `AuthenticationError`
    where the gate has admitted it without one."""
    caller = Caller(engine_of(request), request)
    session: CurrentSession | None = scope_of(request)["gatekeeper"]
    if session is None:
        raise refused(Problem(reason=Reason.TOKEN_MISSING), caller.language())
    return session.claims.reference


class SessionService:
    """The sessions of users. A user or a session that is not there is none: never an error."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self._caller = Caller(engine, request)

    def __repr__(self) -> str:
        return f"<SessionService {self._caller!r}>"

    @property
    def _manager(self) -> Manager:
        return self._caller.manager

    async def is_session_valid(self, jti: str, user_id: int | str) -> bool:
        """Whether the session lives. Moves nothing."""
        found = await self._find(jti, user_id)
        return found is not None and found.is_active

    async def get_session(self, jti: str, user_id: int | str) -> SessionInfo | None:
        """The session, one that has ended included (`revoked_at`) for as long as it is remembered. Moves nothing."""
        found = await self._find(jti, user_id)
        return None if found is None else SessionInfo.of(found)

    async def update_session_activity(self, jti: str, user_id: int | str) -> bool:
        """Moves the activity, as every admitted request does by itself. False: there is no such live session."""
        found = await self._find(jti, user_id, touch=True)
        return found is not None and found.is_active

    async def _find(self, jti: str, user: int | str, *, touch: bool = False) -> Session | None:
        known = known_id(user)
        if known is None:
            return None
        with self._caller.errors_in(self._caller.language()):
            return await self._manager.find(known, jti, touch=touch)

    async def revoke_session(self, jti: str, user_id: int | str, language: str = "en") -> bool:
        """Signs the session out: all of its tokens are refused from now on, with `access_token_blacklisted`, those of a
        name that was never seen included. False: nothing was live. `language` is that of an error."""
        user = known_id(user_id)
        if user is None:
            return False
        with self._caller.errors_in(self._caller.language(language)):
            found = await self._manager.find(user, jti)
            if found is None:
                await self._manager.log_out_unseen(user, jti, self._caller.client)
                return False
            ended = await self._manager.log_out_session(user, found.id)
        return ended is not None

    async def delete_session(self, session: int | str, user_id: int | str, *, by_admin: bool = False) -> bool:
        """Ends a session, named by its integer id or as everywhere, and takes it out of every list; its tokens are
        refused with `session_revoked_or_invalid`. False: there is none to end."""
        user = known_id(user_id)
        if user is None:
            return False
        with self._caller.errors_in(self._caller.language()):
            if isinstance(session, str):
                found = await self._manager.find(user, session)
                session = 0 if found is None else found.id
            ended = await self._manager.revoke(user, session, by_admin=by_admin)
        return ended is not None

    async def get_user_sessions(self, user_id: int | str, *, include_inactive: bool = False) -> list[SessionInfo]:
        """The live sessions, newest activity first, at most 1,000; with `include_inactive` also those that ended
        otherwise than by `delete_session`."""
        user = known_id(user_id)
        if user is None:
            return []
        with self._caller.errors_in(self._caller.language()):
            found = await self._manager.sessions(user, include_inactive=include_inactive)
        return [SessionInfo.of(session) for session in found]

    async def get_user_active_sessions(self, user_id: int | str) -> list[SessionInfo]:
        """The live sessions, newest activity first, at most 1,000."""
        return await self.get_user_sessions(user_id)

    async def get_session_count(self, user_id: int | str) -> int:
        """How many live sessions there are, counted up to 1,000."""
        return len(await self.get_user_sessions(user_id))

    async def cleanup_expired_sessions(self) -> int:
        """Takes the idle and the expired sessions of all users out of the lists now; how many those were."""
        with self._caller.errors_in(self._caller.language()):
            return await self._manager.clean_up()

    async def enforce_max_sessions(self, user_id: int | str) -> int:
        """Ends the sessions over the device limit, by the configured policy; how many those were. The limit holds by
        itself, in the same step in which a session opens: only one that was lowered has left any over."""
        user = known_id(user_id)
        if user is None:
            return 0
        with self._caller.errors_in(self._caller.language()):
            return await self._manager.enforce_limit(user)

    async def create_session(self, user: Any, *, claims: Mapping[str, Any] | None = None) -> SessionInfo:
        """Opens a session without handing out a token: `TokenService.create_access_token(user, session.jti)` makes one.
        As that method otherwise."""
        pair = await _signed_in(self._caller, user, claims)
        name, reference = user_id(user), extract_jti_from_token(pair.access_token)
        found = await self._find(reference, name)
        if found is None:
            raise refused(_NO_SESSION, self._caller.language())
        return SessionInfo.of(found)


class TokenService:
    """Access and refresh tokens. `create_…` and `refresh_tokens` need `GATEKEEPER_TOKENS=issue`, and raise RuntimeError
    without it: an application that issues its own tokens goes on doing so."""

    def __init__(self, engine: Engine, request: Any = None) -> None:
        self._services = engine.services
        self._caller = Caller(engine, request)
        self._waiting: dict[tuple[str, str], str] = {}
        self.session_service = SessionService(engine, request)

    def __repr__(self) -> str:
        return f"<TokenService {self._caller!r}>"

    @property
    def expires_in(self) -> int:
        """How long an access token is good, in seconds."""
        return issuing_of(self._services).access_seconds

    async def create_access_token(
        self, user: Any, jti: str | None = None, *, claims: Mapping[str, Any] | None = None
    ) -> str:
        """An access token in a new session, or in the live one that `jti` names. `claims` are further ones for it, and
        in a new session for those of later refreshes.

        A new session is the one of the next `create_refresh_token` of the same user, too; the session of a token of
        that user which the request itself brings makes way for it. Raises `AuthenticationError` where there is no room
        (`session_limit_exceeded`), or no such live session.
        """
        if jti is None:
            return await self._half(user, "access_token", claims)
        issuing, language = issuing_of(self._services), self._caller.language()
        with self._caller.errors_in(language):
            session = await self._services.manager.find(user_id(user), jti)
            if session is None:
                raise refused(_NO_SESSION, language)
            token = await issuing.access_token(
                session, self._caller.client, claims=claims_of(self._services, user, claims)
            )
        if isinstance(token, Problem):
            raise refused(token, language)
        return token

    async def create_refresh_token(self, user: Any, *, claims: Mapping[str, Any] | None = None) -> str:
        """A refresh token in the session of the last `create_access_token`, else in a new one. Works once: see
        `refresh_tokens`."""
        return await self._half(user, "refresh_token", claims)

    async def _half(
        self, user: Any, half: Literal["access_token", "refresh_token"], claims: Mapping[str, Any] | None
    ) -> str:
        name = user_id(user)
        waiting = self._waiting.pop((name, half), None)
        if waiting is not None:
            return waiting
        pair = await _signed_in(self._caller, user, claims)
        halves = {"access_token": pair.access_token, "refresh_token": pair.refresh_token}
        wanted = halves.pop(half)
        self._waiting |= {(name, other): token for other, token in halves.items()}
        return wanted

    async def refresh_tokens(self, token: str, language: str = "en") -> dict[str, Any]:
        """A new pair for a refresh token, which is used up by that; moves the activity. The same token within
        `GATEKEEPER_REFRESH_REUSE_WINDOW` gets the same pair; later, its session ends.

        Raises `AuthenticationError` in `language`.
        """
        issuing, language = issuing_of(self._services), self._caller.language(language)
        with self._caller.errors_in(language):
            pair = await issuing.refresh(self._caller.sign_in_request(refresh_token=token), SessionOwner())
        if isinstance(pair, Problem):
            raise refused(pair, language)
        return {
            "access_token": pair.access_token,
            "refresh_token": pair.refresh_token,
            "token_type": "bearer",
            "expires_in": pair.expires_in,
        }

    async def validate_token(self, token: str, language: str | None = None) -> dict[str, Any]:
        """The payload of an access token that a request could pass with now: it is verified, and its session is found,
        judged and touched as by a request. Whether the user is active, only the application knows.

        Raises `AuthenticationError`.
        """
        language = self._caller.language(language)
        with self._caller.errors_in(language):
            try:
                claims = await self._services.verifier.verify(token)
            except TokenRejected as rejected:
                raise refused(Problem(reason=rejected.reason), language) from rejected
            identified = Verdict(reason=_NO_SESSION.reason, claims=claims, user=claims.user)
            verdict = await self._services.gate.admit(identified, claims, self._caller.client)
        if not verdict.admitted:
            raise refused(Problem(reason=verdict.reason, end_reason=verdict.end_reason), language)
        return dict(claims.claims)


async def _signed_in(caller: Caller, user: Any, claims: Mapping[str, Any] | None) -> IssuedTokens:
    """The pair of a new session."""
    issuing, language = issuing_of(caller.services), caller.language()
    with caller.errors_in(language):
        pair = await issuing.sign_in(
            user_id(user), caller.sign_in_request(), SessionOwner(), claims=claims_of(caller.services, user, claims)
        )
    if isinstance(pair, Problem):
        raise refused(pair, language)
    return pair


def issuing_of(services: Services) -> IssuedSignIn:
    """What issues tokens. Raises RuntimeError where nothing does."""
    if services.issued is None:
        raise RuntimeError(
            "Gatekeeper issues no tokens here: GATEKEEPER_TOKENS is observe, so the application signs its own"
        )
    return services.issued


def claims_of(services: Services, user: Any, claims: Mapping[str, Any] | None) -> dict[str, Any]:
    """The claims of a user's access tokens: the roles, and what else is wanted."""
    roles = roles_of(user)
    return {**({services.verifier.roles_claim: roles} if roles else {}), **(claims or {})}

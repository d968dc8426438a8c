"""FastAPI dependencies, for applications behind `app.add_middleware(GatekeeperMiddleware)`.

The gate has judged a request before any of these run: they ask the store for nothing.
"""

# No `from __future__ import annotations`: FastAPI reads these annotations, those of `__call__` included, as they stand.

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Security
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from gatekeeper import messages
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Problem
from gatekeeper_middleware import current_session
from gatekeeper_middleware.caller import Caller, engine_of
from gatekeeper_middleware.faults import AuthenticationError, answer_fault, refused, unauthorized
from gatekeeper_middleware.schemas import (
    LoginRequest,
    LogoutRequest,
    RefreshRequest,
    SessionCreate,
    SessionInfo,
    SessionResponse,
    User,
)
from gatekeeper_middleware.services import SessionService, TokenService

__all__ = [
    "AuthenticationError",
    "LoginRequest",
    "LogoutRequest",
    "RefreshRequest",
    "SessionCreate",
    "SessionInfo",
    "SessionResponse",
    "SessionService",
    "TokenService",
    "User",
    "answer_fault",
    "current_active_user",
    "current_admin",
    "current_user",
    "get_current_active_user",
    "get_current_admin_user",
    "get_current_user",
    "get_redis_client",
    "get_session_service",
    "get_token_service",
    "oauth2_scheme",
    "session_service",
    "token_service",
    "use_users",
]

LoadUser = Callable[[str], Awaitable[Any]]
_LOADER = "gatekeeper_load_user"


def use_users(app: FastAPI, load: LoadUser) -> None:
    """Has users of the application's own loaded: `load` is given the user id of the token and gives the user, or None
    where there is none. An `is_active` and an `is_admin` that they have count."""
    setattr(app.state, _LOADER, load)


class AccessToken(SecurityBase):
    """The access token of a request, from wherever `GATEKEEPER_TOKEN_SOURCES` finds it; 401 without one."""

    def __init__(self) -> None:
        self.model = HTTPBearerModel(bearerFormat="JWT", description="An access token")
        self.scheme_name = "Gatekeeper"

    async def __call__(self, connection: HTTPConnection) -> str:
        sources, scope = engine_of(connection).rules.sources, connection.scope
        try:
            found = sources.find(scope["headers"], websocket=scope["type"] == "websocket")
        except TokenRejected:
            # Passed as anonymous, on a public path.
            found = None
        if found is None:
            raise refused(Problem(reason=Reason.TOKEN_MISSING), _language(connection))
        return found.token


class _Documented(AccessToken):
    """Says in the OpenAPI document that a token is needed, and leaves it to the gate to have looked."""

    async def __call__(self, _: HTTPConnection) -> None:  # type: ignore[override]
        return None


oauth2_scheme = AccessToken()
_documented = _Documented()


def _language(connection: HTTPConnection) -> str:
    return Caller(engine_of(connection), connection).language()


async def token_service(connection: HTTPConnection) -> TokenService:
    """One for the request."""
    return TokenService(engine_of(connection), connection)


async def session_service(tokens: Annotated[TokenService, Depends(token_service)]) -> SessionService:
    """That of the request's token service."""
    return tokens.session_service


async def get_redis_client(connection: HTTPConnection) -> Any:
    """A `redis.asyncio` client of Gatekeeper's store, with connections of its own. For looking: who writes there can
    open and end sessions."""
    return engine_of(connection).services.client.get()


async def current_user(
    connection: HTTPConnection,
    _: Annotated[None, Security(_documented)],
) -> Any:
    """The user of the request: what `use_users` loads, else a `User` out of the token. 401 where the request has no
    session, and where the user is unknown or inactive."""
    session = current_session(connection)
    if session is None:
        raise refused(Problem(reason=Reason.TOKEN_MISSING), _language(connection))
    load: LoadUser | None = getattr(connection.app.state, _LOADER, None)
    if load is None:
        return User.of(session)
    try:
        user = await load(session.user)
    except AuthenticationError as error:
        raise HTTPException(401, str(error), {"www-authenticate": "Bearer", **(error.headers or {})}) from error
    if user is None or not getattr(user, "is_active", True):
        raise unauthorized("User is invalid or inactive", _language(connection))
    return user


async def current_active_user(connection: HTTPConnection, user: Annotated[Any, Depends(current_user)]) -> Any:
    """The user of the request; 400 where they are inactive."""
    if not getattr(user, "is_active", True):
        raise HTTPException(400, messages.translate("Inactive user", _language(connection)))
    return user


async def current_admin(connection: HTTPConnection, user: Annotated[Any, Depends(current_active_user)]) -> Any:
    """The user of the request; 403 where they are no administrator. A user who has `is_admin` says so themselves; for
    any other, the roles of the token do."""
    session = current_session(connection)
    if not getattr(user, "is_admin", session is not None and session.is_admin):
        raise refused(Problem(reason=Reason.FORBIDDEN), _language(connection))
    return user


get_token_service = token_service
get_session_service = session_service
get_current_user = current_user
get_current_active_user = current_active_user
get_current_admin_user = current_admin

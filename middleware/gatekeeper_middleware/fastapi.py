"""FastAPI dependencies, for applications behind `app.add_middleware(GatekeeperMiddleware)`.

The middleware has checked the session before any of these run, so none of them sends a command to the store.
"""

# No `from __future__ import annotations`: FastAPI evaluates these annotations, including those of `__call__`.

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
from gatekeeper_middleware.context import ServiceContext, engine_of
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
    """Make the dependencies below load the application's own users.

    `load(user_id)` returns the user of a token, or None if there is none. If the user has `is_active` or `is_admin`,
    the dependencies respect it.
    """
    setattr(app.state, _LOADER, load)


class AccessToken(SecurityBase):
    """Dependency that returns the access token of a request, from the sources in `GATEKEEPER_TOKEN_SOURCES`. Raises
    `AuthenticationError` (401) if there is none."""

    def __init__(self) -> None:
        self.model = HTTPBearerModel(bearerFormat="JWT", description="An access token")
        self.scheme_name = "Gatekeeper"

    async def __call__(self, connection: HTTPConnection) -> str:
        sources, scope = engine_of(connection).rules.sources, connection.scope
        try:
            found = sources.find(scope["headers"], websocket=scope["type"] == "websocket")
        except TokenRejected:
            # A public path: the request was admitted as anonymous.
            found = None
        if found is None:
            raise refused(Problem(reason=Reason.TOKEN_MISSING), _language(connection))
        return found.token


class _Documented(AccessToken):
    """Declares in the OpenAPI document that a token is needed. The middleware has checked it."""

    async def __call__(self, _: HTTPConnection) -> None:  # type: ignore[override]
        return None


oauth2_scheme = AccessToken()
_documented = _Documented()


def _language(connection: HTTPConnection) -> str:
    return ServiceContext(engine_of(connection), connection).language()


async def token_service(connection: HTTPConnection) -> TokenService:
    """Return the token service of the request."""
    return TokenService(engine_of(connection), connection)


async def session_service(tokens: Annotated[TokenService, Depends(token_service)]) -> SessionService:
    """Return the session service of the request, which shares its state with the token service."""
    return tokens.session_service


async def get_redis_client(connection: HTTPConnection) -> Any:
    """Return a `redis.asyncio` client of Gatekeeper's store, with connections of its own. Use it only to read: a write
    could open or revoke sessions."""
    return engine_of(connection).services.client.get()


async def current_user(
    connection: HTTPConnection,
    _: Annotated[None, Security(_documented)],
) -> Any:
    """Return the user of the request: from the function given to `use_users`, else a `User` made from the token.

    Raises a 401 if the request has no session, or the user is unknown or inactive.
    """
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
    """Return the user of the request. Raises a 400 if the user is inactive."""
    if not getattr(user, "is_active", True):
        raise HTTPException(400, messages.translate("Inactive user", _language(connection)))
    return user


async def current_admin(connection: HTTPConnection, user: Annotated[Any, Depends(current_active_user)]) -> Any:
    """Return the user of the request. Raises a 403 if the user is no administrator, by the user's `is_admin`, or by
    the roles of the token if the user has no such attribute."""
    session = current_session(connection)
    if not getattr(user, "is_admin", session is not None and session.is_admin):
        raise refused(Problem(reason=Reason.FORBIDDEN), _language(connection))
    return user


get_token_service = token_service
get_session_service = session_service
get_current_user = current_user
get_current_active_user = current_active_user
get_current_admin_user = current_admin

"""The endpoints of seed C as it prints them, over the FastAPI dependencies: an application that had services of these
names before. Its own are the users, the password check and what it does with data.

Two functions there use a `request` or a `session_service` that they do not take: here they do.
"""

# No `from __future__ import annotations`, and dependencies as defaults, as in the seed.
# ruff: noqa: B008

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, status
from pydantic import BaseModel

from gatekeeper_middleware import GatekeeperMiddleware
from gatekeeper_middleware.fastapi import (
    AuthenticationError,
    LoginRequest,
    LogoutRequest,
    RefreshRequest,
    get_current_active_user,
    get_current_admin_user,
    get_current_user,
    get_session_service,
    get_token_service,
    oauth2_scheme,
    use_users,
)
from gatekeeper_middleware.services import (
    SessionService,
    TokenService,
    extract_jti_from_request,
    extract_jti_from_token,
)

# The application's own

MINUTES = 15
# Gatekeeper leaves these paths to the application: LOGIN_PATHS and so on are `none`, no dialect claims the others.
SETTINGS = {
    "tokens": "issue",
    "dialects": "users_me",
    "login_paths": "none",
    "refresh_paths": "none",
    "logout_paths": "none",
    "public_paths": "POST /auth/login,POST /auth/refresh",
    "access_token_ttl": f"{MINUTES}m",
}


@dataclass
class User:
    id: int
    username: str
    password: str
    roles: tuple[str, ...] = ()
    is_active: bool = True


class DataUpdate(BaseModel):
    value: str


USERS: dict[int, User] = {}


async def get_user_by_id(user_id: int) -> User | None:
    return USERS.get(user_id)


async def load_user(user_id: str) -> User | None:
    return await get_user_by_id(int(user_id))


async def authenticate_user(credentials: LoginRequest) -> User:
    for user in USERS.values():
        if (user.username, user.password) == (credentials.username, credentials.password):
            return user
    raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Incorrect username or password")


async def process_data_update(data: DataUpdate, current_user: User) -> dict[str, Any]:
    return {"value": data.value, "by": current_user.id}


# As printed

router = APIRouter()


@router.post("/auth/login")
async def login(
    credentials: LoginRequest,
    token_service: TokenService = Depends(get_token_service),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    """Enhanced login with session management."""
    # Authenticate user
    user = await authenticate_user(credentials)

    # Create tokens with enhanced session management
    access_token = await token_service.create_access_token(user)
    refresh_token = await token_service.create_refresh_token(user)

    # Session activity is automatically tracked during token creation
    return {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "token_type": "bearer",
        "expires_in": MINUTES * 60,
    }


@router.post("/auth/refresh")
async def refresh_tokens(
    refresh_request: RefreshRequest,
    token_service: TokenService = Depends(get_token_service),
) -> Any:
    """Enhanced token refresh with activity tracking."""
    # This now includes automatic session activity tracking
    return await token_service.refresh_tokens(refresh_request.refresh_token, refresh_request.language or "en")


@router.post("/auth/logout")
async def logout(
    logout_request: LogoutRequest,
    current_user: User = Depends(get_current_user),
    token_service: TokenService = Depends(get_token_service),
) -> Any:
    """Enhanced logout with immediate token invalidation."""
    # Extract JTI from access token
    jti = extract_jti_from_token(logout_request.access_token)

    # Revoke session (this also blacklists the access token)
    await token_service.session_service.revoke_session(jti, current_user.id, logout_request.language or "en")

    return {"message": "Logged out successfully"}


@router.get("/api/v1/protected")
async def protected_endpoint(current_user: User = Depends(get_current_user)) -> Any:
    """Standard protected endpoint with automatic session validation."""
    # Session validation happens automatically in get_current_user dependency
    return {"message": f"Hello {current_user.username}!"}


@router.post("/api/v1/data")
async def update_data(
    data: DataUpdate,
    request: Request,
    current_user: User = Depends(get_current_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    """Endpoint with custom session activity tracking."""
    # Extract JTI from request headers or token
    jti = extract_jti_from_request(request)

    # Manually update session activity (optional - happens automatically)
    await session_service.update_session_activity(jti, current_user.id)

    # Process data update
    return await process_data_update(data, current_user)


@router.get("/api/v1/data")
async def get_data(current_user: User = Depends(get_current_user)) -> Any:
    # Session validation happens automatically
    return {"data": "some data"}


@router.get("/admin/sessions/active")
async def get_active_sessions(
    current_user: User = Depends(get_current_admin_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    """Get active sessions for current user (admin only)."""
    sessions = await session_service.get_user_active_sessions(current_user.id)
    return {
        "user_id": current_user.id,
        "active_sessions": len(sessions),
        "sessions": [
            {
                "jti": session.jti,
                "created_at": session.created_at,
                "last_activity": session.last_activity_at,
                "expires_at": session.expires_at,
            }
            for session in sessions
        ],
    }


@router.post("/admin/sessions/cleanup")
async def cleanup_sessions(
    current_user: User = Depends(get_current_admin_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    """Clean up expired sessions (admin only)."""
    count = await session_service.cleanup_expired_sessions()
    return {"cleaned_sessions": count}


@router.get("/debug/session-info")
async def get_session_info(
    request: Request,
    current_user: User = Depends(get_current_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    """Get current session information for debugging."""
    jti = extract_jti_from_request(request)

    return {
        "user_id": current_user.id,
        "jti": jti,
        "session_valid": await session_service.is_session_valid(jti, current_user.id),
        "active_sessions": len(await session_service.get_user_active_sessions(current_user.id)),
    }


# The dependency that the seed prints, for applications that go on using one of their own


async def own_current_user(
    token: str = Depends(oauth2_scheme),
    token_service: TokenService = Depends(get_token_service),
) -> User:
    """Enhanced current user dependency with session validation."""
    try:
        # This now includes comprehensive session validation
        payload = await token_service.validate_token(token)
        user_id = int(payload["sub"])

        # Get user from database
        user = await get_user_by_id(user_id)
        if not user or not user.is_active:
            raise HTTPException(status_code=status.HTTP_401_UNAUTHORIZED, detail="User is invalid or inactive")

        return user
    except AuthenticationError as e:
        raise HTTPException(status_code=status.HTTP_401_UNAUTHORIZED, detail=str(e)) from e


@router.get("/own")
async def own(current_user: User = Depends(own_current_user)) -> Any:
    return {"message": f"Hello {current_user.username}!"}


@router.get("/active")
async def active(current_user: User = Depends(get_current_active_user)) -> Any:
    return {"message": f"Hello {current_user.username}!"}


# Before and after: the same endpoint with the old method and with the new one


@router.get("/before")
async def before(
    jti: str,
    current_user: User = Depends(get_current_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    session = await session_service.get_session(jti, current_user.id)
    if not session or session.revoked_at:
        raise HTTPException(status_code=401, detail="Invalid session")
    return {"data": "some data"}


@router.get("/after")
async def after(
    jti: str,
    current_user: User = Depends(get_current_user),
    session_service: SessionService = Depends(get_session_service),
) -> Any:
    if not await session_service.is_session_valid(jti, current_user.id):
        raise HTTPException(status_code=401, detail="Invalid session")

    # Update activity (optional - happens automatically)
    await session_service.update_session_activity(jti, current_user.id)
    return {"data": "some data"}


def seed_app(**gate: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    app.add_middleware(GatekeeperMiddleware, **gate)
    use_users(app, load_user)
    return app

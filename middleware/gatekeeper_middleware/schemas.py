"""The values that the services return, and models of request and response bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from gatekeeper.dialects.base import user_number
from gatekeeper.identifiers import as_given
from gatekeeper.models import EndReason, Session
from gatekeeper.web.request import CurrentSession

# Dataclasses instead of msgspec structs: FastAPI can encode and document them.


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The user of a request, made from the token; `claims` is its whole payload."""

    id: str
    roles: tuple[str, ...] = ()
    is_admin: bool = False
    is_active: bool = True
    claims: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, session: CurrentSession) -> User:
        return cls(id=session.user, roles=session.roles, is_admin=session.is_admin, claims=dict(session.claims.claims))

    @property
    def username(self) -> str:
        """The claim `preferred_username` or `username`; the user id if the token has neither."""
        for name in ("preferred_username", "username"):
            if isinstance(value := self.claims.get(name), str):
                return value
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session.

    `jti` identifies it: the `sid` of its tokens, or their `jti` if they have no `sid`. Times are aware, in UTC, with
    microseconds. `revoked_at` and `end_reason` say when and why it ended, also by idling or expiry; they are None while
    it is active.
    """

    jti: str
    id: int
    user_id: str
    created_at: datetime
    last_activity_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    end_reason: EndReason | None
    device_name: str
    device_name_with_version: str
    device_type: str
    browser: str
    ip_address: str
    user_agent: str
    login_method: str

    @property
    def is_active(self) -> bool:
        return self.revoked_at is None

    @classmethod
    def of(cls, session: Session) -> SessionInfo:
        return cls(
            jti=as_given(session.reference),
            id=session.id,
            user_id=session.user,
            created_at=_instant(session.created_at),
            last_activity_at=_instant(session.last_activity),
            expires_at=_instant(session.expires_at),
            revoked_at=None if session.ended_at is None else _instant(session.ended_at),
            end_reason=session.end_reason,
            device_name=session.device.name,
            device_name_with_version=session.device.name_with_version,
            device_type=session.device.type,
            browser=session.device.browser,
            ip_address=session.ip_address,
            user_agent=session.user_agent,
            login_method=session.login_method,
        )


def _instant(microseconds: int) -> datetime:
    # Seconds and the rest separately: a float of seconds has too few digits for microseconds.
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


class LoginRequest(BaseModel):
    username: str
    password: str
    language: str | None = None


class RefreshRequest(BaseModel):
    refresh_token: str
    language: str | None = None


class LogoutRequest(BaseModel):
    access_token: str
    language: str | None = None


class SessionCreate(BaseModel):
    """The user of a session that the application creates."""

    user_id: int | str
    roles: list[str] = []


class SessionResponse(BaseModel):
    """A session in the form of the dialect `mockstream`: times in whole seconds, `device_name` with the version of the
    operating system."""

    model_config = ConfigDict(frozen=True)

    id: int
    user_id: int | str
    device_name: str
    device_type: str
    browser: str
    ip_address: str
    created_at: datetime
    last_activity: datetime
    is_active: bool

    @classmethod
    def of(cls, session: SessionInfo) -> SessionResponse:
        return cls(
            id=session.id,
            user_id=user_number(session.user_id),
            device_name=session.device_name_with_version,
            device_type=session.device_type,
            browser=session.browser,
            ip_address=session.ip_address,
            created_at=session.created_at.replace(microsecond=0),
            last_activity=session.last_activity_at.replace(microsecond=0),
            is_active=session.is_active,
        )

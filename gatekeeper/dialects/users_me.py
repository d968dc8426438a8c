"""The `users_me` dialect: lists are bare arrays, times are microseconds, DELETE of all keeps the caller signed in."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.dialects.base import (
    ENDS_OTHERS,
    LISTS,
    NOT_FOUND,
    Answer,
    Call,
    DetailAndCode,
    Operation,
    detail_and_code,
    instant,
    session_id,
)
from gatekeeper.errors import Reason
from gatekeeper.models import Location, Problem, Session

name: Final = "users_me"
Error: Final = DetailAndCode
word: Final = detail_and_code


class UsersMeDeviceView(msgspec.Struct, frozen=True):
    browser: str
    os: str
    device: str


class UsersMeLocationView(msgspec.Struct, frozen=True):
    city: str | None
    country: str | None


class UsersMeSessionView(msgspec.Struct, frozen=True):
    id: int
    device_info: UsersMeDeviceView
    device_name: str
    ip_address: str
    location_data: UsersMeLocationView | None
    last_activity: str
    created_at: str
    expires_at: str
    is_active: bool
    is_current: bool


class UsersMeRevoked(msgspec.Struct, frozen=True):
    success: bool
    message: str
    session_id: int


class UsersMeAllRevoked(msgspec.Struct, frozen=True):
    success: bool
    message: str
    revoked_count: int


def _location(location: Location) -> UsersMeLocationView | None:
    if not location.city and not location.country:
        return None
    return UsersMeLocationView(location.city or None, location.country or None)


def _view(session: Session, current: int) -> UsersMeSessionView:
    device = session.device
    return UsersMeSessionView(
        id=session.id,
        device_info=UsersMeDeviceView(device.browser, device.os, device.form),
        device_name=device.name,
        ip_address=session.ip_address,
        location_data=_location(session.location),
        last_activity=instant(session.last_activity, digits=6),
        created_at=instant(session.created_at, digits=6),
        expires_at=instant(session.expires_at, digits=6),
        is_active=session.is_active,
        is_current=session.id == current,
    )


async def list_sessions(call: Call) -> Answer | Problem:
    sessions = await call.manager.sessions(call.claims.user, include_inactive=call.flags["include_inactive"])
    return Answer(body=[_view(session, call.session_id) for session in sessions])


async def revoke_session(call: Call) -> Answer | Problem:
    ended = await call.manager.revoke(call.claims.user, session_id(call.parameters["session_id"]))
    if ended is None:
        return NOT_FOUND
    return Answer(body=UsersMeRevoked(True, call.say("Session revoked"), ended.id))


async def revoke_all_sessions(call: Call) -> Answer | Problem:
    count = await call.manager.revoke_all(call.claims.user, spare=call.spare)
    return Answer(body=UsersMeAllRevoked(True, call.say("All other sessions revoked"), count))


operations: Final = (
    Operation(
        method="GET",
        path="/api/users/me/sessions",
        handler=list_sessions,
        summary="The caller's sessions",
        returns=list[UsersMeSessionView],
        flags=LISTS,
    ),
    Operation(
        method="DELETE",
        path="/api/users/me/sessions",
        handler=revoke_all_sessions,
        summary="End all other sessions of the caller",
        returns=UsersMeAllRevoked,
        flags=ENDS_OTHERS,
    ),
    Operation(
        method="DELETE",
        path="/api/users/me/sessions/{session_id}",
        handler=revoke_session,
        summary="End one session of the caller",
        returns=UsersMeRevoked,
        refusals=(Reason.SESSION_NOT_FOUND,),
    ),
)

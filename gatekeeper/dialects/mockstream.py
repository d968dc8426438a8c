"""The `mockstream` dialect: lists are bare arrays, times are whole seconds, and administrators have their own calls."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.dialects.base import (
    ENDS_ALL,
    LISTS,
    NOT_FOUND,
    Answer,
    Call,
    DetailAndCode,
    Needs,
    Operation,
    detail_and_code,
    instant,
    session_id,
    user_number,
)
from gatekeeper.errors import Reason
from gatekeeper.models import Problem, Session

name: Final = "mockstream"
Error: Final = DetailAndCode
word: Final = detail_and_code


class MockstreamSessionView(msgspec.Struct, frozen=True):
    id: int
    user_id: int | str
    device_name: str
    device_type: str
    browser: str
    ip_address: str
    created_at: str
    last_activity: str
    is_active: bool


class MockstreamClosed(msgspec.Struct, frozen=True):
    success: bool
    message: str


class MockstreamAllClosed(msgspec.Struct, frozen=True):
    success: bool
    message: str
    closed_count: int


def _view(session: Session) -> MockstreamSessionView:
    return MockstreamSessionView(
        id=session.id,
        user_id=user_number(session.user),
        # No other dialect shows the version of the operating system: "Chrome on Windows 10".
        device_name=session.device.name_with_version,
        device_type=session.device.type,
        browser=session.device.browser,
        ip_address=session.ip_address,
        created_at=instant(session.created_at, digits=0),
        last_activity=instant(session.last_activity, digits=0),
        is_active=session.is_active,
    )


async def _list(call: Call, user: str) -> Answer:
    sessions = await call.manager.sessions(user, include_inactive=call.flags["include_inactive"])
    return Answer(body=[_view(session) for session in sessions])


async def list_own_sessions(call: Call) -> Answer | Problem:
    return await _list(call, call.claims.user)


async def list_user_sessions(call: Call) -> Answer | Problem:
    return await _list(call, call.parameters["user_id"])


async def _close(call: Call, user: str, *, by_admin: bool) -> Answer | Problem:
    if await call.manager.revoke(user, session_id(call.parameters["id"]), by_admin=by_admin) is None:
        return NOT_FOUND
    return Answer(body=MockstreamClosed(True, call.say("Session closed successfully")))


async def close_session(call: Call) -> Answer | Problem:
    return await _close(call, call.claims.user, by_admin=False)


async def close_user_session(call: Call) -> Answer | Problem:
    return await _close(call, call.parameters["user_id"], by_admin=True)


async def _close_all(call: Call, user: str, *, by_admin: bool) -> Answer:
    # An administrator can only spare their own session, which belongs to `user` only if the two are the same.
    spare = call.spare if user == call.claims.user else None
    count = await call.manager.revoke_all(user, spare=spare, by_admin=by_admin)
    return Answer(body=MockstreamAllClosed(True, call.say("All sessions closed successfully"), count))


async def close_all_sessions(call: Call) -> Answer | Problem:
    return await _close_all(call, call.claims.user, by_admin=False)


async def close_all_user_sessions(call: Call) -> Answer | Problem:
    return await _close_all(call, call.parameters["user_id"], by_admin=True)


async def log_out(call: Call) -> Answer | Problem:
    await call.manager.log_out(call.claims, call.client)
    return Answer(body=MockstreamClosed(True, call.say("Current session closed successfully")))


_ONE: Final = (Reason.SESSION_NOT_FOUND,)

operations: Final = (
    Operation(
        method="GET",
        path="/sessions/me",
        handler=list_own_sessions,
        summary="The caller's sessions",
        returns=list[MockstreamSessionView],
        flags=LISTS,
    ),
    Operation(
        method="DELETE",
        path="/sessions/logout",
        handler=log_out,
        summary="Sign out: end the session of the token",
        returns=MockstreamClosed,
        needs=Needs.TOKEN,
    ),
    Operation(
        method="DELETE",
        path="/sessions/all",
        handler=close_all_sessions,
        summary="End all sessions of the caller",
        returns=MockstreamAllClosed,
        flags=ENDS_ALL,
    ),
    Operation(
        method="DELETE",
        path="/sessions/{id}",
        handler=close_session,
        summary="End one session of the caller",
        returns=MockstreamClosed,
        refusals=_ONE,
    ),
    Operation(
        method="GET",
        path="/sessions/user/{user_id}",
        handler=list_user_sessions,
        summary="The sessions of a user",
        returns=list[MockstreamSessionView],
        needs=Needs.ADMIN,
        flags=LISTS,
    ),
    Operation(
        method="DELETE",
        path="/sessions/user/{user_id}",
        handler=close_all_user_sessions,
        summary="End all sessions of a user",
        returns=MockstreamAllClosed,
        needs=Needs.ADMIN,
        flags=ENDS_ALL,
    ),
    Operation(
        method="DELETE",
        path="/sessions/user/{user_id}/{id}",
        handler=close_user_session,
        summary="End one session of a user",
        returns=MockstreamClosed,
        needs=Needs.ADMIN,
        refusals=_ONE,
    ),
)

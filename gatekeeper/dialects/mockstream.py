"""The `mockstream` dialect: bare arrays, numbers for ids, whole seconds, and the administrator's view of a user."""

from __future__ import annotations

from typing import Any, Final

from gatekeeper.dialects.base import (
    NOT_FOUND,
    Answer,
    Call,
    Needs,
    Operation,
    Problem,
    detail_and_code,
    instant,
    session_id,
    user_number,
)
from gatekeeper.models import Session

name: Final = "mockstream"


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "user_id": user_number(session.user),
        # The one dialect that shows the version of the operating system: "Chrome on Windows 10".
        "device_name": session.device.name_with_version,
        "device_type": session.device.type,
        "browser": session.device.browser,
        "ip_address": session.ip_address,
        "created_at": instant(session.created_at, digits=0),
        "last_activity": instant(session.last_activity, digits=0),
        "is_active": session.is_active,
    }


def _closed(message: str = "Session closed successfully", **count: int) -> Answer:
    return Answer(body={"success": True, "message": message, **count})


async def _list(call: Call, user: str) -> Answer:
    sessions = await call.manager.sessions(user, include_inactive=call.flags["include_inactive"])
    return Answer(body=[_session(session) for session in sessions])


async def list_own_sessions(call: Call) -> Answer | Problem:
    return await _list(call, call.claims.user)


async def list_user_sessions(call: Call) -> Answer | Problem:
    return await _list(call, call.parameters["user_id"])


async def close_session(call: Call) -> Answer | Problem:
    if not await call.manager.revoke(call.claims.user, session_id(call.parameters["id"])):
        return NOT_FOUND
    return _closed()


async def close_user_session(call: Call) -> Answer | Problem:
    if not await call.manager.revoke(call.parameters["user_id"], session_id(call.parameters["id"]), by_admin=True):
        return NOT_FOUND
    return _closed()


async def close_all_sessions(call: Call) -> Answer | Problem:
    return await _close_all(call, call.claims.user)


async def close_all_user_sessions(call: Call) -> Answer | Problem:
    return await _close_all(call, call.parameters["user_id"], by_admin=True)


async def _close_all(call: Call, user: str, *, by_admin: bool = False) -> Answer:
    # The caller's session is spared where it is one of that user's, and changes nothing where it is not.
    spare = call.session_id if call.flags["exclude_current"] and user == call.claims.user else None
    count = await call.manager.revoke_all(user, spare=spare, by_admin=by_admin)
    return _closed("All sessions closed successfully", closed_count=count)


async def log_out(call: Call) -> Answer | Problem:
    await call.manager.log_out(call.claims, call.client)
    return _closed("Current session closed successfully")


_LISTS: Final = {"include_inactive": False}
_ENDS: Final = {"exclude_current": False}

operations: Final = (
    Operation(method="GET", path="/sessions/me", handler=list_own_sessions, flags=_LISTS),
    Operation(method="DELETE", path="/sessions/logout", handler=log_out, needs=Needs.TOKEN),
    Operation(method="DELETE", path="/sessions/all", handler=close_all_sessions, flags=_ENDS),
    Operation(method="DELETE", path="/sessions/{id}", handler=close_session),
    Operation(
        method="GET", path="/sessions/user/{user_id}", handler=list_user_sessions, needs=Needs.ADMIN, flags=_LISTS
    ),
    Operation(
        method="DELETE",
        path="/sessions/user/{user_id}",
        handler=close_all_user_sessions,
        needs=Needs.ADMIN,
        flags=_ENDS,
    ),
    Operation(method="DELETE", path="/sessions/user/{user_id}/{id}", handler=close_user_session, needs=Needs.ADMIN),
)


def word(problem: Problem, *, operation: Operation | None, request_id: str, now: int) -> dict[str, Any]:
    return detail_and_code(problem)

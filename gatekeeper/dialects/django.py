"""The `django` dialect: `success` and `data` around everything, whole seconds, and two families of paths."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Final

import msgspec

from gatekeeper.dialects.base import ENDS_ALL, LISTS, NOT_FOUND, Answer, Call, Operation, Wording, instant, session_id
from gatekeeper.errors import Reason
from gatekeeper.models import Problem, Session

name: Final = "django"
_FAMILIES: Final = ("/api/v1/auth/users/me/sessions", "/api/v1/users/me/sessions")


class DeviceView(msgspec.Struct, frozen=True):
    browser: str
    os: str
    device: str


class SessionView(msgspec.Struct, frozen=True):
    id: int
    session_key: str
    ip_address: str
    user_agent: str
    device_info: DeviceView
    location: str
    is_active: bool
    last_activity: str
    created_at: str
    device_name: str
    login_method: str
    is_current: bool


class Sessions(msgspec.Struct, frozen=True):
    sessions: list[SessionView]
    total_count: int


class Listed(msgspec.Struct, frozen=True):
    success: bool
    data: Sessions


class Ended(msgspec.Struct, frozen=True):
    session_id: int
    device_name: str


class Terminated(msgspec.Struct, frozen=True):
    success: bool
    message: str
    data: Ended


class Count(msgspec.Struct, frozen=True):
    terminated_count: int


class AllTerminated(msgspec.Struct, frozen=True):
    success: bool
    message: str
    data: Count


class Fault(msgspec.Struct, frozen=True):
    code: str
    message: str


class Error(msgspec.Struct, frozen=True):
    success: bool
    error: Fault


def _view(session: Session, current: int) -> SessionView:
    device = session.device
    return SessionView(
        id=session.id,
        # To be recognised by, and no credential.
        session_key=hashlib.sha256(session.reference.encode()).hexdigest()[:6] + "...",
        ip_address=session.ip_address,
        user_agent=session.user_agent,
        device_info=DeviceView(device.browser, device.os, device.form),
        location=", ".join(part for part in (session.location.city, session.location.country) if part),
        is_active=session.is_active,
        last_activity=instant(session.last_activity, digits=0),
        created_at=instant(session.created_at, digits=0),
        device_name=device.name,
        login_method=session.login_method,
        is_current=session.id == current,
    )


async def user_session_management_list(call: Call) -> Answer | Problem:
    sessions = await call.manager.sessions(call.claims.user, include_inactive=call.flags["include_inactive"])
    views = [_view(session, call.session_id) for session in sessions]
    return Answer(body=Listed(True, Sessions(views, len(views))))


async def user_session_detail_destroy(call: Call) -> Answer | Problem:
    ended = await call.manager.revoke(call.claims.user, session_id(call.parameters["session_id"]))
    if ended is None:
        return NOT_FOUND
    return Answer(
        body=Terminated(True, call.say("Session terminated successfully"), Ended(ended.id, ended.device.name))
    )


async def user_session_management_destroy(call: Call) -> Answer | Problem:
    count = await call.manager.revoke_all(call.claims.user, spare=call.spare)
    return Answer(body=AllTerminated(True, call.say("All sessions terminated successfully"), Count(count)))


def _operations(prefix: str) -> tuple[Operation, ...]:
    def end_all(path: str) -> Operation:
        return Operation(
            method="DELETE",
            path=path,
            handler=user_session_management_destroy,
            summary="End all sessions of the caller",
            returns=AllTerminated,
            flags=ENDS_ALL,
        )

    return (
        Operation(
            method="GET",
            path=f"{prefix}/",
            handler=user_session_management_list,
            summary="The caller's sessions",
            returns=Listed,
            flags=LISTS,
        ),
        end_all(f"{prefix}/"),
        end_all(f"{prefix}/all/"),
        Operation(
            method="DELETE",
            path=f"{prefix}/{{session_id}}/",
            handler=user_session_detail_destroy,
            summary="End one session of the caller",
            returns=Terminated,
            refusals=(Reason.SESSION_NOT_FOUND,),
        ),
    )


operations: Final = tuple(operation for prefix in _FAMILIES for operation in _operations(prefix))


def word(problem: Problem, wording: Wording) -> Error:
    unauthorized = problem.reason.status == HTTPStatus.UNAUTHORIZED
    code = "UNAUTHORIZED" if unauthorized else problem.reason.code.upper()
    return Error(False, Fault(code, wording.say(problem.text)))

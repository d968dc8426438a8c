"""The `django` dialect: every body has `success` and `data`, times are whole seconds, paths have two prefixes."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Final

import msgspec

from gatekeeper.dialects.base import ENDS_ALL, LISTS, NOT_FOUND, Answer, Call, Operation, Wording, instant, session_id
from gatekeeper.errors import Reason
from gatekeeper.identifiers import as_given
from gatekeeper.models import Problem, Session

name: Final = "django"
_PREFIXES: Final = ("/api/v1/auth/users/me/sessions", "/api/v1/users/me/sessions")


class DjangoDeviceView(msgspec.Struct, frozen=True):
    browser: str
    os: str
    device: str


class DjangoSessionView(msgspec.Struct, frozen=True):
    id: int
    session_key: str
    ip_address: str
    user_agent: str
    device_info: DjangoDeviceView
    location: str
    is_active: bool
    last_activity: str
    created_at: str
    device_name: str
    login_method: str
    is_current: bool


class DjangoSessions(msgspec.Struct, frozen=True):
    sessions: list[DjangoSessionView]
    total_count: int


class DjangoListed(msgspec.Struct, frozen=True):
    success: bool
    data: DjangoSessions


class DjangoEnded(msgspec.Struct, frozen=True):
    session_id: int
    device_name: str


class DjangoTerminated(msgspec.Struct, frozen=True):
    success: bool
    message: str
    data: DjangoEnded


class DjangoCount(msgspec.Struct, frozen=True):
    terminated_count: int


class DjangoAllTerminated(msgspec.Struct, frozen=True):
    success: bool
    message: str
    data: DjangoCount


class DjangoFault(msgspec.Struct, frozen=True):
    code: str
    message: str


class DjangoError(msgspec.Struct, frozen=True):
    success: bool
    error: DjangoFault


Error: Final = DjangoError


def _view(session: Session, current: int) -> DjangoSessionView:
    device = session.device
    return DjangoSessionView(
        id=session.id,
        # Lets a frontend tell sessions apart. It is a cut hash, so it cannot serve as a credential.
        session_key=hashlib.sha256(as_given(session.reference).encode()).hexdigest()[:6] + "...",
        ip_address=session.ip_address,
        user_agent=session.user_agent,
        device_info=DjangoDeviceView(device.browser, device.os, device.form),
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
    return Answer(body=DjangoListed(True, DjangoSessions(views, len(views))))


async def user_session_detail_destroy(call: Call) -> Answer | Problem:
    ended = await call.manager.revoke(call.claims.user, session_id(call.parameters["session_id"]))
    if ended is None:
        return NOT_FOUND
    return Answer(
        body=DjangoTerminated(
            True, call.say("Session terminated successfully"), DjangoEnded(ended.id, ended.device.name)
        )
    )


async def user_session_management_destroy(call: Call) -> Answer | Problem:
    count = await call.manager.revoke_all(call.claims.user, spare=call.spare)
    return Answer(body=DjangoAllTerminated(True, call.say("All sessions terminated successfully"), DjangoCount(count)))


def _operations(prefix: str) -> tuple[Operation, ...]:
    def end_all(path: str) -> Operation:
        return Operation(
            method="DELETE",
            path=path,
            handler=user_session_management_destroy,
            summary="End all sessions of the caller",
            returns=DjangoAllTerminated,
            flags=ENDS_ALL,
        )

    return (
        Operation(
            method="GET",
            path=f"{prefix}/",
            handler=user_session_management_list,
            summary="The caller's sessions",
            returns=DjangoListed,
            flags=LISTS,
        ),
        end_all(f"{prefix}/"),
        end_all(f"{prefix}/all/"),
        Operation(
            method="DELETE",
            path=f"{prefix}/{{session_id}}/",
            handler=user_session_detail_destroy,
            summary="End one session of the caller",
            returns=DjangoTerminated,
            refusals=(Reason.SESSION_NOT_FOUND,),
        ),
    )


operations: Final = tuple(operation for prefix in _PREFIXES for operation in _operations(prefix))


def word(problem: Problem, wording: Wording) -> DjangoError:
    unauthorized = problem.reason.status == HTTPStatus.UNAUTHORIZED and problem.max_age is None
    code = "UNAUTHORIZED" if unauthorized else problem.reason.code.upper()
    return DjangoError(False, DjangoFault(code, wording.say(problem.text)))

"""The `express` dialect: every body is in an envelope, session ids are `session_<id>`, times are milliseconds."""

from __future__ import annotations

import re
import uuid
from http import HTTPStatus
from typing import Final

import msgspec

from gatekeeper.dialects.base import ENDS_ALL, LISTS, NOT_FOUND, Answer, Call, Operation, Wording, instant, session_id
from gatekeeper.errors import Reason
from gatekeeper.models import Problem, Session

name: Final = "express"
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ExpressSessionView(msgspec.Struct, frozen=True):
    id: str
    ip_address: str
    user_agent: str
    created_at: str
    expires_at: str
    is_active: bool


class ExpressListed(msgspec.Struct, frozen=True):
    success: bool
    message: str
    data: list[ExpressSessionView]
    timestamp: str
    requestId: str  # noqa: N815 - the name in the API


class ExpressDone(msgspec.Struct, frozen=True):
    success: bool
    message: str
    timestamp: str
    requestId: str  # noqa: N815


class ExpressFault(msgspec.Struct, frozen=True, omit_defaults=True):
    code: str
    details: str
    max_age: int | None = None


class ExpressError(msgspec.Struct, frozen=True):
    success: bool
    message: str
    error: ExpressFault
    timestamp: str
    requestId: str  # noqa: N815


Error: Final = ExpressError


def _view(session: Session) -> ExpressSessionView:
    return ExpressSessionView(
        id=f"session_{session.id}",
        ip_address=session.ip_address,
        user_agent=session.user_agent,
        created_at=instant(session.created_at, digits=3),
        expires_at=instant(session.expires_at, digits=3),
        is_active=session.is_active,
    )


def _id(call: Call) -> int | None:
    return session_id(call.parameters["id"].removeprefix("session_"))


def _request_id(request_id: str) -> str:
    """Returns the request id if it is a UUID, else the version 5 UUID of it, which is always the same."""
    return request_id if _UUID.fullmatch(request_id) else str(uuid.uuid5(uuid.NAMESPACE_URL, request_id))


def _done(call: Call, message: str) -> Answer:
    return Answer(body=ExpressDone(True, call.say(message), instant(call.now, digits=3), _request_id(call.request_id)))


async def list_sessions(call: Call) -> Answer | Problem:
    sessions = await call.manager.sessions(call.claims.user, include_inactive=call.flags["include_inactive"])
    return Answer(
        body=ExpressListed(
            True,
            call.say("Sessions retrieved successfully"),
            [_view(session) for session in sessions],
            instant(call.now, digits=3),
            _request_id(call.request_id),
        )
    )


async def delete_session(call: Call) -> Answer | Problem:
    if await call.manager.revoke(call.claims.user, _id(call)) is None:
        return NOT_FOUND
    return _done(call, "Session deleted successfully")


async def delete_all_sessions(call: Call) -> Answer | Problem:
    await call.manager.revoke_all(call.claims.user, spare=call.spare)
    return _done(call, "All sessions deleted successfully")


async def deactivate_session(call: Call) -> Answer | Problem:
    if await call.manager.deactivate(call.claims.user, _id(call)) is None:
        return NOT_FOUND
    return _done(call, "Session deactivated successfully")


_ONE: Final = (Reason.SESSION_NOT_FOUND,)

operations: Final = (
    Operation(
        method="GET",
        path="/api/sessions",
        handler=list_sessions,
        summary="The caller's sessions",
        returns=ExpressListed,
        flags=LISTS,
    ),
    Operation(
        method="DELETE",
        path="/api/sessions",
        handler=delete_all_sessions,
        summary="End all sessions of the caller",
        returns=ExpressDone,
        flags=ENDS_ALL,
    ),
    Operation(
        method="DELETE",
        path="/api/sessions/{id}",
        handler=delete_session,
        summary="End one session of the caller",
        returns=ExpressDone,
        refusals=_ONE,
    ),
    Operation(
        method="PATCH",
        path="/api/sessions/{id}/deactivate",
        handler=deactivate_session,
        summary="End one session of the caller and keep it listed as inactive",
        returns=ExpressDone,
        refusals=_ONE,
    ),
)


def word(problem: Problem, wording: Wording) -> ExpressError:
    message, code, details = HTTPStatus(problem.reason.status).phrase, problem.reason.code.upper(), problem.text
    if problem.reason.status == HTTPStatus.UNAUTHORIZED:
        code, details = "UNAUTHORIZED", "Invalid or missing authentication token"
    elif problem.reason is Reason.SESSION_NOT_FOUND:
        operation = wording.operation
        verb = "deactivate" if operation is not None and operation.handler is deactivate_session else "delete"
        message = "Session not found or unauthorized"
        details = f"The requested session does not exist or you don't have permission to {verb} it"
    return ExpressError(
        False,
        wording.say(message),
        ExpressFault(code, wording.say(details), problem.max_age),
        instant(wording.now, digits=3),
        _request_id(wording.request_id),
    )

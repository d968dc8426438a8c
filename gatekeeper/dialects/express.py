"""The `express` dialect: an envelope around everything, session ids as `session_<id>`, milliseconds."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Any, Final

from gatekeeper.dialects.base import (
    NOT_FOUND,
    Answer,
    Call,
    Operation,
    Problem,
    instant,
    session_id,
)
from gatekeeper.errors import Reason
from gatekeeper.models import Session

name: Final = "express"


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": f"session_{session.id}",
        "ip_address": session.ip_address,
        "user_agent": session.user_agent,
        "created_at": instant(session.created_at, digits=3),
        "expires_at": instant(session.expires_at, digits=3),
        "is_active": session.is_active,
    }


def _id(call: Call) -> int | None:
    return session_id(call.parameters["id"].removeprefix("session_"))


def _request_id(request_id: str) -> str:
    """The request id if it is a UUID, else one that is made from it and always the same."""
    try:
        return str(uuid.UUID(request_id)) if len(request_id) == 36 else str(uuid.uuid5(uuid.NAMESPACE_URL, request_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, request_id))


def _answer(call: Call, message: str, **data: Any) -> Answer:
    return Answer(
        body={
            "success": True,
            "message": message,
            **data,
            "timestamp": instant(call.now, digits=3),
            "requestId": _request_id(call.request_id),
        }
    )


async def list_sessions(call: Call) -> Answer | Problem:
    sessions = await call.manager.sessions(call.claims.user, include_inactive=call.flags["include_inactive"])
    return _answer(call, "Sessions retrieved successfully", data=[_session(session) for session in sessions])


async def delete_session(call: Call) -> Answer | Problem:
    if not await call.manager.revoke(call.claims.user, _id(call)):
        return NOT_FOUND
    return _answer(call, "Session deleted successfully")


async def delete_all_sessions(call: Call) -> Answer | Problem:
    spare = call.session_id if call.flags["exclude_current"] else None
    await call.manager.revoke_all(call.claims.user, spare=spare)
    return _answer(call, "All sessions deleted successfully")


async def deactivate_session(call: Call) -> Answer | Problem:
    if not await call.manager.deactivate(call.claims.user, _id(call)):
        return NOT_FOUND
    return _answer(call, "Session deactivated successfully")


operations: Final = (
    Operation(method="GET", path="/api/sessions", handler=list_sessions, flags={"include_inactive": False}),
    Operation(method="DELETE", path="/api/sessions", handler=delete_all_sessions, flags={"exclude_current": False}),
    Operation(method="DELETE", path="/api/sessions/{id}", handler=delete_session),
    Operation(method="PATCH", path="/api/sessions/{id}/deactivate", handler=deactivate_session),
)


def word(problem: Problem, *, operation: Operation | None, request_id: str, now: int) -> dict[str, Any]:
    message, code, details = HTTPStatus(problem.reason.status).phrase, problem.reason.code.upper(), problem.text
    if problem.reason.status == HTTPStatus.UNAUTHORIZED:
        code, details = "UNAUTHORIZED", "Invalid or missing authentication token"
    elif problem.reason is Reason.SESSION_NOT_FOUND:
        verb = "deactivate" if operation and operation.handler is deactivate_session else "delete"
        message = "Session not found or unauthorized"
        details = f"The requested session does not exist or you don't have permission to {verb} it"
    return {
        "success": False,
        "message": message,
        "error": {"code": code, "details": details},
        "timestamp": instant(now, digits=3),
        "requestId": _request_id(request_id),
    }

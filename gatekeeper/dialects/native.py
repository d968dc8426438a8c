"""The `native` dialect: Gatekeeper's own API, of which its pages and its JavaScript client are made."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gatekeeper.dialects.base import (
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
from gatekeeper.models import EndReason, Location, Policy, Problem, Session

name: Final = "native"
Error: Final = DetailAndCode
word: Final = detail_and_code

_BASE: Final = "/_gatekeeper/v1"
# What hides, or turns the direction of what stands around it (CVE-2021-42574), and line separators.
_UNFIT: Final = r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
# 1 to 40 characters that may have spaces around them; also in the OpenAPI document.
_NAME: Final = rf"^\s*([^\s{_UNFIT}]([^{_UNFIT}]{{0,38}}[^\s{_UNFIT}])?)\s*$"
_ENDED_BY: Final = {
    EndReason.LOGGED_OUT: "user",
    EndReason.REVOKED_BY_USER: "user",
    EndReason.DEACTIVATED: "user",
    EndReason.REPORTED: "user",
    EndReason.REVOKED_BY_ADMIN: "admin",
}


class NativeDevice(msgspec.Struct, frozen=True, kw_only=True):
    id: str | None
    name: str
    given_name: str | None
    browser: str
    os: str
    form: str
    type: str
    is_new: bool


class NativeLocation(msgspec.Struct, frozen=True):
    city: str | None
    country: str | None


class NativeSession(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    user: str
    user_name: str | None
    is_current: bool
    is_active: bool
    client: str | None
    device: NativeDevice
    ip_address: str
    location: NativeLocation | None
    login_method: str
    created_at: str
    last_activity: str
    idle_expires_at: str | None
    expires_at: str
    ended_at: str | None
    end_reason: EndReason | None
    ended_by: str | None


class NativePolicy(msgspec.Struct, frozen=True):
    device_limit: int | None
    device_limit_policy: str
    idle_seconds: float | None
    session_seconds: float


class NativeMe(msgspec.Struct, frozen=True, kw_only=True):
    user: str
    user_name: str | None
    roles: list[str]
    is_admin: bool
    session: NativeSession
    policy: NativePolicy
    server_time: str


class NativeSessions(msgspec.Struct, frozen=True, kw_only=True):
    sessions: list[NativeSession]
    device_limit: int | None
    next_to_go: int | None
    server_time: str


class NativeEnded(msgspec.Struct, frozen=True):
    ended: int


class NativeReported(msgspec.Struct, frozen=True):
    session: NativeSession
    change_password_url: str | None


def given_name(value: Any) -> str | None:
    """Reads the name that a user gives, '' for none. Returns None for what is no name."""
    if value is None:
        return ""
    found = re.match(_NAME, unicodedata.normalize("NFC", value)) if isinstance(value, str) else None
    return found and found[1]


def _location(location: Location) -> NativeLocation | None:
    if not location.city and not location.country:
        return None
    return NativeLocation(location.city or None, location.country or None)


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else instant(microseconds, digits=6)


def _view(session: Session, call: Call) -> NativeSession:
    device, idle = session.device, call.policy.idle_seconds
    counts_idle = session.is_active and idle is not None and not session.is_exempt
    reason = session.end_reason
    return NativeSession(
        id=session.id,
        user=session.user,
        user_name=session.user_name or None,
        is_current=session.id == call.session_id,
        is_active=session.is_active,
        client=session.client or None,
        device=NativeDevice(
            id=None,
            name=device.name,
            given_name=session.given_name or None,
            browser=device.browser,
            os=device.os,
            form=device.form,
            type=device.type,
            is_new=False,
        ),
        ip_address=session.ip_address,
        location=_location(session.location),
        login_method=session.login_method,
        created_at=instant(session.created_at, digits=6),
        last_activity=instant(session.last_activity, digits=6),
        idle_expires_at=_time(session.last_activity + int((idle or 0) * 1_000_000)) if counts_idle else None,
        expires_at=instant(session.expires_at, digits=6),
        ended_at=_time(session.ended_at),
        end_reason=reason,
        ended_by=None if reason is None else _ENDED_BY.get(reason, "system"),
    )


def _whole(seconds: float | None) -> float | None:
    """Seconds without a fraction where there is none."""
    return int(seconds) if seconds is not None and seconds == int(seconds) else seconds


def next_to_go(live: Sequence[Session], policy: Policy, now: int) -> int | None:
    """Returns the id of the session that the next sign-in would end, as `make_room` in scripts/opening.lua chooses
    it."""
    limit = policy.device_limit
    if not limit or len(live) < limit or policy.device_limit_policy == "reject":
        return None

    def order(session: Session) -> tuple[bool, int, int, int]:
        idle_first = policy.device_limit_policy == "evict_idle"
        first = session.last_activity if idle_first else session.created_at
        return session.usable_until > now, first, session.created_at, session.id

    return min(live, key=order).id


def _named(call: Call) -> int | None:
    """The session that the path names; None where it cannot be one."""
    text = call.parameters["id"]
    return call.session_id if text == "current" else session_id(text)


def _ended(session: Session | None, call: Call) -> Answer | Problem:
    return NOT_FOUND if session is None else Answer(body=_view(session, call))


async def me(call: Call) -> Answer | Problem:
    session = await call.manager.get(call.claims.user, call.session_id)
    if session is None:
        return NOT_FOUND
    policy = call.policy
    return Answer(
        body=NativeMe(
            user=call.claims.user,
            user_name=session.user_name or None,
            roles=list(call.claims.roles),
            is_admin=call.claims.is_admin,
            session=_view(session, call),
            policy=NativePolicy(
                policy.device_limit,
                policy.device_limit_policy,
                _whole(policy.idle_seconds),
                _whole(policy.session_seconds) or 0,
            ),
            server_time=instant(call.now, digits=6),
        )
    )


async def list_sessions(call: Call) -> Answer | Problem:
    found = await call.manager.history(call.claims.user, include_ended=call.flags["include_ended"])
    live = [session for session in found if session.is_active]
    ended = [session for session in found if not session.is_active]
    live.sort(key=lambda session: (session.id != call.session_id, -session.last_activity, -session.id))
    ended.sort(key=lambda session: (-(session.ended_at or 0), -session.id))
    is_exempt = any(session.is_exempt for session in live if session.id == call.session_id)
    return Answer(
        body=NativeSessions(
            sessions=[_view(session, call) for session in (*live, *ended)],
            device_limit=call.policy.device_limit,
            next_to_go=None if is_exempt else next_to_go(live, call.policy, call.now),
            server_time=instant(call.now, digits=6),
        )
    )


async def get_session(call: Call) -> Answer | Problem:
    return _ended(await call.manager.get(call.claims.user, _named(call)), call)


async def rename_session(call: Call) -> Answer | Problem:
    text = given_name(call.members["name"])
    if text is None:
        detail = "name must be a text without control characters, or null (1 to 40 characters)"
        return Problem(reason=Reason.BAD_REQUEST, detail=detail)
    return _ended(await call.manager.rename(call.claims.user, _named(call), text), call)


async def end_session(call: Call) -> Answer | Problem:
    return _ended(await call.manager.revoke(call.claims.user, _named(call), only_live=True), call)


async def report_session(call: Call) -> Answer | Problem:
    number = _named(call)
    if number == call.session_id:
        return Problem(reason=Reason.BAD_REQUEST, detail="The current session cannot be reported")
    session = await call.manager.report(call.claims.user, number)
    if session is None:
        return NOT_FOUND
    return Answer(body=NativeReported(_view(session, call), call.change_password_url))


async def end_other_sessions(call: Call) -> Answer | Problem:
    return Answer(body=NativeEnded(await call.manager.revoke_all(call.claims.user, spare=call.session_id)))


async def end_all_sessions(call: Call) -> Answer | Problem:
    return Answer(body=NativeEnded(await call.manager.revoke_all(call.claims.user)))


_ONE: Final = f"{_BASE}/sessions/{{id}}"
_NOT_FOUND: Final = (Reason.SESSION_NOT_FOUND,)

operations: Final = (
    Operation(method="GET", path=f"{_BASE}/me", handler=me, summary="The caller", returns=NativeMe),
    Operation(
        method="GET",
        path=f"{_BASE}/sessions",
        handler=list_sessions,
        summary="The caller's sessions",
        returns=NativeSessions,
        flags={"include_ended": False},
    ),
    Operation(
        method="GET",
        path=_ONE,
        handler=get_session,
        summary="One session of the caller, live or ended",
        returns=NativeSession,
        refusals=_NOT_FOUND,
    ),
    Operation(
        is_strict=True,
        method="PATCH",
        path=_ONE,
        handler=rename_session,
        summary="Give a live session a name, or take it away",
        returns=NativeSession,
        refusals=_NOT_FOUND,
        accepts={"name": {"type": ["string", "null"], "pattern": _NAME}},
    ),
    Operation(
        is_strict=True,
        method="DELETE",
        path=_ONE,
        handler=end_session,
        summary="End one session of the caller",
        returns=NativeSession,
        refusals=_NOT_FOUND,
    ),
    Operation(
        is_strict=True,
        method="POST",
        path=f"{_ONE}/report",
        handler=report_session,
        summary="End a session that is not the caller's own doing",
        returns=NativeReported,
        refusals=_NOT_FOUND,
    ),
    Operation(
        is_strict=True,
        method="POST",
        path=f"{_BASE}/sessions/end-others",
        handler=end_other_sessions,
        summary="End all other sessions of the caller",
        returns=NativeEnded,
    ),
    Operation(
        is_strict=True,
        method="POST",
        path=f"{_BASE}/sessions/end-all",
        handler=end_all_sessions,
        summary="End every session of the caller",
        returns=NativeEnded,
    ),
)

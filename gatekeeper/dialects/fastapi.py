"""The `fastapi` dialect: session views for administrators and developers. Times are microseconds."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.dialects.base import (
    Answer,
    Call,
    DetailAndCode,
    Needs,
    Operation,
    detail_and_code,
    instant,
    user_number,
)
from gatekeeper.identifiers import as_given
from gatekeeper.models import Problem, Session

name: Final = "fastapi"
Error: Final = DetailAndCode
word: Final = detail_and_code


class FastapiSessionView(msgspec.Struct, frozen=True):
    jti: str
    created_at: str
    last_activity: str
    expires_at: str


class FastapiActive(msgspec.Struct, frozen=True):
    user_id: int | str
    active_sessions: int
    sessions: list[FastapiSessionView]


class FastapiCleaned(msgspec.Struct, frozen=True):
    cleaned_sessions: int


class FastapiInfo(msgspec.Struct, frozen=True):
    user_id: int | str
    jti: str
    session_valid: bool
    active_sessions: int


def _jti(session: Session) -> str:
    return session.jti or as_given(session.reference)


def _view(session: Session) -> FastapiSessionView:
    return FastapiSessionView(
        jti=_jti(session),
        created_at=instant(session.created_at, digits=6),
        last_activity=instant(session.last_activity, digits=6),
        expires_at=instant(session.expires_at, digits=6),
    )


async def active_sessions(call: Call) -> Answer | Problem:
    user = call.texts.get("user_id", call.claims.user)
    views = [_view(session) for session in await call.manager.sessions(user)]
    return Answer(body=FastapiActive(user_number(user), len(views), views))


async def clean_up(call: Call) -> Answer | Problem:
    return Answer(body=FastapiCleaned(await call.manager.clean_up()))


async def session_info(call: Call) -> Answer | Problem:
    claims = call.claims
    sessions = await call.manager.sessions(claims.user)
    # The newest `jti` of the session, not that of this token: a refresh may have issued a newer token (C-07).
    jti = next(
        (_jti(each) for each in sessions if each.id == call.session_id), claims.jti or as_given(claims.reference)
    )
    # The gate has already refused every request whose session is not valid.
    return Answer(body=FastapiInfo(user_number(claims.user), jti, True, len(sessions)))


operations: Final = (
    Operation(
        method="GET",
        path="/admin/sessions/active",
        handler=active_sessions,
        summary="The live sessions of the calling administrator, or of a user",
        returns=FastapiActive,
        needs=Needs.ADMIN,
        texts=("user_id",),
    ),
    Operation(
        method="POST",
        path="/admin/sessions/cleanup",
        handler=clean_up,
        summary="Take idle and expired sessions out of the store now",
        returns=FastapiCleaned,
        needs=Needs.ADMIN,
    ),
    Operation(
        method="GET",
        path="/debug/session-info",
        handler=session_info,
        summary="The user, token id and session that Gatekeeper sees for the caller",
        returns=FastapiInfo,
        needs=Needs.DEBUG,
    ),
)

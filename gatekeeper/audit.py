"""The record of who did what: one line of the log for everything that happens to a sign-in.

Never a token, never a password. What somebody typed as a user name is kept: it is whom an attack is on.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Final

from gatekeeper.models import Client, EndReason
from gatekeeper.sessions.slots import printable

_log = logging.getLogger("gatekeeper.audit")
_NAME_CHARACTERS: Final = 256


class Action(StrEnum):
    """What happened."""

    LOGGED_IN = "logged_in"
    LOGIN_FAILED = "login_failed"
    LOGIN_THROTTLED = "login_throttled"
    LOGIN_REFUSED = "login_refused"
    REFRESHED = "refreshed"
    REFRESH_REFUSED = "refresh_refused"
    LOGGED_OUT = "logged_out"
    SESSION_ENDED = "session_ended"


def record(
    action: Action,
    *,
    client: Client,
    request_id: str,
    user: str | None = None,
    name: str | None = None,
    session_id: int | None = None,
    reason: EndReason | str | None = None,
) -> None:
    """One line: `event` is `audit`. `user` is the id of a user, `name` what was typed at a login, `reason` how a
    session ended or the code of a refusal."""
    _log.info(
        "audit",
        extra={
            "action": action.value,
            "user_id": user,
            "user_name": None if name is None else printable(name, _NAME_CHARACTERS),
            "session_id": session_id,
            "reason": None if reason is None else str(reason),
            "client_ip": client.ip_address,
            "request_id": request_id,
        },
    )

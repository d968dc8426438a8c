"""The values that cross a layer: frozen, plain, and valid by construction. No framework, no I/O.

Instants inside the engine are integers: microseconds since 1970 on the store's clock (`…_at`, `last_activity`).
Claims keep the seconds of RFC 7519 as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.http.headers import Headers


class EndReason(StrEnum):
    """Why a session is over. Final: an ended session never lives again."""

    LOGGED_OUT = "logged_out"
    REVOKED_BY_USER = "revoked_by_user"
    REVOKED_BY_ADMIN = "revoked_by_admin"
    DEACTIVATED = "deactivated"
    EVICTED = "evicted"
    IDLE = "idle"
    EXPIRED = "expired"
    REFRESH_REUSED = "refresh_reused"

    @property
    def refusal(self) -> Reason:
        """What a token of a session that ended so is refused with."""
        return _REFUSALS.get(self, Reason.SESSION_REVOKED_OR_INVALID)


_REFUSALS = {
    EndReason.LOGGED_OUT: Reason.ACCESS_TOKEN_BLACKLISTED,
    EndReason.IDLE: Reason.SESSION_INACTIVITY_TIMEOUT,
    EndReason.EXPIRED: Reason.SESSION_EXPIRED,
}


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified token says.

    `user` is the validated user id; `reference` names the session (`sid`, else `jti`, else `h:` and a hash);
    `jti` is the token's own id if it has one; `issued_at` and `expires_at` are NumericDates in seconds;
    `claims` is the whole decoded payload.
    """

    user: str
    reference: str
    jti: str | None
    roles: tuple[str, ...]
    is_admin: bool
    issued_at: float | None
    expires_at: float
    claims: Mapping[str, Any]


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end: the client's address (already past the trusted proxies), its `User-Agent`, its
    headers, whose client hints are read when a session opens, and the id of the request, for the audit trail."""

    ip_address: str
    user_agent: str
    headers: Headers = ()
    request_id: str = ""


class Location(msgspec.Struct, frozen=True):
    """Where a session was opened, as far as a data set tells: a city's English name and an ISO 3166-1 alpha-2 country
    code; empty where unknown."""

    city: str = ""
    country: str = ""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What a `User-Agent` tells: `Chrome`, `Windows`, `10`, `Desktop`, `web`, `Chrome on Windows`, and the same name
    with the version of the operating system. `os_version` is empty where it is unknown."""

    browser: str
    os: str
    os_version: str
    form: str
    type: str
    name: str
    name_with_version: str


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One sign-in of one user on one device. Times in microseconds since 1970, on the store's clock."""

    id: int
    user: str
    reference: str
    jti: str | None
    ip_address: str
    user_agent: str
    device: Device
    location: Location
    login_method: str
    created_at: int
    last_activity: int
    expires_at: int
    ended_at: int | None
    end_reason: EndReason | None

    @property
    def is_active(self) -> bool:
        return self.end_reason is None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Gatekeeper's answer to one request. The zero value refuses.

    Admitted: `claims` and `session_id` are set. `degraded`: admitted on the token alone, while the store could not be
    asked; `session_id` is then set only where this process has seen it before. Refused: `reason` says why, `end_reason`
    how the session ended where there was one, whose id is then set too. `user` is whom a good token names, for the log.
    `token_source` is the source that held the token (`header`, `cookie:NAME`, …), `None` when no token was sent;
    `more_tokens` says that other sources held others. `why` names the rule that a bad token broke: for the operator,
    never for a client.
    """

    admitted: bool = False
    reason: Reason = Reason.TOKEN_MISSING
    end_reason: EndReason | None = None
    claims: Claims | None = None
    user: str | None = None
    session_id: int | None = None
    token_source: str | None = None
    more_tokens: bool = False
    degraded: bool = False
    why: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, or a fault, on its way to the client. `detail` overrides the reason's own text."""

    reason: Reason
    detail: str = ""
    end_reason: EndReason | None = None
    retry_after_seconds: int | None = None

    @property
    def text(self) -> str:
        return self.detail or self.reason.detail

"""The values that pass between layers: frozen, and valid by construction. No framework, no I/O.

Times are integers: microseconds since 1970 on the store's clock (`…_at`, `last_activity`). Only the times of `Claims`
are seconds, as in RFC 7519.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.http.headers import Headers


class EndReason(StrEnum):
    """The reason why a session ended. It is final: an ended session never becomes live again."""

    LOGGED_OUT = "logged_out"
    REVOKED_BY_USER = "revoked_by_user"
    REVOKED_BY_ADMIN = "revoked_by_admin"
    DEACTIVATED = "deactivated"
    EVICTED = "evicted"
    IDLE = "idle"
    EXPIRED = "expired"
    REFRESH_REUSED = "refresh_reused"
    REPORTED = "reported"

    @property
    def refusal(self) -> Reason:
        """The error for tokens of a session that ended for this reason."""
        return _REFUSALS.get(self, Reason.SESSION_REVOKED_OR_INVALID)


_REFUSALS = {
    EndReason.LOGGED_OUT: Reason.ACCESS_TOKEN_BLACKLISTED,
    EndReason.IDLE: Reason.SESSION_INACTIVITY_TIMEOUT,
    EndReason.EXPIRED: Reason.SESSION_EXPIRED,
}


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a verified token.

    `user` is the validated user id. `reference` names the session: `sid`, else `jti`, else `h:` and a hash. `jti` is
    the token's own id if it has one. `issued_at` and `expires_at` are seconds since 1970 (RFC 7519, NumericDate).
    `claims` is the complete decoded payload, and `digest` its SHA-256 (hexadecimal), which tells the tokens of one
    reference from each other.
    """

    user: str
    reference: str
    jti: str | None
    roles: tuple[str, ...]
    is_admin: bool
    issued_at: float | None
    expires_at: float
    claims: Mapping[str, Any]
    digest: str = ""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The client of a request.

    `ip_address` is found behind the trusted proxies. Client hints are read from `headers` when a session opens.
    `request_id` goes into the audit log.
    """

    ip_address: str
    user_agent: str
    headers: Headers = ()
    request_id: str = ""


class Location(msgspec.Struct, frozen=True):
    """The place where a session was opened, from a geolocation data set.

    `city` is an English name, `country` an ISO 3166-1 alpha-2 code. Both are empty if unknown.
    """

    city: str = ""
    country: str = ""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The device that a `User-Agent` describes.

    For example `Chrome`, `Windows`, `10`, `Desktop`, `web`, `Chrome on Windows` and `Chrome on Windows 10`.
    `os_version` is empty if unknown.
    """

    browser: str
    os: str
    os_version: str
    form: str
    type: str
    name: str
    name_with_version: str


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of sessions that their users may know, durations in seconds; None is off."""

    device_limit: int | None
    device_limit_policy: str
    idle_seconds: float | None
    session_seconds: float


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One sign-in of one user on one device. Times are microseconds since 1970 on the store's clock.

    `client` and `user_name` are those of the token that opened it, `given_name` is what its user calls it; empty if
    there is none. `is_exempt`: it is never idle. `usable_until` is when the last known token of it expires.
    """

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
    client: str = ""
    user_name: str = ""
    given_name: str = ""
    is_exempt: bool = False
    usable_until: int = 0

    @property
    def is_active(self) -> bool:
        return self.end_reason is None


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that must not go on to the backend, by their texts: stray ones in `headers` and `cookies`, and of several
    cookies of one name those that do not decide (`twins`)."""

    headers: frozenset[str] = frozenset()
    cookies: frozenset[str] = frozenset()
    twins: frozenset[str] = frozenset()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision about one request. The zero value refuses.

    An admitted request has `claims` and `session_id`. With `degraded` it was admitted on the token alone, because the
    store could not be reached; `session_id` is then set only if this process knows the session.

    A refused request has a `reason`, and an `end_reason` and `session_id` if its session has ended. `why` names the
    rule that a bad token broke: for the operator, never for a client. `detail` replaces the text of the reason.

    `user` is the user of a token whose signature is good, for the log. `token_source` names the source of the token
    (`header`, `cookie:NAME`, …), None if the request has no token. `more_tokens` means that other sources had one too;
    `removal` names tokens that do not go on.
    """

    admitted: bool = False
    reason: Reason = Reason.TOKEN_MISSING
    end_reason: EndReason | None = None
    claims: Claims | None = None
    user: str | None = None
    session_id: int | None = None
    token_source: str | None = None
    more_tokens: bool = False
    removal: Removal | None = None
    degraded: bool = False
    why: str = ""
    detail: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error response before a dialect words it. `detail` replaces the text of the reason; `headers` say what would
    have been accepted, and `max_age` how old, in seconds, a sign-in may be to pass (RFC 9470). `why` names the rule
    that a bad token broke: for the log."""

    reason: Reason
    detail: str = ""
    end_reason: EndReason | None = None
    retry_after_seconds: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    max_age: int | None = None
    why: str = ""

    @property
    def text(self) -> str:
        return self.detail or self.reason.detail


CheckOutcome = Literal["touched", "opened", "ended", "unknown", "full", "absent", "older", "crowded", "lost"]


class CheckResult(msgspec.Struct, frozen=True):
    """The result of a check: its outcome, the session's id (0 where there is none), its end reason, and the number of
    sessions that an opening evicted."""

    outcome: CheckOutcome
    session_id: int
    end_reason: EndReason | None
    evicted: int

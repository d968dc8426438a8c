"""The errors of Gatekeeper, and the codes that clients see.

`Reason` has one row for every error code, with its HTTP status and its English text. The exceptions mean that
Gatekeeper could not find out whether a session is valid: each carries the `Reason` for the response. A refused request
is not an exception but a value (`models.Verdict`).
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, Final

# The kinds of a failed store call, used as a metric label. `refused` is an error reply that concerns one call only,
# `protocol` an unexpected reply, `schema` a store whose sessions have another format, `open` a call that was skipped
# because the circuit breaker is open (`store/breaker.py`), `clock` a session that would have ended by itself, were it
# not for a store's clock that is far from this host's (`sessions/scripts/common.lua`).
STORE_FAULTS: Final = (
    "timeout",
    "connection",
    "loading",
    "read_only",
    "out_of_memory",
    "not_persisting",
    "no_replicas",
    "no_primary",
    "cluster_down",
    "busy",
    "unauthenticated",
    "schema",
    "denied",
    "too_many_clients",
    "refused",
    "protocol",
    "open",
    "clock",
)


class Reason(Enum):
    """A code, its HTTP status and its English detail. `detail` is empty if each occurrence has a text of its own."""

    TOKEN_MISSING = ("token_missing", 401, "Authentication credentials were not provided")
    TOKEN_INVALID = ("token_invalid", 401, "Invalid authentication token")
    TOKEN_EXPIRED = ("token_expired", 401, "Access token has expired")
    ACCESS_TOKEN_BLACKLISTED = ("access_token_blacklisted", 401, "Access token has been revoked")
    SESSION_REVOKED_OR_INVALID = ("session_revoked_or_invalid", 401, "Session has been revoked or is invalid")
    SESSION_INACTIVITY_TIMEOUT = ("session_inactivity_timeout", 401, "Session expired due to inactivity")
    SESSION_EXPIRED = ("session_expired", 401, "Session has expired")
    INVALID_CREDENTIALS = ("invalid_credentials", 401, "Incorrect username or password")
    REFRESH_TOKEN_INVALID = ("refresh_token_invalid", 401, "Refresh token is invalid or expired")
    INSUFFICIENT_USER_AUTHENTICATION = (
        "insufficient_user_authentication",
        401,
        "A more recent sign-in is required",
    )
    SESSION_LIMIT_EXCEEDED = ("session_limit_exceeded", 403, "Maximum number of concurrent sessions exceeded")
    FORBIDDEN = ("forbidden", 403, "Administrator rights are required")
    ORIGIN_NOT_ALLOWED = ("origin_not_allowed", 403, "This origin is not allowed")
    SESSION_NOT_FOUND = ("session_not_found", 404, "Session not found or already terminated")
    NOT_FOUND = ("not_found", 404, "Not found")
    BAD_REQUEST = ("bad_request", 400, "")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "")
    REQUEST_TIMEOUT = ("request_timeout", 408, "")
    BODY_TOO_LARGE = ("body_too_large", 413, "The body is too large")
    URI_TOO_LONG = ("uri_too_long", 414, "")
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported_media_type",
        415,
        "The body must be application/json, not compressed",
    )
    UPGRADE_REQUIRED = ("upgrade_required", 426, "")
    RATE_LIMITED = ("rate_limited", 429, "Too many requests, try again later")
    HEADERS_TOO_LARGE = ("headers_too_large", 431, "")
    STORE_UNAVAILABLE = ("store_unavailable", 503, "Session store is unavailable, try again")
    KEYS_UNAVAILABLE = ("keys_unavailable", 503, "Signing keys are unavailable, try again")
    UPSTREAM_UNAVAILABLE = ("upstream_unavailable", 502, "The backend is unavailable")
    UPSTREAM_TIMEOUT = ("upstream_timeout", 504, "The backend did not answer in time")
    INTERNAL_ERROR = ("internal_error", 500, "Internal error; the request id finds it in the log")

    def __init__(self, code: str, status: int, detail: str) -> None:
        self.code = code
        self.status = status
        self.detail = detail


class GatekeeperError(Exception):
    """Base of the errors that become a response. `reason` is the code, status and text of that response."""

    reason: ClassVar[Reason] = Reason.INTERNAL_ERROR


class StoreUnavailable(GatekeeperError):
    """The session store did not answer, refused a call, or sent an invalid reply. `kind` is one of `STORE_FAULTS`."""

    reason = Reason.STORE_UNAVAILABLE

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class KeysUnavailable(GatekeeperError):
    """Signatures cannot be verified, because no key set has been fetched yet."""

    reason = Reason.KEYS_UNAVAILABLE


class TooManySignatures(KeysUnavailable):
    """The queue of tokens to verify is full (`tokens/verify_queue.py`)."""

    reason = Reason.RATE_LIMITED


class UpstreamUnavailable(GatekeeperError):
    """The backend could not be reached or broke the protocol. `kind`: `connect`, `reset` or `protocol`."""

    reason = Reason.UPSTREAM_UNAVAILABLE

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamTimeout(GatekeeperError):
    """The backend did not respond within its time limit."""

    reason = Reason.UPSTREAM_TIMEOUT
    kind = "timeout"


class TokenRejected(Exception):
    """A token is invalid. `reason` is `TOKEN_INVALID`, or `TOKEN_EXPIRED` if `exp` is its only fault.

    `why` is for the operator's log: it names the failed rule and never quotes the token. `is_signed`: the signature is
    good, and something else is wrong.
    """

    def __init__(self, why: str, *, reason: Reason = Reason.TOKEN_INVALID) -> None:
        super().__init__(why)
        self.why = why
        self.reason = reason
        self.is_signed = False


class ConfigError(Exception):
    """The settings are invalid. `problems` has one line for each, with the variable, the value and what is accepted.

    No line shows a secret.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

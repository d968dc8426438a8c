"""What can go wrong, and what the client is told.

`Reason` is the table of answers: one row for every code that Gatekeeper can give, with its status and its English
text. The exceptions below it mean "could not find out": they are never an answer about a session, and each carries
the `Reason` that a client is told instead. A refusal is not an exception but a value (`models.Verdict`).
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, Final

# What a call of the store fails of. `refused` is an error reply about this call alone, `protocol` an answer that is not
# ours, `schema` says that its sessions are in another format, `open` is a call that was not made because the store is
# known to be away (`store/breaker.py`).
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
)


class Reason(Enum):
    """A code, its HTTP status and its English detail. `detail` is empty where the occasion words it."""

    TOKEN_MISSING = ("token_missing", 401, "Authentication credentials were not provided")
    TOKEN_INVALID = ("token_invalid", 401, "Invalid authentication token")
    TOKEN_EXPIRED = ("token_expired", 401, "Access token has expired")
    ACCESS_TOKEN_BLACKLISTED = ("access_token_blacklisted", 401, "Access token has been revoked")
    SESSION_REVOKED_OR_INVALID = ("session_revoked_or_invalid", 401, "Session has been revoked or is invalid")
    SESSION_INACTIVITY_TIMEOUT = ("session_inactivity_timeout", 401, "Session expired due to inactivity")
    SESSION_EXPIRED = ("session_expired", 401, "Session has expired")
    INVALID_CREDENTIALS = ("invalid_credentials", 401, "Incorrect username or password")
    REFRESH_TOKEN_INVALID = ("refresh_token_invalid", 401, "Refresh token is invalid or expired")
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
    """Base of all that Gatekeeper raises on purpose. `reason` is what the client is told."""

    reason: ClassVar[Reason] = Reason.INTERNAL_ERROR


class StoreUnavailable(GatekeeperError):
    """The session store did not answer, refused, or answered nonsense. `kind` is a metric label, one of
    `STORE_FAULTS`."""

    reason = Reason.STORE_UNAVAILABLE

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class KeysUnavailable(GatekeeperError):
    """No signature can be judged: no key set was ever fetched, or as its subclass says."""

    reason = Reason.KEYS_UNAVAILABLE


class TooManySignatures(KeysUnavailable):
    """More tokens wait to be verified than can be in good time (`tokens/verify_queue.py`)."""

    reason = Reason.RATE_LIMITED


class UpstreamUnavailable(GatekeeperError):
    """The backend could not be reached or broke the protocol. `kind`: `connect`, `reset` or `protocol`."""

    reason = Reason.UPSTREAM_UNAVAILABLE

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamTimeout(GatekeeperError):
    """The backend was silent for too long."""

    reason = Reason.UPSTREAM_TIMEOUT
    kind = "timeout"


class TokenRejected(Exception):
    """This is not a token to be believed. `reason` is `TOKEN_INVALID`, or `TOKEN_EXPIRED` where `exp` is its only
    fault. `why` is for the log of the operator: it names the rule that failed and never quotes the token."""

    def __init__(self, why: str, *, reason: Reason = Reason.TOKEN_INVALID) -> None:
        super().__init__(why)
        self.why = why
        self.reason = reason


class ConfigError(Exception):
    """The settings cannot be used. `problems` holds one line each, with the variable's name, what was read and what
    is accepted; no line shows a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

"""Gatekeeper's own answers, byte for byte: the table of rule 6.1, and what every one of them carries."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.servers import ClientResponse

# Rule 6.1; written out, so that it is not the code that says what the code should say.
TABLE = {
    "token_missing": (401, "Authentication credentials were not provided"),
    "token_invalid": (401, "Invalid authentication token"),
    "token_expired": (401, "Access token has expired"),
    "access_token_blacklisted": (401, "Access token has been revoked"),
    "session_revoked_or_invalid": (401, "Session has been revoked or is invalid"),
    "session_inactivity_timeout": (401, "Session expired due to inactivity"),
    "session_expired": (401, "Session has expired"),
    "insufficient_user_authentication": (401, "A more recent sign-in is required"),
    "session_limit_exceeded": (403, "Maximum number of concurrent sessions exceeded"),
    "forbidden": (403, "Administrator rights are required"),
    "origin_not_allowed": (403, "This origin is not allowed"),
    "session_not_found": (404, "Session not found or already terminated"),
    "store_unavailable": (503, "Session store is unavailable, try again"),
    "keys_unavailable": (503, "Signing keys are unavailable, try again"),
}


def error_body(code: str, reason: str | None = None) -> bytes:
    """The body in the shape of `fastapi`, `mockstream` and `users_me`."""
    body = {"detail": TABLE[code][1], "code": code} | ({} if reason is None else {"reason": reason})
    return json.dumps(body, separators=(",", ":")).encode()


# Rule 6.4: a whole number of seconds, drawn for each response.
RETRY_SOON = frozenset("12345")
NO_TOKEN = error_body("token_missing")


def assert_says_what_is_accepted(answer: ClientResponse, sent: Sequence[tuple[str, str]], kind: str) -> None:
    """A 415 names the media type where another was sent, and the coding where one was sent (RFC 9110 sections 12.5.3
    and 15.5.16)."""
    told = dict(sent)
    assert answer.get_all("accept") == ([] if told.get("Content-Type") == kind else [kind])
    assert answer.get_all("accept-encoding") == (["identity"] if "Content-Encoding" in told else [])


def assert_own_response(answer: ClientResponse, status: int, body: bytes) -> None:
    """An answer that Gatekeeper made: this status and body, and the headers that go with it."""
    assert (answer.status, answer.body) == (status, body)
    assert answer.get_all("content-type") == ["application/json; charset=utf-8"]
    assert answer.get_all("content-length") == [str(len(body))]
    assert answer.get_all("cache-control") == ["no-store"]
    assert answer.get_all("x-content-type-options") == ["nosniff"]
    assert len(answer.get_all("x-request-id")) == 1
    assert len(answer.get_all("www-authenticate")) == (status == 401)
    assert [seconds in RETRY_SOON for seconds in answer.get_all("retry-after")] == [True] * (status == 503)
    assert answer.get_all("server") == []

"""The error bodies of OAuth 2.0 (RFC 6749 section 5.2), for the endpoints that OAuth clients call."""

from __future__ import annotations

from typing import Final

import msgspec

from gatekeeper.dialects.base import Operation, Wording
from gatekeeper.errors import Reason
from gatekeeper.models import Problem

name: Final = "oauth"
operations: Final[tuple[Operation, ...]] = ()

_CODES: Final = {
    Reason.BAD_REQUEST: "invalid_request",
    Reason.BODY_TOO_LARGE: "invalid_request",
    Reason.UNSUPPORTED_MEDIA_TYPE: "invalid_request",
    Reason.INVALID_CREDENTIALS: "invalid_client",
    Reason.STORE_UNAVAILABLE: "temporarily_unavailable",
    Reason.KEYS_UNAVAILABLE: "temporarily_unavailable",
    Reason.INTERNAL_ERROR: "server_error",
}


class OauthError(msgspec.Struct, frozen=True):
    error: str
    error_description: str


Error: Final = OauthError


def word(problem: Problem, wording: Wording) -> OauthError:
    # Never translated: RFC 6749 section 5.2 allows only ASCII here.
    return OauthError(_CODES.get(problem.reason, problem.reason.code), problem.text)

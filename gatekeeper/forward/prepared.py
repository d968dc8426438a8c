"""Data that all requests with the same headers from the same address share, prepared once (see `plan.py`)."""

from __future__ import annotations

from typing import Final

from gatekeeper.http.headers import REQUEST_ID, IdentityHeaders
from gatekeeper.http.spelling import USUAL
from gatekeeper.models import Claims

# The beginning of the line with the request id.
REQUEST_ID_LINE: Final = USUAL[REQUEST_ID] + b": "


class Plan:
    """The data that all requests with the same headers from the same address have in common.

    With `expects` the backend is asked first whether it wants the body; with `takes_trailers` the client accepts those
    of the response.

    `before` and `after` are the header lines for the backend in front of and behind the identity lines. `identity`
    caches the identity lines for `claims` and `session_id`. `request_id` is None if every request gets a new one.
    """

    __slots__ = (
        "after",
        "before",
        "claims",
        "client_ip",
        "expects",
        "identity",
        "request_id",
        "session_id",
        "takes_trailers",
        "token",
    )

    def __init__(
        self,
        token: str,
        client_ip: str,
        request_id: str | None,
        before: bytes,
        after: bytes,
        *,
        expects: bool,
        takes_trailers: bool,
    ) -> None:
        self.token = token
        self.client_ip = client_ip
        self.request_id = request_id
        self.before = before
        self.after = after
        self.expects = expects
        self.takes_trailers = takes_trailers
        self.claims: Claims | None = None
        self.session_id = 0
        self.identity = b""

    def identity_of(self, headers: IdentityHeaders, claims: Claims, session_id: int) -> bytes:
        """Return the identity lines for the backend, and the beginning of the line with the request id."""
        if self.claims is not claims or self.session_id != session_id:
            values = headers.values(claims.user, session_id, claims.roles, claims.claims)
            self.identity = (
                b"".join([b"%b: %b\r\n" % (headers.spelling.get(name, name), value) for name, value in values])
                + REQUEST_ID_LINE
            )
            self.claims, self.session_id = claims, session_id
        return self.identity

"""The cookies that carry Gatekeeper's own tokens (`TOKEN_TRANSPORT=cookie`). The prefix `__Host-` binds them to this
host, to TLS and to the path `/` (RFC 6265bis section 4.1.3.2)."""

from __future__ import annotations

from typing import Final

from gatekeeper.auth.requests import IssuedTokens
from gatekeeper.errors import TokenRejected
from gatekeeper.http.headers import HeaderList, Headers
from gatekeeper.tokens.sources import TokenSources

ACCESS: Final = "__Host-access"
REFRESH: Final = "__Host-refresh"
# A link from elsewhere may lead into the application; only its own pages may renew tokens.
_SAME_SITE: Final = {ACCESS: "Lax", REFRESH: "Strict"}

_refresh_cookie: Final = TokenSources([f"cookie:{REFRESH}"])


def setting(pair: IssuedTokens) -> HeaderList:
    """The headers that set both cookies; each lives as long as its token."""
    return [
        _cookie(ACCESS, pair.access_token, min(pair.expires_in, pair.session_seconds)),
        _cookie(REFRESH, pair.refresh_token, pair.session_seconds),
    ]


def clearing() -> HeaderList:
    return [_cookie(ACCESS, "", 0), _cookie(REFRESH, "", 0)]


def _cookie(name: str, value: str, seconds: int) -> tuple[bytes, bytes]:
    same_site = _SAME_SITE[name]
    line = f"{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite={same_site}"
    return b"set-cookie", line.encode("ascii")


def refresh_token(headers: Headers) -> str | None:
    """Read the refresh token of a browser. Raises `TokenRejected` for two different ones."""
    found = _refresh_cookie.find(headers)
    if found is not None and found.twins:
        raise TokenRejected("two cookies of one name with different values")
    return found.token if found is not None else None


def without_refresh_token(headers: Headers) -> HeaderList:
    """The headers for the backend, which has no use for the refresh token."""
    return _refresh_cookie.strip_cookies(headers)

"""Whether a browser's request comes from where it should, and who may read the answer. Pure.

A bearer header is sent by a script that holds the token; a cookie is sent by the browser whoever wrote the page.
(CWE-352, CWE-1385; Fetch standard; Fetch Metadata, W3C.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gatekeeper.http.headers import HeaderList, Headers, get, get_all
from gatekeeper.http.methods import SAFE_METHODS

_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
_PREFLIGHT_SECONDS: Final = b"600"


class Origins:
    """The origins of `CORS_ORIGINS`, such as `https://app.example.com`; compared exactly."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def __repr__(self) -> str:
        return f"<Origins {', '.join(sorted(origin.decode() for origin in self._allowed)) or 'none'}>"

    def allows(self, headers: Headers) -> bool:
        """Whether there is exactly one `Origin`, and it is listed."""
        origins = get_all(headers, b"origin")
        return len(origins) == 1 and origins[0] in self._allowed

    def may_connect(self, headers: Headers, *, scheme: str) -> bool:
        """Whether a WebSocket with a cookie token may be opened: of the same origin, or of a listed one."""
        return is_same_origin(headers, scheme=scheme) or self.allows(headers)

    def may_change(self, headers: Headers, *, method: str, scheme: str) -> bool:
        """Whether a request with a cookie token may change something: a safe method, a fetch that the browser says is
        of this site or the user's own, one of the same origin, or of a listed one."""
        if method in SAFE_METHODS:
            return True
        sites = get_all(headers, b"sec-fetch-site")
        if len(sites) == 1 and sites[0] in _OWN_SITES:
            return True
        return self.may_connect(headers, scheme=scheme)

    def cors_headers(self, headers: Headers) -> HeaderList:
        """What lets the page behind `Origin` read an answer of Gatekeeper's own."""
        if not self._allowed:
            return []
        # Also without a match: an answer for one origin must not be reused for another.
        found = [(b"vary", b"Origin")]
        if self.allows(headers):
            found.append((b"access-control-allow-origin", get(headers, b"origin") or b""))
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def preflight_headers(self, headers: Headers, *, methods: Collection[str]) -> HeaderList:
        """The answer to a preflight (Fetch standard, "CORS-preflight fetch") of an allowed origin."""
        found = [
            *self.cors_headers(headers),
            (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
        ]
        asked = get(headers, b"access-control-request-headers")
        if asked is not None:
            found.append((b"access-control-allow-headers", asked))
        return found


def is_same_origin(headers: Headers, *, scheme: str) -> bool:
    """Whether the one `Origin` header equals scheme and `Host`. Missing, doubled or `null` is not the same origin."""
    origins, hosts = get_all(headers, b"origin"), get_all(headers, b"host")
    if len(origins) != 1 or len(hosts) != 1:
        return False
    # The scheme of a WebSocket handshake's page is that of HTTP (RFC 6455 section 4.1).
    page_scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    return origins[0].lower() == f"{page_scheme}://".encode() + hosts[0].lower()

"""Cross-origin rules: may a browser's page send this request, and may it read the response? Pure.

A script that holds a token puts it into a header itself; a cookie is sent by the browser for every page. (CWE-352,
CWE-1385; Fetch standard; Fetch Metadata, W3C.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gatekeeper.http.headers import HeaderList, Headers, get, get_all
from gatekeeper.http.methods import SAFE_METHODS

_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
_PREFLIGHT_SECONDS: Final = b"600"


class Origins:
    """The origins of `CORS_ORIGINS`, such as `https://app.example.com`, compared exactly."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def __repr__(self) -> str:
        return f"<Origins {', '.join(sorted(origin.decode() for origin in self._allowed)) or 'none'}>"

    def allows(self, headers: Headers) -> bool:
        """Tell whether there is exactly one `Origin` and it is listed."""
        origins = get_all(headers, b"origin")
        return len(origins) == 1 and origins[0] in self._allowed

    def may_connect(self, headers: Headers, *, scheme: str) -> bool:
        """Tell whether a WebSocket with a token in a cookie may be opened: from the same origin or from a listed
        one."""
        return is_same_origin(headers, scheme=scheme) or self.allows(headers)

    def may_change(self, headers: Headers, *, method: str, scheme: str) -> bool:
        """Tell whether a request with a token in a cookie may change something: if its method is safe, if the browser
        says that the fetch comes from this site or from the user, or if it is of the same origin or of a listed one."""
        if method in SAFE_METHODS:
            return True
        sites = get_all(headers, b"sec-fetch-site")
        if len(sites) == 1 and sites[0] in _OWN_SITES:
            return True
        return self.may_connect(headers, scheme=scheme)

    def cors_headers(self, headers: Headers) -> HeaderList:
        """Return the headers that let the page behind `Origin` read a response of Gatekeeper."""
        if not self._allowed:
            return []
        # Also without a match: a cache must not reuse the response to one origin for another.
        found = [(b"vary", b"Origin")]
        if self.allows(headers):
            found.append((b"access-control-allow-origin", get(headers, b"origin") or b""))
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def preflight_headers(self, headers: Headers, *, methods: Collection[str]) -> HeaderList:
        """Return the headers of the response to a preflight (Fetch standard, "CORS-preflight fetch") from an allowed
        origin."""
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
    """Tell whether the one `Origin` header equals scheme and `Host`. A missing, repeated or `null` one does not."""
    origins, hosts = get_all(headers, b"origin"), get_all(headers, b"host")
    if len(origins) != 1 or len(hosts) != 1:
        return False
    # The page that opens a WebSocket has an HTTP scheme (RFC 6455 section 4.1).
    page_scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    return origins[0].lower() == f"{page_scheme}://".encode() + hosts[0].lower()

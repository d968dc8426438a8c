"""Whether a browser's request with a cookie comes from where it should. Pure.

A bearer header is sent by a script that holds the token; a cookie is sent by the browser whoever wrote the page.
(CWE-352, CWE-1385; Fetch Metadata, W3C.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Headers = Sequence[tuple[bytes, bytes]]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITES: Final = frozenset({b"same-origin", b"none"})


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def is_same_origin(headers: Headers, *, scheme: str) -> bool:
    """Whether the one `Origin` header equals scheme and `Host`. Missing, doubled or `null` is not the same origin."""
    origins, hosts = _values(headers, b"origin"), _values(headers, b"host")
    if len(origins) != 1 or len(hosts) != 1:
        return False
    # The scheme of a WebSocket handshake's page is that of HTTP (RFC 6455 section 4.1).
    page_scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    return origins[0].lower() == f"{page_scheme}://".encode() + hosts[0].lower()


def may_change(headers: Headers, *, method: str, scheme: str) -> bool:
    """Whether a request with a cookie token may change something: a safe method, a fetch that the browser says is of
    this site or the user's own, or one of the same origin."""
    if method in SAFE_METHODS:
        return True
    sites = _values(headers, b"sec-fetch-site")
    if len(sites) == 1 and sites[0] in _OWN_SITES:
        return True
    return is_same_origin(headers, scheme=scheme)

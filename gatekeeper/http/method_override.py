"""Requests that a backend may take for ones of another method: a header or a query member names it.

Source: Rails, Symfony, Laravel, Express' `method-override` and WCF read these; CGI and WSGI write `_` for `-` in names
of headers, and PHP reads a dot or a space in the name of a query member as `_`.
"""

from __future__ import annotations

import re
from typing import Final

from gatekeeper.http.headers import Headers, fold

# As `fold` writes them.
_HEADERS: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
# `_method`, each character plain or percent-encoded; PHP drops what stands behind a bracket.
_MEMBER: Final = re.compile(
    rb"(?:\A|[&;])(?:[_.+]|%%[0-9A-Fa-f]{2})+%b(?=[=&;\[%%]|\Z)"
    % b"".join(rb"(?:%c|%c|%%%02x|%%%02x)" % (char, char - 32, char, char - 32) for char in b"method"),
    re.IGNORECASE,
)


def overrides_method(headers: Headers) -> bool:
    """Return true if a header names another method, in any spelling that a backend might read so. Names of headers are
    in lower case."""
    return any(b"method" in name and fold(name) in _HEADERS for name, _ in headers)


def query_overrides_method(query: bytes) -> bool:
    """Return true if a member of a raw query string might be read as `_method`."""
    return _MEMBER.search(query) is not None

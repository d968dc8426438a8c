"""Find stray tokens: texts with the form of a JWT in places where a backend may look, and no token source does.

Nothing is verified here. A backend that finds a revoked token in its own cookie, or in a header of its own, would trust
it, so `auth.strays` judges what is found, and it is removed from what goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from gatekeeper.http.headers import HeaderList, Headers, fold
from gatekeeper.tokens.jwt_texts import jwts
from gatekeeper.tokens.sources import TokenSources, keep_pairs

# The places of a text, as a set of bits.
IN_HEADER: Final = 1
IN_COOKIE: Final = 2
IN_QUERY: Final = 4

_AUTHORIZATION: Final = b"authorization"
_COOKIE: Final = b"cookie"
_HEADERS: Final = frozenset({b"x-access-token", b"x-auth-token"})
_PARAMETERS: Final = frozenset({b"access_token", b"token", b"jwt", b"auth"})
# On public paths, where links lead from anywhere, only the name of RFC 6750 section 2.3.
_PUBLIC_PARAMETERS: Final = frozenset({b"access_token"})


class StrayPlaces:
    """The places where no source of `sources` looks."""

    def __init__(self, sources: TokenSources) -> None:
        self._sources = sources
        self._headers = _HEADERS | {fold(name) for name in sources.header_names}

    def __repr__(self) -> str:
        return f"<StrayPlaces beside {self._sources!r}>"

    def in_headers(self, headers: Headers) -> dict[str, int]:
        """Return the texts in header fields and cookies, each with its places."""
        found: dict[str, int] = {}
        for name, value in headers:
            if value.count(b".") < 2 and b"%2" not in value:
                continue
            lowered = name.lower()
            if lowered == _COOKIE:
                for piece in value.split(b";"):
                    if not self._sources.reads_cookie(piece):
                        # Also one without a name: a backend may take the whole pair for the value.
                        _add(found, jwts(piece), IN_COOKIE)
            elif self._is_place(lowered, value):
                _add(found, jwts(value), IN_HEADER)
        return found

    def _is_place(self, name: bytes, value: bytes) -> bool:
        if name == _AUTHORIZATION:
            return not self._sources.reads_authorization(value)
        return name not in self._sources.header_names and fold(name) in self._headers

    def in_query(self, query: bytes, *, public: bool = False, source: bool = False) -> dict[str, int]:
        """Return the texts in a raw query string. `source`: the query is a source of this request."""
        found: dict[str, int] = {}
        names = _PUBLIC_PARAMETERS if public else _PARAMETERS
        for piece in query.split(b"&") if query else ():
            name, value = _member(piece)
            if name in names and not (source and name in self._sources.parameters):
                _add(found, jwts(value), IN_QUERY)
            # Some backends split at `;` too, which no source does.
            for part in piece.split(b";") if b";" in piece else ():
                name, value = _member(part)
                if name in names:
                    _add(found, jwts(value), IN_QUERY)
        return found

    def without(self, headers: Headers, *, headers_with: frozenset[str], cookies_with: frozenset[str]) -> HeaderList:
        """Return headers without the fields and cookies that hold one of these texts; all other bytes stay."""
        kept: HeaderList = []
        for name, value in headers:
            lowered = name.lower()
            if lowered == _COOKIE and cookies_with:
                rest = keep_pairs(
                    value,
                    lambda piece: self._sources.reads_cookie(piece) or cookies_with.isdisjoint(jwts(piece)),
                )
                if rest or not value:
                    kept.append((name, rest))
                continue
            if not (headers_with and self._is_place(lowered, value) and not headers_with.isdisjoint(jwts(value))):
                kept.append((name, value))
        return kept


def _member(piece: bytes) -> tuple[bytes, bytes]:
    name, _, value = piece.partition(b"=")
    return unquote_to_bytes(name.replace(b"+", b" ")), value


def _add(found: dict[str, int], texts: Iterator[str], place: int) -> None:
    for text in texts:
        found[text] = found.get(text, 0) | place


def merged(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the texts of both, with all their places."""
    return dict(one) | {text: one.get(text, 0) | places for text, places in other.items()}

"""Find the tokens in the response to a login or a refresh (rules 5.3, 5.12 and 5.13).

Nothing is verified here. Some places are named: by the settings, or by the usual names of tokens. Elsewhere a text may
be an access token, which its signature will tell, or a refresh token, which nothing tells: that is only learnt.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from gatekeeper.http.headers import Headers, get
from gatekeeper.tokens import credentials
from gatekeeper.tokens.credentials import MAX_BODY_BYTES, SetCookie
from gatekeeper.tokens.learnable import LEAST_LEARNT, MOST_LEARNT, REFRESH_PLACE, is_learnable, names_user
from gatekeeper.tokens.token_places import FoundText, TokenPlaces, without_scheme

REFRESH_COOKIE: Final = b"refresh_token"

_ACCESS_HEADERS: Final = (b"authorization", b"x-auth-token", b"x-access-token")
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SEPARATORS: Final = re.compile("[^A-Za-z0-9]")
_REFRESH: Final = re.compile("refresh", re.IGNORECASE)
# JSON, or one text in the form of a token. Pages, scripts and events begin otherwise.
_BEGINNINGS: Final = (b"{", b"[", b'"', b"ey", b"bearer ey")
_MOST_DEPTH: Final = 3
# More can only be a list of something else; each costs the verification of a signature.
_MOST_CANDIDATES: Final = 32
_MOST_NAMES: Final = 16


class GivenTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The texts of a response that may be tokens.

    `named`: access tokens by the names of their places, the first good one counts; `refresh_token`: the refresh token,
    likewise. `elsewhere`: other texts in the form of a JWT. `learnable`: texts that may be refresh tokens besides, each
    with the name of its member or cookie.
    `names`: of the members, headers and cookies of the response, for the log.
    """

    named: Sequence[FoundText] = ()
    refresh_token: str | None = None
    elsewhere: Sequence[FoundText] = ()
    learnable: Sequence[FoundText] = ()
    names: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"GivenTokens({', '.join(self.names)})"


class ResponseReader:
    """Reads responses. `access_places` and `refresh_places` are named by the settings and come first, `cookies` are
    those in which requests carry their access token."""

    def __init__(
        self, *, access_places: Sequence[str] = (), refresh_places: Sequence[str] = (), cookies: Iterable[str] = ()
    ) -> None:
        self._access: Final = TokenPlaces(access_places)
        self._refresh: Final = TokenPlaces(refresh_places)
        self._cookies: Final = tuple(name.encode() for name in cookies)

    def __repr__(self) -> str:
        return f"<ResponseReader {self._access!r} {self._refresh!r}>"

    def read(self, status: int, headers: Headers, content: bytes) -> GivenTokens:
        """Read a response; `headers` have names in lower case, `content` is compressed as they say. No text of one that
        is neither 2xx nor 3xx is a token."""
        if not 200 <= status < 400:
            return GivenTokens()
        document = _document(headers, content) if status < 300 else None
        jar = credentials.set_cookies(headers)
        values = {name: cookie.value for name, cookie in jar.items()}
        members = list(_members(document))
        texts = [*(found for _, found in members), *_of_headers(headers), *_of_cookies(values)]
        named = dict.fromkeys(self._named(document, headers, values))
        refresh = self._refresh_tokens(document, headers, values)
        elsewhere = dict.fromkeys(FoundText(place, without_scheme(text)) for place, text in texts)
        known = {text for _, text in named}
        return GivenTokens(
            named=list(named),
            refresh_token=refresh[0] if refresh else None,
            elsewhere=_distinct(found for found in elsewhere if found.text not in known and looks_like_jwt(found.text)),
            learnable=[
                *(FoundText(REFRESH_PLACE, text) for text in refresh[1:] if LEAST_LEARNT <= len(text) <= MOST_LEARNT),
                *self._learnable(members, jar, {*known, *refresh}),
            ],
            names=list(dict.fromkeys(place for place, _ in texts))[:_MOST_NAMES],
        )

    def _named(self, document: Any, headers: Headers, values: dict[bytes, str]) -> Iterator[FoundText]:
        """The access tokens in the places that have names, in the order in which they count."""
        for place, text in self._access.find(document, headers, values):
            yield FoundText(place, without_scheme(text))
        for name, text in credentials.usual_access_tokens(document):
            yield FoundText(name, without_scheme(text))
        for cookie in self._cookies:
            if cookie in values:
                yield FoundText(f"cookie {cookie.decode()}", without_scheme(values[cookie]))

    def _refresh_tokens(self, document: Any, headers: Headers, values: dict[bytes, str]) -> list[str]:
        """The refresh tokens in the places that have names, in the order in which they count."""
        found = [without_scheme(each.text) for each in self._refresh.find(document, headers, values)]
        found += [credentials.usual_refresh_token(document) or "", values.get(REFRESH_COOKIE, "")]
        return [text for text in dict.fromkeys(found) if text]

    def _learnable(
        self, members: Sequence[tuple[str, FoundText]], jar: dict[bytes, SetCookie], known: set[str]
    ) -> list[FoundText]:
        """The texts that are learnt as refresh tokens unless they are access tokens, those first whose names say so.
        What the response tells as the id or the name of a user is none."""
        visible = {text for name, (_, text) in members if names_user(_SEPARATORS.sub("", name).lower())}
        found = [(name, text, False) for name, (_, text) in members if _REFRESH.search(name)]
        cookies = [
            (name.decode("latin-1"), each.value, True)
            for name, each in jar.items()
            if each.http_only and name not in self._cookies
        ]
        found += sorted(cookies, key=lambda cookie: 0 if _REFRESH.search(cookie[0]) else 1)
        texts: dict[str, FoundText] = {}
        for name, text, is_cookie in found:
            if text not in known and text not in visible and is_learnable(name, text, cookie=is_cookie):
                texts.setdefault(text, FoundText(name, text))
        return list(texts.values())


def looks_like_jwt(text: str) -> bool:
    """Return true for a text in the form of a signed JWT."""
    return _JWT.fullmatch(text) is not None


def may_begin_tokens(beginning: bytes) -> bool:
    """Return true for the first bytes of a body that may be JSON, or one text in the form of a token, whatever its
    media type is; also where they are too few to tell."""
    text = beginning.removeprefix(codecs.BOM_UTF8[: len(beginning)]).lstrip().lower()
    return any(text.startswith(each) or each.startswith(text) for each in _BEGINNINGS)


def _document(headers: Headers, content: bytes) -> Any:
    """The JSON document of a body, or its text where that is all there is; None for neither."""
    plain = credentials.inflate(content, get(headers, b"content-encoding") or b"") if content else None
    if plain is None:
        return None
    document = credentials.parse_json(plain)
    if document is None and len(plain) <= MAX_BODY_BYTES and plain.isascii():
        return plain.decode("ascii").strip()
    return document


def _members(document: Any) -> Iterator[tuple[str, FoundText]]:
    """Yield the texts of a JSON document, and of documents within its texts: the name of the member ("" for an item of
    a list), and the text with all names that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any, int]] = [((), document, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*path, name), each, depth) for name, each in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*path, ""), each, depth) for each in reversed(value)]
        elif isinstance(value, str) and value:
            yield path[-1] if path else "", FoundText(".".join(path) or "body", value)
            if value[:1] in ("{", "[", '"') and depth < _MOST_DEPTH:
                waiting.append((path, credentials.parse_json(value.encode("utf-8", "replace")), depth + 1))


def _of_headers(headers: Headers) -> Iterator[FoundText]:
    for name, line in headers:
        if name in _ACCESS_HEADERS:
            yield FoundText(f"header {name.decode()}", line.strip(b" \t").decode("latin-1"))


def _of_cookies(values: dict[bytes, str]) -> Iterator[FoundText]:
    for name, value in values.items():
        yield FoundText(f"cookie {name.decode('latin-1')}", value)


def _distinct(found: Iterable[FoundText]) -> list[FoundText]:
    """The texts, each once, in the order in which they stand; none where there are too many to verify."""
    by_text = {each.text: each for each in found}
    return list(by_text.values()) if len(by_text) <= _MOST_CANDIDATES else []

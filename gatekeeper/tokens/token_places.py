"""The places of tokens that the settings name: JSON pointers, `header:NAME` and `cookie:NAME`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from gatekeeper.http.headers import Headers
from gatekeeper.tokens.json_pointer import at, parsed_pointer

# `Bearer ` in front of a token, in a cookie percent-encoded too.
_SCHEME: Final = re.compile(r"bearer(?: |%20)+", re.IGNORECASE)


class FoundText(NamedTuple):
    """A text, and the name of its place for the log."""

    place: str
    text: str


class TokenPlaces:
    """Finds the texts under `places`, in their order."""

    def __init__(self, places: Iterable[str]) -> None:
        self._pointers: Final = tuple((place, parsed_pointer(place)) for place in places if place.startswith("/"))
        named = [tuple(place.split(":", 1)) for place in places if not place.startswith("/")]
        self._headers: Final = tuple(name.lower().encode() for kind, name in named if kind == "header")
        self._cookies: Final = tuple(name.encode() for kind, name in named if kind == "cookie")
        self._places: Final = tuple(places)

    def __repr__(self) -> str:
        return f"<TokenPlaces {', '.join(self._places)}>"

    def find(self, document: Any, headers: Headers, cookies: Mapping[bytes, str]) -> Iterator[FoundText]:
        """Yield the texts of a message under these places: of a JSON document (None: there is none), then of its
        headers, then of its cookies."""
        for place, path in self._pointers:
            _, value = at(document, path)
            if isinstance(value, str) and value:
                yield FoundText(place, value)
        for name in self._headers:
            for header, line in headers:
                if header == name and (text := line.strip(b" \t")):
                    yield FoundText(f"header {name.decode()}", text.decode("latin-1"))
        for name in self._cookies:
            if value := cookies.get(name):
                yield FoundText(f"cookie {name.decode()}", value)


def without_scheme(text: str) -> str:
    """Return a text without a leading `Bearer `."""
    found = _SCHEME.match(text)
    return text if found is None else text[found.end() :].strip()

"""The texts that are learnt as refresh tokens where no name says so (rule 5.13): those that may be a secret.

A time, an address or the id of a user is no secret. Who knows or guesses it must neither end a session with it nor be
refused because of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from gatekeeper.tokens.token_places import without_scheme

LEAST_LEARNT, MOST_LEARNT = 20, 4096
REFRESH_PLACE: Final = "refresh"

_LEAST_CHARACTERS: Final = 6
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_LAST_WORDS: Final = frozenset(
    {"at", "in", "on", "until", "after", "before", "ttl", "time", "times", "date", "age", "lifetime", "timestamp"}
    | {"type", "url", "uri", "link", "count", "scope", "scopes", "status", "path", "domain", "interval", "period"}
    | {"duration", "seconds", "minutes", "days", "message", "error", "email", "format", "policy", "mode", "version"}
    | {"locale", "lang", "language"}
)
_IDS: Final = frozenset({"id", "ids", "uuid", "guid", "uid", "name"})
_OF_A_USER: Final = re.compile(
    r"(?:.*(?:user|account|customer|member|tenant|org|organi[sz]ation|profile|visitor|client|person|team))?"
    r"(?:id|uuid|guid|uid|name|email|number|login)"
)
# Claims that may be as secret as a session.
_SECRET_CLAIMS: Final = frozenset({"sid", "jti", "session_state", "nonce"})
_NO_SECRETS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"[+-]?[0-9]{1,24}(?:[.,][0-9]*)?",
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T _]?[0-9:.,]*[ ]?(?:Z|[A-Z]{3,4}|[+-][0-9]{2}:?[0-9]{2})?(?:\[.*\])?",
        r"[A-Za-z][A-Za-z0-9+.-]*://.*",
        r"[^@\s]+@[^@\s]+\.[^@\s.]+",
        r".*\s.*",
    )
)


def is_learnable(name: str, text: str, *, cookie: bool) -> bool:
    """Return true for a text that may be a refresh token, under the name of its member or cookie."""
    if not LEAST_LEARNT <= len(text) <= MOST_LEARNT or says_no_secret(name, cookie=cookie):
        return False
    plain = without_scheme(unquote(text)).strip()
    return len(set(plain)) >= _LEAST_CHARACTERS and not any(each.fullmatch(plain) for each in _NO_SECRETS)


def says_no_secret(name: str, *, cookie: bool) -> bool:
    """Return true for a name that tells a time, a kind, an address or who a user is. A cookie may be the `…id` of a
    session."""
    words = [word.lower() for word in _WORD.findall(name)]
    if any(word.startswith("expir") or word == "exp" for word in words):
        return True
    if cookie:
        return (len(words) > 1 and words[-1] in _LAST_WORDS) or names_user("".join(words))
    return bool(words) and (words[-1] in _LAST_WORDS or words[-1] in _IDS)


def names_user(name: str) -> bool:
    """Return true for a name, in lower case and without separators, that stands before who a user is."""
    return _OF_A_USER.fullmatch(name) is not None


def visible_texts(claims: Mapping[str, Any]) -> set[str]:
    """Return the texts of claims that are no secret: everybody may know the `sub` of a user."""
    found: set[str] = set()
    for name, value in claims.items():
        if name not in _SECRET_CLAIMS:
            found |= {str(each) for each in (value if isinstance(value, list) else [value])}
    return found


def place_of(name: str) -> str:
    """Return the place of a learnt text: all names that say `refresh` are one, because clients and backends differ."""
    return REFRESH_PLACE if REFRESH_PLACE in name.lower() else f"cookie {name}"

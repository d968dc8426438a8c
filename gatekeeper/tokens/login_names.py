"""Find the user names of a login, for counting its failures (rule 5.10).

Every value under one of the names counts, wherever it stands: a caller who may choose the place must not get another
counter for it. What is found is only counted, never trusted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from gatekeeper.tokens.body_fields import Field, Unsearchable
from gatekeeper.tokens.credentials import normalise_user_name

DEFAULT_LOGIN_NAME_FIELDS: Final = ("username", "email", "identifier", "login", "phone", "account")
# More could only mean to hide one of them.
_MOST_NAMES: Final = 16
# Names that stand for the place of a value and not for its kind: `username[0]`, `{"username": {"$eq": "a"}}`.
_PLACES: Final = frozenset({"", "value", "val", "text", "eq", "in", "string", "int", "i4", "integer"})
_NAMES_OF_NAMES: Final = frozenset({"name", "key", "field", "id", "k"})
_PROOFS: Final = frozenset({"password", "code", "assertion", "samlresponse"})
_SECRET: Final = re.compile(r"pass|pwd|secret|code|token|remember")
_SEPARATORS: Final = re.compile(r"[\s._$#@-]+")
_PHONE: Final = re.compile(r"\+?[0-9(][0-9()\s./-]{3,}[0-9]")


class LoginNames:
    """Finds user names under `fields`, such as `username`. Letter case, width, and `_`, `-`, `.` do not count."""

    def __init__(self, fields: Iterable[str] = DEFAULT_LOGIN_NAME_FIELDS) -> None:
        self._fields: Final = frozenset(map(_plain, fields))

    def __repr__(self) -> str:
        return f"<LoginNames {', '.join(sorted(self._fields))}>"

    def find(self, fields: Sequence[Field]) -> tuple[str, ...]:
        """Return the user names, normalised, each once. Raises `Unsearchable` for over 16."""
        aliases = {
            _plain(path[-1]) for path, value in fields if path[-2:-1] == ("$alias",) and _plain(value) in self._fields
        }
        found: dict[str, None] = {}
        grouped: dict[tuple[str, ...], list[str] | None] = {}
        named_by_previous = False
        for path, value in fields:
            names = _meaningful(path)
            group = self._group(names)
            if "$alias" in path:
                continue
            if self._names(names) or (names and names[-1] in aliases) or (named_by_previous and _is_place(path)):
                found[counted_name(value)] = None
                if group is not None:
                    grouped[group] = None
            elif group is not None and not any(map(_SECRET.search, names)):
                values = grouped.setdefault(group, [])
                if values is not None:
                    values.append(value)
            named_by_previous = bool(names) and names[-1] in _NAMES_OF_NAMES and _plain(value) in self._fields
        # An object under a name, none of whose own members has one: all of it is the user name.
        for values in grouped.values():
            found[counted_name(" ".join(values or ()))] = None
        found.pop("", None)
        if len(found) > _MOST_NAMES:
            raise Unsearchable
        return tuple(found)

    def _names(self, names: Sequence[str]) -> bool:
        if not names:
            return False
        return names[-1] in self._fields or "".join(names[-2:]) in self._fields

    def _group(self, names: Sequence[str]) -> tuple[str, ...] | None:
        for index, name in enumerate(names):
            if name in self._fields:
                return tuple(names[: index + 1])
        return None


def has_login_field(fields: Sequence[Field]) -> bool:
    """Return true where a field has the name of another proof of a user: a password, a code, an assertion."""
    return any(value and any(_plain(name) in _PROOFS for name in path) for path, value in fields)


def is_refresh_grant(fields: Sequence[Field]) -> bool:
    """Return true where any place of a request says `grant_type=refresh_token` (RFC 6749 section 6), in any case, and
    with whatever invisible characters around it: a backend may be as lenient."""
    return any(path and _plain(path[-1]) == "granttype" and _grant(value) == "refresh_token" for path, value in fields)


def _grant(value: str) -> str:
    return normalise_user_name(_visible(value))


def counted_name(value: str) -> str:
    """Return a user name as it is counted: in NFKC and lower case, without invisible characters and spaces around it; a
    telephone number without what separates its digits."""
    name = normalise_user_name(_visible(value))
    return re.sub(r"[^0-9]", "", name) if _PHONE.fullmatch(name) else name


def _visible(value: str) -> str:
    return "".join(each for each in value if each.isspace() or unicodedata.category(each) not in {"Cc", "Cf"})


def _meaningful(path: Sequence[str]) -> list[str]:
    """Return the names of a path as they are compared, without the last ones that only tell a place."""
    names = [_plain(name) for part in path for name in part.split(".")]
    while len(names) > 1 and (names[-1] in _PLACES or names[-1].isdigit()):
        names.pop()
    return names


def _is_place(path: Sequence[str]) -> bool:
    return not path or _plain(path[-1]) in _PLACES


@lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    return _SEPARATORS.sub("", normalise_user_name(name))

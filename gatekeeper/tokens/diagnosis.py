"""Say why a token cannot be used, in names: of the claims that it has, and of the settings that would change it.

Nothing here is verified, and nothing here decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens import jws, strict_json

_MOST_NAMES: Final = 24
_MOST_VALUE: Final = 256
_MOST_DEPTH: Final = 3
# Claims that name the user, or hold roles, where they are not called `sub` and `roles`.
_USER: Final = re.compile(r"^(sub|uid|oid|id)$|user|nameid|email|login|account")
_ROLES: Final = re.compile(r"roles?$|groups?$|authorities$|permissions$|scopes?$|is_?admin$|^admin$")
# A name of a member, not a value that stands in the place of one: an id, a token or an address.
_NAME: Final = re.compile(r"(?=[A-Za-z_$~])(?:[A-Za-z_$~:/.-]|[0-9](?!(?:[^0-9]*[0-9]){3})){1,64}")

# By the beginning, or the end, of what a rejected token broke.
_SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("no key verifies", "GATEKEEPER_JWT_SECRET, GATEKEEPER_JWT_PUBLIC_KEY or GATEKEEPER_JWKS_URL"),
    ("the algorithm is", "GATEKEEPER_JWT_ALGORITHMS"),
    ("iss is", "GATEKEEPER_JWT_ISSUER"),
    ("aud ", "GATEKEEPER_JWT_AUDIENCE"),
    ("typ is that", "GATEKEEPER_JWT_TYPES"),
    ("the user", "GATEKEEPER_JWT_USER_CLAIM"),
    ("nbf or iat", "GATEKEEPER_JWT_LEEWAY, and the clocks"),
    ("the token is longer", "GATEKEEPER_MAX_HEADER_BYTES"),
    ("two ", "GATEKEEPER_TOKEN_SOURCES"),
)
_SETTINGS_BY_END: Final[tuple[tuple[str, str], ...]] = (
    ("what the settings require", "GATEKEEPER_JWT_REQUIRED_CLAIMS"),
    ("another kind of token", "GATEKEEPER_JWT_REQUIRED_CLAIMS"),
)


def setting_for(why: str) -> str:
    """Return the setting that decides about what a token broke; an empty string where none does."""
    for beginning, setting in _SETTINGS:
        if why.startswith(beginning):
            return setting
    return next((setting for end, setting in _SETTINGS_BY_END if why.endswith(end)), "")


def unverified_members(token: str) -> Mapping[str, Any] | None:
    """Return the claims of a JWT that is not verified; None for a text that is none."""
    return _object(token, jws.unverified_payload)


def unverified_header(token: str) -> Mapping[str, Any] | None:
    """Return the header of a JWT that is not verified; None for a text that is none."""
    return _object(token, jws.unverified_header)


def proposal(why: str, token: str) -> str | None:
    """Return the setting, with its value, by which a token would not have broken a rule; None where none is known."""
    members, header = unverified_members(token) or {}, unverified_header(token) or {}
    setting = setting_for(why)
    value = {
        "GATEKEEPER_JWT_ALGORITHMS": header.get("alg"),
        "GATEKEEPER_JWT_TYPES": header.get("typ"),
        "GATEKEEPER_JWT_ISSUER": members.get("iss"),
        "GATEKEEPER_JWT_AUDIENCE": _first(members.get("aud")),
        "GATEKEEPER_JWT_USER_CLAIM": _path_to(members, _is_user),
    }.get(setting)
    if isinstance(value, str) and 0 < len(value) <= _MOST_VALUE and value.isprintable():
        return f"{setting}={value}"
    return setting or None


def roles_proposal(members: Mapping[str, Any]) -> str | None:
    """Return the setting by which the roles of a token would be found; None where nothing looks like roles."""
    path = _path_to(members, _is_roles)
    return None if path is None else f"GATEKEEPER_ROLES_CLAIM={path}"


def _path_to(members: Mapping[str, Any], is_it: Callable[[str, Any], bool], above: str = "") -> str | None:
    """The path of the first claim that fits: outer ones first."""
    for name, value in members.items():
        if is_it(name.lower(), value):
            return above + name
    found = (
        _path_to(value, is_it, f"{above}{name}.")
        for name, value in members.items()
        if isinstance(value, dict) and above.count(".") < _MOST_DEPTH
    )
    return next((path for path in found if path is not None), None)


def _is_user(name: str, value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and _USER.search(name) is not None


def _is_roles(name: str, value: Any) -> bool:
    return bool(value) and isinstance(value, str | list | dict) and _ROLES.search(name) is not None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _object(token: str, read: Any) -> Mapping[str, Any] | None:
    try:
        members = strict_json.loads(read(token))
    except (TokenRejected, ValueError):
        return None
    return members if isinstance(members, dict) else None


def shown_place(place: str) -> str:
    """Return the names that lead to a text, for the log: `user.jwt`, `cookie sid`. What does not look like a name is a
    question mark."""
    kind, _, name = place.partition(" ")
    if kind in {"cookie", "header"}:
        return f"{kind} {name if _NAME.fullmatch(name) else '?'}"
    return ".".join(part if _NAME.fullmatch(part) else "?" for part in place.split("."))


def shown_names(names: Iterable[str]) -> str:
    """Return names for the log, joined by commas. What does not look like a name is a question mark."""
    shown = dict.fromkeys(name if _NAME.fullmatch(name) else "?" for name in names)
    return ", ".join(list(shown)[:_MOST_NAMES]) or "none"


def explained(why: str, token: str) -> str:
    """Return why a token cannot be used, with the names of its claims, and the setting that decides about it."""
    members, setting = unverified_members(token), setting_for(why)
    claims = "" if members is None else f"; its claims: {shown_names(members)}"
    return f"{why}{claims}{f'; see {setting}' if setting else ''}"

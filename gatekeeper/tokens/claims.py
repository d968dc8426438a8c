"""What the payload of a verified token says, and whether it is an access token for us.

`Validity.check` looks at `exp` last, so that `TOKEN_EXPIRED` means that nothing else is wrong with the token.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Container, Mapping
from typing import Any

import msgspec

from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.models import Claims
from gatekeeper.tokens import strict_json

MAX_USER_BYTES = 512
_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,256}")
_KIND_CLAIMS = ("token_type", "token_use", "type", "typ")
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
_OTHER_KINDS = frozenset({"refresh", "id"})
# Control characters, and the separators that end a line for many readers of logs. Surrogates end in `strict_json`.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
# Explicit directional formatting (Unicode TR9 section 2): with these a name displays as another one.
_DIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# RFC 7493 section 2.2: integers beyond are not exact everywhere, so two readers would name two sessions.
_MAX_EXACT = 2**53


class Validity(msgspec.Struct, frozen=True):
    """When a token holds, in seconds since 1970: from `starts_at` (the later of `nbf` and `iat`) until before
    `expires_at`."""

    starts_at: float
    expires_at: float

    def check(self, now: float, leeway_seconds: float, *, ignore_expiry: bool = False) -> None:
        """Raises `TokenRejected`: `TOKEN_INVALID` before its time, `TOKEN_EXPIRED` from `exp` on (RFC 7519 section
        4.1.4: "on or after"), either with leeway."""
        if self.starts_at > now + leeway_seconds:
            raise TokenRejected("nbf or iat is in the future")
        if not ignore_expiry and now >= self.expires_at + leeway_seconds:
            raise TokenRejected("exp has passed", reason=Reason.TOKEN_EXPIRED)


class ClaimRules(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a payload. `issuers` and `audiences` are `None` where they are not looked at."""

    issuers: frozenset[str] | None
    audiences: frozenset[str] | None
    user_claim: str
    roles_claim: str
    admin_roles: frozenset[str]

    def read(self, payload: bytes) -> tuple[Claims, Validity]:
        """The claims of a payload whose signature is good, and the validity that it holds. The clock is not asked.

        Raises `TokenRejected`.
        """
        try:
            members = strict_json.loads(payload)
        except ValueError:
            raise TokenRejected("the payload is not strict JSON") from None
        if not isinstance(members, dict):
            raise TokenRejected("the payload is not an object")
        check_issuer_and_audience(members, issuers=self.issuers, audiences=self.audiences)
        _check_kind(members)
        validity, issued_at = read_validity(members)
        jti = read_id(members, "jti")
        roles, is_admin = self._roles(members)
        claims = Claims(
            user=parse_user_id(members.get(self.user_claim)),
            reference=_reference(members, jti, payload),
            jti=jti,
            roles=roles,
            is_admin=is_admin,
            issued_at=issued_at,
            expires_at=validity.expires_at,
            claims=members,
        )
        return claims, validity

    def _roles(self, members: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
        value = _at(members, self.roles_claim)
        if value is True:
            return (), True
        if isinstance(value, str):
            value = value.split(" ")
        if not isinstance(value, list) or not all(isinstance(role, str) for role in value):
            return (), False
        roles = tuple(role for role in value if role)
        return roles, not self.admin_roles.isdisjoint(roles)


def check_issuer_and_audience(
    members: Mapping[str, Any], *, issuers: Container[str] | None, audiences: frozenset[str] | None
) -> None:
    """Raises `TokenRejected` where `iss` is none of `issuers`, or no member of `aud` is among `audiences`; `None` is
    not looked at."""
    if issuers is not None:
        issuer = members.get("iss")
        if not isinstance(issuer, str) or issuer not in issuers:
            raise TokenRejected("iss is not the configured one")
    if audiences is not None:
        audience = members.get("aud")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise TokenRejected("aud is neither a string nor a list of strings")
        if audiences.isdisjoint(named):
            raise TokenRejected("aud is not the configured one")


def _check_kind(members: Mapping[str, Any]) -> None:
    for name in _KIND_CLAIMS:
        kind = members.get(name)
        if isinstance(kind, str) and kind.lower() in _OTHER_KINDS:
            raise TokenRejected(f"{name} says that this is no access token")
    # Older providers give a logout token no `typ` of its own (OpenID Connect Back-Channel Logout 1.0 section 4).
    events = members.get("events")
    if isinstance(events, dict) and LOGOUT_EVENT in events:
        raise TokenRejected("events says that this is a logout token")


def _at(members: Mapping[str, Any], path: str) -> Any:
    # The name as it stands first: claims such as `https://example.com/roles` have dots in them.
    if path in members:
        return members[path]
    value: Any = members
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def read_validity(members: Mapping[str, Any]) -> tuple[Validity, float | None]:
    """When a token holds, and its `iat` if it has one. Raises `TokenRejected` where `exp` is missing or a time is no
    number."""
    expires_at = _numeric_date(members, "exp")
    if expires_at is None:
        raise TokenRejected("exp is missing")
    not_before, issued_at = _numeric_date(members, "nbf"), _numeric_date(members, "iat")
    starts = [moment for moment in (not_before, issued_at) if moment is not None]
    return Validity(max(starts, default=0.0), expires_at), issued_at


def _numeric_date(members: Mapping[str, Any], name: str) -> float | None:
    if name not in members:
        return None
    value = members[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRejected(f"{name} is not a number")
    return float(value)


def parse_user_id(value: Any) -> str:
    """The user id of a token (rule 1.1); an integer is its decimal text. Raises `TokenRejected`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or value != value.strip():
        raise TokenRejected("the user is no string or integer, is empty, or has spaces around it")
    if len(value) > MAX_USER_BYTES or len(value.encode("utf-8")) > MAX_USER_BYTES:
        raise TokenRejected("the user is longer than 512 bytes")
    if not value.isascii() or not value.isprintable():
        _check_characters(value)
    return value


def _check_characters(value: str) -> None:
    for char in value:
        if char in _DIRECTIONAL or unicodedata.category(char) in _FORBIDDEN_CATEGORIES:
            raise TokenRejected("the user has control characters")


def read_id(members: Mapping[str, Any], name: str) -> str | None:
    """A claim that is an id (`sid`, `jti`), `None` where it is missing. Raises `TokenRejected` for other characters."""
    if name not in members:
        return None
    value = members[name]
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise TokenRejected(f"{name} is not 1 to 256 of A-Z a-z 0-9 . _ ~ + / = -")
    return value


def unverified_reference(payload: bytes) -> str:
    """What names the session in a payload, whoever wrote it: good for finding a session, never for believing it.

    Raises `TokenRejected` where nothing can.
    """
    try:
        members = strict_json.loads(payload)
    except ValueError:
        raise TokenRejected("the payload is not strict JSON") from None
    if not isinstance(members, dict):
        raise TokenRejected("the payload is not an object")
    return _reference(members, read_id(members, "jti"), payload)


def _reference(members: Mapping[str, Any], jti: str | None, payload: bytes) -> str:
    sid = read_id(members, "sid")
    if sid is None:
        # Over the decoded payload: signatures (ECDSA) and spellings of one token are many.
        return jti or "h:" + hashlib.sha256(payload).hexdigest()
    if "auth_time" not in members:
        return sid
    # A provider keeps `sid` over a new sign-in and says so here (OpenID Connect Core section 2). `:` is in no sid.
    return f"{sid}:{_decimal(members['auth_time'])}"


def _decimal(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_EXACT:
        raise TokenRejected("auth_time is not a time in seconds")
    # 1.7e9, 1700000000.0 and 1700000000 are one moment and one session.
    return str(int(value)) if value == int(value) else format(value, "f")

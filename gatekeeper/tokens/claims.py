"""Read and check the claims of a verified token.

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
# Control characters, and the separators that many log readers take for a line end. `strict_json` refuses surrogates.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
# Explicit directional formatting (Unicode TR9 section 2): with these a name displays as another one.
_DIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# RFC 7493 section 2.2: larger integers are not exact everywhere, so two readers could see two sessions.
_MAX_EXACT = 2**53
# Rule 5.1: no token is about the year 5138. Such a number is one of milliseconds, or made to break arithmetic.
_MAX_TIME = 10**11


class Validity(msgspec.Struct, frozen=True):
    """The validity period of a token, in seconds since 1970: from `starts_at` (the later of `nbf` and `iat`) to before
    `expires_at`."""

    starts_at: float
    expires_at: float

    def check(
        self, now: float, leeway_seconds: float, *, ignore_start: bool = False, ignore_expiry: bool = False
    ) -> None:
        """Raise `TokenRejected` outside the validity period, widened by the leeway.

        The reason is `TOKEN_INVALID` before it, and `TOKEN_EXPIRED` from `exp` on (RFC 7519 section 4.1.4: "on or
        after").
        """
        if not ignore_start and self.starts_at > now + leeway_seconds:
            raise TokenRejected("nbf or iat is in the future")
        if not ignore_expiry and now >= self.expires_at + leeway_seconds:
            raise TokenRejected("exp has passed", reason=Reason.TOKEN_EXPIRED)


class ClaimRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules for the claims of an access token. `None` in `issuers` or `audiences` switches that check off."""

    issuers: frozenset[str] | None
    audiences: frozenset[str] | None
    user_claim: str
    roles_claim: str
    admin_roles: frozenset[str]

    def read(self, payload: bytes) -> tuple[Claims, Validity]:
        """Read the claims and the validity period of a payload whose signature is good.

        The current time plays no part. Raises `TokenRejected`.
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
    """Raise `TokenRejected` where `iss` is not among `issuers`, or `aud` names none of `audiences`.

    `None` switches a check off.
    """
    if issuers is not None:
        issuer = members.get("iss")
        if not isinstance(issuer, str) or issuer not in issuers:
            raise TokenRejected("iss is not the configured issuer")
    if audiences is not None:
        audience = members.get("aud")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise TokenRejected("aud is neither a string nor a list of strings")
        if audiences.isdisjoint(named):
            raise TokenRejected("aud does not name the configured audience")


def _check_kind(members: Mapping[str, Any]) -> None:
    for name in _KIND_CLAIMS:
        kind = members.get(name)
        if isinstance(kind, str) and kind.lower() in _OTHER_KINDS:
            raise TokenRejected(f"{name} is that of another kind of token")
    # Older providers give a logout token no `typ` of its own (OpenID Connect Back-Channel Logout 1.0 section 4).
    events = members.get("events")
    if isinstance(events, dict) and LOGOUT_EVENT in events:
        raise TokenRejected("events marks this as a logout token")


def _at(members: Mapping[str, Any], path: str) -> Any:
    # First the name itself: claims such as `https://example.com/roles` have dots in them.
    if path in members:
        return members[path]
    value: Any = members
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def read_validity(members: Mapping[str, Any]) -> tuple[Validity, float | None]:
    """Read the validity period of a token, and its `iat` if it has one.

    Raises `TokenRejected` where `exp` is missing, or a time is not a number or out of range.
    """
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
    if not -_MAX_TIME <= value <= _MAX_TIME:
        raise TokenRejected(f"{name} is beyond 10^11 seconds")
    return float(value)


def parse_user_id(value: Any) -> str:
    """Return the user id of a token (rule 1.1); an integer becomes its decimal text. Raises `TokenRejected`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or value != value.strip():
        raise TokenRejected("the user is not a string or integer, is empty, or has spaces around it")
    if len(value) > MAX_USER_BYTES or len(value.encode("utf-8")) > MAX_USER_BYTES:
        raise TokenRejected("the user is longer than 512 bytes")
    if not value.isascii() or not value.isprintable():
        _check_characters(value)
    return value


def _check_characters(value: str) -> None:
    for char in value:
        if char in _DIRECTIONAL or unicodedata.category(char) in _FORBIDDEN_CATEGORIES:
            raise TokenRejected("the user has control or direction characters")


def read_id(members: Mapping[str, Any], name: str) -> str | None:
    """Return a claim that is an id (`sid`, `jti`), `None` where it is missing. Raises `TokenRejected` for a bad id."""
    if name not in members:
        return None
    value = members[name]
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise TokenRejected(f"{name} is not 1 to 256 characters of A-Z a-z 0-9 . _ ~ + / = -")
    return value


def unverified_reference(payload: bytes) -> str:
    """Return the token reference (rule 1.3) of a payload that is not verified.

    It may find a session, and never grants anything. Raises `TokenRejected` where the payload has none.
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
        # Over the decoded payload: one token can have several spellings and (ECDSA) several signatures.
        return jti or "h:" + hashlib.sha256(payload).hexdigest()
    if "auth_time" not in members:
        return sid
    # A provider may keep `sid` over a new sign-in, and `auth_time` tells them apart (OpenID Connect Core section 2). No
    # sid contains `:`.
    return f"{sid}:{_decimal(members['auth_time'])}"


def _decimal(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_EXACT:
        raise TokenRejected("auth_time is not a time in seconds")
    # 1.7e9, 1700000000.0 and 1700000000 are the same time, so the same session.
    return str(int(value)) if value == int(value) else format(value, "f")

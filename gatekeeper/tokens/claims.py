"""Read and check the claims of a verified token.

`Validity.check` looks at `exp` last, so that `TOKEN_EXPIRED` means that nothing else is wrong with the token.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Container, Iterator, Mapping
from typing import Any, Final

import msgspec

from gatekeeper.claim_paths import at_path
from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.identifiers import is_identifier, written
from gatekeeper.models import Claims
from gatekeeper.tokens import strict_json

MAX_USER_BYTES = 512
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
# Rule 5.1: claims by which an issuer says what a token is for, and what it says of one that is no access token.
_KIND_CLAIMS: Final = ("token_type", "token_use", "type", "typ")
_OTHER_KINDS: Final = frozenset({"refresh", "id"})
_PURPOSE_CLAIMS: Final = (*_KIND_CLAIMS, "purpose", "use", "tokenType")
_OTHER_PURPOSES: Final = ("refresh", "reset", "verify", "verific", "mfa", "2fa", "otp")
# With these a text looks like another one: control characters, and those without width.
_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cf"})
# Members of an object of roles that are no roles of the user.
_NOT_GRANTED: Final[tuple[Any, ...]] = (None, False, 0, "", [])
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
    """The rules for the claims of an access token. `None` in `issuers` or `audiences` switches that check off.

    `user_claim`, `roles_claim` and the names in `required` are dotted paths; an entry of `admin_roles` is a role, or
    the path of a boolean claim. `required` are claims with the value that each must have.
    """

    issuers: frozenset[str] | None
    audiences: frozenset[str] | None
    user_claim: str
    roles_claim: str
    admin_roles: frozenset[str]
    required: tuple[tuple[str, str], ...] = ()

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
        self._check_required(members)
        _check_kind(members, frozenset(name for name, _ in self.required))
        validity, issued_at = read_validity(members)
        jti = read_id(members, "jti")
        roles, is_admin = self._roles(members)
        user = at_path(members, self.user_claim)
        if user is None:
            raise TokenRejected(f"the user is missing: no claim {self.user_claim}")
        claims = Claims(
            user=parse_user_id(user),
            reference=_reference(members, jti, payload),
            jti=jti,
            roles=roles,
            is_admin=is_admin,
            issued_at=issued_at,
            expires_at=validity.expires_at,
            claims=members,
            digest=hashlib.sha256(payload).hexdigest(),
        )
        return claims, validity

    def _check_required(self, members: Mapping[str, Any]) -> None:
        for name, value in self.required:
            found = at_path(members, name)
            held = found if isinstance(found, list) else [found]
            if value not in map(_plain_text, held):
                raise TokenRejected(f"{name} is not what the settings require")

    def _roles(self, members: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
        value = at_path(members, self.roles_claim)
        roles = () if value is True else read_roles(value)
        is_admin = value is True or not self.admin_roles.isdisjoint(roles)
        return roles, is_admin or any(at_path(members, path) is True for path in self.admin_roles)


def _plain_text(value: Any) -> str | None:
    """Return a plain value as a setting would write it: a string as it stands, `true`, `7`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def read_roles(value: Any) -> tuple[str, ...]:
    """Return the roles in a claim: a list of strings or objects, an object, or a string split at spaces and commas.

    A value of another form holds none, and neither does a list with an item of another form.
    """
    if isinstance(value, str):
        return tuple(name for name in value.replace(",", " ").split(" ") if name)
    if isinstance(value, dict):
        return tuple(name for name, granted in value.items() if name and granted not in _NOT_GRANTED)
    if not isinstance(value, list) or not all(isinstance(item, str | dict) for item in value):
        return ()
    names = (item if isinstance(item, str) else _role_name(item) for item in value)
    return tuple(name for name in names if name)


def _role_name(role: Mapping[str, Any]) -> str | None:
    """Return the name of a role that is an object, such as `{"authority": "ROLE_ADMIN"}`; None for one that is switched
    off or has no name."""
    if any(switch in role and role[switch] in _NOT_GRANTED for switch in ("enabled", "active")):
        return None
    return next((role[key] for key in ("authority", "name") if isinstance(role.get(key), str)), None)


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


def _check_kind(members: Mapping[str, Any], judged: Container[str] = ()) -> None:
    """Raise `TokenRejected` for a token that is for something else. The claims `judged` are left to the settings."""
    for name in _PURPOSE_CLAIMS:
        kind = members.get(name)
        if kind is None or name in judged:
            continue
        if any(_is_other(text, is_kind=name in _KIND_CLAIMS) for text in _kinds(kind)):
            raise TokenRejected(f"{name} is that of another kind of token")
    # Older providers give a logout token no `typ` of its own (OpenID Connect Back-Channel Logout 1.0 section 4).
    events = members.get("events")
    if isinstance(events, dict) and LOGOUT_EVENT in events:
        raise TokenRejected("events marks this as a logout token")


def _kinds(value: Any) -> Iterator[str]:
    """Yield the texts of a claim, and of the lists in it, as they are compared: in lower case, without invisible
    characters and spaces around them."""
    # `strict_json` bounds the depth.
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            yield from _kinds(item)
        elif isinstance(item, str):
            visible = item if item.isprintable() else "".join(filter(_is_visible, item))
            yield visible.strip().lower()


def _is_visible(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) not in _INVISIBLE_CATEGORIES


def _is_other(text: str, *, is_kind: bool) -> bool:
    return text.startswith(_OTHER_PURPOSES) or (is_kind and text in _OTHER_KINDS)


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
    if not is_identifier(value):
        raise TokenRejected(f"{name} is not a string of 1 to 256 characters without control characters")
    return str(value)


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
        return written(jti) if jti else "h:" + hashlib.sha256(payload).hexdigest()
    if "auth_time" not in members:
        return written(sid)
    # A provider may keep `sid` over a new sign-in, and `auth_time` tells them apart (OpenID Connect Core section 2). No
    # written `sid` contains `:`.
    return f"{written(sid)}:{_decimal(members['auth_time'])}"


def _decimal(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_EXACT:
        raise TokenRejected("auth_time is not a time in seconds")
    # 1.7e9, 1700000000.0 and 1700000000 are the same time, so the same session.
    return str(int(value)) if value == int(value) else format(value, "f")

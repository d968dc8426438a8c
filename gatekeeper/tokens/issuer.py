"""Tokens of our own making: access tokens (RFC 9068), and opaque refresh tokens."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.utils import base64url_encode

from gatekeeper.tokens.jws import MAX_TOKEN_BYTES
from gatekeeper.tokens.signing_keys import SigningKeys

__all__ = [
    "RESERVED_CLAIMS",
    "AccessTokenIssuer",
    "IssuedToken",
    "SigningKeys",
    "development_token",
    "digest",
    "new_refresh_token",
    "new_sid",
    "seal",
    "unseal",
]

# What says whose a token is, for whom and until when; `auth_time` would rename the session of a `sid`.
RESERVED_CLAIMS = frozenset({"iss", "aud", "sub", "sid", "jti", "iat", "exp", "nbf", "auth_time"})
DEFAULT_NAME = "gatekeeper"

_REFRESH_BYTES = 32
# RFC 7519 section 4.1.7 asks for a negligible chance of collisions; 128 bits are it.
_JTI_BYTES = 16
_SID_BYTES = 24
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SEAL_INFO = b"gatekeeper refresh reuse seal v1"


def development_token(secret: bytes, *, algorithm: str, claims: Mapping[str, Any]) -> str:
    """A signed JWT with `claims` (those that are None are left out) and a new `jti`."""
    payload = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({**payload, "jti": uuid.uuid4().hex}, secret, algorithm=algorithm)


class IssuedToken(msgspec.Struct, frozen=True):
    """An access token, its id, and its `exp` (seconds since 1970)."""

    token: str
    jti: str
    expires_at: int


class AccessTokenIssuer:
    """Issues access tokens for `ttl_seconds`, by `now` (seconds since 1970). Without a setting `iss` and `aud` are
    `gatekeeper`. The user stands in `sub`, and in `user_claim` too where that is another.

    Raises `ValueError` for a `user_claim` that means something else in every token, and a life under a second.
    """

    def __init__(
        self,
        keys: SigningKeys,
        *,
        issuer: str | None,
        audience: str | None,
        ttl_seconds: float,
        user_claim: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        if user_claim in RESERVED_CLAIMS - {"sub"} or not user_claim:
            raise ValueError(f"the user claim is {user_claim!r}; accepted: sub, or a name that is not reserved")
        if not 1 <= ttl_seconds < math.inf:
            raise ValueError(f"an access token that lives {ttl_seconds:g} s; accepted: 1 s or longer")
        self.ttl_seconds = int(ttl_seconds)
        self._keys = keys
        self._issuer = DEFAULT_NAME if issuer is None else issuer
        self._audience = DEFAULT_NAME if audience is None else audience
        self._user_claim = user_claim
        self._now = now

    def __repr__(self) -> str:
        return f"AccessTokenIssuer({self.ttl_seconds} s; {self._keys!r})"

    def issue(
        self,
        user: str,
        *,
        sid: str,
        claims: Mapping[str, Any],
        session_expires_at: float,
        jti: str | None = None,
    ) -> IssuedToken:
        """A token of `user` in the session that `sid` names, over with it at the latest (`session_expires_at`, seconds
        since 1970), with a new `jti` unless one is given. Of `claims` those with a reserved name are left out.

        Raises `ValueError` where the token would be longer than any that is accepted, or `claims` are not JSON.
        """
        issued_at = math.floor(self._now())
        expires_at = min(issued_at + self.ttl_seconds, math.floor(session_expires_at))
        jti = jti or secrets.token_urlsafe(_JTI_BYTES)
        named = {name: value for name, value in claims.items() if name not in RESERVED_CLAIMS}
        ours = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user,
            "sid": sid,
            "jti": jti,
            "iat": issued_at,
            "exp": expires_at,
            self._user_claim: user,
        }
        token = self._keys.sign(named | ours)
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError("the access token would be longer than 8 KiB; take fewer claims into it")
        return IssuedToken(token, jti, expires_at)


def new_sid() -> str:
    """The name of a new session in its tokens: 192 random bits, never one that a client brought."""
    return secrets.token_urlsafe(_SID_BYTES)


def new_refresh_token() -> str:
    """An opaque token of 256 random bits."""
    return secrets.token_urlsafe(_REFRESH_BYTES)


def digest(token: str) -> str:
    """What is stored of a refresh token: its SHA-256 in base64url, 43 characters. Random tokens need no salt and no
    slow hash."""
    return base64url_encode(hashlib.sha256(_octets(token)).digest()).decode("ascii")


def seal(presented: str, content: bytes) -> bytes:
    """`content` so that only who presents the token `presented` can read it: nonce and AES-256-GCM."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(_seal_key(presented)).encrypt(nonce, content, None)


def unseal(presented: str, sealed: bytes) -> bytes | None:
    """The content that was sealed for `presented`; `None` where it was not, or was changed since."""
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        return None
    try:
        return AESGCM(_seal_key(presented)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except InvalidTag:
        return None


def _seal_key(presented: str) -> bytes:
    # Out of the token itself (RFC 5869): who has the store has its digest only, and that gives no key.
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_SEAL_INFO).derive(_octets(presented))


def _octets(token: str) -> bytes:
    # A client may present any text, lone surrogates of JSON included: then it is simply unknown.
    return token.encode("utf-8", "surrogatepass")

"""Issue tokens: access tokens (RFC 9068) and opaque refresh tokens."""

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

# Claims that Gatekeeper sets itself. `auth_time` is here because it is part of the token reference (rule 1.3).
# nginx and Apache limit a header line to 8 KiB.
_MAX_TOKEN_BYTES = 8192
RESERVED_CLAIMS = frozenset({"iss", "aud", "sub", "sid", "jti", "iat", "exp", "nbf", "auth_time"})
DEFAULT_NAME = "gatekeeper"

_REFRESH_BYTES = 32
# RFC 7519 section 4.1.7 asks for a negligible probability of collisions: 128 random bits.
_JTI_BYTES = 16
_SID_BYTES = 24
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SEAL_INFO = b"gatekeeper refresh reuse seal v1"


def development_token(secret: bytes, *, algorithm: str, claims: Mapping[str, Any]) -> str:
    """Sign a JWT with `claims` (those that are `None` are left out) and a new `jti`. For `gatekeeper token` only."""
    payload = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({**payload, "jti": uuid.uuid4().hex}, secret, algorithm=algorithm)


class IssuedToken(msgspec.Struct, frozen=True):
    """An access token, its id (`jti`) and its `exp` in seconds since 1970."""

    token: str
    jti: str
    expires_at: int


class AccessTokenIssuer:
    """Issues access tokens that are valid for `ttl_seconds`.

    `issuer` and `audience` default to `gatekeeper`. The user is in `sub`, and also in `user_claim`. `now` returns
    seconds since 1970. Raises `ValueError` for a reserved `user_claim`, and for a validity under one second.
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
            raise ValueError(f"access tokens are valid for {ttl_seconds:g} s; accepted: 1 s or longer")
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
        """Issue a token for `user` in the session that `sid` names.

        The token expires with the session at the latest (`session_expires_at`, seconds since 1970). It gets a new
        `jti` unless one is given. Claims with a reserved name are left out. Raises `ValueError` where the token would
        be longer than 8 KiB, or `claims` are not JSON.
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
        if len(token) > _MAX_TOKEN_BYTES:
            raise ValueError("the access token would be longer than 8 KiB; accepted: fewer or shorter claims")
        return IssuedToken(token, jti, expires_at)


def new_sid() -> str:
    """Make the `sid` of a new session: 192 random bits, never a value that a client sent."""
    return secrets.token_urlsafe(_SID_BYTES)


def new_refresh_token() -> str:
    """Make an opaque refresh token of 256 random bits."""
    return secrets.token_urlsafe(_REFRESH_BYTES)


def digest(token: str) -> str:
    """Return the SHA-256 of a refresh token in base64url, 43 characters: the store keeps this and never the token.

    A random token needs no salt and no slow hash.
    """
    return base64url_encode(hashlib.sha256(_octets(token)).digest()).decode("ascii")


def seal(presented: str, content: bytes) -> bytes:
    """Encrypt `content` with a key made from the token `presented`: a nonce, then AES-256-GCM."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(_seal_key(presented)).encrypt(nonce, content, None)


def unseal(presented: str, sealed: bytes) -> bytes | None:
    """Decrypt what `seal` made for the same token. Returns `None` for another token, and for changed content."""
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        return None
    try:
        return AESGCM(_seal_key(presented)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except InvalidTag:
        return None


def _seal_key(presented: str) -> bytes:
    # From the token itself (RFC 5869): the store has only its digest, from which no key can be made.
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_SEAL_INFO).derive(_octets(presented))


def _octets(token: str) -> bytes:
    # A client may present any text, lone surrogates from JSON included: such a token is unknown, not an error.
    return token.encode("utf-8", "surrogatepass")

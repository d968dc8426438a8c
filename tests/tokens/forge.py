"""Make tokens by hand, good and bad: the test chooses every byte."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from gatekeeper.tokens.keys import KeySource, StaticKeys
from gatekeeper.tokens.verifier import Verifier

SECRET = "b7d1f0a6c25e4b9f8e31d74a90c6f2358ae1b4d7"
OTHER_SECRET = "5e0c93ab17d84f62b3a9e7c1d05f8264937ab1fe"
NOW = 1_800_000_000.0
USUAL: dict[str, Any] = {"sub": "74", "jti": "a1", "iat": int(NOW) - 60, "exp": int(NOW) + 600}

_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def as_bytes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    return part.encode() if isinstance(part, str) else json.dumps(part).encode()


def hs(header: Any, payload: Any, secret: str | bytes = SECRET, digest: str = "sha256") -> str:
    """Make an HMAC token of any header and payload, each an object, a text or bytes."""
    signing_input = f"{b64(as_bytes(header))}.{b64(as_bytes(payload))}"
    key = secret.encode() if isinstance(secret, str) else secret
    return f"{signing_input}.{b64(hmac.new(key, signing_input.encode(), digest).digest())}"


def token(
    secret: str | bytes = SECRET, alg: str = "HS256", *, claims: Mapping[str, Any] | None = None, **more: Any
) -> str:
    """Make a good token. `claims` and `more` replace or add claims; `...` removes one."""
    payload = {name: value for name, value in (USUAL | dict(claims or {}) | more).items() if value is not ...}
    return hs({"alg": alg, "typ": "JWT"}, payload, secret, _DIGESTS[alg])


def payload_token(payload: str | bytes) -> str:
    return hs({"alg": "HS256"}, payload)


def header_token(header: Any) -> str:
    return hs(header, USUAL)


def signed_by(key: Any, header: dict[str, Any], payload: Any = None) -> str:
    """Make a token signed by a private key: RS256, ES256 or EdDSA by the type of the key."""
    signing_input = f"{b64(as_bytes(header))}.{b64(as_bytes(USUAL if payload is None else payload))}"
    data = signing_input.encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        signature = key.sign(data)
    return f"{signing_input}.{b64(signature)}"


def pem(key: Any) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode())


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """Return the public half of a private key as a JWK."""
    numbers: Any = None if isinstance(key, ed25519.Ed25519PrivateKey) else key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        size = (key.key_size + 7) // 8
        made = {"kty": "RSA", "n": b64(numbers.n.to_bytes(size, "big")), "e": b64(numbers.e.to_bytes(3, "big"))}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}[key.curve.name]
        made = {
            "kty": "EC",
            "crv": curve,
            "x": b64(numbers.x.to_bytes(size, "big")),
            "y": b64(numbers.y.to_bytes(size, "big")),
        }
    else:
        made = {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw())}
    return made | members


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def verifier(keys: KeySource | None = None, **options: Any) -> Verifier:
    """Make a verifier of HS256 tokens with `SECRET` at `NOW` without leeway; `options` replace these defaults."""
    algorithms = options.pop("algorithms", ["HS256"])
    chosen: dict[str, Any] = {
        "keys": keys or StaticKeys([SECRET], [], algorithms),
        "algorithms": algorithms,
        "issuer": None,
        "audience": None,
        "leeway_seconds": 0.0,
        "user_claim": "sub",
        "roles_claim": "roles",
        "admin_roles": ["admin"],
        "now": lambda: NOW,
    }
    return Verifier(**(chosen | options))


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

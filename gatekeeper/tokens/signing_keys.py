"""Keys that sign tokens, and the public key set made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.utils import base64url_encode

from gatekeeper.tokens.key_material import (
    HMAC_ALGORITHMS,
    MIN_HMAC_SECRET_BYTES,
    check_algorithms,
    fitting_algorithms,
    hmac_keys,
)

# RFC 9068 section 2.1: this type keeps an access token from being used as an ID token.
TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
# RFC 7638 section 3.2, RFC 8037 section 2: the members that the thumbprint covers.
_THUMBPRINT_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
# RFC 9864 gives the curves names of their own; the signatures are those of EdDSA (RFC 8037).
_IMPLEMENTED_AS = {"Ed25519": "EdDSA", "Ed448": "EdDSA"}


class SigningKeys:
    """Keys of one kind, HMAC secrets or private keys. The first one signs, all of them verify.

    `hmac_secrets` and `public_keys_pem` (SPKI) are arguments for `StaticKeys`. `jwks` is the public key set (RFC 7517
    section 5), `None` for secrets. Each key is used with the first of `algorithms` that it fits.

    Raises `ValueError` with the number of the faulty entry, its fault and what is accepted, but not its content.
    """

    def __init__(
        self,
        hmac_secrets: Sequence[bytes],
        private_keys_pem: Sequence[str],
        algorithms: Sequence[str],
        *,
        least_secret_bytes: int = MIN_HMAC_SECRET_BYTES,
    ) -> None:
        check_algorithms(algorithms)
        if hmac_secrets and private_keys_pem:
            raise ValueError("HMAC secrets and private keys are set together; accepted: one kind")
        if not (hmac_secrets or private_keys_pem):
            raise ValueError("no key to sign with; accepted: HMAC secrets or private keys in PEM")
        if (algorithms[0] in HMAC_ALGORITHMS) != bool(hmac_secrets):
            kind = "HMAC secrets" if hmac_secrets else "private keys"
            raise ValueError(f"{', '.join(algorithms)} cannot be used with {kind}")
        self.hmac_secrets = tuple(hmac_secrets)
        for number, secret in enumerate(hmac_secrets, start=1):
            with _numbered(f"HMAC secret {number}"):
                hmac_keys(secret, algorithms, least_bytes=least_secret_bytes)
        keys: list[tuple[PrivateKey, str]] = []
        for number, pem in enumerate(private_keys_pem, start=1):
            with _numbered(f"private key {number}"):
                keys.append(_private_key(pem, algorithms))
        self.public_keys_pem = tuple(_spki(key) for key, _ in keys)
        jwks = [_public_jwk(key, algorithm) for key, algorithm in keys]
        self.jwks: dict[str, Any] | None = {"keys": jwks} if keys else None
        self._key: PrivateKey | bytes
        self._key, self.algorithm = keys[0] if keys else (self.hmac_secrets[0], algorithms[0])
        header = {"alg": self.algorithm, "typ": TOKEN_TYPE} | ({"kid": jwks[0]["kid"]} if keys else {})
        self._head = base64url_encode(_json(header))

    def __repr__(self) -> str:
        return f"SigningKeys({self.algorithm}, {len(self.hmac_secrets or self.public_keys_pem)} to verify)"

    def replace(self, other: SigningKeys) -> None:
        """Take the keys of `other`, which are of the same kind. Raises `ValueError`."""
        if (self.jwks is None) != (other.jwks is None):
            raise ValueError("HMAC secrets became private keys, or the reverse; accepted: the kind of before")
        jwks = self.jwks
        if jwks is not None and other.jwks is not None:
            # The endpoint serves this very object.
            jwks["keys"] = other.jwks["keys"]
        self.__dict__.update(other.__dict__ | {"jwks": jwks})

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Sign `claims` as a compact JWS. Raises `ValueError` where they are not JSON."""
        # `jwt.encode` would warn at each call that a secret for HS512 is under 64 bytes; rule 2.4 asks for 32.
        signing_input = self._head + b"." + base64url_encode(_json(claims))
        signature = jwt.get_algorithm_by_name(_IMPLEMENTED_AS.get(self.algorithm, self.algorithm)).sign(
            signing_input, self._key
        )
        return (signing_input + b"." + base64url_encode(signature)).decode("ascii")


@contextmanager
def _numbered(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _private_key(pem: str, algorithms: Sequence[str]) -> tuple[PrivateKey, str]:
    """Load a private key, and choose the first of `algorithms` that it fits. Raises `ValueError`."""
    if "PRIVATE KEY-----" not in pem:
        raise ValueError("is not a private key in PEM; accepted: -----BEGIN PRIVATE KEY-----, RSA or EC PRIVATE KEY")
    if pem.count("-----BEGIN") - pem.count("-----BEGIN EC PARAMETERS") > 1:
        raise ValueError("is several PEM blocks; accepted: one private key in each entry")
    try:
        key = load_pem_private_key(pem.encode("utf-8", "replace"), password=None)
    except TypeError:
        raise ValueError("is encrypted; accepted: a private key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is PEM that holds no readable private key; accepted: PKCS#8, PKCS#1, SEC 1") from None
    if not isinstance(key, PrivateKey):
        kinds = "RSA, EC (P-256, P-384, P-521), Ed25519, Ed448"
        raise ValueError(f"is a key of a kind that signs no JWT; accepted: {kinds}")  # noqa: TRY004
    fitting = fitting_algorithms(key.public_key())
    chosen = next((name for name in algorithms if name in fitting), None)
    if chosen is None:
        raise ValueError(f"fits none of {', '.join(algorithms)}; it is for {', '.join(fitting)}")
    return key, chosen


def _spki(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _public_jwk(key: PrivateKey, algorithm: str) -> dict[str, Any]:
    jwk = jwt.get_algorithm_by_name(_IMPLEMENTED_AS.get(algorithm, algorithm)).to_jwk(key.public_key(), as_dict=True)
    parameters = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    return {**parameters, "use": "sig", "alg": algorithm, "kid": thumbprint(parameters)}


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the SHA-256 thumbprint (RFC 7638) of a public key, in base64url."""
    members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    return base64url_encode(hashlib.sha256(_json(members)).digest()).decode("ascii")


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(str(error)) from None
    return text.encode("utf-8")

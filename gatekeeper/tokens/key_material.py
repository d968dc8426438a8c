"""Read keys, and refuse those that must not verify a token.

A key is bound to its algorithm here, when it is read (RFC 8725 section 3.1; CVE-2026-48523). The header of a token can
then only choose among the existing pairs.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_public_key
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

HMAC_ALGORITHMS = ("HS256", "HS384", "HS512")
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
PUBLIC_KEY_ALGORITHMS = (*_RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

# RFC 7518 section 3.2 asks for the size of the hash; 256 bits cannot be guessed under any of the three (rule 2.4).
MIN_HMAC_SECRET_BYTES = 32
# RFC 7518 section 3.3, NIST SP 800-131A.
MIN_RSA_BITS = 2048
# A verification takes 16 times as long as with 2048 bits. A key set must not be able to make it slower.
MAX_RSA_BITS = 8192
MAX_KID_LENGTH = 256

_ALGORITHMS: dict[str, Algorithm] = {
    name: implementation
    for name, implementation in get_default_algorithms().items()
    if name in (*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS)
}
# RFC 9864: the names that say which curve. The key is checked against them in `fitting_algorithms`.
_ALGORITHMS |= {"Ed25519": _ALGORITHMS["EdDSA"], "Ed448": _ALGORITHMS["EdDSA"]}

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

_JWK_FORMS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "RSA": (RSAAlgorithm.from_jwk, ("n", "e")),
    "EC": (ECAlgorithm.from_jwk, ("x", "y")),
    "OKP": (OKPAlgorithm.from_jwk, ("x",)),
}

# Secrets of tutorials and templates: the default of jwt.io, its former ones, and that of the FastAPI tutorial.
_PUBLISHED_SECRETS = frozenset(
    {
        "a-string-secret-at-least-256-bits-long",
        "your-256-bit-secret",
        "your-384-bit-secret",
        "your-512-bit-secret",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    }
)
_PLACEHOLDER_WORDS = ("changeme", "changethis", "replaceme", "replacethis", "yoursecret", "insertsecret")
_LONGEST_REPEATED_UNIT = 8
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[^-]*-----END \1-----")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]{1,2048}")


class VerificationKey:
    """A key for one algorithm. `kid` is its id in a key set, or `None`."""

    __slots__ = ("_implementation", "_key", "algorithm", "kid")

    def __init__(self, algorithm: str, key: PublicKey | bytes, kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._key = key
        self._implementation = _ALGORITHMS[algorithm]

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Return true where this key made `signature` (raw octets, RFC 7518 section 3) over `signing_input`."""
        return self._implementation.verify(signing_input, self._key, signature)

    def __repr__(self) -> str:
        return f"VerificationKey({self.algorithm}, kid={self.kid!r})"


def check_algorithms(algorithms: Sequence[str]) -> None:
    """Raise `ValueError` for an allow-list that is empty, names an unsupported algorithm, or mixes HMAC with public-key
    algorithms: a public key could then be used as a secret (CVE-2017-11424)."""
    accepted = ", ".join((*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS))
    if not algorithms:
        raise ValueError(f"no algorithm is allowed; accepted: {accepted}")
    unknown = [name for name in algorithms if name not in _ALGORITHMS]
    if unknown:
        raise ValueError(f"algorithm {unknown[0]!r} is not supported; accepted: {accepted}")
    if 0 < sum(name in HMAC_ALGORITHMS for name in algorithms) < len(algorithms):
        raise ValueError("HMAC and public-key algorithms are never allowed together; choose HS… or one of the others")


def hmac_keys(
    secret: str | bytes, algorithms: Iterable[str], *, least_bytes: int = MIN_HMAC_SECRET_BYTES
) -> list[VerificationKey]:
    """Make a key from a secret for each HMAC algorithm in `algorithms`.

    Raises `ValueError`, without the secret in its text, for under `least_bytes` (RFC 7518 section 3.2: 32), a
    placeholder, and a public key, certificate or JWK in any encoding (CVE-2022-29217, GHSA-xgmm-8j9v-c9wx).
    """
    data = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else bytes(secret)
    if _is_asymmetric(data):
        raise ValueError("is a public key, private key, certificate or JWK; accepted: a random secret")
    if len(data) < least_bytes:
        raise ValueError(f"is {len(data)} bytes long; accepted: {least_bytes} bytes or more")
    if _is_placeholder(data):
        raise ValueError("is a placeholder, not a secret; accepted: 32 random bytes or more (`openssl rand -hex 32`)")
    return [VerificationKey(name, data) for name in algorithms if name in HMAC_ALGORITHMS]


def public_keys(pem: str | bytes, algorithms: Iterable[str]) -> list[VerificationKey]:
    """Read PEM blocks (SPKI, PKCS#1 or certificates), each as keys for those of `algorithms` that it fits.

    Raises `ValueError` for other text, a private key, a weak key, and a key that fits none of `algorithms`.
    """
    data = pem.encode("utf-8", "replace") if isinstance(pem, str) else bytes(pem)
    allowed = tuple(algorithms)
    blocks = list(_PEM_BLOCK.finditer(data))
    if not blocks:
        raise ValueError("is not PEM; accepted: -----BEGIN PUBLIC KEY-----, RSA PUBLIC KEY or CERTIFICATE")
    found: list[VerificationKey] = []
    for block in blocks:
        if b"PRIVATE" in block[1]:
            raise ValueError("is a private key; accepted: only its public half")
        key = _load_pem(block[0])
        fitting = [name for name in fitting_algorithms(key) if name in allowed]
        if not fitting:
            raise ValueError(f"fits none of {', '.join(allowed)}; it is for {', '.join(fitting_algorithms(key))}")
        found += [VerificationKey(name, key) for name in fitting]
    return found


def _load_pem(block: bytes) -> PublicKey:
    try:
        loaded = (
            x509.load_pem_x509_certificate(block).public_key()
            if b"CERTIFICATE" in block
            else load_pem_public_key(block)
        )
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is PEM that holds no readable public key") from None
    if not isinstance(loaded, PublicKey):
        kinds = "RSA, EC (P-256, P-384, P-521), Ed25519, Ed448"
        raise ValueError(f"is a key of a kind that signs no JWT; accepted: {kinds}")  # noqa: TRY004
    return loaded


def fitting_algorithms(key: PublicKey) -> tuple[str, ...]:
    """Return the algorithms that `key` can verify, by its family and curve.

    Raises `ValueError` for a curve that no JWS algorithm uses, and for a weak RSA key: under 2048 bits, an even public
    exponent or 1, or made by the generator of CVE-2017-15361.
    """
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
        return _RSA_ALGORITHMS
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise ValueError(f"is on the curve {key.curve.name}; accepted: P-256, P-384, P-521")
        return (_CURVES[key.curve.name],)
    return ("EdDSA", "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else "Ed448")


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ValueError(f"is an RSA key of {key.key_size} bits; accepted: {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    numbers = key.public_numbers()
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.e >= 1 << 32:
        raise ValueError("is an RSA key with an unsafe public exponent; accepted: odd, 3 to 2**32")
    if _is_roca(numbers.n):
        raise ValueError(
            "is an RSA key made by the generator of CVE-2017-15361 (ROCA); accepted: a key that cannot be factored"
        )


def _is_roca(modulus: int) -> bool:
    # Such primes are 65537**a modulo a product of small primes, so the modulus is a power of 65537 modulo each of
    # them (Nemec et al., CCS 2017). By chance that holds for one modulus in about 2**27.
    primes = [p for p in range(3, 168) if all(p % q for q in range(2, p))]
    return all(modulus % p in {pow(65537, power, p) for power in range(p)} for p in primes)


def jwk_keys(jwk: Any, algorithms: Iterable[str]) -> list[VerificationKey]:
    """Read a member of a key set as keys for those of `algorithms` that it fits; there may be none.

    Raises `ValueError` for a key that must not be used: `use` or `key_ops` of another purpose (RFC 7517 sections 4.2,
    4.3), a symmetric key (a published secret), a published private key, a weak key, a point that is not on its curve.
    """
    if not isinstance(jwk, dict):
        raise ValueError("is not an object")  # noqa: TRY004 - a fault of the document
    kid: Any = jwk.get("kid")
    if isinstance(kid, int) and not isinstance(kid, bool):
        kid = str(kid)
    if "kid" in jwk and not (isinstance(kid, str) and len(kid) <= MAX_KID_LENGTH):
        raise ValueError(f"has a kid that is neither an integer nor a string of up to {MAX_KID_LENGTH} characters")
    if jwk.get("use", "sig") != "sig":
        raise ValueError("is not for signatures")
    operations = jwk.get("key_ops", ["verify"])
    if not (isinstance(operations, list) and "verify" in operations):
        raise ValueError("is not for verifying")
    if "d" in jwk:
        raise ValueError("is a private key that is published")
    key = _load_jwk(jwk)
    fitting = fitting_algorithms(key)
    if "alg" in jwk:
        if jwk["alg"] not in fitting:
            raise ValueError("has an alg that does not fit its type or curve")
        fitting = (jwk["alg"],)
    return [VerificationKey(name, key, kid) for name in fitting if name in tuple(algorithms)]


def _load_jwk(jwk: Mapping[str, Any]) -> PublicKey:
    kty = jwk.get("kty")
    if not isinstance(kty, str) or kty not in _JWK_FORMS:
        raise ValueError("has a kty other than RSA, EC and OKP")
    load, names = _JWK_FORMS[kty]
    # Only the parameters of a public key: `x5u`, `x5c` and all other members are ignored.
    parameters = {"kty": kty, "crv": jwk.get("crv")} | _octets(jwk, *names)
    try:
        loaded = load(parameters)
    except (InvalidKeyError, ValueError, UnsupportedAlgorithm):
        raise ValueError("has parameters that are not a public key") from None
    if not isinstance(loaded, PublicKey):
        raise ValueError("has parameters that are not a public key")  # noqa: TRY004
    return loaded


def _octets(jwk: Mapping[str, Any], *names: str) -> dict[str, str]:
    # PyJWT decodes leniently; a value that is not plain base64url is refused.
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(value, str) and _BASE64URL.fullmatch(value) for value in members.values()):
        raise ValueError(f"lacks {' or '.join(names)} in base64url")
    return {name: str(value) for name, value in members.items()}


def _is_asymmetric(secret: bytes) -> bool:
    return any(_is_asymmetric_form(form) for form in _decodings(secret))


def _decodings(secret: bytes) -> Iterator[bytes]:
    """Yield the secret, and what it may encode: text after a BOM, UTF-16, DER that was read as text, base64."""
    bare = secret.removeprefix(b"\xef\xbb\xbf").strip()
    yield from (secret, bare)
    with contextlib.suppress(UnicodeError):
        yield secret.decode("utf-16").encode()
    # `strip` may have removed the last byte of DER, if it looks like a space.
    for each in (secret, bare):
        with contextlib.suppress(UnicodeError):
            yield each.decode("utf-8").encode("latin-1")
    with contextlib.suppress(ValueError):
        yield base64.b64decode(b"".join(bare.split()), altchars=b"-_" if b"-" in bare or b"_" in bare else None)


def _is_asymmetric_form(data: bytes) -> bool:
    if b"-----BEGIN" in data or data.startswith(b"---- BEGIN SSH2"):
        return True
    try:
        # PyJWT recognises PEM, OpenSSH, DER (SPKI, PKCS#1, X.509), and JWK or JWKS in JSON.
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(data or b"\0")
        load_der_private_key(data, password=None)
    except InvalidKeyError:
        return True
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _is_placeholder(secret: bytes) -> bool:
    text = secret.decode("utf-8", "replace").strip().lower()
    letters = "".join(char for char in text if char.isalnum())
    if text in _PUBLISHED_SECRETS or any(word in letters for word in _PLACEHOLDER_WORDS):
        return True
    units = range(1, _LONGEST_REPEATED_UNIT + 1)
    return any(secret == (secret[:size] * len(secret))[: len(secret)] for size in units)

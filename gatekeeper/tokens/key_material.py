"""Key material: reading it, and refusing what must not verify a token.

A key is bound to its algorithm here, once, when it is read (RFC 8725 section 3.1; CVE-2026-48523): a token's header
can then only choose among the pairs that exist.
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
PUBLIC_KEY_ALGORITHMS = (*_RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

# RFC 7518 section 3.2 asks for the size of the hash; 256 bits are out of reach under every one of the three.
MIN_HMAC_SECRET_BYTES = 32
# RFC 7518 section 3.3, NIST SP 800-131A.
MIN_RSA_BITS = 2048
# A verification takes 16 times as long as with 2048 bits; a key set must not be able to ask for more.
MAX_RSA_BITS = 8192
MAX_KID_LENGTH = 256

_ALGORITHMS: dict[str, Algorithm] = {
    name: implementation
    for name, implementation in get_default_algorithms().items()
    if name in (*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS)
}

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

_JWK_FORMS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "RSA": (RSAAlgorithm.from_jwk, ("n", "e")),
    "EC": (ECAlgorithm.from_jwk, ("x", "y")),
    "OKP": (OKPAlgorithm.from_jwk, ("x",)),
}

# Secrets that stand in tutorials and templates: the default of jwt.io, its former one, FastAPI's tutorial.
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
    """One key for one algorithm. `kid` is its id in a key set, `None` for a key without one."""

    __slots__ = ("_implementation", "_key", "algorithm", "kid")

    def __init__(self, algorithm: str, key: PublicKey | bytes, kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._key = key
        self._implementation = _ALGORITHMS[algorithm]

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Whether `signature` (raw octets, RFC 7518 section 3) is this key's over `signing_input`."""
        return self._implementation.verify(signing_input, self._key, signature)

    def __repr__(self) -> str:
        return f"VerificationKey({self.algorithm}, kid={self.kid!r})"


def check_algorithms(algorithms: Sequence[str]) -> None:
    """Raises `ValueError` for an allow-list that is empty, names what we do not verify with, or mixes HMAC with
    public-key algorithms: then a public key could be taken for a secret (CVE-2017-11424)."""
    accepted = ", ".join((*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS))
    if not algorithms:
        raise ValueError(f"no algorithm is allowed; accepted: {accepted}")
    unknown = [name for name in algorithms if name not in _ALGORITHMS]
    if unknown:
        raise ValueError(f"algorithm {unknown[0]!r} is not supported; accepted: {accepted}")
    if 0 < sum(name in HMAC_ALGORITHMS for name in algorithms) < len(algorithms):
        raise ValueError("HMAC and public-key algorithms are never allowed together; choose HS… or one of the others")


def hmac_keys(secret: str | bytes, algorithms: Iterable[str]) -> list[VerificationKey]:
    """A secret as keys for each HMAC algorithm of `algorithms`.

    Raises `ValueError`, which says what is wrong and never shows the secret: under 32 bytes (RFC 7518 section 3.2),
    a placeholder, or a public key, certificate or JWK in any wrapping (CVE-2022-29217, GHSA-xgmm-8j9v-c9wx).
    """
    data = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else bytes(secret)
    if _is_asymmetric(data):
        raise ValueError("is a public key, private key, certificate or JWK; accepted: a random secret")
    if len(data) < MIN_HMAC_SECRET_BYTES:
        raise ValueError(f"is {len(data)} bytes long; accepted: {MIN_HMAC_SECRET_BYTES} bytes or more")
    if _is_placeholder(data):
        raise ValueError("is a placeholder, not a secret; accepted: 32 random bytes or more (`openssl rand -hex 32`)")
    return [VerificationKey(name, data) for name in algorithms if name in HMAC_ALGORITHMS]


def public_keys(pem: str | bytes, algorithms: Iterable[str]) -> list[VerificationKey]:
    """PEM text (SPKI, PKCS#1 or certificates, several after another) as keys for what each fits in `algorithms`.

    Raises `ValueError` for text that is no such PEM, a private key, a weak key, or one that no allowed algorithm
    can use.
    """
    data = pem.encode("utf-8", "replace") if isinstance(pem, str) else bytes(pem)
    allowed = tuple(algorithms)
    blocks = list(_PEM_BLOCK.finditer(data))
    if not blocks:
        raise ValueError("is no PEM; accepted: -----BEGIN PUBLIC KEY-----, RSA PUBLIC KEY or CERTIFICATE")
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
    """The algorithms that `key` may verify, by its family and curve.

    Raises `ValueError` for a curve of no JWS algorithm and for a weak RSA key: under 2048 bits, a public exponent
    of 1 or even, or made by the generator of CVE-2017-15361.
    """
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
        return _RSA_ALGORITHMS
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise ValueError(f"is on the curve {key.curve.name}; accepted: P-256, P-384, P-521")
        return (_CURVES[key.curve.name],)
    return ("EdDSA",)


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ValueError(f"is an RSA key of {key.key_size} bits; accepted: {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    numbers = key.public_numbers()
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.e >= 1 << 32:
        raise ValueError("is an RSA key with an unsafe public exponent; accepted: odd, 3 to 2**32")
    if _is_roca(numbers.n):
        raise ValueError("is an RSA key of the generator of CVE-2017-15361 (ROCA), which can be factored")


def _is_roca(modulus: int) -> bool:
    # Such primes are 65537**a modulo a product of small primes, so the modulus is a power of 65537 modulo each of
    # them (Nemec et al., CCS 2017). By chance that is so for one modulus in some 2**27.
    primes = [p for p in range(3, 168) if all(p % q for q in range(2, p))]
    return all(modulus % p in {pow(65537, power, p) for power in range(p)} for p in primes)


def jwk_keys(jwk: Any, algorithms: Iterable[str]) -> list[VerificationKey]:
    """A member of a key set as keys for what it fits in `algorithms`; empty where it only fits others.

    Raises `ValueError` where it must not be used: `use` or `key_ops` of another purpose (RFC 7517 section 4.2, 4.3),
    a symmetric key (a secret that a URL hands out), a published private key, a weak key, a point off its curve.
    """
    if not isinstance(jwk, dict):
        raise ValueError("is not an object")  # noqa: TRY004 - a fault of the document
    kid = jwk.get("kid")
    if "kid" in jwk and not (isinstance(kid, str) and len(kid) <= MAX_KID_LENGTH):
        raise ValueError(f"has a kid that is not a string of up to {MAX_KID_LENGTH} characters")
    if jwk.get("use", "sig") != "sig":
        raise ValueError("is not for signatures")
    operations = jwk.get("key_ops", ["verify"])
    if not (isinstance(operations, list) and "verify" in operations):
        raise ValueError("is not for verifying")
    if "d" in jwk:
        raise ValueError("is a private key, which everybody can read")
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
    # Only what makes a public key: `x5u`, `x5c` and whatever else stand in a member are not looked at.
    parameters = {"kty": kty, "crv": jwk.get("crv")} | _octets(jwk, *names)
    try:
        loaded = load(parameters)
    except (InvalidKeyError, ValueError, UnsupportedAlgorithm):
        raise ValueError("has parameters that are no public key") from None
    if not isinstance(loaded, PublicKey):
        raise ValueError("has parameters that are no public key")  # noqa: TRY004
    return loaded


def _octets(jwk: Mapping[str, Any], *names: str) -> dict[str, str]:
    # PyJWT decodes leniently; what is not plain base64url is not a key.
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(value, str) and _BASE64URL.fullmatch(value) for value in members.values()):
        raise ValueError(f"lacks {' or '.join(names)} in base64url")
    return {name: str(value) for name, value in members.items()}


def _is_asymmetric(secret: bytes) -> bool:
    return any(_is_asymmetric_form(form) for form in _readings(secret))


def _readings(secret: bytes) -> Iterator[bytes]:
    """The secret and what it may be a wrapping of: after a BOM, UTF-16, DER that went through text, base64."""
    bare = secret.removeprefix(b"\xef\xbb\xbf").strip()
    yield from (secret, bare)
    with contextlib.suppress(UnicodeError):
        yield secret.decode("utf-16").encode()
    # The last byte of DER may look like a blank.
    for each in (secret, bare):
        with contextlib.suppress(UnicodeError):
            yield each.decode("utf-8").encode("latin-1")
    with contextlib.suppress(ValueError):
        yield base64.b64decode(b"".join(bare.split()), altchars=b"-_" if b"-" in bare or b"_" in bare else None)


def _is_asymmetric_form(data: bytes) -> bool:
    if b"-----BEGIN" in data or data.startswith(b"---- BEGIN SSH2"):
        return True
    try:
        # PyJWT knows PEM, OpenSSH, DER (SPKI, PKCS#1, X.509) and JWK or JWKS in JSON.
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

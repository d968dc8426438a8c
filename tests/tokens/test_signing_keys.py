"""Signing keys: accepted ones, their public key set, and refused ones."""

from __future__ import annotations

import hmac
import json
import subprocess
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from gatekeeper.tokens import jws
from gatekeeper.tokens.issuer import SigningKeys
from gatekeeper.tokens.keys import StaticKeys, parse_key_set
from gatekeeper.tokens.signing_keys import thumbprint
from gatekeeper.tokens.verify_queue import VerifyQueue
from tests.tokens import forge

PUBLIC = ["RS256", "ES256", "ES384", "ES512", "EdDSA"]
HMAC = ["HS256", "HS384", "HS512"]
CLAIMS = {"sub": "74", "exp": int(forge.NOW) + 60, "name": "Zoë"}
SECRET = forge.SECRET.encode()


def private_pem(
    key: Any, form: PrivateFormat = PrivateFormat.PKCS8, lock: KeySerializationEncryption | None = None
) -> str:
    return str(key.private_bytes(Encoding.PEM, form, lock or NoEncryption()).decode())


def header_of(token: str) -> dict[str, Any]:
    header: dict[str, Any] = jwt.get_unverified_header(token)
    return header


async def judged(keys: SigningKeys, token: str, algorithms: list[str]) -> bytes:
    static = StaticKeys(keys.hmac_secrets, keys.public_keys_pem, algorithms)
    return (await jws.verify(token, keys=static, algorithms=algorithms, verify_queue=VerifyQueue())).payload


@pytest.mark.parametrize("algorithm", HMAC)
async def test_a_secret_signs_and_has_nothing_to_publish(algorithm: str) -> None:
    keys = SigningKeys([SECRET, forge.OTHER_SECRET.encode()], [], [algorithm])
    token = keys.sign(CLAIMS)
    assert header_of(token) == {"alg": algorithm, "typ": "at+jwt"}
    assert json.loads(await judged(keys, token, [algorithm])) == CLAIMS
    assert (keys.jwks, keys.public_keys_pem) == (None, ())
    assert keys.hmac_secrets == (SECRET, forge.OTHER_SECRET.encode())
    head, body, _ = token.split(".")
    digest = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}[algorithm]
    assert token.endswith(forge.b64(hmac.digest(SECRET, f"{head}.{body}".encode(), digest)))


@pytest.fixture(scope="module")
def everyone(
    rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    p384_key: ec.EllipticCurvePrivateKey,
    ed_key: ed25519.Ed25519PrivateKey,
) -> dict[str, Any]:
    return {
        "RS256": rsa_key,
        "ES256": ec_key,
        "ES384": p384_key,
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed_key,
        "Ed448": ed448.Ed448PrivateKey.generate(),
    }


@pytest.mark.parametrize("kind", ["RS256", "ES256", "ES384", "ES512", "EdDSA", "Ed448"])
async def test_a_private_key_signs_what_its_published_half_verifies(everyone: dict[str, Any], kind: str) -> None:
    keys = SigningKeys([], [private_pem(everyone[kind])], PUBLIC)
    token = keys.sign(CLAIMS)
    assert json.loads(await judged(keys, token, PUBLIC)) == CLAIMS
    assert keys.hmac_secrets == ()
    assert keys.jwks is not None
    (published,) = keys.jwks["keys"]
    algorithm = "EdDSA" if kind == "Ed448" else kind
    assert header_of(token) == {"alg": algorithm, "typ": "at+jwt", "kid": published["kid"]}
    # Another library than ours reads the set, and so do we.
    assert jwt.decode(token, jwt.PyJWK(published), options={"verify_exp": False}) == CLAIMS
    index, count = parse_key_set(json.dumps(keys.jwks).encode(), PUBLIC)
    assert count == 1
    assert (algorithm, published["kid"]) in index


def test_nothing_private_is_published(everyone: dict[str, Any]) -> None:
    keys = SigningKeys([], [private_pem(key) for key in everyone.values()], PUBLIC)
    assert keys.jwks is not None
    assert set(keys.jwks) == {"keys"}
    parameters = {"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}, "OKP": {"crv", "x"}}
    for key in keys.jwks["keys"]:
        assert set(key) == {"kty", "use", "alg", "kid"} | parameters[key["kty"]]
        assert key["use"] == "sig"
    assert [key["alg"] for key in keys.jwks["keys"]] == [*PUBLIC, "EdDSA"]
    assert all("PRIVATE" not in pem and pem.startswith("-----BEGIN PUBLIC KEY") for pem in keys.public_keys_pem)
    assert len(keys.public_keys_pem) == 6
    assert repr(keys) == "SigningKeys(RS256, 6 to verify)"


async def test_the_first_key_signs_and_all_verify(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    old = SigningKeys([], [private_pem(rsa_key)], PUBLIC)
    rotated = SigningKeys([], [private_pem(ec_key), private_pem(rsa_key)], PUBLIC)
    assert rotated.algorithm == header_of(rotated.sign(CLAIMS))["alg"] == "ES256"
    assert await judged(rotated, old.sign(CLAIMS), PUBLIC)
    assert rotated.jwks is not None
    assert header_of(old.sign(CLAIMS))["kid"] == rotated.jwks["keys"][1]["kid"]
    one = SigningKeys([SECRET], [], HMAC)
    two = SigningKeys([forge.OTHER_SECRET.encode(), SECRET], [], HMAC)
    assert await judged(two, one.sign(CLAIMS), HMAC)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(two.sign(CLAIMS), SECRET, algorithms=HMAC)


@pytest.mark.parametrize(
    "allowed", [["PS384", "RS256"], ["RS512", "PS256"], ["ES256", "PS256", "RS256"], ["EdDSA", "RS384"]]
)
async def test_an_rsa_key_takes_the_first_algorithm_that_is_allowed(
    rsa_key: rsa.RSAPrivateKey, allowed: list[str]
) -> None:
    keys = SigningKeys([], [private_pem(rsa_key)], allowed)
    expected = next(name for name in allowed if name[:2] in {"RS", "PS"})
    assert header_of(keys.sign(CLAIMS))["alg"] == expected
    assert keys.jwks is not None
    assert keys.jwks["keys"][0]["alg"] == expected
    assert await judged(keys, keys.sign(CLAIMS), allowed)


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    # RFC 7638 section 3.1, RFC 8037 appendix A.3.
    example = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjB"
        "ZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8"
        "KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_"
        "xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert thumbprint(example) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    okp = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint(okp) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_every_usual_form_of_a_private_key_is_read(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    for key in (rsa_key, ec_key):
        known = SigningKeys([], [private_pem(key)], PUBLIC).public_keys_pem
        for pem in (
            private_pem(key, PrivateFormat.TraditionalOpenSSL),
            "\n\n" + private_pem(key) + "\n",
            private_pem(key).replace("\n", "\r\n"),
            private_pem(key).strip(),
        ):
            assert SigningKeys([], [pem], PUBLIC).public_keys_pem == known
    made = subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey"], capture_output=True, check=True)
    assert b"BEGIN EC PARAMETERS" in made.stdout
    assert SigningKeys([], [made.stdout.decode()], ["ES256"]).algorithm == "ES256"


def unusable(
    short_rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey
) -> list[tuple[str, str]]:
    lock = BestAvailableEncryption(b"x")
    good = private_pem(ec_key)
    return [
        ("", "is not a private key in PEM"),
        ("/etc/keys/signing.pem", "is not a private key in PEM"),
        (forge.SECRET, "is not a private key in PEM"),
        (forge.pem(ec_key), "is not a private key in PEM"),
        (json.dumps({"kty": "EC", "d": "x"}), "is not a private key in PEM"),
        (good + good, "is several PEM blocks"),
        (good + forge.pem(ec_key), "is several PEM blocks"),
        (private_pem(ec_key, lock=lock), "is encrypted"),
        (private_pem(rsa_key, PrivateFormat.TraditionalOpenSSL, lock), "is encrypted"),
        (private_pem(ec_key, PrivateFormat.OpenSSH), "no readable private key"),
        (private_pem(ec_key, PrivateFormat.OpenSSH, lock), "no readable private key"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "no readable private key"),
        ("-----BEGIN PRIVATE KEY-----\n\ud800\n-----END PRIVATE KEY-----", "no readable private key"),
        (good[:-40], "no readable private key"),
        (private_pem(short_rsa_key), "RSA key of 1024 bits"),
        (private_pem(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1"),
        (private_pem(x25519.X25519PrivateKey.generate()), "of a kind that signs no JWT"),
        (private_pem(dsa.generate_private_key(1024)), "of a kind that signs no JWT"),  # noqa: S505
        (private_pem(ec.generate_private_key(ec.SECP521R1())), "fits none of RS256, ES256; it is for ES512"),
        (private_pem(rsa.generate_private_key(3, 2048)), ""),
    ]


def test_a_key_that_must_not_sign_is_refused_and_never_shown(
    short_rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    good = private_pem(ec_key)
    *bad, fine = unusable(short_rsa_key, ec_key, rsa_key)
    assert SigningKeys([], [fine[0]], ["RS256"])
    for pem, problem in bad:
        for entries in ([pem], [good, pem]):
            with pytest.raises(ValueError, match=problem) as caught:
                SigningKeys([], entries, ["RS256", "ES256"])
            shown = str(caught.value)
            assert shown.startswith(f"private key {len(entries)} ")
            assert not any(line in shown for line in pem.splitlines()[1:] if len(line) > 8)
            assert len(shown) < 150


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        (b"correct-horse-battery", "HMAC secret 2 is 21 bytes long"),
        (b"changeme" * 5, "HMAC secret 2 is a placeholder"),
    ],
)
def test_a_weak_secret_signs_nothing(secret: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        SigningKeys([SECRET, secret], [], HMAC)
    assert secret.decode() not in str(caught.value)


def test_a_private_key_is_no_secret(ec_key: ec.EllipticCurvePrivateKey) -> None:
    for pem in (private_pem(ec_key), forge.pem(ec_key)):
        with pytest.raises(ValueError, match="HMAC secret 1 is a public key, private key"):
            SigningKeys([pem.encode()], [], HMAC)


def test_kinds_of_keys_are_never_mixed(ec_key: ec.EllipticCurvePrivateKey) -> None:
    pem = private_pem(ec_key)
    for secrets, pems, algorithms, problem in (
        ([SECRET], [pem], ["HS256"], "set together; accepted: one kind"),
        ([SECRET], [pem], ["ES256"], "set together; accepted: one kind"),
        ([], [], ["ES256"], "no key to sign with"),
        ([SECRET], [], ["ES256"], "ES256 cannot be used with HMAC secrets"),
        ([], [pem], ["HS256"], "HS256 cannot be used with private keys"),
        ([], [pem], ["HS256", "ES256"], "never allowed together"),
        ([], [pem], [], "no algorithm is allowed"),
        ([], [pem], ["none"], "is not supported"),
    ):
        with pytest.raises(ValueError, match=problem):
            SigningKeys(secrets, pems, algorithms)


@pytest.mark.parametrize("claims", [{"a": {1}}, {"a": float("nan")}, {"a": "\ud800"}, {"a": b"x"}])
def test_what_is_not_json_is_not_signed(claims: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SigningKeys([SECRET], [], HMAC).sign(claims)


def test_its_representation_shows_no_key() -> None:
    assert repr(SigningKeys([SECRET], [], HMAC)) == "SigningKeys(HS256, 1 to verify)"

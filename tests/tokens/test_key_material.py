"""Keys of the configuration: accepted ones, and unsafe ones that are refused."""

from __future__ import annotations

import base64
import datetime
import json
import secrets

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens import key_material
from gatekeeper.tokens.keys import StaticKeys, default_algorithms
from tests.tokens import forge

ENCODING, FORMAT = serialization.Encoding, serialization.PublicFormat


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    public: CertificatePublicKeyTypes = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=9))
        .sign(key, hashes.SHA256())
    )


def wrappings(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> dict[str, str | bytes]:
    """Encode a public key in all forms that could be given as a secret by mistake."""
    public, cert = key.public_key(), certificate(key)
    spki = public.public_bytes(ENCODING.PEM, FORMAT.SubjectPublicKeyInfo)
    der = public.public_bytes(ENCODING.DER, FORMAT.SubjectPublicKeyInfo)
    jwk = json.dumps(forge.jwk(key))
    made: dict[str, str | bytes] = {
        "spki": spki,
        "spki text": spki.decode(),
        "spki after a BOM": "\ufeff" + spki.decode(),
        "spki after blanks": "\n\n  " + spki.decode(),
        "spki in utf-16": spki.decode().encode("utf-16"),
        "der": der,
        "der as text": der.decode("latin-1"),
        "der in base64": base64.b64encode(der),
        "der in base64 of lines": base64.encodebytes(der),
        "der in base64url": base64.urlsafe_b64encode(der),
        "certificate": cert.public_bytes(ENCODING.PEM),
        "certificate der": cert.public_bytes(ENCODING.DER),
        "ssh": public.public_bytes(ENCODING.OpenSSH, FORMAT.OpenSSH),
        "jwk": jwk,
        "jwk after a BOM": "\ufeff" + jwk,
        "jwk in utf-16": jwk.encode("utf-16"),
        "jwks": json.dumps({"keys": [forge.jwk(key)]}),
        "jwks indented": json.dumps({"keys": [forge.jwk(key)]}, indent=2).encode(),
        "oct jwk": json.dumps({"kty": "oct", "k": forge.b64(b"x" * 40)}),
        "private": key.private_bytes(ENCODING.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        "private der": key.private_bytes(ENCODING.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    if isinstance(key, rsa.RSAPrivateKey):
        made["pkcs1"] = public.public_bytes(ENCODING.PEM, FORMAT.PKCS1)
        made["pkcs1 der"] = public.public_bytes(ENCODING.DER, FORMAT.PKCS1)
    return made


def test_a_public_key_is_refused_as_a_secret_in_every_wrapping(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:  # T02, T28; CVE-2017-11424, CVE-2022-29217, CVE-2024-33663
    for key in (rsa_key, ec_key):
        for name, wrapped in wrappings(key).items():
            with pytest.raises(ValueError, match="is a public key, private key, certificate or JWK") as caught:
                StaticKeys([wrapped], [], ["HS256"])
            assert str(caught.value).startswith("HMAC secret 1 "), name


def test_a_public_key_in_text_is_refused_whatever_its_last_byte_looks_like() -> None:  # T02
    blanks = set(b"\t\n\x0b\x0c\r ")
    while blanks:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        der = key.public_bytes(ENCODING.DER, FORMAT.SubjectPublicKeyInfo)
        if der[-1] in blanks:
            blanks.remove(der[-1])
            with pytest.raises(ValueError, match="is a public key, private key, certificate or JWK"):
                StaticKeys([der.decode("latin-1")], [], ["HS256"])


@pytest.mark.parametrize("secret", ["", "12345678", "changeme", "x" * 31, b"", b"\x00" * 16])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_short_secret_is_refused(secret: str | bytes, algorithm: str) -> None:  # T28
    with pytest.raises(ValueError, match="accepted: 32 bytes or more"):
        StaticKeys([secret], [], [algorithm])


@pytest.mark.parametrize(
    "secret",
    [
        "changeme" * 4,
        "change-me-please-this-is-an-example",
        "CHANGE_THIS_SECRET_BEFORE_PRODUCTION",
        "please replace me with something long",
        "your-secret-key-of-at-least-32-bytes",
        "a-string-secret-at-least-256-bits-long",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
        "x" * 32,
        "0" * 64,
        "secret" * 6,
        "01234567" * 4,
        b"\x00" * 32,
        " " * 40,
    ],
)
def test_a_placeholder_is_refused_as_a_secret(secret: str | bytes) -> None:  # T28
    with pytest.raises(ValueError, match="placeholder") as caught:
        StaticKeys([secret], [], ["HS256"])
    shown = secret if isinstance(secret, str) else secret.decode()
    assert shown not in str(caught.value)


def test_the_floor_can_be_lowered() -> None:  # T28
    for size, floor in ((16, 16), (20, 16), (24, 24)):
        assert StaticKeys([secrets.token_bytes(size)], [], ["HS256"], least_secret_bytes=floor)
        with pytest.raises(ValueError, match=f"accepted: {floor} bytes or more"):
            StaticKeys([secrets.token_bytes(floor - 1)], [], ["HS256"], least_secret_bytes=floor)
    with pytest.raises(ValueError, match="placeholder"):
        StaticKeys(["changeme-changeme"], [], ["HS256"], least_secret_bytes=16)


async def test_ed_keys_of_the_configuration_fit_the_name_of_their_curve(ed_key: ed25519.Ed25519PrivateKey) -> None:
    # RFC 9864
    by = forge.verifier(StaticKeys([], [forge.pem(ed_key)], ["EdDSA", "Ed25519"]), algorithms=["EdDSA", "Ed25519"])
    for alg in ("EdDSA", "Ed25519"):
        assert await by.verify(forge.signed_by(ed_key, {"alg": alg}))
    with pytest.raises(TokenRejected):
        await by.verify(forge.signed_by(ed_key, {"alg": "Ed448"}))
    assert StaticKeys([], [forge.pem(ed448.Ed448PrivateKey.generate())], ["Ed448"])
    for key, other in ((ed_key, "Ed448"), (ed448.Ed448PrivateKey.generate(), "Ed25519")):
        with pytest.raises(ValueError, match="fits none of"):
            StaticKeys([], [forge.pem(key)], [other])


def test_random_secrets_are_accepted() -> None:
    for made in (secrets.token_bytes(32), secrets.token_hex(32), secrets.token_urlsafe(32), secrets.token_hex(16)):
        for algorithm in ("HS256", "HS384", "HS512"):
            assert StaticKeys([made], [], [algorithm])
    assert StaticKeys(["ein langer geheimer Satz mit Umlauten: äöü"], [], ["HS256"])


def test_an_error_names_the_entry_and_never_shows_it() -> None:
    short = "correct-horse-battery"
    with pytest.raises(ValueError, match="HMAC secret 2 is 21 bytes long") as caught:
        StaticKeys([forge.SECRET, short], [], ["HS256"])
    assert short not in str(caught.value)
    assert forge.SECRET not in repr(StaticKeys([forge.SECRET], [], ["HS256"]))


async def test_public_keys_are_read_from_every_usual_pem(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    forms = wrappings(rsa_key)
    for name in ("spki", "spki text", "spki after a BOM", "spki after blanks", "pkcs1", "certificate"):
        by = forge.verifier(StaticKeys([], [forms[name]], ["RS256"]), algorithms=["RS256"])
        assert await by.verify(forge.signed_by(rsa_key, {"alg": "RS256", "kid": "ignored"}))
    both = forge.pem(rsa_key) + forge.pem(ec_key)
    by = forge.verifier(StaticKeys([], [both], ["RS256", "ES256"]), algorithms=["RS256", "ES256"])
    assert await by.verify(forge.signed_by(rsa_key, {"alg": "RS256"}))
    assert await by.verify(forge.signed_by(ec_key, {"alg": "ES256"}))


def test_what_is_no_public_key_is_refused(
    rsa_key: rsa.RSAPrivateKey, short_rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    forms = wrappings(rsa_key)
    k1 = ec.generate_private_key(ec.SECP256K1())
    cases: list[tuple[str | bytes, str]] = [
        ("", "is not PEM"),
        ("/etc/keys/public.pem", "is not PEM"),
        (forms["jwk"], "is not PEM"),
        (forms["private"], "is a private key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no readable public key"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "no readable public key"),
        (forge.pem(short_rsa_key), "RSA key of 1024 bits"),
        (forge.pem(k1), "curve secp256k1"),
        (forge.pem(ec_key), "fits none of RS256; it is for ES256"),
    ]
    for pem, problem in cases:
        with pytest.raises(ValueError, match=problem) as caught:
            StaticKeys([], [pem], ["RS256"])
        assert str(caught.value).startswith("public key 1 ")


@pytest.mark.parametrize("exponent", [b"\x01\x01", b"\x01\x02", b"\x05\x01\x00\x00\x00\x01", b"\x01\x00"])
def test_an_rsa_key_with_an_unsafe_exponent_is_refused(rsa_key: rsa.RSAPrivateKey, exponent: bytes) -> None:  # T29
    der = rsa_key.public_key().public_bytes(ENCODING.DER, FORMAT.PKCS1)
    body = der[4:].removesuffix(b"\x02\x03\x01\x00\x01") + b"\x02" + exponent
    made = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    pem = b"-----BEGIN RSA PUBLIC KEY-----\n" + base64.encodebytes(made) + b"-----END RSA PUBLIC KEY-----\n"
    with pytest.raises(ValueError, match=r"unsafe public exponent|no readable public key"):
        StaticKeys([], [pem], ["RS256"])


def test_kinds_of_keys_are_never_mixed(rsa_key: rsa.RSAPrivateKey) -> None:
    pem = forge.pem(rsa_key)
    for hmac_secrets, pems, algorithms in (
        ([forge.SECRET], [pem], ["HS256"]),
        ([forge.SECRET], [], ["HS256", "RS256"]),
        ([forge.SECRET], [], ["RS256"]),
        ([], [pem], ["HS256"]),
        ([], [], ["HS256"]),
        ([forge.SECRET], [], []),
        ([forge.SECRET], [], ["none"]),
        ([forge.SECRET], [], ["ES256K"]),
    ):
        with pytest.raises(ValueError):
            StaticKeys(hmac_secrets, pems, algorithms)


async def test_a_key_is_bound_to_the_algorithms_of_its_kind(
    ec_key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    # T03
    allowed = ["RS256", "PS256", "ES256", "ES384", "EdDSA"]
    keys = StaticKeys([], [forge.pem(ec_key), forge.pem(rsa_key)], allowed)
    found = {name: len(await keys.find(algorithm=name, kid=None)) for name in (*allowed, "HS256", "none", "")}
    assert found == {"RS256": 1, "PS256": 1, "ES256": 1, "ES384": 0, "EdDSA": 0, "HS256": 0, "none": 0, "": 0}
    assert repr(keys) == "StaticKeys(1 for RS256, 1 for PS256, 1 for ES256, 0 for ES384, 0 for EdDSA)"


async def test_both_edwards_curves_are_read(ed_key: ed25519.Ed25519PrivateKey) -> None:
    by = forge.verifier(StaticKeys([], [forge.pem(ed_key)], ["EdDSA"]), algorithms=["EdDSA"])
    assert await by.verify(forge.signed_by(ed_key, {"alg": "EdDSA"}))
    assert StaticKeys([], [forge.pem(ed448.Ed448PrivateKey.generate())], ["EdDSA"])


def test_the_default_algorithms_follow_the_kind_of_key() -> None:
    assert default_algorithms(hmac=True) == ("HS256",)
    assert default_algorithms(hmac=False) == ("RS256", "ES256", "EdDSA")
    key_material.check_algorithms(default_algorithms(hmac=False))


async def test_static_keys_never_change() -> None:
    keys = StaticKeys([forge.SECRET], [], ["HS256"])
    await keys.refresh()
    assert not await keys.recheck()
    await keys.aclose()
    assert keys.ready
    assert keys.generation == 0

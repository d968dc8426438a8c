"""The JWS layer: one token has one spelling, one algorithm and one key."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from gatekeeper.errors import Reason, TokenRejected
from gatekeeper.tokens import jws
from gatekeeper.tokens.keys import StaticKeys
from gatekeeper.tokens.verifier import Verifier
from tests.tokens import forge


async def refused(token: str, by: Verifier | None = None) -> None:
    with pytest.raises(TokenRejected) as caught:
        await (by or forge.verifier()).verify(token)
    assert caught.value.reason is Reason.TOKEN_INVALID
    # What is logged never quotes the token.
    assert len(caught.value.why) < 120
    assert not any(part and part in caught.value.why for part in token.split(".") if len(part) > 8)


async def test_a_good_token_is_accepted() -> None:
    claims = await forge.verifier().verify(forge.token())
    assert (claims.user, claims.jti, claims.reference, claims.is_admin) == ("74", "a1", "a1", False)


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "NONE", "", " none", "HS256 ", "hs256"])
async def test_an_unsecured_token_is_refused(alg: str) -> None:  # T01
    head, body = forge.b64(json.dumps({"alg": alg}).encode()), forge.token().split(".")[1]
    for signature in ("", "AA", forge.token().split(".")[2]):
        await refused(f"{head}.{body}.{signature}")


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"alg": None},
        {"alg": 1},
        {"alg": ["HS256"]},
        {"alg": {"HS256": 1}},
        [],
        ["alg"],
        "HS256",
        '"alg"',
        "null",
        "1",
        '{"alg":"HS256"',
        b"\xff\xfe",
        '\ufeff{"alg":"HS256"}',
        '{"alg":"HS256"}{}',
    ],
)
async def test_a_header_that_names_no_algorithm_is_refused(header: Any) -> None:
    await refused(forge.header_token(header))


async def test_an_algorithm_outside_the_allow_list_is_refused() -> None:  # T04
    await refused(forge.token(alg="HS384"))
    await refused(forge.token(alg="HS512"))
    keys = StaticKeys([forge.SECRET], [], ["HS256", "HS384", "HS512"])
    by = forge.verifier(keys, algorithms=["HS256", "HS384", "HS512"])
    for alg in ("HS256", "HS384", "HS512"):
        assert (await by.verify(forge.token(alg=alg))).user == "74"


async def test_a_header_cannot_choose_another_hash_for_a_signature() -> None:
    keys = StaticKeys([forge.SECRET], [], ["HS256", "HS512"])
    await refused(
        forge.hs({"alg": "HS512"}, forge.USUAL, digest="sha256"), forge.verifier(keys, algorithms=["HS256", "HS512"])
    )


@pytest.mark.parametrize(
    "member",
    [
        '"crit":["x"],"x":1',
        '"crit":[]',
        '"crit":"b64"',
        '"crit":["exp"],"exp":1',
        '"crit":["absent"]',
        '"crit":null',
        '"crit":["b64"],"b64":true',
        '"crit":["alg"]',
    ],
)
async def test_a_critical_header_is_refused(member: str) -> None:  # T06
    await refused(forge.header_token('{"alg":"HS256",' + member + "}"))


@pytest.mark.parametrize("member", ['"b64":false', '"b64":true', '"b64":"false"', '"b64":false,"crit":["b64"]'])
async def test_an_unencoded_payload_is_refused(member: str) -> None:  # T07
    await refused(forge.header_token('{"alg":"HS256",' + member + "}"))


async def test_a_compressed_token_is_refused_before_anything_is_inflated() -> None:  # T08
    bomb = zlib.compress(b" " * 4_000_000)[2:-4]
    await refused(forge.hs({"alg": "HS256", "zip": "DEF"}, bomb))
    await refused(forge.header_token({"alg": "HS256", "zip": "DEF"}))


async def test_an_encrypted_token_and_json_serialization_are_refused() -> None:  # T08
    head, body, signature = forge.token().split(".")
    await refused(f"{head}.{body}.{signature}.AA.AA")
    await refused(json.dumps({"protected": head, "payload": body, "signature": signature}))
    await refused(json.dumps({"payload": body, "signatures": [{"protected": head, "signature": signature}]}))
    await refused(forge.header_token({"alg": "dir", "enc": "A128GCM"}))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/JWT"])
async def test_the_types_of_access_tokens_are_accepted(typ: str) -> None:
    assert await forge.verifier().verify(forge.header_token({"alg": "HS256", "typ": typ}))


@pytest.mark.parametrize(
    "members",
    [
        {"typ": "id+jwt"},
        {"typ": "refresh+jwt"},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": "JOSE"},
        {"typ": "JWE"},
        {"typ": ""},
        {"typ": None},
        {"typ": ["JWT"]},
        {"typ": 1},
        {"typ": " JWT"},
        {"typ": "text/jwt"},
        {"typ": "application/application/jwt"},
        {"cty": "JWT"},
        {"cty": ""},
        {"cty": None},
    ],
)
async def test_another_type_and_any_content_type_are_refused(members: dict[str, Any]) -> None:  # T17
    await refused(forge.header_token({"alg": "HS256"} | members))


@pytest.mark.parametrize("kid", [5, -1, 0, "../../dev/null", "' OR 1=1 --", "\u0000", "x" * 4000])
async def test_a_static_key_ignores_the_kid(kid: str | int) -> None:  # T10, rule 5.2
    assert await forge.verifier().verify(forge.header_token({"alg": "HS256", "kid": kid}))


@pytest.mark.parametrize("kid", [1.0, None, ["a"], {"a": 1}, True, False])
async def test_a_kid_that_is_neither_text_nor_integer_is_refused(kid: Any) -> None:  # T10
    await refused(forge.header_token({"alg": "HS256", "kid": kid}))


async def test_a_kid_of_a_megabyte_is_refused() -> None:  # T10
    await refused(forge.header_token({"alg": "HS256", "kid": "k" * 1_000_000}))


async def test_a_key_in_the_header_is_never_believed(
    rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # T09
    connections: list[str] = []

    def canary(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append("connected")
        writer.close()

    server = await asyncio.start_server(canary, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    by = forge.verifier(StaticKeys([], [forge.pem(rsa_key)], ["RS256"]), algorithms=["RS256"])
    lures: list[dict[str, Any]] = [
        {"jku": url},
        {"x5u": url},
        {"jwk": forge.jwk(other_rsa_key)},
        {"x5c": [forge.b64(b"certificate")]},
    ]
    for lure in lures:
        await refused(forge.signed_by(other_rsa_key, {"alg": "RS256"} | lure), by)
        # Otherwise they are ignored: a token of our key may have them.
        assert await by.verify(forge.signed_by(rsa_key, {"alg": "RS256"} | lure))
    await asyncio.sleep(0)
    server.close()
    await server.wait_closed()
    assert connections == []


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"none","alg":"HS256"}',
        '{"alg":"HS256","alg":"HS256"}',
        '{"alg":"HS256","\\u0061lg":"HS256"}',
        '{"alg":"HS256","x":{"a":1,"a":2}}',
    ],
)
async def test_a_name_twice_in_the_header_is_refused(header: str) -> None:  # T11
    await refused(forge.header_token(header))


def respellings(token: str) -> list[str]:
    head, body, signature = token.split(".")
    flipped = chr(ord(signature[-1]) + 1)
    return [
        token + "=",
        token + "==",
        head + "=." + body + "." + signature,
        f"{head}.{body}=.{signature}",
        f"{head}.{body}==.{signature}",
        token + "\n",
        token + " ",
        " " + token,
        "\t" + token,
        token + "\x00",
        token + ".",
        token + ".AA",
        "." + token,
        f"{head}.{body}",
        f"{head}.{body}.",
        f"{head}..{signature}",
        f".{body}.{signature}",
        f"{head}.{body}.{signature[:-1]}{flipped}",
        f"{head}.{body}.{signature[:-1]}",
        f"{head}.{body}.{signature}A",
        f"{head}.{body}.{signature}AAAA",
        f"{head}\n.{body}.{signature}",
        f"{head}.{body[:5]} {body[5:]}.{signature}",
        f"{head}.{body[:5]}+{body[6:]}.{signature}",
        f"{head}.{body[:5]}/{body[6:]}.{signature}",
        token.replace(".", "。"),
        token[:-1] + "é",
        token[:-1] + "\ud800",
        token.upper(),
        "Bearer " + token,
        "",
        ".",
        "..",
        "...",
        "a.b.c",
    ]


async def test_a_token_has_one_spelling() -> None:  # T12, T25
    token = forge.token()
    for respelled in respellings(token):
        await refused(respelled)
    for length in range(len(token)):
        await refused(token[:length])


async def test_unused_bits_of_a_segment_must_be_zero() -> None:  # T12
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    head, body, signature = forge.token().split(".")
    accepted = [char for char in alphabet if await admits(f"{head}.{body}.{signature[:-1]}{char}")]
    assert accepted == [signature[-1]]


async def admits(token: str) -> bool:
    try:
        await forge.verifier().verify(token)
    except TokenRejected:
        return False
    return True


async def test_a_long_token_is_refused() -> None:  # T21
    fits = forge.token(x="x" * 48_000)
    assert 60_000 < len(fits) <= jws.MAX_TOKEN_BYTES
    assert await forge.verifier().verify(fits)
    with pytest.raises(TokenRejected):
        await forge.verifier(max_token_bytes=32 * 1024).verify(fits)
    for token in (forge.token(x="x" * 50_000), "." * 1_000_000, "a" * 10_000_000, "a.b." + "c" * 1_000_000):
        await refused(token)


async def test_deep_nesting_is_refused() -> None:  # T21
    await refused(forge.header_token('{"alg":"HS256","x":' + "[" * 5000))
    await refused(forge.header_token('{"alg":"HS256","x":' + "[" * 2500 + "]" * 2500 + "}"))
    await refused(forge.payload_token('{"x":' + "[" * 2500 + "]" * 2500 + "}"))
    await refused(forge.payload_token('{"x":' * 900 + "1" + "}" * 900))


async def test_a_public_key_is_no_secret_whatever_the_header_says(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    # T02
    for key, alg in ((rsa_key, "RS256"), (ec_key, "ES256")):
        by = forge.verifier(StaticKeys([], [forge.pem(key)], [alg]), algorithms=[alg])
        for secret in (forge.pem(key), forge.pem(key).strip(), json.dumps(forge.jwk(key))):
            for header in ({"alg": "HS256"}, {"alg": alg}):
                await refused(forge.hs(header, forge.USUAL, secret), by)
        assert await by.verify(forge.signed_by(key, {"alg": alg}))


async def test_a_key_verifies_only_the_algorithm_of_its_kind(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, ed_key: ed25519.Ed25519PrivateKey
) -> None:  # T03
    allowed = ["RS256", "ES256", "EdDSA"]
    keys = {"RS256": rsa_key, "ES256": ec_key, "EdDSA": ed_key}
    by = forge.verifier(StaticKeys([], [forge.pem(key) for key in keys.values()], allowed), algorithms=allowed)
    for alg, key in keys.items():
        assert await by.verify(forge.signed_by(key, {"alg": alg}))
        for other in set(allowed) - {alg}:
            await refused(forge.signed_by(key, {"alg": other}), by)


async def test_hostile_ecdsa_signatures_are_refused(
    ec_key: ec.EllipticCurvePrivateKey, p384_key: ec.EllipticCurvePrivateKey
) -> None:
    # T05
    by = forge.verifier(StaticKeys([], [forge.pem(ec_key)], ["ES256"]), algorithms=["ES256"])
    good = forge.signed_by(ec_key, {"alg": "ES256"})
    assert await by.verify(good)
    body, _, signature = good.rpartition(".")
    raw = jws.parse(good, {"ES256"}).signature
    der = ec_key.sign(body.encode(), ec.ECDSA(hashes.SHA256()))
    for hostile in (
        bytes(64),
        raw[:63],
        raw + b"\0",
        b"\0" + raw,
        der,
        raw[32:] + raw[:32],
        b"\xff" * 64,
        b"\1",
        raw * 2,
    ):
        await refused(f"{body}.{forge.b64(hostile)}", by)
    await refused(forge.signed_by(p384_key, {"alg": "ES256"}), by)
    assert signature


async def test_a_malleable_ecdsa_signature_is_the_same_session(ec_key: ec.EllipticCurvePrivateKey) -> None:
    """(r, n - s) verifies where (r, s) does: the reference must not depend on it (rule 1.3)."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    by = forge.verifier(StaticKeys([], [forge.pem(ec_key)], ["ES256"]), algorithms=["ES256"])
    payload = {name: value for name, value in forge.USUAL.items() if name != "jti"}
    body = forge.signed_by(ec_key, {"alg": "ES256"}, payload).rpartition(".")[0]
    r, s = decode_dss_signature(ec_key.sign(body.encode(), ec.ECDSA(hashes.SHA256())))
    twins = [f"{body}.{forge.b64(r.to_bytes(32, 'big') + x.to_bytes(32, 'big'))}" for x in (s, order - s)]
    first, second = [await by.verify(twin) for twin in twins]
    assert first.reference == second.reference
    assert first.reference.startswith("h:")


async def test_a_signature_of_another_key_is_refused(
    other_rsa_key: rsa.RSAPrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    await refused(forge.token(forge.OTHER_SECRET))
    by = forge.verifier(StaticKeys([], [forge.pem(rsa_key)], ["RS256"]), algorithms=["RS256"])
    await refused(forge.signed_by(other_rsa_key, {"alg": "RS256"}), by)


async def test_a_retired_secret_verifies_only_while_it_is_listed() -> None:  # C06
    old, new = forge.token(forge.OTHER_SECRET), forge.token()
    overlap = forge.verifier(StaticKeys([forge.SECRET, forge.OTHER_SECRET], [], ["HS256"]))
    assert await overlap.verify(old)
    assert await overlap.verify(new)
    after = forge.verifier(StaticKeys([forge.SECRET], [], ["HS256"]))
    await refused(old, after)
    assert await after.verify(new)

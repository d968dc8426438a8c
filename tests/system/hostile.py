"""Tokens that must not pass, as (attack id, token): attacks.md 1.A, and the published vectors."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.system.sidecar import someone, token
from tests.tokens import forge

VECTORS = Path(__file__).parents[1] / "vectors"
Case = tuple[str, str]


def _usual() -> dict[str, Any]:
    now = int(time.time())
    return {"sub": someone(), "jti": "a1", "iat": now - 60, "exp": now + 600}


def _headed(header: Any) -> str:
    return forge.hs(header, _usual())


def _exp(value: str) -> str:
    return forge.payload_token('{"sub":"74","exp":' + value + "}")


def hmac_cases(canary: str) -> list[Case]:
    """For a Gatekeeper with `forge.SECRET` as its secret; `canary` is a URL that must never be asked."""
    return [*_headers(canary), *_spellings(), *_times(), *_claims(), *_sizes(), *published()]


def _headers(canary: str) -> Iterator[Case]:
    head, body, signature = token(someone()).split(".")
    for alg in ("none", "None", "nOnE", "NONE", ""):
        unsecured = forge.b64(json.dumps({"alg": alg}).encode())
        for end in ("", "AA", signature):
            yield "T01", f"{unsecured}.{body}.{end}"
    for alg in ("HS384", "HS512"):
        yield "T04", token(someone()) and forge.token(alg=alg, claims=_usual())
    yield "T04", forge.token(forge.OTHER_SECRET, claims=_usual())
    yield "T02", _headed({"alg": "RS256"})
    for member in ('"crit":["x"],"x":1', '"crit":[]', '"crit":"b64"', '"crit":["exp"],"exp":1', '"crit":["absent"]'):
        yield "T06", _headed('{"alg":"HS256",' + member + "}")
    for member in ('"b64":false', '"b64":true', '"b64":"false"', '"b64":false,"crit":["b64"]'):
        yield "T07", _headed('{"alg":"HS256",' + member + "}")
    bomb = zlib.compress(b" " * 4_000_000)[2:-4]
    yield "T08", forge.hs({"alg": "HS256", "zip": "DEF"}, bomb)
    yield "T08", f"{head}.{body}.{signature}.AA.AA"
    yield "T08", json.dumps({"protected": head, "payload": body, "signature": signature})
    mine = rsa.generate_private_key(65537, 2048)
    for lure in ({"jku": canary}, {"x5u": canary}, {"jwk": forge.jwk(mine)}, {"x5c": [forge.b64(b"c")]}):
        yield "T09", forge.signed_by(mine, {"alg": "RS256", **lure}, _usual())
        yield "T09", forge.hs({"alg": "HS256", **lure}, _usual(), forge.OTHER_SECRET)
    for kid in (1.5, ["a"], {"a": 1}, True, "k" * 1_000_000):
        yield "T10", _headed({"alg": "HS256", "kid": kid})
    for text in (
        '{"alg":"none","alg":"HS256"}',
        '{"alg":"HS256","alg":"HS256"}',
        '{"alg":"HS256","\\u0061lg":"HS256"}',
    ):
        yield "T11", _headed(text)
    for typ in ("id+jwt", "refresh+jwt", "logout+jwt", "JWE", "", None, 1):
        yield "T17", _headed({"alg": "HS256", "typ": typ})
    yield "T17", _headed({"alg": "HS256", "cty": "JWT"})
    headers: list[Any] = [{}, [], "null", '{"alg":"HS256"', b"\xff\xfe", '\ufeff{"alg":"HS256"}', {"alg": ["HS256"]}]
    for header in headers:
        yield "T01", _headed(header)


def _spellings() -> Iterator[Case]:
    good = token(someone())
    head, body, signature = good.split(".")
    flipped = chr(ord(signature[-1]) + 1)
    for spelled in (
        good + "=",
        good + "==",
        f"{head}=.{body}.{signature}",
        f"{head}.{body}=.{signature}",
        good + ".",
        good + ".AA",
        "." + good,
        f"{head}.{body}",
        f"{head}.{body}.",
        f"{head}..{signature}",
        f".{body}.{signature}",
        f"{head}.{body}.{signature[:-1]}{flipped}",
        f"{head}.{body}.{signature[:-1]}",
        f"{head}.{body}.{signature}A",
        f"{head}.{body[:5]}+{body[6:]}.{signature}",
        f"{head}.{body[:5]}/{body[6:]}.{signature}",
        f"{head}.{body[:5]} {body[5:]}.{signature}",
        good.upper(),
        "Bearer " + good,
        f'"{good}"',
        ".",
        "..",
        "...",
    ):
        yield "T12", spelled
    for length in (1, 10, len(head), len(head) + 1, len(good) // 2, len(good) - 1):
        yield "T25", good[:length]


def _times() -> Iterator[Case]:
    now = int(time.time())
    texts = ["null", "true", '"99999999999"', '" 99 "', "9_999_999_999", '"9_999_999_999"', '"١٨٠٠٠٠٠٩٩٩"', "NaN"]
    texts += ["Infinity", "-Infinity", "1e400", "9" * 5000, "[1]", "{}", "-1", "0", str(now - 11)]
    for text in texts:
        yield "T13", _exp(text)
    yield "T13", token(someone(), exp=...)
    for claim in ("nbf", "iat"):
        yield "T15", token(someone(), **{claim: now + 60})
        yield "T15", token(someone(), **{claim: "now"})


def _claims() -> Iterator[Case]:
    for claim in ("token_type", "token_use", "type", "typ"):
        yield "T17", token(someone(), **{claim: "refresh"})
        yield "T17", token(someone(), **{claim: "ID"})
    users: list[Any] = [
        "",
        " a",
        "a ",
        "a\r\nX-User-Id: 1",
        "a\x00b",
        "a\u202eb",
        "x" * 513,
        None,
        True,
        1.5,
        [],
        {},
        ...,
    ]
    for user in users:
        yield "T18", token("", sub=user)
    yield "T18", forge.payload_token('{"sub":"\\ud800","exp":9999999999}')
    ids: list[Any] = [1, ["a"], "x" * 257, "x" * 5000, "", "\x00", "a\nb", "\x7f", None]
    for sid in ids:
        yield "T19", token(someone(), sid=sid)
        yield "T19", token(someone(), jti=sid)
    for twice in ('"sub":"1","sub":"2"', '"sub":"1","exp":1', '"sub":"1","sid":"a","sid":"b"'):
        yield "T11", forge.payload_token("{" + twice + ',"exp":9999999998}')
    for payload in ("[]", '"x"', "null", "{", "", '\ufeff{"sub":"1","exp":9999999999}'):
        yield "T18", forge.payload_token(payload)


def _sizes() -> Iterator[Case]:
    yield "T21", "." * 1_000_000
    yield "T21", "a" * 1_000_000
    yield "T21", "a.b." + "c" * 1_000_000
    yield "T21", _headed('{"alg":"HS256","x":' + "[" * 2500 + "]" * 2500 + "}")
    yield "T21", _headed('{"alg":"HS256","x":' + "[" * 100_000)
    yield "T21", forge.payload_token('{"x":' * 900 + "1" + "}" * 900)


def published() -> Iterator[Case]:
    """Every vector of Wycheproof and of the JOSE cookbook that is text: signed or not, none is a token of ours."""
    for name, member in (("signature", "jws"), ("encryption", "jwe"), ("key", "jws")):
        document = json.loads((VECTORS / "wycheproof" / f"json_web_{name}_test.json").read_text())
        for group in document["testGroups"]:
            for test in group["tests"]:
                text = test[member] if isinstance(test[member], str) else json.dumps(test[member])
                yield f"Wycheproof {name} {test['tcId']}", text
    for path in sorted((VECTORS / "jose-cookbook").rglob("*.json")):
        for form in json.loads(path.read_text()).get("output", {}).values():
            yield f"cookbook {path.name}", form if isinstance(form, str) else json.dumps(form)


def public_key_cases(rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, canary: str) -> Iterator[Case]:
    """For a Gatekeeper whose public keys are those of `rsa_key` and `ec_key`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    usual = _usual()
    for key, alg in ((rsa_key, "RS256"), (ec_key, "ES256")):
        public = key.public_key()
        secrets: list[str | bytes] = [
            forge.pem(key),
            forge.pem(key).strip(),
            "\ufeff" + forge.pem(key),
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            json.dumps(forge.jwk(key)),
            json.dumps({"keys": [forge.jwk(key)]}),
        ]
        if isinstance(key, rsa.RSAPrivateKey):
            secrets.append(key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1))
        for secret in secrets:
            for claimed in ("HS256", alg):
                yield "T02", forge.hs({"alg": claimed}, usual, secret)
    for key, other in ((rsa_key, "ES256"), (ec_key, "RS256"), (ec_key, "EdDSA")):
        yield "T03", forge.signed_by(key, {"alg": other}, usual)
    good = forge.signed_by(ec_key, {"alg": "ES256"}, usual)
    body = good.rpartition(".")[0]
    der = ec_key.sign(body.encode(), ec.ECDSA(hashes.SHA256()))
    for signature in (bytes(64), bytes(63), bytes(65), der, b"\xff" * 64, b"\1", b""):
        yield "T05", f"{body}.{forge.b64(signature)}"
    yield "T05", forge.signed_by(ec.generate_private_key(ec.SECP384R1()), {"alg": "ES256"}, usual)
    mine = rsa.generate_private_key(65537, 2048)
    for lure in ({"jku": canary}, {"x5u": canary}, {"jwk": forge.jwk(mine)}, {"x5c": [forge.b64(b"certificate")]}):
        yield "T09", forge.signed_by(mine, {"alg": "RS256", **lure}, usual)
    kids: list[Any] = ["../../dev/null", "' OR 1=1 --", "\u0000", "k" * 5000, 7, ["a"]]
    for kid in kids:
        yield "T10", forge.signed_by(mine, {"alg": "RS256", "kid": kid}, usual)
    yield from published()

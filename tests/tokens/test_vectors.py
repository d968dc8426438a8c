"""Published vectors: Wycheproof (Apache-2.0) and the JOSE cookbook (public domain); licences lie beside the files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.errors import KeysUnavailable, TokenRejected
from gatekeeper.tokens import jws
from gatekeeper.tokens.key_material import HMAC_ALGORITHMS, PUBLIC_KEY_ALGORITHMS
from gatekeeper.tokens.keys import JwksKeys, KeySource, StaticKeys, VerificationKey
from gatekeeper.tokens.verify_queue import VerifyQueue
from tests.tokens import forge

VECTORS = Path(__file__).parents[1] / "vectors"
# Signed well, and refused on purpose: an empty payload is no claims set; a `jwk.alg` must equal the token's `alg`
# (RFC 7517 section 4.4), and these keys say PS256 for PS384 and `ES521`, which is no algorithm.
EMPTY_PAYLOAD = {259, 264, 268, 272, 320, 325}
OTHER_ALG_IN_KEY = {346, 347, 350, 351}
# `?` inside of a segment, which these two want skipped and RFC 7515 section 2 does not know.
NOT_BASE64URL = {372, 373}
# Meant to have wrong padding, which was lost in the file: they are, byte for byte, the valid token 357.
SAME_AS_VALID = {367, 370}
# A secret of 47 bytes for HS384, of 63 for HS512: our floor is 32 for every HMAC algorithm (rule 2.4).
OVER_OUR_FLOOR = {11, 12}
# Two secrets with one id. Ours have no ids, and all of them verify (rule 2.4).
SECRETS_OF_ONE_KID = {4}


def groups(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    document = json.loads((VECTORS / "wycheproof" / name).read_text())
    for group in document["testGroups"]:
        for test in group["tests"]:
            yield group, test


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jwks(members: list[dict[str, Any]]) -> JwksKeys:
    async def fetch(_url: str) -> bytes:
        return json.dumps({"keys": members}).encode()

    return JwksKeys("https://issuer.example/", fetch=fetch, algorithms=PUBLIC_KEY_ALGORITHMS)


class Secrets(StaticKeys):
    """Return the keys of a vector. The secret of one group is 32 zero bytes, which `StaticKeys` rightly refuses."""

    def __init__(self, members: list[dict[str, Any]]) -> None:
        names = [name for name in HMAC_ALGORITHMS if name in {member["alg"] for member in members}]
        secrets = [octets(member["k"]) for member in members]
        super().__init__([forge.SECRET] if secrets == [bytes(32)] else secrets, [], names)
        if secrets == [bytes(32)]:
            self._keys = {name: (VerificationKey(name, bytes(32)),) for name in names}


async def is_signed(token: str, members: list[dict[str, Any]]) -> bool:
    """Return true where `jws` accepts `token` with these JWKs: secrets as secrets, all others as a key set."""
    is_symmetric = {member.get("kty") for member in members} == {"oct"}
    keys: KeySource | None = None
    try:
        keys = Secrets(members) if is_symmetric else jwks(members)
        algorithms = HMAC_ALGORITHMS if is_symmetric else PUBLIC_KEY_ALGORITHMS
        await jws.verify(token, keys=keys, algorithms=algorithms, verify_queue=VerifyQueue())
    except (TokenRejected, KeysUnavailable, ValueError):
        return False
    finally:
        if keys is not None:
            await keys.aclose()
    return True


def members_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    found = group.get("public") or group["private"]
    return list(found["keys"]) if "keys" in found else [found]


async def test_wycheproof_signatures_are_judged_as_published() -> None:
    judged = {"valid": 0, "invalid": 0}
    for group, test in groups("json_web_signature_test.json"):
        token = test["jws"] if isinstance(test["jws"], str) else json.dumps(test["jws"])
        refused_by_policy = test["tcId"] in EMPTY_PAYLOAD | OTHER_ALG_IN_KEY | NOT_BASE64URL
        expected = (test["result"] == "valid" or test["tcId"] in SAME_AS_VALID) and not refused_by_policy
        assert await is_signed(token, members_of(group)) is expected, test["tcId"]
        judged[test["result"]] += 1
    assert judged == {"valid": 46, "invalid": 355}


def test_two_invalid_vectors_are_a_valid_one() -> None:
    tokens = {test["tcId"]: test["jws"] for _, test in groups("json_web_signature_test.json")}
    assert {tokens[number] for number in SAME_AS_VALID} == {tokens[357]}


async def test_wycheproof_signatures_are_good_where_the_key_claims_no_other_algorithm() -> None:
    judged = 0
    for group, test in groups("json_web_signature_test.json"):
        if test["tcId"] in OTHER_ALG_IN_KEY:
            keys = [{name: value for name, value in key.items() if name != "alg"} for key in members_of(group)]
            assert await is_signed(test["jws"], keys), test["tcId"]
            judged += 1
    assert judged == 4


async def test_wycheproof_keys_are_judged_as_published() -> None:
    judged = {"valid": 0, "invalid": 0}
    for group, test in groups("json_web_key_test.json"):
        expected = test["result"] == "valid" or test["tcId"] in SECRETS_OF_ONE_KID | OVER_OUR_FLOOR
        assert await is_signed(test["jws"], members_of(group)) is expected, (test["tcId"], test["comment"])
        judged[test["result"]] += 1
    assert judged == {"valid": 5, "invalid": 21}


async def test_wycheproof_encrypted_tokens_are_refused() -> None:  # T08
    judged = 0
    by = forge.verifier()
    for _, test in groups("json_web_encryption_test.json"):
        token = test["jwe"] if isinstance(test["jwe"], str) else json.dumps(test["jwe"])
        with pytest.raises(TokenRejected):
            await by.verify(token)
        judged += 1
    assert judged == 139


async def test_cookbook_signatures_are_accepted() -> None:
    """RFC 7520 section 4.1 to 4.4 and RFC 8037 appendix A."""
    judged = 0
    for path in [
        *sorted((VECTORS / "jose-cookbook" / "jws").glob("4_[1-4].*")),
        VECTORS / "jose-cookbook/curve25519/jws.json",
    ]:
        vector = json.loads(path.read_text())
        key, token = vector["input"]["key"], vector["output"]["compact"]
        private = {"d", "p", "q", "dp", "dq", "qi", "alg"}
        public = {name: value for name, value in key.items() if name not in private}
        if key["kty"] == "oct":
            public["alg"] = "HS256"
        assert await is_signed(token, [public]), path.name
        judged += 1
    assert judged == 5


async def test_cookbook_tokens_of_other_kinds_are_refused() -> None:
    """Detached and unencoded payloads, encryption, nesting, JSON serialization: none is an access token."""
    judged = 0
    by = forge.verifier()
    for path in sorted((VECTORS / "jose-cookbook").rglob("*.json")):
        for form in outputs(json.loads(path.read_text())):
            with pytest.raises(TokenRejected):
                await by.verify(form)
            judged += 1
    assert judged == 65


def outputs(vector: dict[str, Any]) -> Iterator[str]:
    for form in vector.get("output", {}).values():
        yield form if isinstance(form, str) else json.dumps(form)


def test_the_licences_lie_beside_the_vectors() -> None:
    for name in ("wycheproof", "jose-cookbook"):
        assert (VECTORS / name / "LICENSE").stat().st_size > 1000

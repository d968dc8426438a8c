"""Arbitrary bytes: a token is accepted or refused, and nothing else happens."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gatekeeper.errors import TokenRejected
from gatekeeper.models import Claims
from gatekeeper.tokens.sources import TokenSources
from tests.tokens import forge

# Time is not what is tested, and the machine may be busy.
RELAXED = settings(
    deadline=None, max_examples=settings().max_examples * 5 // 2, suppress_health_check=[HealthCheck.too_slow]
)

VERIFIER = forge.verifier()
GOOD = forge.token(sid="s1", roles=["user"])
SOURCES = TokenSources(["header", "cookie:t", "query:t", "subprotocol"])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
CLAIM_NAMES = st.sampled_from(
    ["sub", "exp", "iat", "nbf", "iss", "aud", "sid", "jti", "roles", "auth_time", "typ", "token_use", "type", "x"]
)
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "zip", "jku", "jwk", "x5c", "enc"])


async def judge(token: str) -> Claims | None:
    try:
        return await VERIFIER.verify(token)
    except TokenRejected:
        return None


@RELAXED
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@example("..")
@example("a.b.c\n")
async def test_random_text_is_refused(text: str) -> None:
    assert await judge(text) is None


@RELAXED
@given(st.lists(st.binary(max_size=60), min_size=2, max_size=5))
async def test_random_segments_are_refused(segments: list[bytes]) -> None:
    assert await judge(".".join(map(forge.b64, segments))) is None


@RELAXED
@given(st.data())
async def test_a_mutated_token_is_refused(data: st.DataObject) -> None:  # T12, T25
    at = data.draw(st.integers(0, len(GOOD)))
    until = data.draw(st.integers(at, min(len(GOOD), at + 3)))
    instead = data.draw(st.text(max_size=3) | st.text("AQgw_-.=ab", max_size=3))
    mutant = GOOD[:at] + instead + GOOD[until:]
    assert (await judge(mutant) is None) is (mutant != GOOD)


@RELAXED
@given(JSON | st.dictionaries(CLAIM_NAMES, JSON))
async def test_a_signed_payload_of_any_shape_is_judged(payload: Any) -> None:
    claims = await judge(forge.hs({"alg": "HS256"}, json.dumps(payload)))
    if claims is not None:
        assert isinstance(payload, dict)
        assert 1 <= len(claims.user.encode()) <= 512
        json.dumps(claims.claims, allow_nan=False).encode()


@RELAXED
@given(st.dictionaries(CLAIM_NAMES, JSON))
async def test_a_good_payload_with_odd_claims_is_judged(extra: dict[str, Any]) -> None:
    await judge(forge.hs({"alg": "HS256"}, json.dumps(forge.USUAL | extra)))


@RELAXED
@given(JSON | st.dictionaries(HEADER_NAMES, JSON))
async def test_a_header_of_any_shape_is_judged(header: Any) -> None:
    await judge(forge.hs(json.dumps(header), forge.USUAL))
    if isinstance(header, dict):
        await judge(forge.hs(json.dumps(header | {"alg": "HS256"}), forge.USUAL))


@RELAXED
@given(st.binary(max_size=80))
async def test_signed_bytes_that_are_no_claims_are_refused(payload: bytes) -> None:
    assert await judge(forge.hs({"alg": "HS256"}, payload)) is None


CREDENTIAL = st.binary(max_size=20) | st.sampled_from(
    [b"Bearer x", b"Bearer  x", b"t=1; t=2", b"t=1", b"bearer, x", b"=t=1"]
)
HEADERS = st.lists(
    st.tuples(st.sampled_from([b"authorization", b"cookie", b"sec-websocket-protocol", b"x"]), CREDENTIAL), max_size=4
)


@RELAXED
@given(HEADERS, st.binary(max_size=20) | st.sampled_from([b"t=1", b"t=1&t=2", b"%74=x"]), st.booleans())
def test_any_headers_are_read_and_stripped(headers: list[tuple[bytes, bytes]], query: bytes, websocket: bool) -> None:
    stripped = SOURCES.strip_tokens(headers)
    if [name for name, _ in stripped].count(b"authorization") < 2:
        assert SOURCES.find(stripped, query=SOURCES.strip_query(query), websocket=websocket) is None
    assert SOURCES.strip_tokens(stripped) == stripped
    try:
        found = SOURCES.find(headers, query=query, websocket=websocket)
    except TokenRejected:
        return
    if found is None:
        return
    assert found.token.isascii()
    assert found.token not in found.others


def test_base64url_of_the_forge_is_canonical() -> None:
    for size in range(6):
        assert base64.urlsafe_b64decode(forge.b64(b"\xff" * size) + "==") == b"\xff" * size

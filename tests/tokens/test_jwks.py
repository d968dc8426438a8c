"""Key sets: the lookup of keys, new keys, and withdrawn keys."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens.keys import MAX_KEYS, JwksKeys, http_fetcher
from tests.tokens import forge
from tests.tokens.forge import Clock, jwk
from tests.tokens.jwks_server import ALLOWED, Source, admits, judge
from tests.waiting import HANG_SECONDS, until


async def test_a_token_of_a_published_key_is_accepted(
    source: Source,
    keys: JwksKeys,
    rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    ed_key: ed25519.Ed25519PrivateKey,
) -> None:
    source.publish(
        jwk(rsa_key, kid="r", use="sig", alg="RS256"), jwk(ec_key, kid="e"), jwk(ed_key, kid="o", key_ops=["verify"])
    )
    assert not keys.ready
    for key, alg, kid in ((rsa_key, "RS256", "r"), (ec_key, "ES256", "e"), (ed_key, "EdDSA", "o")):
        assert await admits(keys, forge.signed_by(key, {"alg": alg, "kid": kid}))
    assert (source.asked, keys.key_count, keys.ready) == (1, 3, True)
    head = source.heads[0].lower()
    assert b"cookie" not in head
    assert b"accept-encoding: identity" in head


async def test_a_set_that_is_read_again_was_asked_for_afterwards(source: Source, keys: JwksKeys) -> None:
    """A fetch that is under way may bring the set of before."""
    source.gate.clear()
    first = asyncio.create_task(keys.refresh())
    await until(lambda: source.asked == 1)
    again = asyncio.create_task(keys.reread())
    source.gate.set()
    await asyncio.gather(first, again, return_exceptions=True)
    assert source.asked == 2


async def test_the_kid_is_an_exact_lookup(source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey) -> None:  # T10
    source.publish(jwk(rsa_key, kid="Key-1"))
    for header in (
        {"kid": "key-1"},
        {"kid": "Key-1 "},
        {"kid": ""},
        {"kid": "Key"},
        {"kid": "../Key-1"},
        {"kid": "\x00"},
    ):
        assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256"} | header))
    assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k" * 3000}))
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "Key-1"}))
    assert source.asked == 1


async def test_a_key_without_kid_is_a_candidate_for_every_token(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # J03
    source.publish(jwk(rsa_key), jwk(other_rsa_key, kid="k"))
    headers: list[dict[str, Any]] = [{}, {"kid": "x"}, {"kid": "k"}]
    for header in headers:
        assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256"} | header))
    assert not await admits(keys, forge.signed_by(other_rsa_key, {"alg": "RS256", "kid": "x"}))


async def test_a_token_without_kid_is_tried_against_every_key(
    source: Source,
    keys: JwksKeys,
    rsa_key: rsa.RSAPrivateKey,
    other_rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
) -> None:  # J03
    source.publish(jwk(rsa_key, kid="a"), jwk(ec_key, kid="b"))
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256"}))
    assert await admits(keys, forge.signed_by(ec_key, {"alg": "ES256"}))
    assert not await admits(keys, forge.signed_by(other_rsa_key, {"alg": "RS256"}))
    assert not await admits(keys, forge.signed_by(ec_key, {"alg": "RS256"}))


async def test_a_kid_of_another_key_is_refused(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # T10
    source.publish(jwk(rsa_key, kid="a"), jwk(other_rsa_key, kid="b"))
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "a"}))
    for key, kid in ((rsa_key, "b"), (other_rsa_key, "a"), (rsa_key, "c"), (rsa_key, "")):
        assert not await admits(keys, forge.signed_by(key, {"alg": "RS256", "kid": kid}))


@pytest.mark.parametrize(("published", "sent"), [(5, 5), (5, "5"), ("5", 5)])
async def test_a_kid_may_be_a_number(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, published: Any, sent: Any
) -> None:  # T10
    source.publish(jwk(rsa_key, kid=published))
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": sent}))
    others: list[Any] = [6, "05", "5.0"]
    for other in others:
        assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": other}))


@pytest.mark.parametrize(
    ("members", "admitted"),
    [({}, True), ({"alg": "Ed25519"}, True), ({"alg": "EdDSA"}, False), ({"alg": "Ed448"}, False)],
)
async def test_the_curve_may_be_named_as_the_algorithm(
    source: Source, ed_key: ed25519.Ed25519PrivateKey, members: dict[str, str], *, admitted: bool
) -> None:  # RFC 9864
    source.publish(jwk(ed_key, kid="o", **members), jwk(ed25519.Ed25519PrivateKey.generate(), alg="Ed25519"))
    allowed = ["Ed25519", "Ed448"]
    keys = JwksKeys(source.url, fetch=http_fetcher(timeout_seconds=HANG_SECONDS), algorithms=allowed)
    by = forge.verifier(keys, algorithms=allowed)
    try:
        for alg, good in (("Ed25519", admitted), ("EdDSA", False), ("Ed448", False)):
            bearing = forge.signed_by(ed_key, {"alg": alg, "kid": "o"})
            if good:
                assert await by.verify(bearing)
                continue
            with pytest.raises(TokenRejected):
                await by.verify(bearing)
    finally:
        await keys.aclose()


async def test_every_key_of_a_kid_is_tried(
    source: Source,
    keys: JwksKeys,
    rsa_key: rsa.RSAPrivateKey,
    other_rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
) -> None:  # J03
    source.publish(jwk(rsa_key, kid="k"), jwk(other_rsa_key, kid="k"), jwk(ec_key, kid="k"))
    for key, alg in ((rsa_key, "RS256"), (other_rsa_key, "RS256"), (ec_key, "ES256")):
        assert await admits(keys, forge.signed_by(key, {"alg": alg, "kid": "k"}))
    assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "ES256", "kid": "k"}))


async def test_the_key_binds_the_algorithm(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:  # T03
    source.publish(jwk(ec_key, kid="e", alg="ES256"), jwk(rsa_key, kid="p", alg="PS256"), jwk(rsa_key, kid="r"))
    assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "e"}))
    assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "p"}))
    assert not await admits(keys, forge.signed_by(ec_key, {"alg": "ES256", "kid": "r"}))
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "r"}))


async def test_a_new_key_is_found_by_its_kid_at_once_and_then_after_the_cooldown(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # J03
    source.publish(jwk(rsa_key, kid="1"))
    new = forge.signed_by(other_rsa_key, {"alg": "RS256", "kid": "2"})
    assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "1"}))
    source.publish(jwk(rsa_key, kid="1"), jwk(other_rsa_key, kid="2"))
    clock.at += 29.9
    assert not await admits(keys, new)
    assert source.asked == 1
    clock.at += 0.1
    assert await admits(keys, new)
    assert source.asked == 2


async def test_unknown_kids_cannot_make_us_hammer_the_source(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:
    source.publish(jwk(rsa_key, kid="1"))
    for number in range(40):
        assert not await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": f"x{number}"}))
        clock.at += 1
    assert source.asked == 2


async def test_a_withdrawn_key_is_refused_after_the_refresh(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # J03
    source.publish(jwk(rsa_key, kid="1"), jwk(other_rsa_key, kid="2"))
    by = judge(keys)
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "1"})
    await by.verify(token)
    source.publish(jwk(other_rsa_key, kid="2"))
    clock.at += 31
    await keys.refresh()
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token)


async def test_a_withdrawn_key_is_noticed_by_the_timer_alone(
    source: Source, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # J03
    keys = JwksKeys(source.url, fetch=http_fetcher(), algorithms=ALLOWED, refresh_seconds=0.02)
    source.publish(jwk(rsa_key, kid="1"))
    by = judge(keys)
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "1"})
    await by.verify(token)
    source.publish(jwk(other_rsa_key, kid="2"))
    await until(lambda: by.cached(token) is None)
    assert not await admits(keys, token)
    await keys.aclose()


async def test_an_empty_set_withdraws_every_key(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:
    source.publish(jwk(rsa_key, kid="1"))
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "1"})
    assert await admits(keys, token)
    source.publish()
    clock.at += 31
    await keys.refresh()
    assert not keys.ready
    assert not await admits(keys, token)


async def test_a_new_key_under_an_old_kid_is_found_after_the_cooldown(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey, other_rsa_key: rsa.RSAPrivateKey
) -> None:  # J03
    source.publish(jwk(rsa_key, kid="k"))
    old, new = (forge.signed_by(key, {"alg": "RS256", "kid": "k"}) for key in (rsa_key, other_rsa_key))
    assert await admits(keys, old)
    source.publish(jwk(other_rsa_key, kid="k"))
    assert not await admits(keys, new)
    clock.at += 31
    assert await admits(keys, new)
    assert not await admits(keys, old)


async def test_an_unchanged_set_keeps_what_was_concluded_from_it(
    source: Source, keys: JwksKeys, clock: Clock, rsa_key: rsa.RSAPrivateKey
) -> None:
    source.publish(jwk(rsa_key, kid="k"))
    by = judge(keys)
    token = forge.signed_by(rsa_key, {"alg": "RS256", "kid": "k"})
    await by.verify(token)
    clock.at += 31
    await keys.refresh()
    assert source.asked == 2
    assert by.cached(token) is not None


def faulty_members(
    rsa_key: rsa.RSAPrivateKey,
    short: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    ed: ed25519.Ed25519PrivateKey,
) -> list[Any]:
    point = jwk(ec_key)
    good = jwk(rsa_key)
    return [
        jwk(short),
        good | {"use": "enc"},
        good | {"use": None},
        good | {"use": ["sig"]},
        good | {"key_ops": ["sign"]},
        good | {"key_ops": []},
        good | {"key_ops": "verify"},
        good | {"kid": 5.0},
        good | {"kid": True},
        good | {"kid": None},
        good | {"kid": "x" * 257},
        good | {"alg": "HS256"},
        good | {"alg": "none"},
        good | {"alg": "ES256"},
        good | {"alg": None},
        good | {"alg": ["RS256"]},
        good | {"e": "AQ"},
        good | {"e": "Ag"},
        good | {"n": 5},
        good | {"n": "+/=="},
        good | {"n": ""},
        good | {"d": "AQAB"},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {"kty": "rsa", "n": good["n"], "e": good["e"]},
        {"kty": "oct", "k": forge.b64(b"k" * 32)},
        {"kty": "oct", "k": forge.b64(b"k" * 32), "alg": "HS256", "use": "sig"},
        {"kty": "PQC"},
        point | {"y": point["x"]},
        point | {"crv": "P-384"},
        point | {"crv": "secp256k1"},
        point | {"crv": ["P-256"]},
        point | {"x": "AA"},
        jwk(ed) | {"x": "AA"},
        jwk(ed) | {"crv": "X25519"},
        jwk(ed) | {"d": forge.b64(b"d" * 32)},
        None,
        "x",
        [],
    ]


async def test_a_faulty_member_is_skipped_and_the_others_stay_usable(
    source: Source,
    keys: JwksKeys,
    rsa_key: rsa.RSAPrivateKey,
    short_rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    ed_key: ed25519.Ed25519PrivateKey,
    caplog: pytest.LogCaptureFixture,
) -> None:  # T29, J02, J04
    members = faulty_members(rsa_key, short_rsa_key, ec_key, ed_key)
    named = [
        member | {"kid": f"bad{i}"} if isinstance(member, dict) and "kid" not in member else member
        for i, member in enumerate(members)
    ]
    source.publish(*named, jwk(rsa_key, kid="good"))
    with caplog.at_level(logging.WARNING):
        assert await admits(keys, forge.signed_by(rsa_key, {"alg": "RS256", "kid": "good"}))
    assert keys.key_count == 1
    assert len([record for record in caplog.records if "key set member skipped" in record.message]) == len(members)
    for number in range(len(members)):
        for key, alg in ((rsa_key, "RS256"), (ec_key, "ES256"), (ed_key, "EdDSA"), (short_rsa_key, "RS256")):
            assert not await admits(keys, forge.signed_by(key, {"alg": alg, "kid": f"bad{number}"}))


async def test_a_secret_of_a_key_set_verifies_nothing(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey
) -> None:  # J04
    source.publish(
        {"kty": "oct", "k": forge.b64(forge.SECRET.encode()), "kid": "s", "alg": "HS256"}, jwk(rsa_key, kid="k")
    )
    assert not await admits(keys, forge.hs({"alg": "HS256", "kid": "s"}, forge.USUAL))
    with pytest.raises(ValueError, match="public keys"):
        JwksKeys(source.url, fetch=http_fetcher(), algorithms=["HS256"])


async def test_the_number_of_keys_is_bounded(
    source: Source, keys: JwksKeys, rsa_key: rsa.RSAPrivateKey, ed_key: ed25519.Ed25519PrivateKey
) -> None:  # J02
    source.publish(*[jwk(ed_key, kid=str(number)) for number in range(10_000)])
    await keys.refresh()
    assert keys.key_count == MAX_KEYS

"""The cache of good tokens: never older than the token, the clock or the keys."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gatekeeper.errors import TokenRejected
from gatekeeper.tokens import verifier
from gatekeeper.tokens.keys import StaticKeys, VerificationKey
from tests.tokens import forge
from tests.tokens.forge import NOW, Clock


class CountedKeys:
    """Keys that count the lookups and can be replaced."""

    ready = True

    def __init__(self) -> None:
        self.asked = 0
        self.generation = 0
        self.keys = StaticKeys([forge.SECRET], [], ["HS256"])

    def replace(self, secret: str) -> None:
        self.keys = StaticKeys([secret], [], ["HS256"])
        self.generation += 1

    async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
        self.asked += 1
        return await self.keys.find(algorithm=algorithm, kid=kid)

    def may_verify(self, *, algorithm: str, kid: str | None) -> bool:
        return self.keys.may_verify(algorithm=algorithm, kid=kid)

    async def recheck(self) -> bool:
        return False

    async def refresh(self) -> None:
        return

    async def aclose(self) -> None:
        return


async def test_a_token_seen_before_is_not_verified_again() -> None:
    keys = CountedKeys()
    by = forge.verifier(keys)
    token = forge.token()
    assert by.cached(token) is None
    claims = await by.verify(token)
    assert by.cached(token) is claims
    assert await by.verify(token) is claims
    assert keys.asked == 1


async def test_a_cached_token_ends_at_its_exp() -> None:
    clock = Clock()
    by = forge.verifier(now=clock, leeway_seconds=10.0)
    token = forge.token(exp=int(NOW) + 5)
    await by.verify(token)
    clock.at = NOW + 14.9
    assert by.cached(token) is not None
    clock.at = NOW + 15
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token)


async def test_a_cached_token_is_refused_when_the_clock_goes_back_before_it() -> None:
    clock = Clock()
    by = forge.verifier(now=clock)
    token = forge.token(nbf=int(NOW))
    await by.verify(token)
    clock.at = NOW - 1
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token)


async def test_long_tokens_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:  # T21
    monkeypatch.setattr(verifier, "_MAX_CACHED_BYTES", 200_000)
    by = forge.verifier()
    long = [forge.token(n=number, x="x" * 40_000) for number in range(6)]
    for text in long:
        await by.verify(text)
        assert by.cached(text) is not None
    kept = [text for text in long if by.cached(text) is not None]
    assert kept == long[-3:]
    short = forge.token()
    await by.verify(short)
    assert by.cached(short) is not None


async def test_changed_keys_empty_the_cache() -> None:
    keys = CountedKeys()
    by = forge.verifier(keys)
    token = forge.token()
    await by.verify(token)
    keys.replace(forge.OTHER_SECRET)
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token)
    assert (await by.verify(forge.token(forge.OTHER_SECRET))).user == "74"


async def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    by = forge.verifier(cache_size=2)
    one, two, three = (forge.token(jti=str(number)) for number in range(3))
    await by.verify(one)
    await by.verify(two)
    assert by.cached(one)
    await by.verify(three)
    assert by.cached(two) is None
    assert by.cached(one)
    assert by.cached(three)


async def test_a_cache_of_size_zero_holds_nothing() -> None:
    by = forge.verifier(cache_size=0)
    await by.verify(forge.token())
    assert by.cached(forge.token()) is None


async def test_bad_tokens_and_other_spellings_are_not_cached() -> None:  # T12
    by = forge.verifier()
    token = forge.token()
    await by.verify(token)
    for bad in (token + "=", token[:-1] + "_", forge.token(forge.OTHER_SECRET)):
        with pytest.raises(TokenRejected):
            await by.verify(bad)
        assert by.cached(bad) is None


async def test_a_key_of_another_algorithm_is_not_tried_whoever_offers_it() -> None:  # T03
    class Careless(CountedKeys):
        async def find(self, *, algorithm: str, kid: str | None) -> Sequence[VerificationKey]:
            return [VerificationKey("HS512" if algorithm == "HS256" else "HS256", forge.SECRET.encode())]

    by = forge.verifier(Careless(), algorithms=["HS256", "HS512"])
    with pytest.raises(TokenRejected):
        await by.verify(forge.hs({"alg": "HS256"}, forge.USUAL, digest="sha512"))


async def test_a_token_whose_expiry_was_ignored_is_not_cached() -> None:
    by = forge.verifier()
    token = forge.token(exp=int(NOW) - 1)
    await by.verify(token, ignore_expiry=True)
    assert "0 tokens cached" in repr(by)
    assert by.cached(token) is None
    with pytest.raises(TokenRejected):
        await by.verify(token)


async def test_a_verdict_of_one_audience_does_not_serve_another() -> None:  # T26
    first, second = forge.verifier(audience="a"), forge.verifier(audience="b")
    token = forge.token(aud="a")
    assert await first.verify(token)
    with pytest.raises(TokenRejected):
        await second.verify(token)


def test_its_representation_shows_no_secret_and_no_token() -> None:
    shown = repr(forge.verifier())
    assert forge.SECRET not in shown
    assert "HS256" in shown


def test_an_allow_list_that_is_empty_mixed_or_unknown_is_refused() -> None:  # C02
    keys = StaticKeys([forge.SECRET], [], ["HS256"])
    for algorithms in ([], ["none"], ["HS256", "RS256"], ["hs256"], ["HS256", "None"]):
        with pytest.raises(ValueError, match="algorithm"):
            forge.verifier(keys, algorithms=algorithms)

"""One-time tokens: the second of two is always told so, whoever asks (T29, OpenID Connect Back-Channel Logout 2.6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.store.replay import ReplayGuard
from tests.sessions.by_hand import HOUR, Hand


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[StoreClient]:
    made = StoreClient(store_url, timeout_seconds=5)
    yield made
    await made.aclose()


@pytest.fixture
def guard(store_client: StoreClient) -> ReplayGuard:
    return ReplayGuard(store_client, key_prefix="gk:", kind="logout", leeway_seconds=10)


@pytest.fixture
def hand(store_url: str) -> Iterator[Hand]:
    with Hand(store_url) as made:
        yield made


def later() -> float:
    return time.time() + HOUR


async def test_an_id_is_new_once(guard: ReplayGuard) -> None:
    # S24
    assert [await guard.record_use("a", expires_at=later()) for _ in range(4)] == [True, False, False, False]
    assert await guard.record_use("b", expires_at=later())


async def test_of_fifty_at_once_one_is_the_first(store_url: str, guard: ReplayGuard, store_client: StoreClient) -> None:
    other_client = StoreClient(store_url, timeout_seconds=5)
    other = ReplayGuard(other_client, key_prefix="gk:", kind="logout", leeway_seconds=10)
    answers = await asyncio.gather(
        *((guard, other)[number % 2].record_use("a", expires_at=later()) for number in range(50))
    )
    assert answers.count(True) == 1
    await other_client.aclose()


async def test_an_id_is_remembered_until_its_token_has_expired_and_the_leeway_after(
    guard: ReplayGuard, hand: Hand
) -> None:
    until = later()
    await guard.record_use("a", expires_at=until)
    [key] = hand.names()
    assert 0 < hand.leaves_at(key.decode()) - (until + 10) <= 1.5
    # A second use makes it no longer, and no shorter.
    leaves_at = hand.leaves_at(key.decode())
    for instant in (until + HOUR, until - HOUR, 0.0):
        assert not await guard.record_use("a", expires_at=instant)
    assert hand.leaves_at(key.decode()) == leaves_at


@pytest.mark.parametrize("until", [0.0, -1e9, 1.0])
async def test_an_id_of_a_token_that_is_over_is_remembered_for_a_moment(
    guard: ReplayGuard, hand: Hand, until: float
) -> None:
    # As it is in its leeway: whoever asks has verified it
    assert await guard.record_use("a", expires_at=until)
    assert not await guard.record_use("a", expires_at=until)
    [key] = hand.names()
    assert 0 < hand.leaves_at(key.decode()) - time.time() <= 1.001


async def test_an_id_of_a_token_that_lives_for_ever_can_be_remembered(guard: ReplayGuard, hand: Hand) -> None:
    # Year 9999, and beyond what the store can count
    for number, until in enumerate((253_402_300_799.0, 1e15)):
        assert await guard.record_use(f"{number}", expires_at=until)
        assert not await guard.record_use(f"{number}", expires_at=until)
    assert len(hand.names()) == 2


async def test_what_has_happened_is_known(guard: ReplayGuard) -> None:
    assert not await guard.is_used("a")
    assert not await guard.is_used("a"), "to ask is not to happen"
    await guard.record_use("a", expires_at=later())
    assert await guard.is_used("a")
    assert not await guard.is_used("b")


@pytest.mark.parametrize("reply", [None, b"1", b"OK", [1], 2, -1, "1"])
async def test_whether_it_has_happened_is_never_guessed(reply: Any) -> None:
    # Rule 4.8
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return reply

    odd = Odd("unix:///nowhere", timeout_seconds=1)
    with pytest.raises(StoreUnavailable):
        await ReplayGuard(odd, key_prefix="gk:", kind="logout", leeway_seconds=10).is_used("a")


async def test_kinds_share_no_ids(guard: ReplayGuard, store_client: StoreClient) -> None:
    other = ReplayGuard(store_client, key_prefix="gk:", kind="other", leeway_seconds=10)
    assert await guard.record_use("a", expires_at=later())
    assert await other.record_use("a", expires_at=later())


async def test_no_id_is_a_part_of_a_key(guard: ReplayGuard, hand: Hand) -> None:
    ids = ["a", "a:b", "{}", "*", "é", "x" * 10_000, "a\r\nFLUSHALL", ""]
    for each in ids:
        assert await guard.record_use(each, expires_at=later())
    assert {len(name) for name in hand.names()} == {len("gk:logout:") + 64}
    assert len(hand.names()) == len(ids)


@pytest.mark.parametrize("reply", [7, b"QUEUED", [b"74"], [], False, b""])
async def test_an_answer_that_says_neither_is_a_fault(reply: Any) -> None:
    # R19, C07: a token whose first use is in doubt must not pass for new
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return reply

    odd = Odd("unix:///nowhere", timeout_seconds=1)
    with pytest.raises(StoreUnavailable):
        await ReplayGuard(odd, key_prefix="gk:", kind="logout", leeway_seconds=10).record_use("a", expires_at=later())


async def test_a_store_that_is_not_there_is_no_first_time() -> None:
    # Rule 4.8
    store_client = StoreClient("unix:///nowhere", timeout_seconds=1)
    guard = ReplayGuard(store_client, key_prefix="gk:", kind="logout", leeway_seconds=10)
    with pytest.raises(StoreUnavailable):
        await guard.record_use("a", expires_at=later())
    with pytest.raises(StoreUnavailable):
        await guard.is_used("a")
    await store_client.aclose()

"""One-time tokens: of several uses, in whatever process, one is the first (T29; OpenID Connect Back-Channel Logout 1.0
section 2.6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.store.replay import ReplayGuard
from tests.sessions.by_hand import HOUR, Hand
from tests.waiting import HANG_SECONDS


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[StoreClient]:
    made = StoreClient(store_url, timeout_seconds=HANG_SECONDS)
    yield made
    await made.aclose()


@pytest.fixture
def guard(store_client: StoreClient) -> ReplayGuard:
    return ReplayGuard(store_client, key_prefix="gk:", kind="logout", leeway_seconds=10)


def later() -> float:
    return time.time() + HOUR


async def test_an_id_is_new_once(guard: ReplayGuard) -> None:
    # S24
    assert [await guard.record_use("a", expires_at=later()) for _ in range(4)] == [True, False, False, False]
    assert await guard.record_use("b", expires_at=later())


async def test_of_fifty_uses_at_once_one_is_the_first(
    store_url: str, guard: ReplayGuard, store_client: StoreClient
) -> None:
    other_client = StoreClient(store_url, timeout_seconds=HANG_SECONDS)
    other = ReplayGuard(other_client, key_prefix="gk:", kind="logout", leeway_seconds=10)
    outcomes = await asyncio.gather(
        *((guard, other)[number % 2].record_use("a", expires_at=later()) for number in range(50))
    )
    assert outcomes.count(True) == 1
    await other_client.aclose()


async def test_an_id_is_remembered_until_its_token_has_expired_and_the_leeway_after(
    guard: ReplayGuard, hand: Hand
) -> None:
    until = later()
    await guard.record_use("a", expires_at=until)
    [key] = hand.names()
    assert 0 < hand.leaves_at(key.decode()) - (until + 10) <= 1.5
    # A second use changes nothing.
    leaves_at = hand.leaves_at(key.decode())
    for instant in (until + HOUR, until - HOUR, 0.0):
        assert not await guard.record_use("a", expires_at=instant)
    assert hand.leaves_at(key.decode()) == leaves_at


@pytest.mark.parametrize("until", [0.0, -1e9, 1.0])
async def test_an_id_of_an_expired_token_is_remembered_for_a_moment(
    guard: ReplayGuard, hand: Hand, until: float
) -> None:
    # The token is within its leeway, which the caller has verified.
    assert await guard.record_use("a", expires_at=until)
    assert not await guard.record_use("a", expires_at=until)
    [key] = hand.names()
    assert 0 < hand.leaves_at(key.decode()) - time.time() <= 1.001


async def test_an_id_of_a_token_that_lives_for_ever_can_be_remembered(guard: ReplayGuard, hand: Hand) -> None:
    # Year 9999, and later than the store can count
    for number, until in enumerate((253_402_300_799.0, 1e15)):
        assert await guard.record_use(f"{number}", expires_at=until)
        assert not await guard.record_use(f"{number}", expires_at=until)
    assert len(hand.names()) == 2


async def test_a_recorded_use_is_known(guard: ReplayGuard) -> None:
    assert not await guard.is_used("a")
    assert not await guard.is_used("a"), "a question is not a use"
    await guard.record_use("a", expires_at=later())
    assert await guard.is_used("a")
    assert not await guard.is_used("b")


@pytest.mark.parametrize("reply", [None, b"1", b"OK", [1], 2, -1, "1"])
async def test_an_unexpected_reply_to_is_used_is_a_fault(reply: Any) -> None:
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
async def test_an_unexpected_reply_to_record_use_is_a_fault(reply: Any) -> None:
    # R19, C07: a token whose first use is in doubt must not count as new
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return reply

    odd = Odd("unix:///nowhere", timeout_seconds=1)
    with pytest.raises(StoreUnavailable):
        await ReplayGuard(odd, key_prefix="gk:", kind="logout", leeway_seconds=10).record_use("a", expires_at=later())


async def test_without_a_store_no_use_is_the_first() -> None:
    # Rule 4.8
    store_client = StoreClient("unix:///nowhere", timeout_seconds=1)
    guard = ReplayGuard(store_client, key_prefix="gk:", kind="logout", leeway_seconds=10)
    with pytest.raises(StoreUnavailable):
        await guard.record_use("a", expires_at=later())
    with pytest.raises(StoreUnavailable):
        await guard.is_used("a")
    await store_client.aclose()

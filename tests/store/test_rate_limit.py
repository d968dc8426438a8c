"""Rate limits (A-24): the generic cell rate algorithm, exact to the call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from gatekeeper.auth.gate import Exemptions, Gate
from gatekeeper.auth.requests import RequestFacts
from gatekeeper.auth.standing import Standings
from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.events import ActorKind, Event
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.store.rate_limit import Rate, RateLimiter
from gatekeeper.tokens.keys import StaticKeys
from gatekeeper.tokens.sources import TokenSources
from tests.conftest import RULES
from tests.sessions.by_hand import CLIENT, Noting
from tests.system.sidecar import token
from tests.tokens import forge

# One call in ten minutes, and four in a burst: the duration of a test does not matter.
SLOW = Rate(6, 3600)
INTERVAL = 600.0
BURST = 4 * INTERVAL


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[Noting]:
    made = Noting(store_url)
    yield made
    await made.aclose()


@pytest.fixture
def limiter(store_client: Noting) -> RateLimiter:
    return RateLimiter(store_client, key_prefix="gk:", rate=SLOW, burst_seconds=BURST)


def let_pass(store_url: str, seconds: float, caller: str) -> None:
    """Make the past calls of `caller` older."""
    with redis.Redis.from_url(store_url) as client:
        due: Any = client.get(f"gk:rate:{caller}")
        if due is not None:
            client.set(f"gk:rate:{caller}", int(due) - round(seconds * 1e6), keepttl=True)


def value(store_url: str, caller: str) -> Any:
    with redis.Redis.from_url(store_url) as client:
        return client.get(f"gk:rate:{caller}")


async def waits_of(limiter: RateLimiter, times: int, caller: str = "user:74", **options: float) -> list[int]:
    return [await limiter.wait_seconds(caller, **options) for _ in range(times)]


async def test_four_seconds_worth_may_come_at_once_and_no_call_more(store_client: Noting) -> None:
    # A-24, RATE_LIMIT: in one batch, which takes far less than the fifth of a second after which one more call passes
    limiter = RateLimiter(store_client, key_prefix="gk:", rate=Rate(5, 1))
    waits = await asyncio.gather(*(limiter.wait_seconds("user:74") for _ in range(22)))
    assert waits == [0] * 20 + [1, 1]


async def test_a_refused_call_gets_the_whole_seconds_to_wait(limiter: RateLimiter) -> None:
    # `Retry-After`
    assert await waits_of(limiter, 4) == [0] * 4
    (wait,) = await waits_of(limiter, 1)
    assert INTERVAL - 30 < wait <= INTERVAL


async def test_a_wait_is_never_zero_seconds(store_client: Noting, store_url: str) -> None:
    limiter = RateLimiter(store_client, key_prefix="gk:", rate=SLOW, burst_seconds=BURST)
    await waits_of(limiter, 5)
    # All but half a minute of the wait is over.
    let_pass(store_url, INTERVAL - 30, "user:74")
    (wait,) = await waits_of(limiter, 1)
    assert 1 <= wait <= 30


async def test_refused_calls_are_not_counted(limiter: RateLimiter, store_url: str) -> None:
    await waits_of(limiter, 4)
    before = value(store_url, "user:74")
    assert all(await waits_of(limiter, 50))
    assert value(store_url, "user:74") == before
    let_pass(store_url, INTERVAL, "user:74")
    first, second = await waits_of(limiter, 2)
    assert (first, second > 0) == (0, True)


async def test_unused_calls_come_back_up_to_the_burst_and_not_beyond(limiter: RateLimiter, store_url: str) -> None:
    for passed, allowed in ((0.0, 4), (2 * INTERVAL, 2), (3 * INTERVAL, 3), (1000 * INTERVAL, 4)):
        let_pass(store_url, passed, "user:74")
        waits = await waits_of(limiter, 6)
        assert [wait == 0 for wait in waits] == [True] * allowed + [False] * (6 - allowed), passed


@pytest.mark.parametrize("seed", range(5))
async def test_any_history_is_that_of_the_algorithm(limiter: RateLimiter, store_url: str, seed: int) -> None:
    """Compare with the algorithm in Python. Its clock is the sum of the jumps, without the duration of the test."""
    draw, clock, due = random.Random(seed), 0.0, 0.0
    for _ in range(120):
        jump = draw.choice([0.0, 0.0, 0.3, 1.0, 1.7, 5.0]) * INTERVAL
        clock += jump
        let_pass(store_url, jump, "user:74")
        wait = await limiter.wait_seconds("user:74")
        expected = max(clock, due) + INTERVAL - clock - BURST
        # Within half a minute of the limit the duration of the test decides, so nothing is asserted.
        if expected > 30:
            assert expected - 30 < wait <= expected + 1
        elif expected < -30:
            assert wait == 0
        if wait == 0:
            due = max(clock, due) + INTERVAL


async def test_users_and_addresses_are_counted_apart(limiter: RateLimiter) -> None:
    for caller in (
        "user:74",
        "user:75",
        "user:203.0.113.9",
        "address:203.0.113.9",
        "address:74",
        "user:{74}",
        "user:*",
    ):
        assert await waits_of(limiter, 4, caller) == [0] * 4
        assert await limiter.wait_seconds(caller) > 0


async def test_an_address_has_four_times_the_rate(store_client: Noting) -> None:
    limiter = RateLimiter(store_client, key_prefix="gk:", rate=Rate(5, 1))
    waits = await asyncio.gather(*(limiter.wait_seconds("address:203.0.113.9", factor=4) for _ in range(82)))
    assert waits == [0] * 80 + [1, 1]


async def test_a_rate_below_one_call_a_burst_still_lets_one_through(store_client: Noting) -> None:
    limiter = RateLimiter(store_client, key_prefix="gk:", rate=Rate(1, 86_400))
    first, second = await waits_of(limiter, 2)
    assert (first, 86_340 < second <= 86_400) == (0, True)
    # Four users behind one address have one call each.
    waits = await waits_of(limiter, 5, "address:203.0.113.9", factor=4)
    assert [wait == 0 for wait in waits] == [True] * 4 + [False]


async def test_two_gatekeepers_share_one_limit(store_url: str) -> None:
    # the limit holds across processes
    both = [Noting(store_url) for _ in range(2)]
    limiters = [RateLimiter(store_client, key_prefix="gk:", rate=SLOW, burst_seconds=BURST) for store_client in both]
    waits = await asyncio.gather(*(limiters[number % 2].wait_seconds("user:74") for number in range(40)))
    assert sum(wait == 0 for wait in waits) == 4
    for store_client in both:
        await store_client.aclose()


async def test_a_count_leaves_by_itself(limiter: RateLimiter, store_url: str) -> None:
    await waits_of(limiter, 3)
    with redis.Redis.from_url(store_url) as client:
        remaining: Any = client.pttl("gk:rate:user:74")
    assert 0 < remaining <= 3 * INTERVAL * 1000 + 2


@pytest.mark.parametrize("garbage", ["x", "", "nan nan"])
async def test_a_garbled_count_is_a_fault_and_lets_no_call_pass(
    limiter: RateLimiter, store_url: str, garbage: str
) -> None:
    # C07
    with redis.Redis.from_url(store_url) as client:
        client.set("gk:rate:user:74", garbage)
    with pytest.raises(StoreUnavailable):
        await limiter.wait_seconds("user:74")


@pytest.mark.parametrize("reply", [None, [], [b"gk:rate:user:75", 0], 7, b"OK", [b"gk:rate:user:74"]])
async def test_a_reply_for_another_key_is_a_fault(reply: Any) -> None:
    # R19
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return reply

    limiter = RateLimiter(Odd("unix:///nowhere", timeout_seconds=1), key_prefix="gk:", rate=SLOW)
    with pytest.raises(StoreUnavailable):
        await limiter.wait_seconds("user:74")


# Together with the verdict


class Silent:
    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None: ...


def gate(store_client: StoreClient, rate: Rate | None = SLOW) -> Gate:
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=RULES)
    return Gate(
        sources=TokenSources(["header"]),
        standings=Standings(SignIns(runner), None),
        verifier=forge.verifier(StaticKeys([forge.SECRET], [], ["HS256"]), now=time.time),
        store=SessionStore(runner),
        events=Silent(),
        exempt=Exemptions(()),
        limiter=None if rate is None else RateLimiter(store_client, key_prefix="gk:", rate=rate, burst_seconds=BURST),
    )


def facts(user: str, jti: str) -> RequestFacts:
    headers = [(b"authorization", f"Bearer {token(user, jti=jti)}".encode())]
    return RequestFacts(headers=headers, query=b"", websocket=False, client=CLIENT)


async def test_a_check_and_its_limits_are_one_round_trip(store_client: Noting) -> None:
    # Rule 3.7: one round trip, also for a check that opens a session and writes its index first.
    judge = gate(store_client)
    asking = facts("74", "a")
    for _ in range(2):
        await asyncio.gather(judge.judge(asking), judge.wait_seconds("74", address="203.0.113.9"))
    opening, touching = store_client.firsts
    limits = ["gk:rate:user:74", "gk:rate:address:203.0.113.9"]
    assert sorted(opening) == sorted(["ZADD", "ZADD", "gk:{74}:sessions", *limits])
    assert "ZADD" not in opening[opening.index("gk:{74}:sessions") :]
    assert sorted(touching) == sorted(["gk:{74}:sessions", *limits])


async def test_the_longer_wait_counts_and_an_address_only_where_it_is_one_clients(store_client: Noting) -> None:
    judge = gate(store_client)
    # Sixteen calls of different users from one address; no user comes near a limit.
    for number in range(16):
        assert await judge.wait_seconds(str(number), address="203.0.113.9") == 0
    assert await judge.wait_seconds("16", address="203.0.113.9") > 0
    assert await judge.wait_seconds("17", address=None) == 0
    assert await judge.wait_seconds("18", address="203.0.113.10") == 0


async def test_without_a_limit_nothing_is_counted(store_client: Noting) -> None:
    # RATE_LIMIT=off
    judge = gate(store_client, None)
    for _ in range(300):
        assert await judge.wait_seconds("74", address="203.0.113.9") == 0
    assert store_client.batches == []

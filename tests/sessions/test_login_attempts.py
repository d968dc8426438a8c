"""Limits on failed logins (LOGIN_RATE_LIMIT): per user name and address, per name, per address (S22).

Time passes by making what was counted older, its time to live included.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.login_attempts import LoginAttempts
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.store.rate_limit import Rate
from tests.sessions.by_hand import HOUR, Hand, Noting
from tests.waiting import HANG_SECONDS

RATE = Rate(10, 900)
ADDRESS = "203.0.113.9"


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[Noting]:
    made = Noting(store_url)
    yield made
    await made.aclose()


@pytest.fixture
def attempts(store_client: Noting) -> LoginAttempts:
    return LoginAttempts(store_client, key_prefix="gk:", rate=RATE)


@pytest.fixture
def let_pass(hand: Hand) -> Callable[[float], None]:
    def older(seconds: float) -> None:
        for key in hand.names():
            until: Any = hand.redis.hget(key, "until")
            if until is not None:
                hand.redis.hset(key, "until", int(until) - round(seconds * 1e6))
            hand.redis.pexpireat(key, round((hand.leaves_at(key.decode()) - seconds) * 1e3))

    return older


async def fail(attempts: LoginAttempts, times: int, name: str | None = "ann", address: str | None = ADDRESS) -> None:
    for _ in range(times):
        await attempts.failed([name] if name else [], address)


async def waits(
    attempts: LoginAttempts, times: int, name: str | None = "ann", address: str | None = ADDRESS
) -> list[int]:
    return [await attempts.wait_seconds([name] if name else [], address) for _ in range(times)]


async def failed_tries(attempts: LoginAttempts, names: list[str], addresses: list[str]) -> list[int]:
    """Tries logins in turn, which the backend refuses, until one must wait. Returns the wait of each."""
    told = []
    for name, address in zip(names, addresses, strict=True):
        told.append(await attempts.wait_seconds([name] if name else [], address))
        if told[-1]:
            break
        await attempts.failed([name] if name else [], address)
    return told


async def test_ten_may_fail_and_no_more(attempts: LoginAttempts) -> None:
    told = await failed_tries(attempts, ["ann"] * 20, [ADDRESS] * 20)
    assert told == [0] * 10 + [1]


async def test_asking_is_free_until_ten_have_failed(attempts: LoginAttempts, hand: Hand) -> None:
    # Only failures count: who signs in a hundred times an hour is not kept out
    assert await waits(attempts, 50) == [0] * 50
    assert hand.names() == set()
    await fail(attempts, 9)
    assert await waits(attempts, 50) == [0] * 50


async def test_the_wait_doubles_from_a_second_to_a_quarter_of_an_hour(
    attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    # Section 5: `Retry-After`
    await fail(attempts, 9)
    told = []
    for _ in range(13):
        await fail(attempts, 1)
        (wait,) = await waits(attempts, 1)
        told.append(wait)
        let_pass(wait)
        assert await waits(attempts, 1) == [0], "when it is over, one may try"
    assert told == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


async def test_a_wait_is_counted_down_in_whole_seconds_and_never_to_zero(
    attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    await fail(attempts, 16)
    told = []
    for passed in (0, 30, 30, 3.5):
        let_pass(passed)
        told += await waits(attempts, 1)
    assert told == [64, 34, 4, 1]


async def test_who_is_kept_out_makes_no_wait_longer_by_asking(
    attempts: LoginAttempts, hand: Hand, let_pass: Callable[[float], None]
) -> None:
    await fail(attempts, 14)
    before = {key: hand.redis.hgetall(key) for key in hand.names()}
    leaving = {key: hand.leaves_at(key.decode()) for key in hand.names()}
    assert all(await waits(attempts, 100))
    assert {key: hand.redis.hgetall(key) for key in hand.names()} == before
    # The pair is asked first, so nothing else is asked by who waits for it.
    assert {key: hand.leaves_at(key.decode()) for key in hand.names()} == leaving
    let_pass(16)
    assert await waits(attempts, 1) == [0]


async def test_of_fifty_at_once_one_may_try_when_a_wait_is_over(
    store_url: str, attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    # Else a wait would end with a burst: from the limit on, one at a time
    other_client = StoreClient(store_url, timeout_seconds=HANG_SECONDS)
    other = LoginAttempts(other_client, key_prefix="gk:", rate=RATE)
    await fail(attempts, 15)
    for _ in range(3):
        assert all(await asyncio.gather(*(attempts.wait_seconds(["ann"], ADDRESS) for _ in range(50))))
        let_pass(32)
        told = await asyncio.gather(*((attempts, other)[n % 2].wait_seconds(["ann"], ADDRESS) for n in range(50)))
        assert sorted(told) == [0] + [32] * 49
    await other_client.aclose()


async def test_fifty_failures_at_once_all_count(attempts: LoginAttempts, hand: Hand) -> None:
    await asyncio.gather(*(attempts.failed(["ann"], ADDRESS) for _ in range(50)))
    assert {hand.redis.hget(key, "failed") for key in hand.names()} == {b"50"}
    assert await waits(attempts, 1) == [900]


async def test_counters_leave_a_window_after_the_last_failure(attempts: LoginAttempts, hand: Hand) -> None:
    for number in range(3):
        await fail(attempts, 1)
        assert len(hand.names()) == 3, number
        for key in hand.names():
            assert -5 < hand.leaves_at(key.decode()) - time.time() - 900 <= 1


async def test_counters_over_the_limit_outlive_the_wait(attempts: LoginAttempts, hand: Hand) -> None:
    # Who waits to the end must not find everything forgotten
    await fail(attempts, 25)
    (pair,) = [key.decode() for key in hand.names() if b":pair:" in key]
    assert -5 < hand.leaves_at(pair) - time.time() - 1_800 <= 1


async def test_a_wait_may_be_longer_than_the_window(store_client: Noting, let_pass: Callable[[float], None]) -> None:
    attempts = LoginAttempts(store_client, key_prefix="gk:", rate=Rate(3, 1))
    await fail(attempts, 10)
    let_pass(128)
    assert await waits(attempts, 1) == [0]
    let_pass(64)
    (wait,) = await waits(attempts, 1)
    assert 60 < wait <= 64


async def test_asking_does_not_make_counters_live_longer(
    attempts: LoginAttempts, hand: Hand, let_pass: Callable[[float], None]
) -> None:
    # "10 in 15 minutes": behind one address of a firm somebody signs in every minute, and somebody mistypes now and
    # then. What has failed long ago is forgotten all the same.
    await fail(attempts, 9)
    for _ in range(20):
        let_pass(60)
        assert await waits(attempts, 1) == [0]
        await attempts.succeeded(["bob"], ADDRESS)
    assert hand.names() == set()
    assert await waits(attempts, 1) == [0]


async def test_failures_far_below_the_rate_never_add_up(
    attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    # "10 in 15 minutes", and a hundred an address: one in eight minutes is neither, however long it goes on. It is what
    # comes of a firm behind one address, or of a device that still has the old password.
    for number in range(120):
        assert await waits(attempts, 1) == [0], f"after {number} failures in {number * 8} minutes"
        await attempts.failed(["ann"], ADDRESS)
        let_pass(480)


async def test_after_a_window_without_a_failure_all_is_forgotten(
    attempts: LoginAttempts, hand: Hand, let_pass: Callable[[float], None]
) -> None:
    await fail(attempts, 10)
    let_pass(902)
    assert hand.names() == set()
    assert await waits(attempts, 5) == [0] * 5


async def test_a_success_forgets_the_pair_and_nothing_else(attempts: LoginAttempts, hand: Hand) -> None:
    # Who has an account must not clear the way to somebody else's by signing in to it between two guesses
    await fail(attempts, 12)
    await attempts.succeeded(["ann"], ADDRESS)
    assert await waits(attempts, 3) == [0] * 3
    assert sorted(key.split(b":")[2] for key in hand.names()) == [b"address", b"name"]
    assert {hand.redis.hget(key, "failed") for key in hand.names()} == {b"12"}


async def test_a_success_under_another_name_or_from_elsewhere_forgets_nothing(attempts: LoginAttempts) -> None:
    await fail(attempts, 12)
    await attempts.succeeded(["bob"], ADDRESS)
    await attempts.succeeded(["ann"], "203.0.113.10")
    await attempts.succeeded(["ann"], None)
    await attempts.succeeded([], ADDRESS)
    assert all(await waits(attempts, 1))


async def test_a_name_may_fail_ten_times_as_often_from_many_addresses(attempts: LoginAttempts) -> None:
    # S22: rotating addresses
    addresses = [f"203.0.113.{number // 9}" for number in range(200)]
    told = await failed_tries(attempts, ["ann"] * 200, addresses)
    assert told == [0] * 100 + [1]
    assert await waits(attempts, 1, "bob", "203.0.113.0") == [0]


async def test_an_address_may_fail_ten_times_as_often_under_many_names(attempts: LoginAttempts) -> None:
    # S22: one password for many names
    names = [f"user{number // 9}" for number in range(200)]
    told = await failed_tries(attempts, names, [ADDRESS] * 200)
    assert told == [0] * 100 + [1]
    assert await waits(attempts, 1, "user0", "203.0.113.10") == [0]
    assert await waits(attempts, 1, "never seen") != [0]


async def test_where_addresses_tell_nothing_only_names_are_counted(attempts: LoginAttempts, hand: Hand) -> None:
    # Section 5: address limits are off behind a proxy that is not named
    told = await failed_tries(attempts, ["ann"] * 20, [None] * 20)  # type: ignore[list-item]
    assert told == [0] * 10 + [1]
    assert sorted(key.split(b":")[2] for key in hand.names()) == [b"name", b"pair"]
    assert await waits(attempts, 1, "bob", None) == [0]


async def test_where_no_name_can_be_read_only_the_address_is_counted(attempts: LoginAttempts, hand: Hand) -> None:
    await fail(attempts, 100, None)
    assert [key.split(b":")[2] for key in hand.names()] == [b"address"]
    assert all(await waits(attempts, 1, None))
    assert all(await waits(attempts, 1, "ann"))
    await attempts.succeeded([], ADDRESS)
    assert all(await waits(attempts, 1, None))


async def test_where_nothing_is_known_nothing_is_counted(attempts: LoginAttempts, hand: Hand) -> None:
    await fail(attempts, 200, None, None)
    await attempts.succeeded([], None)
    assert await waits(attempts, 3, None, None) == [0] * 3
    assert hand.names() == set()


async def test_no_key_shows_a_name(attempts: LoginAttempts, hand: Hand) -> None:
    # What people type as a user name may be their password; and no name is a part of a key, whatever is in it
    names = ["hunter2", "a:b", "{x}", "*", "ann\r\nFLUSHALL", "é", "\ud800", "x" * 100_000, "", "\0", "a\0b"]
    for name in names:
        await attempts.failed([name], ADDRESS)
    found = sorted(hand.names())
    assert len(found) == 2 * len(names) + 1
    for key in found:
        assert key == b"gk:login:address:203.0.113.9" or len(key) == len("gk:login:pair:") + 32
    assert not any(name.encode("utf-8", "surrogatepass") in b" ".join(found) for name in names if len(name) > 4)
    assert f"gk:login:name:{sha256(b'hunter2').hexdigest()[:32]}".encode() in found


async def test_no_two_pairs_share_a_counter(attempts: LoginAttempts) -> None:
    await fail(attempts, 12, "a", "b:c")
    assert await waits(attempts, 1, "a:b", "c") == [0]
    await fail(attempts, 12, "a\0b", "c")
    assert await waits(attempts, 1, "a", "b") == [0]


async def test_names_that_differ_share_nothing(attempts: LoginAttempts) -> None:
    # Case is the caller's: it has the name lower-cased
    await fail(attempts, 12, "ann", None)
    assert await waits(attempts, 1, "Ann", None) == [0]


async def test_who_is_kept_out_by_name_and_address_uses_up_no_turn_of_others(
    attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    # Somebody hammers at the door, at an address that may try one at a time because of that
    for number in range(10):
        await fail(attempts, 8, f"user{number}")
    await fail(attempts, 20)
    let_pass(2)
    assert all(await waits(attempts, 20))
    assert await waits(attempts, 2, "bob") == [0, 1]


async def test_a_login_is_asked_about_one_counter_after_another(attempts: LoginAttempts, store_client: Noting) -> None:
    await fail(attempts, 10)
    store_client.batches.clear()
    assert await waits(attempts, 1) == [1]
    [[[key, ask, limit, window]]] = store_client.batches
    assert (key.split(":")[2], ask, float(limit), int(window)) == ("pair", "ask", 10.0, 900_000_000)
    store_client.batches.clear()
    await fail(attempts, 1)
    [failures] = store_client.batches
    assert [(words[0].split(":")[2], words[1], float(words[2])) for words in failures] == [
        ("pair", "fail", 10.0), ("name", "fail", 100.0), ("address", "fail", 100.0),
    ]  # fmt: skip


async def test_what_is_over_the_limit_is_forgotten_although_others_go_on_signing_in(
    attempts: LoginAttempts, let_pass: Callable[[float], None]
) -> None:
    # A firm behind one address from which somebody guessed: its people must not wait for one another for ever after,
    # only because one of them signs in now and then
    for number in range(11):
        await fail(attempts, 10, f"user{number}")
    for _ in range(4):
        let_pass(900)
        assert await waits(attempts, 1, "bob") == [0]
        await attempts.succeeded(["bob"], ADDRESS)
    assert await waits(attempts, 10, "bob") == [0] * 10


async def test_of_one_name_256_may_be_in_progress_in_a_process(attempts: LoginAttempts) -> None:
    # The first of very many at once are all let through, for none has failed yet: so that is bounded
    running = [attempts.in_progress(["ann"]) for _ in range(256)]
    for number, each in enumerate(running):
        assert await attempts.wait_seconds(["ann"], None) == 0, number
        each.__enter__()
    assert await waits(attempts, 2) == [1, 1]
    assert await waits(attempts, 1, "bob") == [0]
    assert await waits(attempts, 1, None) == [0]
    running.pop().__exit__(None, None, None)
    assert await waits(attempts, 1) == [0]
    for each in running:
        each.__exit__(None, None, None)
    assert not attempts._in_progress


async def test_of_300_at_once_256_are_in_progress(attempts: LoginAttempts) -> None:
    # Who is being asked about is under way too, else all of them would be asked about before the first one is
    told, all_told, may_end = Counter[int](), asyncio.Event(), asyncio.Event()

    async def log_in() -> None:
        wait = await attempts.wait_seconds(["ann"], ADDRESS)
        told[wait] += 1
        if told.total() == 300:
            all_told.set()
        if not wait:
            with attempts.in_progress(["ann"]):
                await may_end.wait()

    running = [asyncio.create_task(log_in()) for _ in range(300)]
    await all_told.wait()
    assert told == {0: 256, 1: 44}
    may_end.set()
    await asyncio.wait(running)
    assert not attempts._in_progress


async def test_a_request_with_several_names_counts_for_each(attempts: LoginAttempts, hand: Hand) -> None:
    # S22: a user name and an e-mail address, say. Which of them counts is for the backend to know.
    both = ["ann", "ann@example.com"]
    for _ in range(10):
        assert await attempts.wait_seconds(both, ADDRESS) == 0
        await attempts.failed(both, ADDRESS)
    assert await attempts.wait_seconds(both, ADDRESS) == 1
    for name in both:
        assert await waits(attempts, 1, name) == [1]
    assert Counter(key.split(b":")[2] for key in hand.names()) == {b"pair": 2, b"name": 2, b"address": 1}
    assert {hand.redis.hget(key, "failed") for key in hand.names()} == {b"10"}


async def test_a_success_with_several_names_forgets_nothing(attempts: LoginAttempts, hand: Hand) -> None:
    # Who has an account could name the one at which he guesses beside it
    await fail(attempts, 12, "victim")
    await attempts.succeeded(["victim", "attacker"], ADDRESS)
    await attempts.succeeded(["attacker", "victim"], ADDRESS)
    assert all(await waits(attempts, 1, "victim"))
    assert {hand.redis.hget(key, "failed") for key in hand.names()} == {b"12"}


async def test_several_names_are_in_progress_together(attempts: LoginAttempts) -> None:
    with attempts.in_progress(["a", "b"]), attempts.in_progress(["b"]):
        assert attempts._in_progress == {"a": 1, "b": 2}
    with attempts.in_progress(["a", "a"]):
        pass
    assert not attempts._in_progress


async def test_a_login_that_breaks_off_is_not_in_progress(attempts: LoginAttempts) -> None:
    async def login() -> None:
        with attempts.in_progress(["ann"]):
            await asyncio.sleep(HOUR)

    running = asyncio.create_task(login())
    await asyncio.sleep(0)
    assert attempts._in_progress == {"ann": 1}
    running.cancel()
    await asyncio.wait([running])
    assert not attempts._in_progress
    with attempts.in_progress([]):
        assert not attempts._in_progress


@pytest.mark.parametrize(("rate", "allowed"), [(Rate(1, 60), 1), (Rate(3, 1), 3)])
async def test_any_rate_does(store_client: Noting, rate: Rate, allowed: int) -> None:
    attempts = LoginAttempts(store_client, key_prefix="gk:", rate=rate)
    told = await failed_tries(attempts, ["ann"] * 20, [ADDRESS] * 20)
    assert told == [0] * allowed + [1]
    assert repr(attempts) == f"<LoginAttempts {rate.number:g} in {rate.seconds:g} s>"


@pytest.mark.parametrize("reply", [None, 7, b"OK", [], [b"K"], [b"K", 0, 0], [b"other", 0], [b"K", None], [b"K", b"x"]])
async def test_an_answer_of_the_wrong_shape_is_a_fault(reply: Any) -> None:
    # R19, C07
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return [command.key if part == b"K" else part for part in reply] if isinstance(reply, list) else reply

    odd = Odd("unix:///nowhere", timeout_seconds=1)
    attempts = LoginAttempts(odd, key_prefix="gk:", rate=RATE)
    for question in (attempts.wait_seconds, attempts.failed, attempts.succeeded):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(question(["ann"], ADDRESS), HOUR)


@pytest.mark.parametrize("kind", ["string", "garbage"])
async def test_a_counter_that_is_not_ours_lets_nobody_in(attempts: LoginAttempts, hand: Hand, kind: str) -> None:
    # C07
    await fail(attempts, 1)
    for key in hand.names():
        if kind == "string":
            hand.redis.set(key, "x")
        else:
            hand.redis.hset(key, "failed", "x")
    with pytest.raises(StoreUnavailable):
        await attempts.wait_seconds(["ann"], ADDRESS)
    with pytest.raises(StoreUnavailable):
        await attempts.failed(["ann"], ADDRESS)

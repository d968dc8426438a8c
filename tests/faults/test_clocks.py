"""The store's clock is wrong, or this host's: nothing ends on that account, nothing lives again, and nobody waits an
hour for a second's mistake (rule 4.14)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import time_machine

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.housekeeping import Housekeeping
from gatekeeper.sessions.login_attempts import LoginAttempts
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.epoch import Epoch
from gatekeeper.store.rate_limit import Rate, RateLimiter
from tests.conftest import RULES
from tests.faults.shifted import ShiftedClock
from tests.sessions.by_hand import CLIENT, DAY, DUE, HOUR, Door, Hand, token
from tests.system.sidecar import Store, external_store

MINUTE = 60.0
AHEAD, BEHIND = HOUR, -HOUR


class Clock:
    """The clock of the store."""

    def __init__(self, clock: ShiftedClock, store: Store) -> None:
        self._clock, self._store = clock, store

    def shift(self, seconds: float) -> None:
        self._clock.shift_store(self._store.client, seconds)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ShiftedClock, Store]]:
    clock = ShiftedClock(tmp_path_factory.mktemp("clock"))
    with external_store(environment=clock.environment) as store:
        yield clock, store


@pytest.fixture
def clock(shifted: tuple[ShiftedClock, Store]) -> Clock:
    clock = Clock(*shifted)
    clock.shift(0)
    return clock


@pytest.fixture
def url(shifted: tuple[ShiftedClock, Store], clock: Clock) -> str:
    """An empty store whose clock is right until it is shifted."""
    _, store = shifted
    store.client.flushall()
    return store.url


@pytest.fixture
async def client(url: str) -> AsyncIterator[StoreClient]:
    made = StoreClient(url, timeout_seconds=10)
    yield made
    await made.aclose()


@pytest.fixture
def hand(url: str) -> Iterator[Hand]:
    with Hand(url) as made:
        yield made


def door_of(client: StoreClient, **rules: object) -> Door:
    made = ScriptRunner(client, key_prefix="gk:", rules=msgspec.structs.replace(RULES, **rules))
    return Door(SessionStore(made))


@pytest.fixture
def door(client: StoreClient) -> Door:
    return door_of(client)


class Held:
    """Expects that no verdict is reached, because the clocks disagree."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        assert isinstance(error, StoreUnavailable), "a session was judged while the clocks disagreed"
        assert error.kind == "clock"
        return True


# The clock jumps ahead


async def test_a_second_an_hour_ahead_ends_no_session(door: Door, clock: Clock, hand: Hand) -> None:
    _, known = await door.check("known")
    await door.log_in("unknown here", refresh="r")
    clock.shift(AHEAD)
    # The first request after the jump is none too early, nor is the one of a process that never saw the token.
    with Held():
        await door.check("known")
    with Held():
        await door.check("unknown here")
    clock.shift(0)
    assert await door.check("known") == ("touched", known)
    assert (await door.check("unknown here"))[0] == "touched"
    assert hand.records() == hand.indexed_live() == 2


@pytest.mark.parametrize("shift", [AHEAD, BEHIND, 30 * DAY])
async def test_every_other_request_is_judged_as_ever(door: Door, clock: Clock, shift: float) -> None:
    assert (await door.check("old"))[0] == "opened"
    assert await door.store.log_out(token("over"), CLIENT) is None
    clock.shift(shift)
    # Opens, is admitted again, is listed, and ends.
    outcome, new = await door.check("new")
    assert outcome == "opened"
    assert await door.check("new") == ("touched", new)
    assert "new" in await door.live()
    assert await door.store.end("74", new, EndReason.REVOKED_BY_USER) is not None
    assert (await door.check("new"))[0] == "ended"
    if shift < DAY:
        assert (await door.check("over"))[0] == "ended"
    # Who signs in keeps the session when the clock is right again.
    kept = (await door.log_in("kept")).session_id
    clock.shift(0)
    assert await door.check("kept") == ("touched", kept)


async def test_a_session_that_would_have_ended_can_be_ended(door: Door, clock: Clock) -> None:
    for reference in ("a", "b", "c"):
        assert (await door.check(reference))[0] == "opened"
    [third, second, _] = await door.store.sessions("74")
    clock.shift(AHEAD)
    assert await door.store.log_out(token(third.reference), CLIENT) == third.id
    assert await door.store.end("74", second.id, EndReason.DEACTIVATED) is not None
    assert await door.store.end_all("74", EndReason.REVOKED_BY_USER) == 1
    # An acknowledged end is a refusal at once, never "try again".
    for reference, reason in (
        (third.reference, EndReason.LOGGED_OUT),
        (second.reference, EndReason.DEACTIVATED),
        ("a", EndReason.REVOKED_BY_USER),
    ):
        assert await door.reason(reference) is reason


async def test_the_device_limit_counts_and_evicts_as_ever(door: Door, clock: Clock) -> None:
    for reference in ("a", "b", "c"):
        await door.check(reference)
    clock.shift(AHEAD)
    assert (await door.check("d"))[0] == "opened"
    clock.shift(0)
    assert await door.reason("a") is EndReason.EVICTED
    assert await door.live() == {"b", "c", "d"}


async def test_refresh_tokens_wait_too(door: Door, clock: Clock) -> None:
    signed_in = await door.log_in("a", refresh="r1")
    assert (await door.rotate("r1", "r2")).outcome == "rotated"
    clock.shift(AHEAD)
    for question in (
        door.word("r2"),
        door.rotate("r2", "r3"),
        # A client that lost the response within the window is no thief.
        door.rotate("r1", "r3"),
        door.refreshed("b", linked=signed_in.session_id),
        door.log_in("a"),
    ):
        with Held():
            await question
    clock.shift(0)
    assert (await door.rotate("r1", "r3")).outcome == "repeated"
    assert (await door.rotate("r2", "r3")).outcome == "rotated"


async def test_a_pair_is_repeated_within_its_window_whatever_the_clock_was_meanwhile(
    client: StoreClient, clock: Clock
) -> None:
    door = door_of(client, idle_seconds=None)
    await door.log_in("a", refresh="r1")
    assert (await door.rotate("r1", "r2")).outcome == "rotated"
    clock.shift(AHEAD)
    assert (await door.rotate("r1", "r3")).outcome == "repeated"
    clock.shift(0)
    assert (await door.rotate("r1", "r3")).outcome == "repeated"


async def test_housekeeping_pauses_and_goes_on_afterwards(door: Door, clock: Clock, hand: Hand) -> None:
    users = [str(number) for number in range(150)]
    for user in users:
        await door.store.check(token("t", user), CLIENT)
    hand.redis.zadd(DUE, dict.fromkeys(users, 0))
    clock.shift(AHEAD)
    housekeeping = Housekeeping(door.store, door.store._runner.outbox)
    for step in (housekeeping.step(), door.store.clean_up()):
        with Held():
            await step
    # A jump in the middle: users are claimed by then.
    clock.shift(0)
    running = asyncio.create_task(door.store.settle_due(100))
    for _ in range(50):
        await asyncio.sleep(0)
    clock.shift(AHEAD)
    await asyncio.gather(running, return_exceptions=True)
    clock.shift(0)
    assert sum(hand.indexed_live(user) for user in users) == len(users)
    # Nobody is forgotten: whom the jump interrupted is looked at again.
    assert sum(hand.redis.zcard(name) for name in (DUE, "gk:cleanable")) >= len(users)
    for user in users:
        hand.let_pass(HOUR, user)
    waiting: Any = hand.redis.zrange("gk:cleanable", 0, -1)
    for user in waiting:
        hand.redis.zadd("gk:cleanable", {user: 1})
    while await door.store.settle_due(100) >= 100:
        pass
    assert sum(hand.indexed_live(user) for user in users) == 0


async def test_an_open_stream_goes_on(door: Door, clock: Clock) -> None:
    _, session = await door.check("a")
    clock.shift(AHEAD)
    [state] = await door.store.session_states("74", {session: 0.1})
    assert state.end_reason is None
    # It is not asked about in a busy loop.
    assert state.seconds_left > 1
    clock.shift(0)
    assert await door.check("a") == ("touched", session)


# What an ended session must not gain


async def test_what_has_ended_is_not_forgotten_before_its_tokens_expire(
    client: StoreClient, clock: Clock, hand: Hand
) -> None:
    door = door_of(client, ended_seconds=1)
    over = token("over", expires_in=10 * MINUTE)
    assert (await door.store.check(over, CLIENT)).outcome == "opened"
    await door.store.log_out(over, CLIENT)
    clock.shift(AHEAD)
    await door.store.sessions("74", include_inactive=True)
    # Another session of the same user, whose opening sweeps.
    assert (await door.check("other"))[0] == "opened"
    clock.shift(0)
    assert (await door.store.check(over, CLIENT)).outcome == "ended"


async def test_a_user_with_nothing_but_ended_sessions_is_not_forgotten(client: StoreClient, clock: Clock) -> None:
    door = door_of(client, ended_seconds=1, session_seconds=1)
    over = token("over", expires_in=10 * MINUTE)
    await door.store.log_out(over, CLIENT)
    clock.shift(AHEAD)
    assert (await door.store.check(over, CLIENT)).outcome == "ended"
    clock.shift(0)
    assert (await door.store.check(over, CLIENT)).outcome == "ended"


async def test_a_jump_of_days_at_which_the_store_deletes_what_expires_is_a_loss_of_data(
    client: StoreClient, clock: Clock
) -> None:
    epoch = Epoch(client, key_prefix="gk:")
    runner = ScriptRunner(client, key_prefix="gk:", rules=RULES, epoch=epoch)
    door = Door(SessionStore(runner))
    await epoch.beat()
    over = token("over")
    await door.store.check(over, CLIENT)
    await door.store.log_out(over, CLIENT)
    clock.shift(30 * DAY)
    await epoch.beat()
    # Looks at the keys, which the store deletes in time or when they are looked at.
    assert await door.live() == set()
    clock.shift(0)
    await epoch.beat()
    # It ended lately, so its end was repeated (rule 4.13); else it would be unknown.
    assert (await door.store.check(over, CLIENT)).outcome in {"ended", "unknown"}
    # Tokens that are issued later open sessions, and not only in thirty days.
    later = token("later", issued_ago=-1)
    assert (await door.store.check(later, CLIENT)).outcome == "opened"


async def test_a_loss_of_data_under_a_wrong_clock_refuses_no_token_that_is_issued_later(
    client: StoreClient, clock: Clock, hand: Hand
) -> None:
    epoch = Epoch(client, key_prefix="gk:")
    await epoch.beat()
    clock.shift(AHEAD)
    hand.redis.flushall()
    await epoch.beat()
    assert abs(epoch.adopt_not_before / 1e6 - time.time()) < 10 * MINUTE


@pytest.mark.parametrize("shift", [AHEAD, BEHIND])
async def test_after_an_end_of_all_newer_tokens_open_sessions_and_older_ones_do_not(
    door: Door, clock: Clock, shift: float
) -> None:
    assert (await door.check("live"))[0] == "opened"
    clock.shift(shift)
    # A session that is touched now has activity of that clock.
    await door.check("new")
    await door.store.end_all("74", EndReason.REVOKED_BY_USER)
    clock.shift(0)
    assert [await door.reason(each) for each in ("live", "new")] == [EndReason.REVOKED_BY_USER] * 2
    assert (await door.check("older, never seen", issued_ago=30))[0] == "unknown"
    assert (await door.check("newer", issued_ago=-2))[0] == "opened"
    assert (await door.check("newer", issued_ago=-2))[0] == "touched"
    # The next end of all still takes it.
    assert await door.store.end_all("74", EndReason.REVOKED_BY_ADMIN) == 1
    assert (await door.check("newer", issued_ago=-2))[0] == "ended"


# The clock is behind


async def test_nothing_is_admitted_past_its_end_because_the_stores_clock_is_behind(
    door: Door, clock: Clock, hand: Hand
) -> None:
    _, idle = await door.check("idle")
    hand.let_pass(31 * MINUTE)
    await door.check("fresh")
    clock.shift(BEHIND)
    with Held():
        await door.check("idle")
    assert (await door.check("fresh"))[0] == "touched"
    clock.shift(0)
    assert await door.reason("idle") is EndReason.IDLE
    assert idle


async def test_nothing_outlives_its_time_because_the_stores_clock_is_behind(
    client: StoreClient, clock: Clock, hand: Hand
) -> None:
    door = door_of(client, idle_seconds=None, session_seconds=HOUR)
    await door.check("a", expires_in=DAY)
    hand.let_pass(HOUR - MINUTE)
    await door.check("a", expires_in=DAY)
    hand.let_pass(2 * MINUTE)
    clock.shift(BEHIND)
    with Held():
        await door.check("a", expires_in=DAY)


async def test_activity_under_a_clock_that_is_behind_counts_once_it_is_right(
    door: Door, clock: Clock, hand: Hand
) -> None:
    _, session = await door.check("active")
    hand.let_pass(20 * MINUTE)
    clock.shift(BEHIND)
    assert await door.check("active") == ("touched", session)
    _, opened = await door.check("opened meanwhile")
    clock.shift(0)
    hand.let_pass(20 * MINUTE)
    assert await door.check("active") == ("touched", session)
    assert await door.check("opened meanwhile") == ("touched", opened)


async def test_activity_grows_strictly_and_creation_is_never_later_than_the_truth_by_a_jump_back(
    door: Door, clock: Clock
) -> None:
    await door.check("a")
    seen = []
    for shift in (0, BEHIND, 0, 30, 0, -30, AHEAD):
        clock.shift(shift)
        if shift == AHEAD:
            with Held():
                await door.check("a")
        else:
            await door.check("a")
        [session] = await door.store.sessions("74")
        seen.append((session.last_activity, session.created_at))
    # The last question was held, and moved nothing.
    assert all(later > earlier for (earlier, _), (later, _) in pairwise(seen[:-1]))
    assert len({created for _, created in seen}) == 1


async def test_clocks_that_differ_by_less_than_a_minute_are_clocks_that_agree(
    door: Door, clock: Clock, hand: Hand
) -> None:
    await door.check("a")
    hand.let_pass(29 * MINUTE + 30)
    clock.shift(50)
    assert await door.reason("a") is EndReason.IDLE


async def test_the_leeway_for_tokens_is_the_tolerance_where_it_is_longer(
    client: StoreClient, clock: Clock, hand: Hand
) -> None:
    door = door_of(client, leeway_seconds=300)
    await door.check("a")
    await door.check("b")
    hand.let_pass(29 * MINUTE)
    clock.shift(200)
    assert await door.reason("a") is EndReason.IDLE
    clock.shift(400)
    with Held():
        await door.check("b")


# This host's clock


@pytest.mark.parametrize("shift", [AHEAD, BEHIND])
async def test_a_host_whose_clock_is_wrong_ends_nothing_and_admits_what_the_others_do(
    door: Door, clock: Clock, hand: Hand, shift: float
) -> None:
    _, active = await door.check("active", expires_in=DAY)
    _, idle = await door.check("idle", expires_in=DAY)
    hand.let_pass(31 * MINUTE, only=idle)
    with time_machine.travel(time.time() + shift, tick=True):
        assert await door.check("active", expires_in=DAY) == ("touched", active)
        with Held():
            await door.check("idle", expires_in=DAY)
        assert (await door.check("new"))[0] == "opened"
        assert (await door.check("new"))[0] == "touched"
    assert await door.check("active", expires_in=DAY) == ("touched", active)
    assert await door.reason("idle") is EndReason.IDLE
    # Its requests wrote no activity that is still to come.
    [session] = [each for each in await door.store.sessions("74") if each.id == active]
    assert session.last_activity / 1e6 < time.time() + MINUTE


# Limits


async def test_nobody_waits_an_hour_because_the_clock_was_ahead_for_a_second(client: StoreClient, clock: Clock) -> None:
    limiter = RateLimiter(client, key_prefix="gk:", rate=Rate(1, 2), burst_seconds=4)
    attempts = LoginAttempts(client, key_prefix="gk:", rate=Rate(2, 900))
    clock.shift(AHEAD)
    while not await limiter.wait_seconds("user:74"):
        pass
    for _ in range(3):
        await attempts.failed(["mia"], None)
    assert 0 < await attempts.wait_seconds(["mia"], None) <= 2
    clock.shift(0)
    # It still waits, and no longer than it would have.
    assert 0 < await limiter.wait_seconds("user:74") <= 2
    assert 0 < await attempts.wait_seconds(["mia"], None) <= 2

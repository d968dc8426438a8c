"""A clean-up hides ended sessions from the lists (C-08, rule 4.7). Indexes only name the users to look at."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, DAY, DUE, HOUR, Hand, Noting, token

IDLE = 1_800.0


async def opened(store: SessionStore, *references: str, user: str = "74", **options: Any) -> list[int]:
    checks = (store.check(token(reference, user), CLIENT, **options) for reference in references)
    return [checked.session_id for checked in await asyncio.gather(*checks)]


async def shown(store: SessionStore, user: str = "74") -> set[int]:
    return {session.id for session in await store.sessions(user, include_inactive=True)}


async def test_the_idle_and_the_expired_of_all_users_are_counted_and_no_live_one(
    make_store: MakeStore, hand: Hand
) -> None:
    # C-08: 300 users, a third of them idle, a third expired, a third live
    store = make_store(idle_seconds=IDLE, session_seconds=DAY)
    users = [f"user {number}" for number in range(300)]
    await asyncio.gather(*(opened(store, "a", "b", user=user) for user in users))
    for number, user in enumerate(users):
        if number % 3 < 2:
            hand.let_pass((IDLE, DAY)[number % 3], user)
    assert await store.clean_up() == 400
    # Each is hidden once, and live sessions stay live.
    assert await store.clean_up() == 0
    for number, user in enumerate(users):
        assert len(await shown(store, user)) == (2 if number % 3 == 2 else 0)
    hand.let_pass(IDLE, users[2])
    assert await store.clean_up() == 2


async def test_what_was_cleaned_up_is_refused_as_before(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.3: out of every list, and never alive again
    store = make_store(idle_seconds=IDLE, session_seconds=DAY)
    await opened(store, "idle")
    hand.let_pass(IDLE)
    assert await store.clean_up() == 1
    assert await shown(store) == set()
    for _ in range(2):
        assert (await store.check(token("idle"), CLIENT)).end_reason is EndReason.IDLE
    assert await store.clean_up() == 0


async def test_one_that_a_list_had_already_found_idle_is_counted_too(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    await opened(store, "a", "b")
    hand.let_pass(IDLE)
    assert len(await shown(store)) == 2
    assert await store.clean_up() == 2
    assert await shown(store) == set()


async def test_other_ends_are_left_as_they_are(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.7: idle or expired, and nothing else
    store = make_store(device_limit=4, idle_seconds=IDLE)
    deactivated, revoked = await opened(store, "a", "b")
    await opened(store, "c", "d")
    await store.end("74", deactivated, EndReason.DEACTIVATED)
    await store.end("74", revoked, EndReason.REVOKED_BY_USER)
    await store.log_out(token("c"), CLIENT)
    before = await shown(store)
    hand.let_pass(IDLE)
    assert await store.clean_up() == 1
    assert {session.end_reason for session in await store.sessions("74", include_inactive=True)} == {
        EndReason.DEACTIVATED,
        EndReason.LOGGED_OUT,
    }
    assert len(before) == 3


async def test_sessions_that_an_end_of_all_took_are_not_counted(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.4: they are out of the lists already, whether or not anybody has touched their records since
    store = make_store(idle_seconds=IDLE)
    await opened(store, "a", "b")
    await store.end_all("74", EndReason.REVOKED_BY_USER)
    hand.let_pass(DAY)
    assert await store.clean_up() == 0


async def test_an_exempt_session_is_never_idle_and_leaves_when_it_has_expired(
    make_store: MakeStore, hand: Hand
) -> None:
    store = make_store(idle_seconds=IDLE, session_seconds=DAY)
    await opened(store, "service", exempt=True)
    hand.let_pass(IDLE)
    assert await store.clean_up() == 0
    hand.let_pass(DAY - IDLE)
    assert await store.clean_up() == 1


async def test_without_an_idle_time_out_the_absolute_life_is_what_is_due(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=None, session_seconds=DAY)
    await opened(store, "a")
    hand.let_pass(DAY - HOUR)
    assert await store.clean_up() == 0
    hand.let_pass(HOUR)
    assert await store.clean_up() == 1


async def test_what_may_be_forgotten_is(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.7: the record and its reference, once no token of it can come any more
    store = make_store(idle_seconds=IDLE, ended_seconds=HOUR)
    await opened(store, "a")
    hand.let_pass(IDLE)
    assert await store.clean_up() == 1
    await store.check(token("b"), CLIENT)
    hand.let_pass(2 * HOUR)
    assert await store.clean_up() == 1
    assert (hand.records(), hand.references()) == (1, 1)


# The hints


async def test_the_hint_is_written_before_the_record_and_in_the_same_round_trip(store_url: str, hand: Hand) -> None:
    # Rule 4.2: an index is written before the record
    store_client = Noting(store_url)
    store = SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=RULES))
    before = time.time()
    await store.check(token("a"), CLIENT)
    assert store_client.firsts == [["ZADD", "ZADD", "gk:{74}:sessions"]]
    assert before + IDLE - 1 <= hand.hint() <= time.time() + IDLE
    # Only an opening needs one.
    await store.check(token("a"), CLIENT)
    assert store_client.firsts[1:] == [["gk:{74}:sessions"]]
    await store_client.aclose()


async def test_an_earlier_hint_is_not_put_off_by_a_later_session(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    await opened(store, "a")
    hand.let_pass(IDLE - 60)
    hint = hand.hint()
    await opened(store, "b")
    assert hand.hint() == hint
    hand.let_pass(60)
    assert await store.clean_up() == 1


async def test_a_user_who_was_active_since_stays_and_is_looked_at_again_in_time(
    make_store: MakeStore, hand: Hand
) -> None:
    store = make_store(idle_seconds=IDLE)
    (session,) = await opened(store, "a")
    hand.let_pass(IDLE - 60)
    await store.check(token("a"), CLIENT)
    hand.let_pass(60)
    # The hint of the opening is due, the session is not.
    assert hand.hint() <= time.time()
    assert await store.clean_up() == 0
    assert await shown(store) == {session}
    assert hand.hint() > time.time()
    hand.let_pass(IDLE - 60)
    assert await store.clean_up() == 1


async def test_a_lost_hint_only_means_that_the_user_is_not_found(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    await opened(store, "a", "b")
    hand.redis.delete(DUE)
    hand.let_pass(IDLE)
    assert await store.clean_up() == 0
    assert await store.sessions("74") == []
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE
    # The next opening leaves a new one, by which the old ones are found too.
    await opened(store, "c")
    hand.let_pass(IDLE)
    assert await store.clean_up() == 3


async def test_a_hint_without_a_user_is_taken_away(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    hand.redis.zadd(DUE, {b"nobody": 1, b"\xff\xfe": 2, b"": 3, b"{}": 4, b"*": 5, b"x" * 10_000: 6})
    assert await store.clean_up() == 0
    assert hand.names() == set()


async def test_hints_of_another_type_are_a_fault(make_store: MakeStore, hand: Hand) -> None:
    # C07
    hand.redis.set(DUE, "x")
    store = make_store()
    with pytest.raises(StoreUnavailable) as caught:
        await store.clean_up()
    assert caught.value.kind == "refused"


async def test_a_garbled_user_is_in_the_way_of_nobody_the_next_time(make_store: MakeStore, hand: Hand) -> None:
    # C07: "progress safe to repeat", A06
    store = make_store(idle_seconds=IDLE)
    for user in ("73", "74", "75"):
        await opened(store, "a", user=user)
        hand.let_pass(IDLE, user)
    hand.redis.set(hand.keys("74")[0], "x")
    with pytest.raises(StoreUnavailable):
        await store.clean_up()
    assert await store.clean_up() == 0
    for user in ("73", "75"):
        assert await shown(store, user) == set()


async def test_two_that_clean_up_at_once_count_every_session_once(make_store: MakeStore, hand: Hand) -> None:
    one, other = make_store(idle_seconds=IDLE), make_store(idle_seconds=IDLE)
    users = [f"user {number}" for number in range(150)]
    await asyncio.gather(*(opened(one, "a", "b", user=user) for user in users))
    for user in users:
        hand.let_pass(IDLE, user)
    assert sum(await asyncio.gather(one.clean_up(), other.clean_up(), one.clean_up())) == 300


async def test_it_comes_to_an_end_where_the_stores_clock_is_behind(
    make_store: MakeStore, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes every user due by this host's clock and none by the store's, and more of them than one step looks at."""
    store = make_store(idle_seconds=IDLE)
    await asyncio.gather(*(opened(store, "a", user=f"user {number}") for number in range(150)))
    real = time.time
    monkeypatch.setattr("gatekeeper.sessions.store.time", SimpleNamespace(time=lambda: real() + DAY))
    assert await store.clean_up() == 0
    assert hand.redis.zcard(DUE) == 150


@pytest.mark.slow
async def test_all_of_a_user_with_thousands_of_sessions_are_found_in_one_call(
    make_store: MakeStore, hand: Hand
) -> None:
    # S28: a step of a script is bounded, a clean-up is not
    store = make_store(device_limit=None, idle_seconds=IDLE, session_seconds=DAY)
    await opened(store, *(f"old {number}" for number in range(1_300)))
    hand.let_pass(IDLE)
    live = set(await opened(store, *(f"new {number}" for number in range(1_300))))
    assert await store.clean_up() == 1_300
    assert await store.clean_up() == 0
    assert hand.indexed_live() == len(live)


@pytest.mark.slow
async def test_expired_ones_behind_a_thousand_live_ones_are_found(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(device_limit=None, idle_seconds=None, session_seconds=DAY)
    first = await opened(store, *(f"old {number}" for number in range(200)))
    hand.let_pass(DAY - 60)
    await opened(store, *(f"new {number}" for number in range(1_100)))
    # The oldest are the most active.
    await opened(store, *(f"old {number}" for number in range(200)))
    hand.let_pass(60)
    assert await store.clean_up() == 200
    assert not await shown(store) & set(first)


@pytest.mark.parametrize("lost", [0, 1])
async def test_where_one_key_of_a_user_was_lost_nothing_is_left_to_clean_up(
    make_store: MakeStore, hand: Hand, lost: int
) -> None:
    # R6, rule 4.9: as in every script, the user starts anew
    store = make_store(idle_seconds=IDLE)
    await opened(store, "a", "b")
    hand.let_pass(IDLE)
    hand.index_in_key()
    hand.redis.delete(hand.keys()[lost])
    assert await store.clean_up() == 0
    assert hand.names() == {hand.keys()[2].encode()}
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"

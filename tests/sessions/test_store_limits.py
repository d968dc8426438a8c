"""The device limit: the sessions that it evicts, and that it holds under concurrent openings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gatekeeper.models import EndReason
from gatekeeper.sessions.keys import Policy
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Hand, token

POLICIES: tuple[Policy, ...] = ("evict_idle", "evict_oldest", "reject")


async def open_all(store: SessionStore, references: str, *, expires_in: float = HOUR) -> dict[str, int]:
    ids = {}
    for reference in references:
        checked = await store.check(token(reference, expires_in=expires_in), CLIENT)
        assert checked.outcome == "opened"
        ids[reference] = checked.session_id
    return ids


async def live(store: SessionStore) -> set[str]:
    return {session.reference for session in await store.sessions("74")}


async def test_evict_idle_lets_the_least_recently_active_go(make_store: MakeStore) -> None:
    # C-12, D-07
    store = make_store(device_limit=3, policy="evict_idle")
    ids = await open_all(store, "abc")
    await store.check(token("a"), CLIENT)
    checked = await store.check(token("d"), CLIENT)
    assert (checked.outcome, checked.evicted) == ("opened", 1)
    assert await live(store) == {"a", "c", "d"}
    gone = await store.check(token("b"), CLIENT)
    assert (gone.outcome, gone.session_id, gone.end_reason) == ("ended", ids["b"], EndReason.EVICTED)


async def test_evict_oldest_lets_the_first_opened_go(make_store: MakeStore) -> None:
    # C-12, D-07
    store = make_store(device_limit=3, policy="evict_oldest")
    await open_all(store, "abc")
    await store.check(token("a"), CLIENT)
    assert (await store.check(token("d"), CLIENT)).evicted == 1
    assert await live(store) == {"b", "c", "d"}


async def test_reject_refuses_the_newcomer_and_changes_nothing(make_store: MakeStore) -> None:
    # C-12, C-21, D-07
    store = make_store(device_limit=3, policy="reject")
    await open_all(store, "abc")
    for _ in range(2):
        checked = await store.check(token("d"), CLIENT)
        assert (checked.outcome, checked.session_id, checked.evicted) == ("full", 0, 0)
    assert await live(store) == {"a", "b", "c"}
    await store.log_out(token("b"), CLIENT)
    assert (await store.check(token("d"), CLIENT)).outcome == "opened"
    assert await live(store) == {"a", "c", "d"}


@pytest.mark.parametrize("policy", ["evict_idle", "evict_oldest"])
async def test_of_equals_the_older_goes_and_of_twins_the_lower_id(
    make_store: MakeStore, hand: Hand, policy: Policy
) -> None:
    # Ties: older created_at, then id
    store = make_store(device_limit=3, policy=policy)
    ids = await open_all(store, "abc")
    sessions = {session.id: session for session in await store.sessions("74")}
    instant = sessions[ids["a"]].created_at
    for session_id in ids.values():
        hand.activity(session_id, instant + 5)
        hand.write(session_id, "created_at", instant)
    hand.write(ids["b"], "created_at", instant - 1)
    assert (await store.check(token("d"), CLIENT)).evicted == 1
    assert await live(store) == {"a", "c", "d"}
    # Ids are numbers: 9 is lower than 10
    for reference, session_id in (("a", 10), ("c", 9)):
        hand.rename(ids[reference], session_id, reference)
    hand.activity((await store.check(token("d"), CLIENT)).session_id, instant + 2**40)
    await store.check(token("e"), CLIENT)
    assert await live(store) == {"a", "d", "e"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_session_that_can_never_speak_again_gives_way_first(make_store: MakeStore, policy: Policy) -> None:
    # DEVICE_LIMIT_POLICY: every known token expired. The mute one is the newest and the last active.
    store = make_store(device_limit=3, policy=policy)
    await open_all(store, "ab")
    await open_all(store, "m", expires_in=-1)
    checked = await store.check(token("c"), CLIENT)
    assert (checked.outcome, checked.evicted) == ("opened", 1)
    assert await live(store) == {"a", "b", "c"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_session_is_not_mute_while_any_token_of_it_lives(make_store: MakeStore, policy: Policy) -> None:
    store = make_store(device_limit=1, policy=policy)
    await store.check(token("a", expires_in=HOUR), CLIENT)
    await store.check(token("a", expires_in=-1), CLIENT)
    assert (await store.check(token("b"), CLIENT)).outcome == ("full" if policy == "reject" else "opened")


async def test_the_leeway_counts_for_being_mute(make_store: MakeStore) -> None:
    store = make_store(device_limit=1, policy="reject", leeway_seconds=30)
    await open_all(store, "a", expires_in=-1)
    assert (await store.check(token("b"), CLIENT)).outcome == "full"


@pytest.mark.parametrize("policy", ["evict_idle", "evict_oldest"])
async def test_a_lowered_limit_takes_effect_at_the_next_opening(make_store: MakeStore, policy: Policy) -> None:
    # S03
    before, after = make_store(device_limit=5, policy=policy), make_store(device_limit=2, policy=policy)
    await open_all(before, "abcde")
    assert (await after.check(token("a"), CLIENT)).outcome == "touched"
    assert await live(after) == set("abcde")
    assert (await after.check(token("f"), CLIENT)).evicted == 4
    assert await live(after) == ({"a", "f"} if policy == "evict_idle" else {"e", "f"})


async def test_a_lowered_limit_that_rejects_waits_until_there_is_room(make_store: MakeStore) -> None:
    # S03
    before, after = make_store(device_limit=4, policy="reject"), make_store(device_limit=2, policy="reject")
    await open_all(before, "ab")
    await open_all(before, "m", expires_in=-1)
    await open_all(before, "c")
    assert (await after.check(token("d"), CLIENT)).outcome == "full"
    assert await live(after) == set("abmc")
    await after.log_out(token("a"), CLIENT)
    await after.log_out(token("b"), CLIENT)
    checked = await after.check(token("d"), CLIENT)
    assert (checked.outcome, checked.evicted) == ("opened", 1)
    assert await live(after) == {"c", "d"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_what_is_over_takes_no_room(make_store: MakeStore, hand: Hand, policy: Policy) -> None:
    store = make_store(device_limit=2, policy=policy)
    await open_all(store, "ab")
    hand.let_pass(HOUR)
    for reference in "cd":
        checked = await store.check(token(reference), CLIENT)
        assert (checked.outcome, checked.evicted) == ("opened", 0)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE
    assert await live(store) == {"c", "d"}


async def test_without_a_limit_everything_opens(make_store: MakeStore) -> None:
    store = make_store(device_limit=None)
    references = [f"r{number}" for number in range(50)]
    answers = [await store.check(token(reference), CLIENT) for reference in references]
    assert {(answer.outcome, answer.evicted) for answer in answers} == {("opened", 0)}
    assert len(await store.sessions("74")) == 50


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_limit_above_a_step_holds_too(make_store: MakeStore, hand: Hand, policy: Policy) -> None:
    # STEP bounds what a script looks at; DEVICE_LIMIT goes up to 100,000
    store = make_store(device_limit=1_200, policy=policy)
    names = [f"r{number}" for number in range(1_205)]
    for start in range(0, len(names), 100):
        await asyncio.gather(*(store.check(token(name), CLIENT) for name in names[start : start + 100]))
    assert hand.indexed_live() == 1_200
    assert (await store.check(token("one more"), CLIENT)).outcome == ("full" if policy == "reject" else "opened")
    assert hand.indexed_live() == 1_200


async def test_a_limit_lowered_from_thousands_is_reached_in_bounded_steps(make_store: MakeStore, hand: Hand) -> None:
    # S03, S28
    store = make_store(device_limit=None)
    names = [f"r{number}" for number in range(2_500)]
    for start in range(0, len(names), 100):
        await asyncio.gather(*(store.check(token(name), CLIENT) for name in names[start : start + 100]))
    lowered = make_store(device_limit=2)
    refusing = make_store(device_limit=2, policy="reject")
    assert (await refusing.check(token("refused"), CLIENT)).outcome == "full"
    counts = []
    for number in range(4):
        assert (await lowered.check(token(f"new {number}"), CLIENT)).outcome == "opened"
        counts.append(hand.indexed_live())
    assert counts == [1_501, 502, 2, 2]
    assert await live(lowered) == {"new 2", "new 3"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_200_parallel_first_requests_never_make_more_than_three_live(
    make_store: MakeStore, hand: Hand, policy: Policy
) -> None:
    # S01, S04, C-12, D-07
    stores = [make_store(device_limit=3, policy=policy) for _ in range(2)]
    with highest_count(hand) as highest:
        answers = await asyncio.gather(
            *(stores[number % 2].check(token(f"r{number}"), CLIENT) for number in range(200))
        )
    assert highest() <= 3
    admitted = [answer for answer in answers if answer.outcome == "opened"]
    remaining = {session.id for session in await stores[0].sessions("74")}
    assert len(remaining) == 3
    if policy == "reject":
        assert {answer.session_id for answer in admitted} == remaining
        assert [answer.outcome for answer in answers].count("full") == 197
    else:
        assert len(admitted) == 200
        assert sum(answer.evicted for answer in admitted) == 197
        words = [(await stores[1].check(token(f"r{number}"), CLIENT)).outcome for number in range(200)]
        assert sorted(words) == ["ended"] * 197 + ["touched"] * 3


@contextmanager
def highest_count(hand: Hand) -> Iterator[Callable[[], int]]:
    """Counts the live sessions in a thread, as often as the store replies."""
    seen = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(hand.indexed_live())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        thread.join()


async def test_parallel_openings_ends_and_expiries_leave_index_and_records_alike(
    make_store: MakeStore, hand: Hand
) -> None:
    # S04: no zombie: every entry of the index has a record, every record one reference
    store, other = make_store(), make_store()
    for round_number in range(5):
        names = [f"{round_number}-{number}" for number in range(20)]
        opening = [asyncio.create_task(store.check(token(name), CLIENT)) for name in names]
        ending = [asyncio.create_task(other.log_out(token(name), CLIENT)) for name in names]
        listing = asyncio.create_task(other.sessions("74"))
        await asyncio.gather(*opening, *ending, listing)
        hand.let_pass(DAY / 3)
    assert await store.sessions("74") == []
    count = len(hand.index())
    assert count == hand.records() == hand.references()

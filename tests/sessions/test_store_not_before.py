"""End of all sessions, or all others: one write, and no older token gets around it."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from gatekeeper.models import EndReason
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Hand, token

BY_USER, BY_ADMIN = EndReason.REVOKED_BY_USER, EndReason.REVOKED_BY_ADMIN


async def open_all(store: SessionStore, references: str) -> dict[str, int]:
    return {reference: (await store.check(token(reference), CLIENT)).session_id for reference in references}


async def open_many(store: SessionStore, number: int) -> None:
    for start in range(0, number, 100):
        names = [f"r{position}" for position in range(start, min(start + 100, number))]
        await asyncio.gather(*(store.check(token(name), CLIENT) for name in names))


async def test_end_all_ends_every_session_and_hides_it(make_store: MakeStore) -> None:
    # C-13, T30, rule 4.4
    store = make_store()
    await open_all(store, "abc")
    assert await store.end_all("74", BY_ADMIN) == 3
    assert await store.end_all("74", BY_USER) == 0
    assert await store.sessions("74", include_inactive=True) == []
    for reference in "abc":
        assert (await store.check(token(reference), CLIENT)).end_reason is BY_ADMIN


async def test_end_others_spares_one_whose_own_end_works_later(make_store: MakeStore) -> None:
    # E-02, rule 4.4
    store = make_store()
    ids = await open_all(store, "abc")
    assert await store.end_all("74", BY_USER, spare=ids["b"]) == 2
    assert [session.id for session in await store.sessions("74")] == [ids["b"]]
    assert (await store.check(token("b"), CLIENT)).outcome == "touched"
    assert (await store.check(token("a"), CLIENT)).end_reason is BY_USER
    assert await store.end("74", ids["b"], EndReason.DEACTIVATED)
    assert (await store.check(token("b"), CLIENT)).end_reason is EndReason.DEACTIVATED


async def test_a_spared_session_that_stays_silent_becomes_idle(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    ids = await open_all(store, "ab")
    await store.end_all("74", BY_USER, spare=ids["a"])
    hand.let_pass(HOUR)
    assert await store.sessions("74") == []
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE


async def test_a_spared_session_counts_for_the_device_limit(make_store: MakeStore) -> None:
    # C-12: it is older than not_before, and still the one that goes
    store = make_store(device_limit=2)
    ids = await open_all(store, "ab")
    await store.end_all("74", BY_USER, spare=ids["a"])
    for reference in ("c", "d"):
        assert (await store.check(token(reference, issued_ago=-2), CLIENT)).outcome == "opened"
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.EVICTED
    assert len(await store.sessions("74")) == 2


async def test_ending_others_from_a_later_session_ends_the_one_spared_before(make_store: MakeStore) -> None:
    store = make_store()
    ids = await open_all(store, "ab")
    await store.end_all("74", BY_USER, spare=ids["a"])
    newer = (await store.check(token("new", issued_ago=-2), CLIENT)).session_id
    assert await store.end_all("74", BY_USER, spare=newer) == 1
    assert (await store.check(token("a"), CLIENT)).end_reason is BY_USER
    assert [session.id for session in await store.sessions("74")] == [newer]


async def test_sparing_a_session_that_is_over_spares_nothing(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    ids = await open_all(store, "abc")
    await store.end("74", ids["a"], EndReason.DEACTIVATED)
    hand.let_pass(HOUR, only=ids["b"])
    assert await store.end_all("74", BY_USER, spare=ids["a"]) == 1
    await store.check(token("d", issued_ago=-2), CLIENT)
    assert await store.end_all("74", BY_USER, spare=ids["b"]) == 1
    assert await store.sessions("74") == []
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.DEACTIVATED
    assert (await store.check(token("b"), CLIENT)).end_reason is EndReason.IDLE


@pytest.mark.parametrize("issued_ago", [None, 3_600.0, 0.5, 0.0])
async def test_a_token_of_before_or_without_iat_opens_nothing(make_store: MakeStore, issued_ago: float | None) -> None:
    # S30, rule 4.4
    store = make_store()
    unseen = token("unseen", issued_ago=issued_ago)
    await store.end_all("74", BY_USER)
    checked = await store.check(unseen, CLIENT)
    assert (checked.outcome, checked.session_id, checked.end_reason) == ("unknown", 0, None)
    assert await store.sessions("74", include_inactive=True) == []


async def test_a_token_of_the_same_second_opens_nothing_and_one_of_the_next_second_does(
    make_store: MakeStore, hand: Hand
) -> None:
    # rule 4.4: iat is whole seconds; the same second is refused on purpose
    store = make_store()
    second = math.floor(time.time()) + 1
    hand.redis.set(hand.keys()[2], f"{second * 1_000_000} 0 revoked_by_user")
    for issued_at, word in ((second - 1, "unknown"), (second, "unknown"), (second + 1, "opened")):
        asked = token(f"iat {issued_at}", issued_ago=time.time() - issued_at)
        assert asked.issued_at is not None
        asked = type(asked)(
            **{**{name: getattr(asked, name) for name in asked.__struct_fields__}, "issued_at": issued_at}
        )
        assert (await store.check(asked, CLIENT)).outcome == word


async def test_a_session_opened_after_end_all_lives(make_store: MakeStore) -> None:
    # S30
    store = make_store()
    await open_all(store, "abc")
    await store.end_all("74", BY_USER)
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "opened"
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "touched"
    assert [session.reference for session in await store.sessions("74")] == ["new"]


async def test_an_end_all_beside_parallel_openings_ends_exactly_what_was_opened_before_it(
    make_store: MakeStore,
) -> None:
    # S14, S30
    store, other = make_store(device_limit=None), make_store(device_limit=None)
    ahead = [token(f"r{number}", issued_ago=-5) for number in range(200)]
    first = [asyncio.create_task(other.check(claims, CLIENT)) for claims in ahead[:100]]
    ending = asyncio.create_task(store.end_all("74", BY_USER))
    second = [asyncio.create_task(other.check(claims, CLIENT)) for claims in ahead[100:]]
    ended = await ending
    await asyncio.gather(*first, *second)
    assert ended + len(await store.sessions("74")) == 200


async def test_a_session_ended_by_end_all_never_revives_although_its_token_is_from_the_future(
    make_store: MakeStore, hand: Hand
) -> None:
    # Leeway: an issuer's clock may be ahead. Many openings, sweeps and forgettings later the answer is the same.
    store = make_store(device_limit=None)
    future = token("future", issued_ago=-10, expires_in=7 * DAY)
    await store.check(future, CLIENT)
    assert await store.end_all("74", BY_USER) == 1
    for number in range(60):
        await store.check(token(f"r{number}", issued_ago=-10), CLIENT)
        await store.sessions("74", include_inactive=True)
        assert (await store.check(future, CLIENT)).end_reason is BY_USER
        if number % 20 == 19:
            hand.let_pass(HOUR)
            hand.redis.delete(hand.keys()[2])


async def test_not_before_stays_as_long_as_the_user(make_store: MakeStore, hand: Hand) -> None:
    # A token of before may turn up however late
    store = make_store()
    await store.end_all("74", BY_USER)
    assert hand.redis.ttl(hand.keys()[2]) == -1
    hand.let_pass(DAY)
    assert (await store.check(token("old", issued_ago=DAY + 1, expires_in=90 * DAY), CLIENT)).outcome == "unknown"
    assert (await store.check(token("new", issued_ago=DAY - 1), CLIENT)).outcome == "opened"


async def test_end_all_covers_a_session_that_a_clock_ahead_of_ours_touched(make_store: MakeStore, hand: Hand) -> None:
    # T1, R11: the clock of the primary before was ahead
    store = make_store()
    ids = await open_all(store, "a")
    hand.activity(ids["a"], (time.time() + 30) * 1e6)
    await store.end_all("74", BY_USER)
    assert (await store.check(token("a"), CLIENT)).end_reason is BY_USER
    assert (await store.check(token("b", issued_ago=-31), CLIENT)).outcome == "opened"
    assert (await store.check(token("b"), CLIENT)).outcome == "touched"
    assert await store.end_all("74", BY_USER) == 1


async def test_2500_sessions_end_in_one_call_and_are_converted_by_later_ones(make_store: MakeStore, hand: Hand) -> None:
    # S28, A06, rules 4.3 and 4.4
    store = make_store(device_limit=None)
    await open_many(store, 2_500)
    assert len(await store.sessions("74")) == 1_000
    assert await store.end_all("74", BY_USER) == 2_500
    assert hand.indexed_live() == 1_500, "no script does more than 1,000 sessions' work"
    assert await store.sessions("74") == []
    for name in ("r0", "r1200", "r2499"):
        assert (await store.check(token(name), CLIENT)).end_reason is BY_USER
    assert await store.end_all("74", BY_ADMIN) == 0
    left = hand.indexed_live()
    await store.check(token("new", issued_ago=-2), CLIENT)
    assert hand.indexed_live() == left - 20 + 1, "an opening converts a few"
    assert await store.sessions("74", include_inactive=True) == await store.sessions("74")
    while hand.indexed_live() > 1:
        before = hand.indexed_live()
        await store.sessions("74", include_inactive=True)
        assert hand.indexed_live() < before
    assert (await store.check(token("new"), CLIENT)).outcome == "touched"


async def test_end_all_covers_what_it_does_not_look_at_although_that_is_from_the_future(
    make_store: MakeStore, hand: Hand
) -> None:
    # T1, R11, S28
    store = make_store(device_limit=None)
    await open_many(store, 1_100)
    hand.let_pass(-30)
    assert await store.end_all("74", BY_USER) == 1_100
    assert hand.indexed_live() == 100
    for number in (0, 50, 1_099):
        assert (await store.check(token(f"r{number}"), CLIENT)).end_reason is BY_USER
    assert await store.sessions("74") == []


async def test_ending_2499_others_spares_the_caller(make_store: MakeStore, hand: Hand) -> None:
    # The spared one is the least active of all, so it is the last in every order
    store = make_store(device_limit=None)
    await open_many(store, 2_500)
    spared = (await store.check(token("r0"), CLIENT)).session_id
    oldest = min(session.created_at for session in await store.sessions("74")) - 60 * 1e6
    hand.activity(spared, oldest)
    assert await store.end_all("74", BY_USER, spare=spared) == 2_499
    assert [session.id for session in await store.sessions("74")] == [spared]
    for _ in range(3):
        await store.sessions("74", include_inactive=True)
    assert hand.indexed_live() == 1
    assert (await store.check(token("r0"), CLIENT)).outcome == "touched"
    assert await store.end("74", spared, BY_USER)
    assert await store.sessions("74") == []

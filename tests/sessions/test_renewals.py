"""Access tokens that a response hands out to a session, at any path (rule 5.16)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.keys import microseconds
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, token

REVOKED = EndReason.REVOKED_BY_USER


@pytest.fixture
def make_door(make_store: MakeStore) -> Callable[..., Door]:
    return lambda **rules: Door(make_store(**rules))


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


async def said(door: Door, claims: Claims) -> tuple[str, int]:
    checked = await door.store.check(claims, CLIENT)
    return checked.outcome, checked.session_id


async def crowd(door: Door, hand: Hand, session_id: int) -> None:
    hand.name(session_id, [f"r:old{number}" for number in range(1_000)], expire_in=HOUR)
    assert (await door.store.check(token("old0"), CLIENT)).session_id == session_id


async def test_a_renewed_token_is_one_of_its_session(door: Door) -> None:
    session_id = (await door.log_in("a")).session_id
    renewed = token("b")
    await door.sign_ins.renew(renewed, session_id)
    await door.sign_ins.renew(renewed, session_id)
    assert await said(door, renewed) == ("touched", session_id)
    assert await said(door, token("a")) == ("touched", session_id)
    assert [each.id for each in await door.store.sessions("74")] == [session_id]
    await door.store.log_out(token("a"), CLIENT)
    assert await said(door, renewed) == ("ended", session_id)


async def test_a_token_that_names_a_session_stays_with_it(door: Door) -> None:
    session_id, other = (await door.log_in("a")).session_id, (await door.log_in("b")).session_id
    await door.sign_ins.renew(token("b"), session_id)
    assert await said(door, token("b")) == ("touched", other)
    ended = (await door.log_in("c")).session_id
    await door.store.end("74", ended, REVOKED)
    await door.sign_ins.renew(token("c"), session_id)
    assert await said(door, token("c")) == ("ended", ended)
    await door.store.end_sid("74", "d", tokens_expire_at=1e10)
    await door.sign_ins.renew(token("d:5"), session_id)
    assert (await said(door, token("d:5")))[0] == "ended"


async def test_a_session_that_ended_meanwhile_takes_its_renewed_token_along(door: Door, hand: Hand) -> None:
    # The response was under way: what it hands out must not open a session by itself
    session_id = (await door.log_in("a")).session_id
    await door.store.end("74", session_id, REVOKED)
    renewed = token("b", expires_in=3 * DAY)
    await door.sign_ins.renew(renewed, session_id)
    assert await said(door, renewed) == ("ended", session_id)
    hand.let_pass(2 * DAY)
    await door.store.sessions("74")
    assert (await said(door, renewed))[0] == "ended"
    hand.let_pass(4 * DAY)
    await door.store.sessions("74")
    assert hand.fields() == set()


async def test_one_token_too_many_is_refused_while_the_session_lives_and_after_it(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a")).session_id
    await crowd(door, hand, session_id)
    surplus = [token(f"surplus{number}") for number in range(3)]
    for each in surplus:
        await door.sign_ins.renew(each, session_id)
        assert await said(door, each) == ("crowded", session_id)
        assert (await door.sign_ins.lookup("74", claims=each)).outcome == "crowded"
    # Another device is another session.
    assert (await said(door, token("device")))[0] == "opened"
    assert (await door.log_in("login")).outcome == "opened"
    # A logout by such a token is one of the session.
    assert await door.store.log_out(surplus[0], CLIENT) == session_id
    for each in surplus:
        assert await said(door, each) == ("ended", session_id)
    hand.let_pass(5 * DAY)
    await door.store.sessions("74")
    await door.store.sessions("74")
    assert not {field for field in hand.fields() if field[:2] in {"x:", "n:"}}


async def test_more_than_ten_thousand_too_many_open_nothing_either(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a")).session_id
    await crowd(door, hand, session_id)
    hand.redis.hset(hand.keys()[0], f"n:{session_id}", 10_000)
    await door.sign_ins.renew(token("b"), session_id)
    for reference in ("b", "c"):
        assert await said(door, token(reference)) == ("crowded", session_id)
    await door.store.end("74", session_id, REVOKED)
    assert (await said(door, token("c")))[0] == "opened"


async def test_there_is_room_again_when_tokens_have_expired(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a")).session_id
    hand.name(session_id, [f"r:old{number}" for number in range(1_000)], expire_in=60)
    hand.let_pass(61)
    renewed = token("b")
    await door.sign_ins.renew(renewed, session_id)
    assert await said(door, renewed) == ("touched", session_id)


@pytest.mark.parametrize("issued_ago", [100.0, None])
async def test_a_token_that_is_too_old_to_be_adopted_joins_nothing(
    door: Door, hand: Hand, issued_ago: float | None
) -> None:
    spared = (await door.log_in("a")).session_id
    await door.store.end_all("74", REVOKED, spare=spared)
    old = token("b", issued_ago=issued_ago)
    await door.sign_ins.renew(old, spared)
    assert (await said(door, old))[0] == "unknown"
    await door.sign_ins.renew(token("c", issued_ago=-5.0), spared)
    assert await said(door, token("c", issued_ago=-5.0)) == ("touched", spared)


@pytest.mark.parametrize("issued_ago", [100.0, None])
async def test_a_token_of_before_a_loss_of_data_joins_nothing(door: Door, issued_ago: float | None) -> None:
    session_id = (await door.log_in("a")).session_id
    door.store._runner.epoch.adopt_not_before = microseconds(time.time() - 50)
    old = token("b", issued_ago=issued_ago)
    await door.sign_ins.renew(old, session_id)
    assert (await said(door, old))[0] == "unknown"
    await door.sign_ins.renew(token("c"), session_id)
    assert await said(door, token("c")) == ("touched", session_id)


async def test_a_session_that_is_not_there_joins_nothing(door: Door) -> None:
    await door.sign_ins.renew(token("b"), 5)
    assert (await said(door, token("b")))[0] == "opened"


async def test_renewals_at_once_with_an_end_open_no_session(make_door: Callable[..., Door]) -> None:
    doors = [make_door(), make_door()]
    for number in range(20):
        session_id = (await doors[0].log_in(f"a{number}")).session_id
        renewed = [token(f"b{number}.{each}") for each in range(4)]
        await asyncio.gather(
            *(doors[n % 2].sign_ins.renew(each, session_id) for n, each in enumerate(renewed)),
            doors[1].store.end("74", session_id, REVOKED),
        )
        for each in renewed:
            assert await said(doors[0], each) == ("ended", session_id)
    assert await doors[0].store.sessions("74") == []

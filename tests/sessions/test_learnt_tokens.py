"""Texts that may be refresh tokens, and access tokens that come several at once: what they do to a session (rules 5.12
and 5.13)."""

from __future__ import annotations

import asyncio
import time

import pytest

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.sign_ins import Besides, RefreshToken
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, token

BY_USER = EndReason.REVOKED_BY_USER


@pytest.fixture
def door(make_store: MakeStore) -> Door:
    return Door(make_store())


def given(*digests: str, lives: float | None = None) -> Besides:
    expires_at = None if lives is None else time.time() + lives
    return Besides((), [RefreshToken(each, expires_at) for each in digests])


async def test_a_learnt_text_names_the_only_session_that_was_given_it(door: Door) -> None:
    opened = await door.log_in("a", besides=given("one", "two"))
    for digest in ("one", "two"):
        assert await door.sign_ins.owner_of_learnt(digest) == ("74", opened.session_id)
    assert await door.sign_ins.owner_of_learnt("three") is None
    # The same session may be given it again.
    await door.sign_ins.refresh(
        token("b"), CLIENT, exempt=False, refresh=None, linked=opened.session_id, besides=given("one")
    )
    assert await door.sign_ins.owner_of_learnt("one") == ("74", opened.session_id)
    found = await door.sign_ins.lookup("74", session_id=opened.session_id)
    assert (found.outcome, found.session_id) == ("live", opened.session_id)
    await door.store.end("74", opened.session_id, BY_USER)
    found = await door.sign_ins.lookup("74", session_id=opened.session_id)
    assert found.outcome == "ended"
    assert found.ended_at == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("users", [["74", "75"], ["74", "74"], ["a b", "a"]])
async def test_given_to_a_second_session_it_names_none_for_ever(door: Door, users: list[str]) -> None:
    first = await door.log_in(token("r1", users[0]), besides=given("x"))
    second = await door.log_in(token("r2", users[1]), besides=given("x"))
    assert first.session_id != second.session_id
    assert await door.sign_ins.owner_of_learnt("x") is None
    await door.sign_ins.refresh(
        token("again", users[0]), CLIENT, exempt=False, refresh=None, linked=first.session_id, besides=given("x")
    )
    assert await door.sign_ins.owner_of_learnt("x") is None


async def test_what_is_only_presented_takes_nothing_from_the_session_that_was_given_it(door: Door) -> None:
    presented = Besides((), (), given("x").learnt)
    opened = await door.log_in("a", besides=given("x"))
    await door.log_in(token("thief", "75"), besides=presented)
    assert await door.sign_ins.owner_of_learnt("x") == ("74", opened.session_id)
    # One that no session was given is of the session that it came with.
    opened = await door.log_in(token("b"), besides=Besides((), (), given("y").learnt))
    assert await door.sign_ins.owner_of_learnt("y") == ("74", opened.session_id)
    await door.log_in(token("c"), besides=given("y"))
    assert await door.sign_ins.owner_of_learnt("y") is None


async def test_whoever_comes_first_of_many_at_once_it_names_none(door: Door) -> None:
    await asyncio.gather(*(door.log_in(token(f"r{n}", str(n)), besides=given("x")) for n in range(40)))
    assert await door.sign_ins.owner_of_learnt("x") is None


@pytest.mark.parametrize("user", ["a b", "*", "7 *", "é", "1"])
async def test_any_user_can_be_the_owner(door: Door, user: str) -> None:
    opened = await door.log_in(token("r", user), besides=given("x"))
    assert await door.sign_ins.owner_of_learnt("x") == (user, opened.session_id)


async def test_a_session_with_a_learnt_text_may_speak_again(make_store: MakeStore) -> None:
    # Rule 4.9: those that cannot give way first
    door = Door(make_store(device_limit=2))
    kept = await door.log_in(token("kept", expires_in=-HOUR), besides=given("x"))
    gone = await door.log_in(token("gone", expires_in=-HOUR))
    await door.log_in("new")
    assert (await door.sign_ins.lookup("74", session_id=kept.session_id)).outcome == "live"
    assert (await door.sign_ins.lookup("74", session_id=gone.session_id)).outcome == "ended"


@pytest.mark.parametrize("lives", [None, 40 * DAY])
async def test_it_is_remembered_for_as_long_as_it_may_come(door: Door, hand: Hand, lives: float | None) -> None:
    opened = await door.log_in("a", besides=given("x", lives=lives))
    await door.store.end("74", opened.session_id, BY_USER)
    seconds = lives or DAY
    for key in ("gk:learnt:x", "gk:{74}:sessions"):
        assert hand.redis.ttl(key) >= seconds


async def test_more_tokens_name_the_session_and_end_with_it(door: Door) -> None:
    more: list[Claims] = [token("b"), token("c", expires_in=2 * HOUR)]
    opened = await door.log_in("a", besides=Besides(more, ()))
    for reference in ("a", "b", "c"):
        assert await door.check(reference) == ("touched", opened.session_id)
    await door.store.end("74", opened.session_id, BY_USER)
    for reference in ("a", "b", "c"):
        assert (await door.check(reference))[0] == "ended"


async def test_more_tokens_take_no_name_from_another_session(door: Door) -> None:
    live, ended = await door.log_in("live"), await door.log_in("ended")
    await door.store.end("74", ended.session_id, BY_USER)
    opened = await door.log_in("a", besides=Besides([token("live"), token("ended")], ()))
    assert await door.check("live") == ("touched", live.session_id)
    assert await door.check("ended") == ("ended", ended.session_id)
    assert await door.check("a") == ("touched", opened.session_id)

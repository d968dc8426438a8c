"""A login under a reference whose session has ended: it opens another session, and the tokens of before stay dead."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.revoked_cache import RevokedCache
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, token
from tests.waiting import HANG_SECONDS

LOGGED_OUT = EndReason.LOGGED_OUT
REFERENCES = ["a-sid:1700000000", "a-sid", "one-jti-a-user"]
named = pytest.mark.parametrize("reference", REFERENCES)


@pytest.fixture
def make_door(make_store: MakeStore) -> Callable[..., Door]:
    return lambda **rules: Door(make_store(**rules))


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


def late(reference: str, **options: Any) -> Claims:
    """A token that was issued after everything that has happened."""
    return token(reference, **({"issued_ago": -2.0} | options))


async def said(door: Door, claims: Claims) -> tuple[str, int, EndReason | None]:
    checked = await door.store.check(claims, CLIENT)
    return checked.outcome, checked.session_id, checked.end_reason


async def opened(door: Door, claims: Claims, **options: Any) -> int:
    answer = await door.log_in(claims, **options)
    assert answer.outcome == "opened", answer
    return answer.session_id


async def ended(door: Door, hand: Hand, reference: str, reason: EndReason, *, old: Claims | None = None) -> int:
    """Opens a session by a login and ends it."""
    first = await opened(door, old or token(reference, issued_ago=30.0), refresh=f"refresh of {reference}")
    if reason is EndReason.IDLE:
        hand.let_pass(2 * HOUR, only=first)
    elif reason is EndReason.EXPIRED:
        hand.let_pass(DAY, only=first)
        hand.activity(first, round(time.time() * 1e6))
    else:
        await door.store.end("74", first, reason)
    return first


WHYEVER = [each for each in EndReason if each is not EndReason.REFRESH_REUSED]


@named
@pytest.mark.parametrize("reason", WHYEVER)
async def test_a_login_opens_a_session_under_the_reference_of_an_ended_one(
    door: Door, hand: Hand, reference: str, reason: EndReason
) -> None:
    old = token(reference, issued_ago=3 * HOUR)
    first = await ended(door, hand, reference, reason, old=old)
    new = late(reference)
    # Neither a request nor a refresh does, whatever its token says.
    assert await said(door, late(reference)) == ("ended", first, reason)
    assert (await door.refreshed(late(reference), "r", linked=None)).end_reason is reason
    second = await opened(door, new, refresh="its own")
    assert second != first
    assert await said(door, new) == ("touched", second, None)
    assert await said(door, late(reference, jti="another")) == ("touched", second, None)
    # Old tokens, with the code of their session, and its refresh token.
    for before in (old, token(reference, issued_ago=None), token(reference, issued_ago=4 * HOUR, expires_in=DAY)):
        for _ in range(2):
            assert await said(door, before) == ("ended", first, reason)
    found = await door.sign_ins.lookup("74", digest=f"refresh of {reference}")
    assert (found.outcome, found.session_id, found.end_reason) == ("ended", first, reason)
    assert [each.id for each in await door.store.sessions("74")] == [second]


@named
async def test_the_token_of_the_login_is_admitted_whenever_it_was_issued_and_no_other_is(
    door: Door, reference: str
) -> None:
    # The same second: `iat` cannot tell. Nor can it where there is none.
    first = await opened(door, token(reference, issued_ago=30.0))
    await door.store.end("74", first, EndReason.REVOKED_BY_USER)
    for own in (token(reference, issued_ago=40.0), token(reference, issued_ago=None), token(reference, issued_ago=0.5)):
        answer = await door.log_in(own)
        assert answer.is_live
        for _ in range(2):
            assert await said(door, own) == ("touched", answer.session_id, None)
        other = structs.replace(own, digest="0" * 64)
        assert await said(door, other) == ("ended", first, EndReason.REVOKED_BY_USER)
        assert (await door.refreshed(other, linked=answer.session_id)).outcome == "ended"
        assert (await door.refreshed(other, linked=None)).session_id == first
    assert len(await door.store.sessions("74")) == 1


async def test_an_old_token_acts_on_the_ended_session_and_never_on_the_new_one(door: Door, hand: Hand) -> None:
    old = token("a-sid", issued_ago=30.0, expires_in=2 * DAY)
    first = await ended(door, hand, "a-sid", EndReason.DEACTIVATED, old=old)
    second = await opened(door, late("a-sid"))
    # Logout, introspection and the bearer of a refresh, and of another login.
    assert await door.store.log_out(old, CLIENT) is None
    found = await door.sign_ins.lookup("74", claims=old)
    assert (found.outcome, found.session_id, found.end_reason) == ("ended", first, EndReason.DEACTIVATED)
    assert (await door.sign_ins.lookup("74", claims=late("a-sid"))).session_id == second
    await opened(door, token("elsewhere"), presented=old)
    # A report of before the end, which comes late.
    assert await door.store.end_sid("74", "a-sid", tokens_expire_at=time.time() + HOUR, issued_at=time.time() - 20) == 0
    assert await said(door, late("a-sid")) == ("touched", second, None)
    # The old session's code stays known for as long as the old token lives, though its record has left.
    await door.store.log_out(late("a-sid"), CLIENT)
    hand.let_pass(DAY + 2 * HOUR)
    await door.store.sessions("74")
    assert hand.records() >= 1
    assert (await said(door, structs.replace(old, issued_at=(old.issued_at or 0) - DAY - 2 * HOUR)))[0] == "ended"
    assert await door.store.sessions("74") == []


async def test_a_report_of_the_provider_ends_what_a_login_opened_before_it(door: Door, hand: Hand) -> None:
    await ended(door, hand, "a-sid", EndReason.IDLE)
    second = await opened(door, late("a-sid"))
    assert await door.store.end_sid("74", "a-sid", tokens_expire_at=time.time() + HOUR, issued_at=time.time()) == 1
    assert await said(door, late("a-sid")) == ("ended", second, LOGGED_OUT)


@pytest.mark.parametrize("reference", REFERENCES[:2])
@pytest.mark.parametrize("reason", [None, EndReason.IDLE, EndReason.REVOKED_BY_USER])
async def test_where_the_provider_ended_the_sign_in_nothing_opens_again(
    door: Door, hand: Hand, reference: str, reason: EndReason | None
) -> None:
    if reason is None:
        await opened(door, token(reference))
    else:
        await ended(door, hand, reference, reason)
    await door.store.end_sid("74", "a-sid", tokens_expire_at=time.time() + HOUR)
    for _ in range(2):
        answer = await door.log_in(late(reference))
        assert (answer.outcome, answer.end_reason) == ("ended", LOGGED_OUT)
    # A sign-in of later is another one, and its session may end and be opened again.
    later = f"a-sid:{time.time() + 5:.0f}"
    first = await opened(door, late(later))
    await door.store.end("74", first, EndReason.REVOKED_BY_USER)
    assert await opened(door, late(later)) != first


@pytest.mark.parametrize("reason", [EndReason.REVOKED_BY_ADMIN, EndReason.REVOKED_BY_USER])
@pytest.mark.parametrize("how", ["one", "all"])
async def test_after_an_end_of_distrust_the_user_must_sign_in_again(door: Door, reason: EndReason, how: str) -> None:
    distrusts = reason is EndReason.REVOKED_BY_ADMIN
    first = await opened(door, token("one-jti", claims={"auth_time": time.time() - 60}))
    await (door.store.end("74", first, reason) if how == "one" else door.store.end_all("74", reason))
    for auth_time in (time.time() - 60, 0, "1e12", True, None, [9e9]):
        answer = await door.log_in(late("one-jti", claims={"auth_time": auth_time}))
        assert answer.outcome == ("stale" if distrusts else "opened" if auth_time else "touched"), auth_time
        if not distrusts:
            await door.store.end("74", answer.session_id, reason)
            return
    assert await door.store.sessions("74") == []
    assert (await door.log_in(late("one-jti", claims={"auth_time": time.time() + 1}))).outcome == "opened"
    await door.store.end_all("74", reason)
    # A provider that tells nothing of when: the login itself is the new sign-in.
    assert (await door.log_in(late("one-jti", issued_ago=-3.0))).outcome == "opened"


async def test_a_token_that_the_request_itself_brought_opens_nothing_again(door: Door, hand: Hand) -> None:
    old = token("one-jti", issued_ago=30.0)
    first = await ended(door, hand, "one-jti", EndReason.REVOKED_BY_USER, old=old)
    for _ in range(2):
        answer = await door.log_in(old, repeats=True, presented=old)
        assert (answer.outcome, answer.session_id) == ("ended", first)
        # Also while the user has signed in again: it is no token of that.
        if not await door.store.sessions("74"):
            await opened(door, late("one-jti"))
    assert (await said(door, old))[0] == "ended"
    # Of a live session it is the session's own.
    live = late("one-jti")
    assert (await door.log_in(live, repeats=True, presented=live)).outcome == "touched"


async def test_each_token_is_refused_with_the_code_of_its_own_session(door: Door) -> None:
    # A jti for each user, who signs in again and again.
    reasons = [EndReason.LOGGED_OUT, EndReason.DEACTIVATED, EndReason.REVOKED_BY_USER] * 9
    kept = []
    for reason in reasons:
        own = token("one-jti", issued_ago=0.0)
        session_id = await opened(door, own)
        await door.store.end("74", session_id, reason)
        kept.append((own, session_id, reason))
    live = token("one-jti", issued_ago=0.0)
    await opened(door, live)
    assert (await said(door, live))[0] == "touched"
    for own, session_id, reason in kept[-20:]:
        assert await said(door, own) == ("ended", session_id, reason)
    for own, _, _ in kept:
        assert (await said(door, own))[0] == "ended"


async def test_logins_at_once_under_one_reference_open_one_session(make_door: Callable[..., Door], hand: Hand) -> None:
    door, other = make_door(), make_door()
    first = await ended(door, hand, "a-sid", EndReason.EVICTED)
    own = [token("a-sid", issued_ago=1.0, jti=f"j{number}") for number in range(40)]
    answers = await asyncio.gather(*((door, other)[n % 2].log_in(each) for n, each in enumerate(own)))
    assert sorted(answer.outcome for answer in answers) == ["opened", *["touched"] * 39]
    assert len({answer.session_id for answer in answers} - {first}) == 1
    for each in own:
        assert (await said(door, each))[0] == "touched"
    assert (await said(other, token("a-sid", issued_ago=1.0)))[:2] == ("ended", first)


async def test_logins_and_logouts_at_once_never_bring_a_token_back(make_door: Callable[..., Door]) -> None:
    chance, doors = random.Random(7), [make_door(), make_door()]
    for _ in range(30):
        first = token("one-jti", issued_ago=0.0, jti="1")
        await doors[0].log_in(first)
        again = [token("one-jti", issued_ago=0.0, jti=f"{number}") for number in (2, 3)]
        calls = [
            doors[0].store.log_out(first, CLIENT),
            doors[1].store.log_out(first, CLIENT),
            *(chance.choice(doors).log_in(each) for each in again),
            chance.choice(doors).store.check(first, CLIENT),
        ]
        chance.shuffle(calls)
        await asyncio.gather(*calls)
        # The logout of the first token is acknowledged, whatever came before and after.
        assert (await said(doors[0], first))[0] == "ended"
        live = [each for each in again if (await said(doors[1], each))[0] == "touched"]
        assert len(await doors[0].store.sessions("74")) == bool(live)
        for each in live:
            await doors[1].store.log_out(each, CLIENT)
        assert await doors[0].store.sessions("74") == []


async def test_nothing_is_left_of_it_when_everything_has_expired(make_door: Callable[..., Door], hand: Hand) -> None:
    door = make_door(ended_seconds=60, session_seconds=DAY)
    for _ in range(3):
        session_id = (await door.log_in(token("a-sid", issued_ago=1.0))).session_id
        await door.store.end("74", session_id, EndReason.DEACTIVATED)
    assert any(field.startswith("p:") for field in hand.fields())
    hand.let_pass(3 * DAY)
    await door.store.sessions("74")
    assert hand.fields() == set()


@pytest.mark.parametrize("garbage", [float("nan"), -1.0, 1e300])
async def test_a_garbled_instant_gets_no_old_token_in(door: Door, hand: Hand, garbage: float) -> None:
    old = token("a-sid", issued_ago=30.0)
    await ended(door, hand, "a-sid", EndReason.DEACTIVATED, old=old)
    second = await opened(door, late("a-sid"))
    hand._run(
        """local record = load(ARGV[1])
        record[19][2] = ARGV[2] == 'nan' and 0 / 0 or tonumber(ARGV[2])
        save(ARGV[1], record)""",
        "74",
        str(second),
        str(garbage),
    )
    with pytest.raises(StoreUnavailable):
        await door.store.check(old, CLIENT)


# Repetitions after a failover (rule 4.13)


async def _repeated(runner: ScriptRunner) -> None:
    runner.recent.repeat_soon()
    while runner.recent.is_repeating:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["logout", "one", "all"])
@pytest.mark.parametrize("lost", ["nothing", "the session too"])
async def test_a_repeated_end_concerns_the_ended_session_alone(store_url: str, hand: Hand, end: str, lost: str) -> None:
    store_client = StoreClient(store_url, timeout_seconds=HANG_SECONDS)
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=RULES)
    door = Door(SessionStore(runner))
    old = token("a-sid", issued_ago=30.0)
    first = await opened(door, old)
    if end == "logout":
        await door.store.log_out(old, CLIENT)
    elif end == "one":
        await door.store.end("74", first, EndReason.REVOKED_BY_USER)
    else:
        await door.store.end_all("74", EndReason.REVOKED_BY_USER)
    if lost != "nothing":
        hand.redis.delete(*hand.keys())
    new = late("a-sid")
    second = await opened(door, new)
    for _ in range(2):
        await _repeated(runner)
        assert await said(door, new) == ("touched", second, None)
    if (lost, end) != ("the session too", "all"):
        # Where all ended, nothing tells which references there were.
        assert (await said(door, old))[:2] == ("ended", first)
        assert await door.store.log_out(old, CLIENT) is None
    assert await said(door, new) == ("touched", second, None)
    await store_client.aclose()


# While the store is away (revoked_cache.py)


def test_while_the_store_is_away_old_tokens_stay_refused_and_new_ones_pass() -> None:
    now = 1_000.0
    cache = RevokedCache(wall_clock=lambda: now)
    old = structs.replace(token("a"), issued_at=900.0, digest="old")
    own = structs.replace(token("a"), issued_at=900.0, digest="own")
    new = structs.replace(token("a"), issued_at=1_001.0, digest="new")
    cache.add_live("74", "a", 1, "old")
    cache.add_ended("74", 1, EndReason.IDLE)
    cache.add_live("74", "a", 2, "own")
    found = [cache.find_ended(each) for each in (old, own, new)]
    assert [each and each.end_reason for each in found] == [EndReason.IDLE, None, None]
    # The refusal of an old token is no end of the new session.
    cache.add_refused(old, 1, EndReason.IDLE)
    assert [cache.find_ended(each) is None for each in (old, own, new)] == [False, True, True]
    cache.add_ended("74", 2, EndReason.LOGGED_OUT)
    assert all(cache.find_ended(each) is not None for each in (old, own, new))


def test_a_process_that_learns_of_the_old_session_last_refuses_its_token_alone() -> None:
    cache = RevokedCache()
    old, new = (structs.replace(token("a"), digest=each) for each in ("old", "new"))
    cache.add_live("74", "a", 2, "new")
    cache.add_refused(old, 1, EndReason.DEACTIVATED)
    assert cache.find_ended(old) is not None
    assert cache.find_ended(new) is None


def test_references_that_were_opened_again_are_bounded_and_a_gap_when_dropped() -> None:
    cache = RevokedCache(kept_seconds=60.0)
    for number in range(1_001):
        cache.add_live("74", f"r{number}", 2 * number)
        cache.add_refused(structs.replace(token(f"r{number}"), digest=f"{number}"), 2 * number, EndReason.IDLE)
        cache.add_live("74", f"r{number}", 2 * number + 1)
    assert cache.has_gaps

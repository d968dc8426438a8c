"""Sessions where tokens are handed out: logins, refreshes, and the names that they give to a session."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.keys import Policy, Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.sign_ins import RefreshToken, SignIns, Successor
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.tokens.issuer import digest
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CHROME, CLIENT, DAY, HOUR, Door, Hand, Noting, token
from tests.waiting import HANG_SECONDS

POLICIES: tuple[Policy, ...] = ("evict_idle", "evict_oldest", "reject")
BY_USER = EndReason.REVOKED_BY_USER
# Sessions that end by themselves.
DUE = (EndReason.IDLE, EndReason.EXPIRED)


@pytest.fixture
def make_door(make_store: MakeStore) -> Callable[..., Door]:
    return lambda **rules: Door(make_store(**rules))


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


# Logins


async def test_a_login_opens_a_session_that_holds_what_was_seen(door: Door) -> None:
    # rule 4.1: `login_method` `password`
    opened = await door.log_in(token("a", jti="one"), "d")
    assert (opened.outcome, opened.is_live, opened.end_reason, opened.evicted) == ("opened", True, None, 0)
    session = await door.session(opened.session_id)
    assert (session.reference, session.jti, session.login_method) == ("a", "one", "password")
    assert (session.ip_address, session.user_agent) == ("203.0.113.9", CHROME)
    assert session.expires_at == session.created_at + 86_400_000_000 == round(opened.expires_at * 1e6)
    assert session.last_activity == session.created_at
    assert await door.check("a") == ("touched", opened.session_id)


async def test_a_login_opens_in_the_very_second_in_which_everything_ended(door: Door) -> None:
    # S30, rule 4.4: `iat` is whole seconds, so what a login answers would be refused otherwise
    await door.check("old")
    given = [token(f"new {issued_ago}", issued_ago=issued_ago) for issued_ago in (0.0, None, HOUR)]
    unseen = token("unseen", issued_ago=0.0)
    await door.store.end_all("74", BY_USER)
    for claims in given:
        assert (await door.log_in(claims)).outcome == "opened"
        assert (await door.store.check(claims, CLIENT)).outcome == "touched"
    assert (await door.store.check(unseen, CLIENT)).outcome == "unknown"
    assert await door.reason("old") is BY_USER


async def test_a_login_opens_where_nothing_is_adopted(make_door: Callable[..., Door]) -> None:
    # UNKNOWN_SESSION=reject
    door = make_door(adopt_unknown=False)
    assert (await door.check("a"))[0] == "unknown"
    opened = await door.log_in("a")
    assert await door.check("a") == ("touched", opened.session_id)


async def test_a_login_at_the_same_time_as_an_end_of_all_lives_if_it_came_after(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # S30: what the store did first decides, and nothing else
    door, other = make_door(device_limit=None), make_door(device_limit=None)

    async def end_all_after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await other.store.end_all("74", EndReason.REVOKED_BY_ADMIN)

    for number in range(40):
        claims = token(f"r{number}", issued_ago=0.0)
        await asyncio.gather(door.log_in(claims), end_all_after(number / 20_000))
        before: Any = hand.redis.get(hand.keys()[2])
        alive = [each for each in await door.store.sessions("74") if each.reference == claims.reference]
        checked = await door.store.check(claims, CLIENT)
        assert all(each.created_at > int(before.split()[0]) for each in alive)
        assert checked.outcome == ("touched" if alive else "ended")
        assert checked.end_reason is (None if alive else EndReason.REVOKED_BY_ADMIN)


@pytest.mark.parametrize(
    "reason", [BY_USER, EndReason.REVOKED_BY_ADMIN, EndReason.DEACTIVATED, EndReason.LOGGED_OUT, *DUE]
)
async def test_a_login_opens_a_new_session_under_a_hash_whose_session_is_over(
    door: Door, hand: Hand, reason: EndReason
) -> None:
    # Section 5: of tokens without an id nothing tells one sign-in from the next. The old record stays as it was.
    first = (await door.log_in("h:a", "d1")).session_id
    if reason is EndReason.IDLE:
        hand.let_pass(HOUR)
    elif reason is EndReason.EXPIRED:
        hand.let_pass(DAY, only=first)
        hand.activity(first, round(time.time() * 1e6))
    else:
        await door.store.end("74", first, reason)
    second = await door.log_in("h:a", "d2")
    assert second.outcome == "opened"
    assert second.session_id != first
    assert await door.check("h:a") == ("touched", second.session_id)
    assert [session.id for session in await door.store.sessions("74")] == [second.session_id]
    shown = {each.id: each.end_reason for each in await door.store.sessions("74", include_inactive=True)}
    assert shown.get(first) is (None if reason in {BY_USER, EndReason.REVOKED_BY_ADMIN} else reason)
    assert await door.word("d1") == "ended"


async def test_forgetting_the_old_session_of_a_hash_takes_no_name_of_the_new_one_away(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # … although both had the same access token and the same refresh token
    door = make_door(ended_seconds=60, session_seconds=DAY)
    first = (await door.log_in(token("h:a", expires_in=60), "d", lives=60)).session_id
    await door.store.end("74", first, BY_USER)
    second = (await door.log_in(token("h:a", expires_in=HOUR), "d", lives=HOUR)).session_id
    hand.let_pass(600, only=first)
    await door.store.sessions("74")
    assert hand.fields() == {str(second), "r:h:a", "f:d"}
    assert await door.check("h:a") == ("touched", second)
    assert (await door.sign_ins.lookup("74", digest="d")).session_id == second
    # And the other way round: the new one goes first.
    third = (await door.log_in("h:b", "e")).session_id
    await door.store.end("74", third, BY_USER)
    fourth = (await door.log_in(token("h:b", expires_in=60), "e", lives=60)).session_id
    await door.store.end("74", fourth, BY_USER)
    hand.let_pass(2 * HOUR, only=fourth)
    await door.store.sessions("74")
    assert str(third) in hand.fields()
    hand.let_pass(2 * DAY, only=third)
    await door.store.sessions("74")
    assert hand.fields() == {str(second), "r:h:a", "f:d"}


async def test_a_login_that_answers_a_token_with_a_live_session_touches_it(door: Door) -> None:
    # A backend that gives the same token twice, or a client that was faster than the answer; identical tokens are one
    _, session_id = await door.check("a")
    before = await door.session(session_id)
    answer = await door.log_in("a", "d")
    assert (answer.outcome, answer.session_id, answer.is_live) == ("touched", session_id, True)
    after = await door.session(session_id)
    assert after.last_activity > before.last_activity
    assert (after.created_at, after.expires_at, after.device) == (before.created_at, before.expires_at, before.device)
    assert after.login_method == "password"
    assert answer.expires_at == after.expires_at / 1e6
    linked = await door.sign_ins.lookup("74", digest="d")
    assert (linked.outcome, linked.session_id) == ("live", session_id)


async def test_a_refresh_token_that_a_login_answers_again_names_the_session_of_that_login(door: Door) -> None:
    # Some backends keep one refresh token a user. The law of common.lua: what a login answers again moves.
    old = (await door.log_in("a", "static")).session_id
    new = (await door.log_in("b", "static")).session_id
    assert (await door.sign_ins.lookup("74", digest="static")).session_id == new
    await door.store.end("74", new, BY_USER)
    assert await door.check("a") == ("touched", old)
    assert (await door.log_in("a", "static")).outcome == "touched"
    linked = await door.sign_ins.lookup("74", digest="static")
    assert (linked.outcome, linked.session_id) == ("live", old)


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_session_of_a_token_that_a_login_presents_ends_and_makes_room(
    make_door: Callable[..., Door], policy: Policy
) -> None:
    # S11, S12, ASVS 7.2.4: one device, one session; the new one never continues what the client brought
    door = make_door(device_limit=1, policy=policy)
    first = (await door.log_in("a", "d1")).session_id
    second = await door.log_in("b", "d2", presented="a")
    assert (second.outcome, second.evicted) == ("opened", 0)
    assert second.session_id != first
    assert await door.reason("a") is EndReason.LOGGED_OUT
    assert await door.word("d1") == "ended"
    assert await door.live() == {"b"}
    assert (await door.session(first)).end_reason is EndReason.LOGGED_OUT


async def test_a_login_that_finds_no_room_ends_nothing(make_door: Callable[..., Door]) -> None:
    # C-21: a limit that was lowered meanwhile; the place of the presented one is not enough
    before, door = make_door(device_limit=3), make_door(device_limit=1, policy="reject")
    for reference in "abc":
        await before.log_in(reference)
    answer = await door.log_in("new", "d", presented="b")
    assert (answer.outcome, answer.session_id, answer.evicted, answer.is_live) == ("full", 0, 0, False)
    assert await door.live() == {"a", "b", "c"}
    assert await door.check("new") == ("full", 0)
    assert await door.word("d") == "unknown"


async def test_a_presented_session_is_not_evicted_and_others_are(make_door: Callable[..., Door]) -> None:
    before, door = make_door(device_limit=3), make_door(device_limit=2, policy="evict_oldest")
    for reference in "abc":
        await before.log_in(reference)
    assert (await door.log_in("new", presented="a")).evicted == 1
    assert (await door.reason("a"), await door.reason("b")) == (EndReason.LOGGED_OUT, EndReason.EVICTED)
    assert await door.live() == {"c", "new"}


async def test_a_login_that_presents_nothing_of_ours_ends_nothing(door: Door) -> None:
    await door.check("theirs", user="75")
    gone = (await door.log_in("gone")).session_id
    await door.store.end("74", gone, EndReason.DEACTIVATED)
    await door.log_in("a")
    for number, presented in enumerate(("theirs", "gone", "never seen", "", "*", "f:d", str(gone))):
        assert (await door.log_in(f"r{number}", exempt=True, presented=presented)).outcome == "opened"
    assert (await door.check("theirs", user="75"))[0] == "touched"
    assert await door.reason("gone") is EndReason.DEACTIVATED
    assert (await door.check("a"))[0] == "touched"
    assert (await door.check("never seen", issued_ago=-2))[0] == "opened"


async def test_a_presented_session_that_was_idle_is_idle(door: Door, hand: Hand) -> None:
    await door.log_in("a")
    hand.let_pass(HOUR)
    assert (await door.log_in("b", presented="a")).outcome == "opened"
    assert await door.reason("a") is EndReason.IDLE


async def test_an_exempt_user_s_login_ends_what_it_presents_too(door: Door) -> None:
    for reference in "abcd":
        assert (await door.log_in(reference, exempt=True)).evicted == 0
    assert (await door.log_in("e", exempt=True, presented="a")).evicted == 0
    assert await door.live() == {"b", "c", "d", "e"}


async def test_a_presented_session_ends_although_the_new_token_has_a_session_already(door: Door) -> None:
    # S12: section 5 makes no exception
    await door.log_in("browser")
    await door.log_in("h:same second")
    assert (await door.log_in("h:same second", presented="browser")).outcome == "touched"
    assert await door.reason("browser") is EndReason.LOGGED_OUT
    assert await door.live() == {"h:same second"}


async def test_a_login_that_presents_the_token_that_it_answers_goes_on(door: Door) -> None:
    session_id = (await door.log_in("a")).session_id
    answer = await door.log_in("a", presented="a")
    assert (answer.outcome, answer.session_id) == ("touched", session_id)
    assert await door.check("a") == ("touched", session_id)


# The device limit


async def test_100_logins_at_once_that_present_one_session_take_one_place(make_door: Callable[..., Door]) -> None:
    # S01, S12, C-12
    door, other = (make_door(device_limit=1, policy="reject") for _ in range(2))
    await door.log_in("a")
    answers = await asyncio.gather(
        *((door, other)[number % 2].log_in(f"r{number}", f"d{number}", presented="a") for number in range(100))
    )
    assert sorted(answer.outcome for answer in answers) == ["full"] * 99 + ["opened"]
    assert len(await door.store.sessions("74")) == 1


@pytest.mark.parametrize("policy", POLICIES)
async def test_100_logins_at_once_never_make_more_than_three_live(
    make_door: Callable[..., Door], hand: Hand, policy: Policy
) -> None:
    # S01, C-12, D-07; every token given is either live, or its session is listed as ended
    door, other = (make_door(policy=policy) for _ in range(2))
    answers = await asyncio.gather(*((door, other)[number % 2].log_in(f"r{number}") for number in range(100)))
    assert hand.indexed_live() == 3
    opened = {answer.session_id for answer in answers if answer.is_live}
    assert len(opened) == (3 if policy == "reject" else 100)
    assert {session.id for session in await door.store.sessions("74", include_inactive=True)} == opened


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lives", [None, HOUR])
async def test_a_session_is_not_mute_while_a_refresh_token_of_it_lives(
    make_door: Callable[..., Door], policy: Policy, lives: float | None
) -> None:
    # DEVICE_LIMIT_POLICY: every known token expired, no refresh token known. Unknown how long it lives: as the session.
    door = make_door(device_limit=2, policy=policy)
    await door.log_in("a")
    await door.log_in(token("b", expires_in=-1), "d", lives=lives)
    await door.check("b", expires_in=-1)
    answer = await door.log_in("c")
    assert answer.outcome == ("full" if policy == "reject" else "opened")
    assert await door.live() == ({"a", "b"} if policy == "reject" else {"b", "c"})


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_session_whose_refresh_token_has_expired_too_gives_way_first(
    make_door: Callable[..., Door], policy: Policy
) -> None:
    # … although it is the newest, and the last active
    door = make_door(device_limit=2, policy=policy)
    await door.log_in("a")
    await door.log_in(token("b", expires_in=-1), "d", lives=-1)
    await door.check("b", expires_in=-1)
    answer = await door.log_in("c")
    assert (answer.outcome, answer.evicted) == ("opened", 1)
    assert await door.live() == {"a", "c"}


async def test_a_refresh_takes_a_session_out_of_the_mute_ones(make_door: Callable[..., Door]) -> None:
    door = make_door(device_limit=1, policy="reject")
    session_id = (await door.log_in(token("a", expires_in=-1))).session_id
    assert (await door.refreshed(token("b", expires_in=HOUR), linked=session_id)).outcome == "touched"
    assert (await door.log_in("c")).outcome == "full"


# Refreshes


async def test_new_tokens_join_the_session_that_was_refreshed(make_door: Callable[..., Door]) -> None:
    # C-02, C-13, section 5: a refresh is never a new device, so no limit counts it, and one end ends them all
    door = make_door(device_limit=1, policy="reject")
    session_id = (await door.log_in(token("a", jti="one"), "d1")).session_id
    before = await door.session(session_id)
    answer = await door.refreshed(token("b", jti="two"), "d2", linked=session_id)
    assert (answer.outcome, answer.session_id, answer.end_reason, answer.evicted) == ("touched", session_id, None, 0)
    [after] = await door.store.sessions("74")
    assert (after.id, after.created_at, after.expires_at) == (before.id, before.created_at, before.expires_at)
    assert (after.device, after.ip_address, after.login_method) == (before.device, before.ip_address, "password")
    assert after.last_activity > before.last_activity
    assert (after.reference, after.jti) == ("b", "two")
    assert answer.expires_at == before.expires_at / 1e6
    for reference in "ab":
        assert await door.check(reference) == ("touched", session_id)
    for known in ("d1", "d2"):
        assert (await door.sign_ins.lookup("74", digest=known)).session_id == session_id
    assert (await door.session(session_id)).reference == "b"
    await door.store.end("74", session_id, BY_USER)
    for reference in "ab":
        assert await door.reason(reference) is BY_USER
    for known in ("d1", "d2"):
        assert (await door.sign_ins.lookup("74", digest=known)).end_reason is BY_USER


@pytest.mark.parametrize("lost", ["token", "refresh token"])
async def test_a_logout_by_any_of_the_names_ends_all_of_them(door: Door, lost: str) -> None:
    # C-03: the access token from before a refresh logs out too
    session_id = (await door.log_in("a", "d1")).session_id
    await door.refreshed("b", "d2", linked=session_id)
    if lost == "token":
        assert await door.store.log_out(token("a"), CLIENT) == session_id
    else:
        linked = await door.sign_ins.lookup("74", digest="d1")
        assert await door.store.end("74", linked.session_id, EndReason.LOGGED_OUT)
    assert await door.reason("b") is EndReason.LOGGED_OUT
    assert await door.word("d2") == "ended"


@pytest.mark.parametrize("reason", [BY_USER, EndReason.DEACTIVATED, EndReason.LOGGED_OUT, EndReason.IDLE])
async def test_a_session_that_ended_while_the_backend_was_asked_gets_no_new_tokens(
    door: Door, hand: Hand, reason: EndReason
) -> None:
    # S10, S16
    session_id = (await door.log_in("a", "d1")).session_id
    if reason is EndReason.IDLE:
        hand.let_pass(HOUR)
    else:
        await door.store.end("74", session_id, reason)
    answer = await door.refreshed(token("b", issued_ago=-2), "d2", linked=session_id)
    assert (answer.outcome, answer.session_id, answer.end_reason) == ("ended", session_id, reason)
    assert await door.store.sessions("74") == []
    assert not {"r:b", "f:d2"} & hand.fields()


async def test_a_refresh_of_a_session_that_everything_ended_is_told_so(door: Door) -> None:
    # S30
    session_id = (await door.log_in("a", "d1")).session_id
    await door.store.end_all("74", BY_USER)
    answer = await door.refreshed(token("b", issued_ago=-2), "d2", linked=session_id)
    assert (answer.outcome, answer.end_reason) == ("ended", BY_USER)


async def test_a_refresh_of_which_nothing_is_known_opens_a_session(door: Door) -> None:
    # rule 4.1: `login_method` `refresh`
    answer = await door.refreshed(token("a", jti="one"), "d", linked=None)
    assert answer.outcome == "opened"
    session = await door.session(answer.session_id)
    assert (session.login_method, session.jti, session.ip_address) == ("refresh", "one", "198.51.100.7")
    assert answer.expires_at == session.expires_at / 1e6
    assert (await door.sign_ins.lookup("74", digest="d")).session_id == answer.session_id


@pytest.mark.parametrize("issued_ago", [None, HOUR, 0.0])
async def test_a_refresh_opens_nothing_for_a_token_of_before_an_end_of_all(
    door: Door, issued_ago: float | None
) -> None:
    # rule 4.4: only a token from an observed login answer opens regardless
    claims = token("a", issued_ago=issued_ago)
    await door.store.end_all("74", BY_USER)
    answer = await door.refreshed(claims, "d", linked=None)
    assert (answer.outcome, answer.session_id, answer.is_live) == ("unknown", 0, False)
    assert await door.word("d") == "unknown"
    assert (await door.refreshed(token("b", issued_ago=-2), "d", linked=None)).outcome == "opened"


async def test_a_refresh_opens_nothing_where_nothing_is_adopted(make_door: Callable[..., Door], hand: Hand) -> None:
    # UNKNOWN_SESSION=reject
    door = make_door(adopt_unknown=False)
    assert (await door.refreshed("a", "d", linked=None)).outcome == "unknown"
    assert hand.fields() == set()


async def test_a_refresh_that_opens_a_session_counts_for_the_limit(make_door: Callable[..., Door]) -> None:
    # C-12, C-21
    door = make_door(device_limit=1, policy="reject")
    await door.log_in("a")
    assert (await door.refreshed("b", "d", linked=None)).outcome == "full"
    assert (await make_door(device_limit=1).refreshed("b", "d", linked=None)).evicted == 1


async def test_a_token_that_has_another_live_session_stays_with_that_one(door: Door, hand: Hand) -> None:
    # A name that is known never moves
    one, other = (await door.log_in("a", "d1")).session_id, (await door.log_in("b", "d2")).session_id
    answer = await door.refreshed("b", "d3", linked=one)
    assert (answer.outcome, answer.session_id) == ("touched", other)
    assert (hand.owner("r:b"), hand.owner("f:d3")) == (other, other)
    assert (await door.refreshed("c", "d1", linked=other)).session_id == other
    assert (await door.sign_ins.lookup("74", digest="d1")).session_id == one
    assert await door.live() == {"a", "c"}


async def test_a_refresh_that_answers_a_token_whose_session_is_over_is_told_why(door: Door) -> None:
    live = (await door.log_in("a", "d1")).session_id
    over = (await door.log_in("b")).session_id
    await door.store.log_out(token("b"), CLIENT)
    for linked in (live, None):
        answer = await door.refreshed("b", "d2", linked=linked)
        assert (answer.outcome, answer.session_id, answer.end_reason) == ("ended", over, EndReason.LOGGED_OUT)
    assert await door.word("d2") == "unknown"


async def test_a_backend_that_answers_the_same_tokens_changes_nothing_but_the_activity(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a", "d")).session_id
    fields = hand.fields()
    for _ in range(5):
        assert (await door.refreshed("a", "d", linked=session_id)).session_id == session_id
    assert hand.fields() == fields
    # Back and forth, as two tabs do.
    for reference, known in ("b", "e"), ("a", "d"), ("b", "e"), ("a", "d"):
        await door.refreshed(reference, known, linked=session_id)
    assert hand.fields() == fields | {"r:b", "f:e", f"t:{session_id}"}
    assert sorted(hand.older_names(session_id)) == ["f:e", "r:b"]


async def test_50_refreshes_at_once_are_one_session(make_door: Callable[..., Door]) -> None:
    # S05, as far as a backend that issues its own tokens goes: whatever it gave belongs to the one session
    door, other = make_door(), make_door()
    session_id = (await door.log_in("a", "d")).session_id
    answers = await asyncio.gather(
        *((door, other)[n % 2].refreshed(f"r{n}", f"d{n}", linked=session_id) for n in range(50))
    )
    assert {(answer.outcome, answer.session_id) for answer in answers} == {("touched", session_id)}
    assert len(await door.store.sessions("74")) == 1
    await door.store.end("74", session_id, BY_USER)
    assert {await door.reason(f"r{n}") for n in range(50)} == {BY_USER}
    assert {await door.word(f"d{n}") for n in range(50)} == {"ended"}


# The limit on names


async def test_a_thousand_refreshes_cost_no_more_than_what_is_alive(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in(token("r", expires_in=60), "d", lives=60)).session_id
    counts, bytes_used = [], []
    for number in range(1_000):
        claims = token(f"r{number}", expires_in=60)
        assert (await door.refreshed(claims, f"d{number}", linked=session_id, lives=60)).outcome == "touched"
        if number % 50 == 49:
            counts.append(len(hand.fields()))
            used: Any = hand.redis.memory_usage(hand.keys()[0], samples=0)
            bytes_used.append(used)
            hand.let_pass(61)
    assert max(counts) <= 2 * 51 + 2
    assert max(bytes_used[1:]) <= 1.5 * bytes_used[0] <= 40_000
    assert len(await door.store.sessions("74")) == 1


async def test_what_has_expired_is_no_name_any_more_and_what_has_not_is(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in(token("a", expires_in=60), "d1", lives=60)).session_id
    await door.refreshed(token("b", expires_in=HOUR), "d2", linked=session_id, lives=HOUR)
    hand.let_pass(61)
    await door.refreshed(token("c", expires_in=60), "d3", linked=session_id, lives=60)
    rest = {str(session_id), f"t:{session_id}"}
    assert hand.fields() == {*rest, "r:b", "r:c", "f:d2", "f:d3"}
    hand.let_pass(600)
    await door.refreshed(token("d", expires_in=60), "d4", linked=session_id, lives=60)
    assert hand.fields() >= {*rest, "r:b", "r:d", "f:d2", "f:d4"}
    assert await door.check("b", expires_in=HOUR - 700) == ("touched", session_id)
    hand.let_pass(1_000)
    await door.check("d", expires_in=60)
    hand.let_pass(1_000)
    await door.check("d", expires_in=60)
    hand.let_pass(1_000)
    await door.refreshed(token("e", expires_in=60), "d5", linked=session_id, lives=60)
    assert hand.fields() >= {str(session_id), "r:e", "f:d5"}
    assert not hand.fields() & {"r:b", "f:d2"}


async def test_of_more_than_a_thousand_refresh_tokens_the_oldest_are_forgotten(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a", "newest")).session_id
    hand.name(session_id, [f"f:d{number}" for number in range(1_200)], expire_in=HOUR)
    await door.refreshed("b", "newer", linked=session_id)
    assert len(hand.older_names(session_id)) == 1_000
    assert len(hand.fields()) == 1_000 + 4
    # Of 1,200, "newest" and "r:a" the last thousand are left.
    assert [await door.word(name) for name in ("d0", "d201", "d202", "d1199", "newest", "newer")] == [
        *("unknown", "unknown", "live", "live", "live", "live")
    ]
    assert await door.check("a") == ("touched", session_id)


async def test_an_access_token_is_never_forgotten_while_it_lives(door: Door, hand: Hand) -> None:
    # It would open a session of its own: a new device, and one that no end of the first one ends
    session_id = (await door.log_in("a", "newest")).session_id
    names = [f"{'r' if number % 3 else 'f'}:{number}" for number in range(1_650)]
    hand.name(session_id, names, expire_in=HOUR)
    await door.refreshed("b", "newer", linked=session_id)
    left = hand.older_names(session_id)
    assert set(left) == {name for name in names if name.startswith("r:")} | {"r:a"}
    assert await door.check("1") == ("touched", session_id)
    await door.store.end("74", session_id, BY_USER)
    assert await door.reason("1649") is BY_USER


async def test_an_older_name_that_a_longer_lived_token_has_too_stays(door: Door, hand: Hand) -> None:
    # A `sid` is in many tokens. One of before a refresh may be followed by another, which a check sees.
    session_id = (await door.log_in(token("sid-1", expires_in=60), "d1")).session_id
    await door.refreshed(token("sid-2", expires_in=60), "d2", linked=session_id)
    assert await door.check("sid-1", expires_in=HOUR) == ("touched", session_id)
    hand.let_pass(600)
    await door.refreshed(token("sid-3", expires_in=60), "d3", linked=session_id)
    assert await door.check("sid-1", expires_in=HOUR - 600) == ("touched", session_id)


async def test_who_has_a_thousand_access_tokens_alive_is_crowded(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a", "d")).session_id
    for number, expire_in, word in ((999, HOUR, "live"), (1_000, HOUR, "crowded"), (1_000, -1, "live")):
        hand.name(session_id, [*(f"r:{each}" for each in range(number)), "f:older"], expire_in=expire_in)
        for known, claims in (("d", None), (None, token("a"))):
            linked = await door.sign_ins.lookup("74", digest=known, claims=claims)
            assert (linked.outcome, linked.session_id) == (word, session_id)
    hand.name(session_id, [f"f:{each}" for each in range(1_500)], expire_in=HOUR)
    assert await door.word("d") == "live"


# The lifetime of names and records


async def test_when_everything_has_expired_nothing_is_left(make_door: Callable[..., Door], hand: Hand) -> None:
    # rule 4.7: names, older names, claims, records; and the memory
    door = make_door(ended_seconds=HOUR, device_limit=2)
    for number in range(4):
        opened = await door.log_in(f"a{number}", f"d{number}", kept_claims='{"roles":["user"]}')
        await door.refreshed(f"b{number}", f"e{number}", linked=opened.session_id, lives=2 * HOUR)
        await door.refreshed(f"c{number}", f"g{number}", linked=opened.session_id)
        successor = Successor(f"s{number}", "jti", time.time() + HOUR, b"sealed")
        assert (await door.sign_ins.rotate("74", f"g{number}", successor)).outcome == "rotated"
    await door.log_in("h:x", "static")
    await door.store.log_out(token("h:x"), CLIENT)
    await door.log_in("h:x", "static", presented="c3")
    await door.refreshed("alone", "d9", linked=None)
    await door.store.end_sid("74", "a-sid", tokens_expire_at=time.time() + HOUR)
    assert any(field.startswith("t:") for field in hand.fields())
    assert any(field.startswith("c:") for field in hand.fields())
    hand.let_pass(2 * DAY)
    await door.store.sessions("74")
    hand.let_pass(2 * DAY)
    await door.store.sessions("74")
    assert hand.fields() == set()
    left = {name.split(b":")[1].decode() for name in hand.names()}
    assert left <= {"due", "refresh", "{74}"}
    assert not hand.redis.exists(*hand.keys())
    # Nothing but the names of one session was lost, so nobody is sent away: that would be `not_before`.
    assert (await door.check("fresh"))[0] == "opened"


async def test_the_record_of_an_end_stays_until_the_refresh_token_has_expired(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # ENDED_SESSION_TTL: at least until its last known token has expired
    door = make_door(ended_seconds=60)
    session_id = (await door.log_in(token("a", expires_in=60), "d", lives=30 * DAY)).session_id
    await door.refreshed(token("b", expires_in=60), "d2", linked=session_id, lives=60)
    await door.store.end("74", session_id, BY_USER)
    hand.let_pass(30 * DAY - 60)
    await door.store.sessions("74")
    for known in ("d", "d2"):
        assert (await door.sign_ins.lookup("74", digest=known)).end_reason is BY_USER
    hand.let_pass(120)
    await door.store.sessions("74")
    assert hand.fields() == set()


async def test_the_record_of_an_end_stays_as_long_as_a_refresh_token_of_which_nobody_tells(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # … as long as the session itself would have
    door = make_door(ended_seconds=60, session_seconds=DAY)
    session_id = (await door.log_in(token("a", expires_in=60), "d")).session_id
    await door.store.end("74", session_id, BY_USER)
    hand.let_pass(DAY - 60)
    await door.store.sessions("74")
    assert await door.word("d") == "ended"
    hand.let_pass(120)
    await door.store.sessions("74")
    assert hand.fields() == set()


@pytest.mark.parametrize("how", ["login", "refresh that joins", "refresh that opens"])
@pytest.mark.parametrize(
    ("token_lives", "refresh_lives", "stays"),
    [(60, None, DAY + HOUR), (60, 30 * DAY, 30 * DAY), (40 * DAY, 30 * DAY, 40 * DAY)],
)
async def test_keys_stay_as_long_as_the_last_token(
    make_door: Callable[..., Door], hand: Hand, how: str, token_lives: float, refresh_lives: float | None, stays: float
) -> None:
    # R23
    door = make_door(session_seconds=DAY, ended_seconds=HOUR)
    claims = token("a", expires_in=token_lives)
    if how == "login":
        await door.log_in(claims, "d", lives=refresh_lives)
    else:
        linked = (await door.log_in(token("0", expires_in=60))).session_id if how == "refresh that joins" else None
        assert (await door.refreshed(claims, "d", linked=linked, lives=refresh_lives)).is_live
    for key in hand.keys()[:1]:
        assert -60 < hand.needed_until(key) - time.time() - stays <= 1
    kept = max(refresh_lives or 0, DAY + HOUR)
    assert -60 < hand.needed_until("gk:refresh:d") - time.time() - kept <= 1


async def test_keys_never_leave_earlier_because_of_shorter_tokens(make_door: Callable[..., Door], hand: Hand) -> None:
    door = make_door(session_seconds=DAY)
    session_id = (await door.log_in("a", "d", lives=30 * DAY)).session_id
    await door.refreshed(token("b", expires_in=60), "d2", linked=session_id, lives=60)
    await door.log_in(token("c", expires_in=60), "d3", lives=60)
    await door.store.end("74", session_id, BY_USER)
    for key in hand.keys()[:1]:
        assert hand.needed_until(key) - time.time() > 30 * DAY - 60


# Lookups


async def test_a_link_moves_nothing(door: Door, hand: Hand) -> None:
    # S10: a failed try does not keep a session alive
    session_id = (await door.log_in("a", "d")).session_id
    before = await door.session(session_id)
    leaving = [hand.needed_until(key) for key in hand.keys()[:1]]
    content: Any = hand.redis.hgetall(hand.keys()[0])
    for _ in range(5):
        linked = await door.sign_ins.lookup("74", digest="d", claims=token("a", expires_in=30 * DAY))
        assert (linked.outcome, linked.session_id, linked.end_reason) == ("live", session_id, None)
        assert (linked.expires_at, linked.not_before) == (before.expires_at / 1e6, 0.0)
    assert await door.session(session_id) == before
    assert hand.redis.hgetall(hand.keys()[0]) == content
    assert [hand.needed_until(key) for key in hand.keys()[:1]] == leaving


async def test_a_link_says_that_a_session_was_idle_or_has_expired(door: Door, hand: Hand) -> None:
    # S10
    idle = (await door.log_in("a", "d1")).session_id
    hand.let_pass(HOUR)
    expired = (await door.log_in("b", "d2")).session_id
    hand.let_pass(DAY, only=expired)
    hand.activity(expired, round(time.time() * 1e6))
    for known, session_id, reason in (("d1", idle, EndReason.IDLE), ("d2", expired, EndReason.EXPIRED)):
        linked = await door.sign_ins.lookup("74", digest=known)
        assert (linked.outcome, linked.session_id, linked.end_reason) == ("ended", session_id, reason)
    assert hand.indexed_live() == 0


async def test_of_two_names_the_one_that_is_over_decides(door: Door) -> None:
    # Section 5: if either names an ended session, the answer is that session's 401
    live = (await door.log_in("live", "live")).session_id
    over = (await door.log_in("over", "over")).session_id
    await door.store.end("74", over, BY_USER)
    for known, reference in (("live", "over"), ("over", "live"), ("over", "never seen"), ("never seen", "over")):
        linked = await door.sign_ins.lookup("74", digest=known, claims=token(reference))
        assert (linked.outcome, linked.session_id, linked.end_reason) == ("ended", over, BY_USER)
    for known, reference in (("live", "never seen"), ("never seen", "live"), ("live", "live")):
        linked = await door.sign_ins.lookup("74", digest=known, claims=token(reference))
        assert (linked.outcome, linked.session_id) == ("live", live)


async def test_of_two_live_sessions_the_refresh_token_s_is_meant(door: Door) -> None:
    one, other = (await door.log_in("a", "d1")).session_id, (await door.log_in("b", "d2")).session_id
    assert (await door.sign_ins.lookup("74", digest="d1", claims=token("b"))).session_id == one
    assert (await door.sign_ins.lookup("74", digest="d2", claims=token("a"))).session_id == other


async def test_a_link_of_nothing_known_tells_from_when_a_token_may_open_a_session(door: Door) -> None:
    for known, claims in (("d", None), (None, token("a")), (None, None)):
        linked = await door.sign_ins.lookup("74", digest=known, claims=claims)
        assert (linked.outcome, linked.session_id, linked.expires_at, linked.not_before) == ("unknown", 0, 0.0, 0.0)
    before = time.time()
    await door.store.end_all("74", BY_USER)
    linked = await door.sign_ins.lookup("74", digest="d", claims=token("a"))
    assert linked.outcome == "unknown"
    assert math.floor(before) <= linked.not_before <= time.time() + 1


async def test_a_token_that_was_refused_before_a_refresh_keeps_the_record(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # ENDED_SESSION_TTL: "… or one refused since, has expired"
    door = make_door(ended_seconds=60)
    session_id = (await door.log_in(token("a", expires_in=60))).session_id
    await door.store.end("74", session_id, BY_USER)
    assert (await door.sign_ins.lookup("74", claims=token("a", expires_in=7 * DAY))).outcome == "ended"
    hand.let_pass(6 * DAY)
    await door.store.sessions("74")
    assert await door.reason("a") is BY_USER
    assert hand.needed_until(hand.keys()[0]) - time.time() > 7 * DAY - 60


async def test_the_refresh_token_of_somebody_else_names_nothing(door: Door) -> None:
    # S09: the user is the one that the index names; the record is looked for there only
    await door.log_in("a", "d")
    assert await door.sign_ins.user_of("d") == "74"
    assert (await door.sign_ins.lookup("75", digest="d", claims=token("a", "75"))).outcome == "unknown"
    assert (await door.sign_ins.lookup_refresh_token("75", "d")).outcome == "unknown"


# Indexes, and what they hold


@pytest.mark.parametrize("how", ["login", "refresh", "check"])
async def test_indexes_are_written_before_the_record_and_in_one_batch_with_it(store_url: str, how: str) -> None:
    # rule 4.2: an index is a hint that the user's script confirms
    store_client = Noting(store_url)
    rules = Rules(**{**{name: getattr(RULES, name) for name in Rules.__struct_fields__}, "index_sids": True})
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=rules)
    sign_ins, claims = SignIns(runner), token("a-sid", claims={"sid": "a-sid"})
    refresh = RefreshToken("d")
    if how == "login":
        await sign_ins.log_in(claims, CLIENT, exempt=False, refresh=refresh)
    elif how == "refresh":
        await sign_ins.refresh(claims, CLIENT, exempt=False, refresh=refresh, linked=None)
    else:
        await SessionStore(runner).check(claims, CLIENT)
    [batch] = store_client.batches
    keys = [words[1] if words[0] in {"SET", "ZADD"} else words[0] for words in batch]
    refreshing = [] if how == "check" else ["gk:refresh:d"]
    assert keys == ["gk:outboxes", "gk:due", *refreshing, "gk:sid:a-sid", "gk:{74}:sessions"]
    assert await sign_ins.user_of_sid("a-sid") == "74"
    assert await sign_ins.user_of("d") == (None if how == "check" else "74")
    await store_client.aclose()


async def test_nothing_is_indexed_by_sid_where_nobody_will_ask(door: Door, hand: Hand) -> None:
    await door.log_in(token("a", claims={"sid": "a"}))
    assert not [name for name in hand.names() if b"sid" in name]


USERS = [
    *("74", "a:b", "{}", "{a}", "}a{", "%7B", "%", "*", "a}:sessions", "gk:{a}:sessions", "a b", "r:a"),
    *("😀" * 128, "é" * 256, "x" * 512, "{" * 512),
]


async def test_users_with_strange_names_sign_in_and_do_not_meet(make_door: Callable[..., Door], hand: Hand) -> None:
    # S29
    door = make_door(index_sids=True)
    for number, user in enumerate(USERS):
        claims = token("same-sid", user, claims={"sid": f"sid-{number}"})
        assert (await door.log_in(claims, f"d{number}")).outcome == "opened"
        assert (await door.refreshed(token("later", user), f"e{number}", linked=None)).outcome == "opened"
        successor = Successor(f"s{number}", "jti", time.time() + HOUR, b"sealed")
        assert (await door.sign_ins.rotate(user, f"d{number}", successor)).outcome == "rotated"
    for number, user in enumerate(USERS):
        for known in (f"d{number}", f"e{number}", f"s{number}"):
            assert await door.sign_ins.user_of(known) == user
            assert (await door.sign_ins.lookup(user, digest=known)).outcome == "live"
        assert await door.sign_ins.user_of_sid(f"sid-{number}") == user
    # Two keys each, with that of the pair, and five indexes.
    assert len(hand.names()) == 1 + (2 + 4) * len(USERS)
    for user in USERS[::2]:
        assert await door.store.end_all(user, EndReason.REVOKED_BY_ADMIN) == 2
    for number, user in enumerate(USERS):
        linked = await door.sign_ins.lookup(user, digest=f"e{number}")
        assert linked.outcome == ("live" if number % 2 else "ended")


async def test_who_reads_the_store_can_use_nothing_that_is_there(door: Door, hand: Hand) -> None:
    # S25, ASVS 7.2.3: a refresh token is there as its digest only, in keys, fields and values
    secret, next_secret = "the-refresh-token-itself", "its-successor"
    assert digest(secret) != secret
    await door.log_in("a", digest(secret))
    successor = Successor(digest(next_secret), "jti", time.time() + HOUR, b"sealed")
    await door.sign_ins.rotate("74", digest(secret), successor)
    everything: Any = [hand.redis.dump(name) for name in hand.names()]
    everything += [*hand.names(), hand.redis.hgetall(hand.keys()[0]), hand.redis.hgetall(hand.pairs())]
    assert secret not in str(everything)
    assert next_secret not in str(everything)
    # And the digest is no refresh token: it has one of its own.
    assert await door.sign_ins.user_of(digest(digest(secret))) is None
    assert await door.sign_ins.user_of(secret) is None


# Unexpected replies


async def every_answer(sign_ins: SignIns, store: SessionStore, linked: int = 0) -> list[Any]:
    """Returns the result of each call, or its `StoreUnavailable`; raises any other error."""
    refresh, successor = RefreshToken("d"), Successor("s", "jti", time.time() + HOUR, b"sealed")
    questions = (
        lambda: sign_ins.log_in(token("a"), CLIENT, exempt=False, refresh=refresh, presented=token("a")),
        lambda: sign_ins.refresh(token("b"), CLIENT, exempt=False, refresh=refresh, linked=linked),
        lambda: sign_ins.lookup("74", digest="d", claims=token("a")),
        lambda: sign_ins.lookup_refresh_token("74", "d"),
        lambda: sign_ins.rotate("74", "d", successor),
        lambda: store.end_sid("74", "a", tokens_expire_at=time.time() + HOUR),
        lambda: sign_ins.lookup_refresh_token("74", "d"),
    )
    answers: list[Any] = []
    for question in questions:
        try:
            answers.append(await question())
        except StoreUnavailable as error:
            answers.append(error)
    return answers


def admits(answer: Any) -> bool:
    return getattr(answer, "outcome", "") in {"opened", "touched", "live", "current", "rotated", "repeated"}


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"g", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"\xff" * 64])
@pytest.mark.parametrize("what", ["record", "pair", "predecessor"])
async def test_a_garbled_record_or_pair_gets_nobody_in(door: Door, hand: Hand, what: str, garbage: bytes) -> None:
    # C07, R19
    session_id = (await door.log_in("a", "d")).session_id
    if what == "record":
        hand.redis.hset(hand.keys()[0], str(session_id), garbage)
        answers = await every_answer(door.sign_ins, door.store, session_id)
        assert not any(admits(answer) for answer in answers), answers
    else:
        await door.sign_ins.rotate("74", "d", Successor("s", "jti", time.time() + HOUR, b"sealed"))
        hand.redis.hset(hand.pairs(), str(session_id), garbage)
        if what == "predecessor":
            hand.redis.hset(hand.keys()[0], f"u:{session_id}", garbage)
        try:
            # Without its pair, the token is one of after the window.
            expected = "current" if what == "pair" else "reused"
            assert (await door.sign_ins.lookup_refresh_token("74", "d")).outcome == expected
        except StoreUnavailable:
            assert (await door.sign_ins.lookup_refresh_token("74", "s")).outcome == "current"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300, "0", "x" * 100])
async def test_a_wrong_expiry_of_a_refresh_token_gets_nobody_in(door: Door, hand: Hand, value: float | str) -> None:
    # C07: NaN would never expire, and never be mute
    session_id = (await door.log_in("a", "d")).session_id
    hand.write(session_id, "refresh_expires_at", value)
    answers = await every_answer(door.sign_ins, door.store, session_id)
    assert not any(admits(answer) for answer in answers), answers
    with pytest.raises(StoreUnavailable):
        await door.check("a")


@pytest.mark.parametrize("garbage", [b"g", b"\xc1", b"\x93\x01\x02\x03", b"\xff" * 64])
async def test_garbled_older_names_get_nobody_in(door: Door, hand: Hand, garbage: bytes) -> None:
    # C07
    session_id = (await door.log_in("a", "d")).session_id
    hand.redis.hset(hand.keys()[0], f"t:{session_id}", garbage)
    with pytest.raises(StoreUnavailable):
        await door.refreshed("b", "e", linked=session_id)
    with pytest.raises(StoreUnavailable):
        await door.sign_ins.rotate("74", "d", Successor("s", "jti", time.time() + HOUR, b"sealed"))
    # Its end is not in the way.
    assert await door.store.end("74", session_id, BY_USER)
    assert await door.reason("a") is BY_USER


@pytest.mark.parametrize("lost", [0, 1])
async def test_who_signs_in_after_a_loss_starts_anew(door: Door, hand: Hand, lost: int) -> None:
    # R6, rule 4.9: what the store forgot may have been an end
    session_id = (await door.log_in("a", "d")).session_id
    hand.index_in_key()
    hand.redis.delete(hand.keys()[lost])
    assert (await door.sign_ins.lookup("74", digest="d", claims=token("a"))).outcome == "unknown"
    assert (await door.sign_ins.lookup_refresh_token("74", "d")).outcome == "unknown"
    assert (await door.refreshed("b", "e", linked=session_id)).outcome == "unknown"
    assert (await door.log_in("c", "g")).outcome == "opened"
    assert (await door.check("a"))[0] == "unknown"
    assert (await door.check("c"))[0] == "touched"


async def test_a_loss_is_noticed_by_the_sign_in_itself(make_door: Callable[..., Door], hand: Hand) -> None:
    for lost in (0, 1):
        for ask in ("log in", "refreshed", "link", "rotation", "end_sid"):
            hand.redis.flushall()
            door = make_door()
            session_id = (await door.log_in("a", "d")).session_id
            hand.index_in_key()
            hand.redis.delete(hand.keys()[lost])
            match ask:
                case "log in":
                    await door.log_in("b", "e")
                case "refreshed":
                    assert not (await door.refreshed("b", "e", linked=session_id)).is_live
                case "link":
                    assert (await door.sign_ins.lookup("74", digest="d")).not_before > 0
                case "rotation":
                    await door.sign_ins.lookup_refresh_token("74", "d")
                case _:
                    assert await door.store.end_sid("74", "x", tokens_expire_at=time.time() + HOUR) == 0
            assert (await door.check("a"))[0] == "unknown", (lost, ask)


async def test_a_live_session_that_the_index_does_not_know_gets_no_tokens(door: Door, hand: Hand) -> None:
    # C07: damage opens nothing
    session_id = (await door.log_in("a", "d")).session_id
    await door.log_in("b")
    hand.unindex(session_id)
    assert (await door.log_in("a", "e")).outcome == "unknown"
    assert (await door.sign_ins.lookup("74", digest="d")).outcome == "unknown"
    assert (await door.sign_ins.lookup_refresh_token("74", "d")).outcome == "unknown"
    assert (await door.refreshed("a", "e", linked=session_id)).outcome == "unknown"


async def test_an_answer_about_somebody_else_is_a_fault(store_url: str) -> None:
    # R19, P0-S15
    class Swapped(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            reply = await super().call(command)
            return reply if command.script is None else [b"gk:{somebody else}:sessions", *reply[1:]]

    store_client = Swapped(store_url, timeout_seconds=HANG_SECONDS)
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=RULES)
    for answer in await every_answer(SignIns(runner), SessionStore(runner)):
        assert isinstance(answer, StoreUnavailable)
        assert answer.kind == "protocol"
    await store_client.aclose()


@pytest.mark.parametrize(
    "reply",
    [
        *(None, 7, b"OK", [], [b"K"], [b"K", b"no such word"], [b"K", None, None], [b"K", 1, 2, 3, 4, 5]),
        *([b"K", b"\xff", b"x", b"\xff", b""], [b"K", b"opened"], [b"K", b"opened", b"x", b"", 0, b"0"]),
        *([b"K", b"no such word", b"1", b"", 0, b"0"], [b"K", b"ended", b"1", b"no such reason", 0, b"0"]),
        *([b"K", b"current"], [b"K", b"repeated", b"1"], [b"K", b"ended", b"1", b"no such reason"]),
    ],
)
async def test_an_answer_of_the_wrong_shape_is_a_fault(reply: Any) -> None:
    # R19, C07
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            if command.script is None:
                return b"74"
            return [command.key if part == b"K" else part for part in reply] if isinstance(reply, list) else reply

    runner = ScriptRunner(Odd("unix:///nowhere", timeout_seconds=1), key_prefix="gk:", rules=RULES)
    for answer in await every_answer(SignIns(runner), SessionStore(runner)):
        assert isinstance(answer, StoreUnavailable), answer


@pytest.mark.parametrize("reply", [[b"74"], 7, "74", [], True])
async def test_an_index_that_answers_no_user_is_a_fault(reply: Any) -> None:
    # Rule 4.8: store trouble is never "there is no such token"
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            return reply

    runner = ScriptRunner(Odd("unix:///nowhere", timeout_seconds=1), key_prefix="gk:", rules=RULES)
    with pytest.raises(StoreUnavailable):
        await SignIns(runner).user_of("d")
    with pytest.raises(StoreUnavailable):
        await SignIns(runner).user_of_sid("s")

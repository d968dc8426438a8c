"""The life of one session: it opens, is touched and ends, on a real store."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from gatekeeper.models import Client, EndReason, Session
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CHROME, CLIENT, DAY, HOUR, Hand, token

ENDS_BY_HAND = [EndReason.REVOKED_BY_USER, EndReason.REVOKED_BY_ADMIN, EndReason.DEACTIVATED]


async def opened(store: SessionStore, reference: str = "a", user: str = "74") -> int:
    checked = await store.check(token(reference, user), CLIENT)
    assert checked.outcome == "opened"
    return checked.session_id


async def only(store: SessionStore, *, include_inactive: bool = False) -> Session:
    [session] = await store.sessions("74", include_inactive=include_inactive)
    return session


async def test_a_token_without_a_session_opens_one_that_holds_what_was_seen(make_store: MakeStore) -> None:
    # B-12, C-14, D-02, D-08, E-07; rule 4.1
    store = make_store()
    checked = await store.check(token("ref", jti="the-jti"), CLIENT, login_method="password")
    assert (checked.outcome, checked.end_reason, checked.evicted) == ("opened", None, 0)
    session = await only(store)
    assert session.id == checked.session_id
    assert 1 <= session.id < 2**53
    assert (session.user, session.reference, session.jti) == ("74", "ref", "the-jti")
    assert (session.ip_address, session.user_agent) == ("203.0.113.9", CHROME)
    assert (session.device.name, session.login_method) == ("Chrome on Windows", "password")
    assert session.created_at == session.last_activity
    assert session.expires_at - session.created_at == 86_400 * 1_000_000
    assert (session.ended_at, session.end_reason, session.is_active) == (None, None, True)


async def test_the_same_token_names_the_same_session(make_store: MakeStore) -> None:
    # E-07, P0-S13: a repeated opening opens nothing more
    store = make_store()
    session_id = await opened(store)
    checked = await store.check(token("a"), CLIENT)
    assert (checked.outcome, checked.session_id) == ("touched", session_id)
    assert len(await store.sessions("74")) == 1


async def test_every_request_moves_the_activity_strictly_even_in_the_same_instant(make_store: MakeStore) -> None:
    # C-10, C-37, D-08, E-06: no throttle, microseconds
    store = make_store()
    await opened(store)
    seen = [(await only(store)).last_activity]
    for _ in range(3):
        await asyncio.gather(*(store.check(token("a"), CLIENT) for _ in range(50)))
        seen.append((await only(store)).last_activity)
    assert all(later >= earlier + 50 for earlier, later in pairwise(seen))


async def test_activity_moves_forward_although_the_clock_went_back(make_store: MakeStore, hand: Hand) -> None:
    # T1, S19: the new primary after a failover may be behind
    store = make_store()
    session_id = await opened(store)
    ahead = (await only(store)).last_activity + 60_000_000
    hand.activity(session_id, ahead)
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    assert (await only(store)).last_activity == ahead + 1


@pytest.mark.parametrize("reason", ENDS_BY_HAND)
async def test_an_ended_session_refuses_its_token_with_the_reason_for_ever(
    make_store: MakeStore, reason: EndReason
) -> None:
    # C-13, E-07, T30, S16
    store = make_store()
    session_id = await opened(store)
    assert await store.end("74", session_id, reason)
    for _ in range(3):
        checked = await store.check(token("a"), CLIENT)
        assert (checked.outcome, checked.session_id, checked.end_reason) == ("ended", session_id, reason)
    assert await store.sessions("74") == []
    assert not await store.end("74", session_id, EndReason.DEACTIVATED)
    assert (await store.check(token("a"), CLIENT)).end_reason is reason


async def test_a_logout_ends_the_session_and_a_second_one_changes_nothing(make_store: MakeStore) -> None:
    # C-03, D-08
    store = make_store()
    session_id = await opened(store)
    assert await store.log_out(token("a"), CLIENT) == session_id
    assert await store.log_out(token("a"), CLIENT) is None
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.LOGGED_OUT


async def test_a_logout_does_not_change_how_a_session_ended(make_store: MakeStore) -> None:
    store = make_store()
    session_id = await opened(store)
    await store.end("74", session_id, EndReason.REVOKED_BY_ADMIN)
    assert await store.log_out(token("a"), CLIENT) is None
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.REVOKED_BY_ADMIN


async def test_a_logout_of_a_token_never_seen_lets_it_open_nothing(make_store: MakeStore) -> None:
    # rule 4.10, T30
    store = make_store()
    assert await store.log_out(token("a"), CLIENT) is None
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.LOGGED_OUT
    assert await store.sessions("74") == []


async def test_a_session_is_idle_when_the_silence_is_as_long_as_the_limit(make_store: MakeStore, hand: Hand) -> None:
    # C-20, C-35, S17: 1,800 s is idle; a little less is not
    store = make_store(idle_seconds=1_800)
    session_id = await opened(store)
    hand.let_pass(1_800 - 60)
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    hand.let_pass(1_800 - 60)
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    hand.let_pass(1_800)
    checked = await store.check(token("a"), CLIENT)
    assert (checked.outcome, checked.session_id, checked.end_reason) == ("ended", session_id, EndReason.IDLE)
    session = await only(store, include_inactive=True)
    assert session.ended_at == session.last_activity + 1_800 * 1_000_000


async def test_an_idle_session_is_in_no_list_of_live_ones_although_nobody_asked(
    make_store: MakeStore, hand: Hand
) -> None:
    # C-20, E-06
    store = make_store()
    session_id = await opened(store)
    hand.let_pass(HOUR)
    assert await store.sessions("74") == []
    assert not await store.end("74", session_id, EndReason.REVOKED_BY_USER)
    assert (await only(store, include_inactive=True)).end_reason is EndReason.IDLE


async def test_without_an_idle_limit_silence_ends_nothing(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=None)
    await opened(store)
    hand.let_pass(23 * HOUR)
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"


async def test_a_session_ends_at_its_absolute_limit_however_busy_it_is(make_store: MakeStore, hand: Hand) -> None:
    # B-12, T14: the token itself is good until the year 9999
    store = make_store(session_seconds=86_400, idle_seconds=1_800)
    for_ever = token("a", expires_in=8_000 * 365 * DAY)
    session_id = (await store.check(for_ever, CLIENT)).session_id
    for _ in range(95):
        hand.let_pass(900)
        assert (await store.check(for_ever, CLIENT)).outcome == "touched"
    hand.let_pass(900)
    checked = await store.check(for_ever, CLIENT)
    assert (checked.outcome, checked.session_id, checked.end_reason) == ("ended", session_id, EndReason.EXPIRED)
    session = await only(store, include_inactive=True)
    assert session.ended_at == session.expires_at


async def test_the_earlier_of_two_ends_is_the_reason(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await opened(store, "silent")
    hand.let_pass(30 * HOUR)
    assert (await store.check(token("silent"), CLIENT)).end_reason is EndReason.IDLE


async def test_a_session_that_expired_before_it_fell_silent_has_expired(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(session_seconds=HOUR, idle_seconds=1_800)
    await opened(store)
    hand.let_pass(1_200)
    await store.check(token("a"), CLIENT)
    hand.let_pass(1_200)
    await store.check(token("a"), CLIENT)
    hand.let_pass(30 * HOUR)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.EXPIRED


async def test_an_exempt_user_is_never_idle_but_expires(make_store: MakeStore, hand: Hand) -> None:
    # EXEMPT_USERS: without device limit and idle time-out
    store = make_store()
    for reference in "abcde":
        assert (await store.check(token(reference), CLIENT, exempt=True)).evicted == 0
    hand.let_pass(23 * HOUR)
    assert (await store.check(token("a"), CLIENT, exempt=True)).outcome == "touched"
    assert len(await store.sessions("74")) == 5
    hand.let_pass(HOUR)
    assert (await store.check(token("a"), CLIENT, exempt=True)).end_reason is EndReason.EXPIRED


async def test_a_user_who_is_no_longer_exempt_falls_silent_from_then_on(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("a"), CLIENT, exempt=True)
    hand.let_pass(2 * HOUR)
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    hand.let_pass(HOUR)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE


async def test_an_idle_session_does_not_come_back_because_its_user_became_exempt(
    make_store: MakeStore, hand: Hand
) -> None:
    # What a session is does not depend on who asks: a list would have called it idle
    store = make_store()
    await opened(store)
    hand.let_pass(HOUR)
    assert (await store.check(token("a"), CLIENT, exempt=True)).end_reason is EndReason.IDLE


async def test_a_token_without_a_session_is_refused_where_nothing_is_adopted(make_store: MakeStore) -> None:
    # T20, UNKNOWN_SESSION=reject
    store = make_store(adopt_unknown=False)
    checked = await store.check(token("a"), CLIENT)
    assert (checked.outcome, checked.session_id, checked.end_reason) == ("unknown", 0, None)
    assert await store.sessions("74", include_inactive=True) == []


async def test_a_newer_token_of_a_session_is_the_one_that_is_shown(make_store: MakeStore) -> None:
    # C-07: the newest token's jti
    store = make_store()
    await store.check(token("sid", jti="one", expires_in=60), CLIENT)
    await store.check(token("sid", jti="two", expires_in=120), CLIENT)
    await store.check(token("sid", jti="one", expires_in=60), CLIENT)
    assert (await only(store)).jti == "two"


async def test_lists_have_the_newest_activity_first(make_store: MakeStore) -> None:
    # A-01, rule 4.3
    store = make_store()
    ids = {reference: await opened(store, reference) for reference in "abc"}
    await store.check(token("b"), CLIENT)
    await store.check(token("a"), CLIENT)
    assert [session.id for session in await store.sessions("74")] == [ids["a"], ids["b"], ids["c"]]


async def test_a_list_with_inactive_ones_shows_every_end_but_a_delete(make_store: MakeStore, hand: Hand) -> None:
    # rule 4.3, D-01
    store = make_store(device_limit=2)
    idle, expired = await opened(store, "idle"), await opened(store, "expired")
    hand.let_pass(DAY - 60, only=expired)
    hand.activity(expired, (await only_by_id(store, idle)).last_activity + 1)
    hand.let_pass(HOUR, only=idle)
    hand.let_pass(60, only=expired)
    assert await store.sessions("74") == []
    evicted, deactivated, live = [await opened(store, name) for name in ("evicted", "deactivated", "live")]
    await store.end("74", deactivated, EndReason.DEACTIVATED)
    logged_out = await opened(store, "logged out")
    await store.log_out(token("logged out"), CLIENT)
    revoked = await opened(store, "revoked")
    await store.end("74", revoked, EndReason.REVOKED_BY_USER)

    shown = await store.sessions("74", include_inactive=True)
    assert {session.id: session.end_reason for session in shown} == {
        idle: EndReason.IDLE,
        expired: EndReason.EXPIRED,
        evicted: EndReason.EVICTED,
        deactivated: EndReason.DEACTIVATED,
        logged_out: EndReason.LOGGED_OUT,
        live: None,
    }
    activities = [session.last_activity for session in shown]
    assert activities == sorted(activities, reverse=True)
    assert all(session.is_active == (session.ended_at is None) for session in shown)
    assert [session.id for session in await store.sessions("74")] == [live]


async def only_by_id(store: SessionStore, session_id: int) -> Session:
    [found] = [session for session in await store.sessions("74") if session.id == session_id]
    return found


async def test_a_delete_hides_a_deactivated_session_once_and_keeps_its_reason(make_store: MakeStore) -> None:
    # B-04, B-13, rule 4.3
    store = make_store()
    session_id = await opened(store)
    assert await store.end("74", session_id, EndReason.DEACTIVATED)
    assert not await store.end("74", session_id, EndReason.DEACTIVATED)
    assert (await only(store, include_inactive=True)).end_reason is EndReason.DEACTIVATED
    assert await store.end("74", session_id, EndReason.REVOKED_BY_USER)
    assert not await store.end("74", session_id, EndReason.REVOKED_BY_USER)
    assert await store.sessions("74", include_inactive=True) == []
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.DEACTIVATED


@pytest.mark.parametrize("reason", [EndReason.REVOKED_BY_USER, EndReason.DEACTIVATED])
async def test_what_logged_out_by_itself_is_not_there_to_be_deleted(make_store: MakeStore, reason: EndReason) -> None:
    # rule 4.3: 404 for any other
    store = make_store()
    session_id = await opened(store)
    await store.log_out(token("a"), CLIENT)
    assert not await store.end("74", session_id, reason)
    assert (await only(store, include_inactive=True)).end_reason is EndReason.LOGGED_OUT


async def test_the_session_of_somebody_else_is_not_there(make_store: MakeStore) -> None:
    # S13, T19
    store = make_store()
    session_id = await opened(store, user="victim")
    for reason in ENDS_BY_HAND:
        assert not await store.end("74", session_id, reason)
    assert await store.end_all("74", EndReason.REVOKED_BY_USER) == 0
    assert (await store.check(token("a", "victim"), CLIENT)).outcome == "touched"


@pytest.mark.parametrize("session_id", [0, -1, 2**53, 2**63, 10**30])
async def test_an_id_that_no_session_has_ends_nothing(make_store: MakeStore, session_id: int) -> None:
    store = make_store()
    await opened(store)
    assert not await store.end("74", session_id, EndReason.REVOKED_BY_USER)
    assert await store.end_all("74", EndReason.REVOKED_BY_USER, spare=session_id) == 1


async def test_a_touch_that_races_a_revocation_never_revives_the_session(make_store: MakeStore) -> None:
    # S14, S16, S30: 100 requests in flight; none that starts after the answer passes
    store, other = make_store(), make_store()
    session_id = await opened(store)
    requests = [asyncio.create_task(other.check(token("a"), CLIENT)) for _ in range(100)]
    ending = asyncio.create_task(store.end("74", session_id, EndReason.REVOKED_BY_USER))
    requests += [asyncio.create_task(other.check(token("a"), CLIENT)) for _ in range(100)]
    assert await ending
    assert (await other.check(token("a"), CLIENT)).outcome == "ended"
    assert {checked.outcome for checked in await asyncio.gather(*requests)} <= {"touched", "ended"}
    assert await store.sessions("74") == []


async def test_a_user_agent_is_kept_short_and_without_control_characters(make_store: MakeStore) -> None:
    # U02, U09
    store = make_store()
    await store.check(token("a"), Client(ip_address="::1", user_agent="\x1b[2Jé\r\n\u202e\ud800" + "x" * 65_536))
    session = await only(store)
    assert session.user_agent == ("[2Jé" + "x" * 512)[:512]

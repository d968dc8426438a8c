"""The lifetime of records, which expire by themselves."""

from __future__ import annotations

import time

from gatekeeper.models import EndReason
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Hand, token


async def ended(store: SessionStore, reference: str, *, expires_in: float = HOUR) -> int:
    session_id = (await store.check(token(reference, expires_in=expires_in), CLIENT)).session_id
    assert await store.end("74", session_id, EndReason.REVOKED_BY_USER)
    return session_id


async def test_an_ended_record_leaves_with_its_reference_when_its_time_is_over(
    make_store: MakeStore, hand: Hand
) -> None:
    # E-06, rule 4.7, ENDED_SESSION_TTL
    store = make_store(ended_seconds=DAY)
    await ended(store, "a")
    hand.let_pass(DAY - 60)
    await store.sessions("74")
    assert (hand.records(), hand.references()) == (1, 1)
    hand.let_pass(60)
    await store.sessions("74")
    assert (hand.records(), hand.references()) == (0, 0)
    # What remains is the hint that this user may have something to clean up; the next clean-up takes it away.
    assert hand.names() == {b"gk:due"}


async def test_an_opening_forgets_too(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(ended_seconds=DAY)
    await ended(store, "a")
    hand.let_pass(DAY)
    await store.check(token("b"), CLIENT)
    assert (hand.records(), hand.references()) == (1, 1)


async def test_a_logout_forgets_too(make_store: MakeStore, hand: Hand) -> None:
    # Logouts of tokens never seen are records as well, and must not pile up
    store = make_store(ended_seconds=HOUR)
    for number in range(5):
        await store.log_out(token(f"r{number}", expires_in=60), CLIENT)
        hand.let_pass(2 * HOUR)
    assert hand.records() == 1


async def test_an_ended_record_stays_until_its_last_known_token_has_expired(make_store: MakeStore, hand: Hand) -> None:
    # ENDED_SESSION_TTL: at least until its last known token has expired
    store = make_store(ended_seconds=HOUR)
    await ended(store, "a", expires_in=7 * DAY)
    hand.let_pass(7 * DAY - 60)
    await store.sessions("74")
    assert (await store.check(token("a", expires_in=60), CLIENT)).end_reason is EndReason.REVOKED_BY_USER
    hand.let_pass(60)
    await store.sessions("74")
    assert hand.records() == 0


async def test_a_refused_token_that_expires_later_keeps_the_record(make_store: MakeStore, hand: Hand) -> None:
    # ENDED_SESSION_TTL: "… or one refused since, has expired"
    store = make_store(ended_seconds=HOUR)
    await ended(store, "a", expires_in=60)
    assert (await store.check(token("a", expires_in=7 * DAY), CLIENT)).outcome == "ended"
    hand.let_pass(6 * DAY)
    await store.sessions("74")
    assert (await store.check(token("a", expires_in=DAY), CLIENT)).end_reason is EndReason.REVOKED_BY_USER
    assert 7 * DAY - 60 <= hand.needed_until(hand.keys()[0]) - time.time() <= 7 * DAY + 1


async def test_a_logout_with_a_token_that_expires_later_keeps_the_record(make_store: MakeStore, hand: Hand) -> None:
    # The token is known from then on, although it was never checked: it must not open a session afterwards
    store = make_store(ended_seconds=HOUR)
    await ended(store, "a", expires_in=60)
    assert await store.log_out(token("a", expires_in=7 * DAY), CLIENT) is None
    hand.let_pass(6 * DAY)
    await store.sessions("74")
    assert (await store.check(token("a", expires_in=DAY), CLIENT)).end_reason is EndReason.REVOKED_BY_USER


async def test_a_session_that_was_logged_out_stays_as_long_as_the_token_that_did_it(
    make_store: MakeStore, hand: Hand
) -> None:
    store = make_store(ended_seconds=HOUR)
    await store.check(token("a", expires_in=60), CLIENT)
    await store.log_out(token("a", expires_in=7 * DAY), CLIENT)
    hand.let_pass(6 * DAY)
    await store.sessions("74")
    assert (await store.check(token("a", expires_in=DAY), CLIENT)).end_reason is EndReason.LOGGED_OUT


async def test_the_tombstone_of_a_logout_stays_as_long_as_its_token(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(ended_seconds=HOUR)
    await store.log_out(token("a", expires_in=7 * DAY), CLIENT)
    hand.let_pass(7 * DAY - 60)
    await store.sessions("74")
    assert (await store.check(token("a", expires_in=60), CLIENT)).end_reason is EndReason.LOGGED_OUT


async def test_both_keys_leave_by_themselves_and_together(make_store: MakeStore, hand: Hand) -> None:
    # rule 4.7, R23
    store = make_store(session_seconds=DAY, ended_seconds=HOUR)
    await store.check(token("a"), CLIENT)
    hand.index_in_key()
    sessions, index = (hand.needed_until(name) for name in hand.keys()[:2])
    assert sessions == index
    assert -60 < sessions - time.time() - (DAY + HOUR) <= 1
    await store.check(token("a", expires_in=30 * DAY), CLIENT)
    sessions, index = (hand.needed_until(name) for name in hand.keys()[:2])
    assert sessions == index
    assert -60 < sessions - time.time() - 30 * DAY <= 1


async def test_a_key_never_leaves_earlier_because_of_a_shorter_session(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("long", expires_in=30 * DAY), CLIENT)
    await ended(store, "short", expires_in=60)
    assert hand.needed_until(hand.keys()[0]) - time.time() > 29 * DAY


async def test_sessions_that_nobody_lists_do_not_pile_up(make_store: MakeStore, hand: Hand) -> None:
    # A service account that signs in anew all day: no limit, no idle time-out, and nobody ever asks for its list
    store = make_store(device_limit=3, ended_seconds=HOUR)
    for day in range(6):
        for number in range(5):
            await store.check(token(f"{day}-{number}"), CLIENT, exempt=True)
        hand.let_pass(2 * DAY)
    await store.check(token("now"), CLIENT, exempt=True)
    assert hand.records() <= 11


async def test_sessions_do_not_pile_up_without_a_device_limit(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(device_limit=None, ended_seconds=HOUR)
    for day in range(6):
        for number in range(5):
            await store.check(token(f"{day}-{number}"), CLIENT)
        hand.let_pass(2 * DAY)
    await store.check(token("now"), CLIENT)
    assert hand.records() <= 11

"""A session found by the names of its tokens, moved by hand, and a lowered limit enforced (C-16, D-05)."""

from __future__ import annotations

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, HOUR, Hand, token
from tests.sessions.test_manager import Counted


@pytest.fixture
def store(make_store: MakeStore) -> SessionStore:
    return make_store()


async def test_a_name_is_a_reference_first_and_then_a_jti(store: SessionStore) -> None:
    first = await store.check(token("a", jti="b"), CLIENT)
    second = await store.check(token("b", jti="c"), CLIENT)
    found = {name: await store.find("74", name) for name in "abcd"}
    ids = {name: session.id for name, session in found.items() if session is not None}
    assert ids == {"a": first.session_id, "b": second.session_id, "c": second.session_id}


async def test_older_references_of_a_renewed_session_name_it_too(store: SessionStore) -> None:
    opened = await store.check(token("old", jti="1"), CLIENT)
    await SignIns(store._runner).refresh(
        token("new", jti="2"), CLIENT, exempt=False, refresh=None, linked=opened.session_id
    )
    for name in ("old", "new", "2"):
        found = await store.find("74", name)
        assert found is not None
        assert (found.id, found.reference, found.jti) == (opened.session_id, "new", "2")
    assert await store.find("74", "1") is None


async def test_looking_moves_nothing_and_a_touch_moves_strictly_forward(store: SessionStore) -> None:
    await store.check(token("a"), CLIENT)
    (before,) = await store.sessions("74")
    assert await store.find("74", "a") == before
    for _ in range(3):
        moved = await store.find("74", "a", touch=True)
        assert moved is not None
        assert moved.last_activity > before.last_activity
        assert await store.sessions("74") == [moved]
        before = moved


async def test_a_touch_never_revives(store: SessionStore, store_url: str) -> None:
    await store.check(token("a", expires_in=24 * HOUR), CLIENT)
    with Hand(store_url) as hand:
        hand.let_pass(1_800)
    for _ in range(2):
        found = await store.find("74", "a", touch=True)
        assert found is not None
        assert (found.end_reason, found.is_active) == (EndReason.IDLE, False)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE


async def test_what_ended_with_all_the_others_is_found_as_ended(store: SessionStore) -> None:
    await store.check(token("a"), CLIENT)
    spared = await store.check(token("b"), CLIENT)
    await store.end_all("74", EndReason.REVOKED_BY_USER, spare=spared.session_id)
    over, live = await store.find("74", "a"), await store.find("74", "b")
    assert over is not None
    assert live is not None
    assert (over.end_reason, live.is_active) == (EndReason.REVOKED_BY_USER, True)
    assert over.ended_at is not None


async def test_nobody_elses_session_is_found(store: SessionStore) -> None:
    await store.check(token("a"), CLIENT)
    assert await store.find("75", "a") is None
    assert await store.find("75", "a", touch=True) is None


@pytest.mark.parametrize("name", ["", "x" * 321, "%C3%A9" * 257, "a\n", "\ud800", "a\x00"])
async def test_what_is_no_name_is_not_asked_for(store: SessionStore, name: str) -> None:
    assert await store.find("74", name) is None
    await store.log_out_unseen("74", name, CLIENT)
    assert await store.sessions("74", include_inactive=True) == []


async def test_a_name_that_was_logged_out_before_it_was_seen_opens_no_session(
    store: SessionStore, make_store: MakeStore
) -> None:
    await store.log_out_unseen("74", "a", CLIENT)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.LOGGED_OUT
    await make_store(adopt_unknown=False).log_out_unseen("74", "b", CLIENT)
    assert await store.find("74", "b") is None


async def test_a_lowered_limit_is_enforced_by_the_policy(make_store: MakeStore) -> None:
    store, events = make_store(device_limit=None), Counted()
    ids = [(await store.check(token(name), CLIENT)).session_id for name in "abcd"]
    await store.check(token("a"), CLIENT)
    assert await store.enforce_limit("74") == 0
    assert await make_store(device_limit=2, policy="reject").enforce_limit("74") == 0
    assert await Manager(make_store(device_limit=3), events).enforce_limit("74") == 1
    assert {session.id for session in await store.sessions("74")} == {ids[0], ids[2], ids[3]}
    assert await make_store(device_limit=1, policy="evict_oldest").enforce_limit("74") == 2
    assert [session.id for session in await store.sessions("74")] == [ids[3]]
    assert [event.value for event, _ in events.seen.elements()] == ["evicted"]
    ended = await store.find("74", "b")
    assert ended is not None
    assert ended.end_reason is EndReason.EVICTED


async def test_who_has_no_limit_loses_nothing(make_store: MakeStore) -> None:
    store = make_store(device_limit=1)
    for name in "abc":
        await store.check(token(name), CLIENT, exempt=True)
    assert await store.enforce_limit("74") == 0
    assert await store.enforce_limit("75") == 0


async def test_a_garbled_record_is_a_fault_and_no_answer(store: SessionStore, store_url: str) -> None:
    opened = await store.check(token("a"), CLIENT)
    with Hand(store_url) as hand:
        hand.write(opened.session_id, "expires_at", "nan")
    with pytest.raises(StoreUnavailable):
        await store.find("74", "a", touch=True)

"""Operations of users and administrators on sessions, and how they are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.events import ActorKind, Event
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, HOUR, Hand, token
from tests.waiting import HANG_SECONDS


class Counted:
    def __init__(self) -> None:
        self.seen: Counter[tuple[Event, ActorKind]] = Counter()

    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None:
        self.seen[event, actor] += number


@pytest.fixture
def events() -> Counted:
    return Counted()


@pytest.fixture
def store(make_store: MakeStore) -> SessionStore:
    return make_store()


@pytest.fixture
def manager(store: SessionStore, events: Counted) -> Manager:
    return Manager(store, events)


async def opened(store: SessionStore, reference: str, user: str = "74") -> int:
    return (await store.check(token(reference, user), CLIENT)).session_id


async def reason_of(store: SessionStore, reference: str, user: str = "74") -> EndReason | None:
    return (await store.check(token(reference, user), CLIENT)).end_reason


@pytest.mark.parametrize(
    ("by_admin", "reason", "actor"),
    [(False, EndReason.REVOKED_BY_USER, "user"), (True, EndReason.REVOKED_BY_ADMIN, "admin")],
)
async def test_one_session_is_revoked_in_the_name_of_who_did_it(
    manager: Manager, store: SessionStore, events: Counted, by_admin: bool, reason: EndReason, actor: ActorKind
) -> None:
    # rule 4.10, C-13
    session_id = await opened(store, "a")
    assert await manager.revoke("74", session_id, by_admin=by_admin)
    assert not await manager.revoke("74", session_id, by_admin=by_admin)
    assert await reason_of(store, "a") is reason
    assert await manager.sessions("74", include_inactive=True) == []
    assert events.seen == {(Event(reason.value), actor): 1}


@pytest.mark.parametrize(
    ("by_admin", "reason", "actor"),
    [(False, EndReason.REVOKED_BY_USER, "user"), (True, EndReason.REVOKED_BY_ADMIN, "admin")],
)
async def test_all_are_revoked_and_counted(
    manager: Manager, store: SessionStore, events: Counted, by_admin: bool, reason: EndReason, actor: ActorKind
) -> None:
    # rule 4.4
    ids = [await opened(store, reference) for reference in "abc"]
    assert await manager.revoke_all("74", spare=ids[1], by_admin=by_admin) == 2
    assert await manager.revoke_all("74", by_admin=by_admin) == 1
    assert await manager.revoke_all("74", by_admin=by_admin) == 0
    assert [await reason_of(store, reference) for reference in "abc"] == [reason] * 3
    assert +events.seen == {(Event(reason.value), actor): 3}


async def test_a_deactivated_session_stays_listed_as_inactive(
    manager: Manager, store: SessionStore, events: Counted
) -> None:
    # B-04, B-13
    session_id = await opened(store, "a")
    assert await manager.deactivate("74", session_id)
    assert not await manager.deactivate("74", session_id)
    assert await manager.sessions("74") == []
    [session] = await manager.sessions("74", include_inactive=True)
    assert (session.id, session.is_active) == (session_id, False)
    assert events.seen == {(Event.DEACTIVATED, "user"): 1}


async def test_an_id_that_is_none_is_not_there(manager: Manager, events: Counted) -> None:
    # rule 4.5
    assert not await manager.revoke("74", None)
    assert not await manager.deactivate("74", None)
    assert not events.seen


async def test_somebody_elses_session_is_not_there(manager: Manager, store: SessionStore, events: Counted) -> None:
    # S13, rule 4.5
    session_id = await opened(store, "a", "victim")
    assert not await manager.revoke("74", session_id)
    assert not await manager.revoke("74", session_id, by_admin=True)
    assert not await manager.deactivate("74", session_id)
    assert await manager.revoke_all("74", spare=session_id) == 0
    assert [session.id for session in await manager.sessions("victim")] == [session_id]
    assert not +events.seen


async def test_a_logout_counts_once(manager: Manager, store: SessionStore, events: Counted) -> None:
    # C-03, rule 4.10
    await opened(store, "a")
    for _ in range(2):
        await manager.log_out(token("a"), CLIENT)
    await manager.log_out(token("never seen"), CLIENT)
    assert await reason_of(store, "a") is await reason_of(store, "never seen") is EndReason.LOGGED_OUT
    assert events.seen == {(Event.LOGGED_OUT, "user"): 1}


async def test_an_unknown_user_has_no_sessions(manager: Manager, events: Counted) -> None:
    # rule 4.5
    assert await manager.sessions("nobody") == []
    assert await manager.revoke_all("nobody", by_admin=True) == 0
    assert not +events.seen


async def test_what_is_idle_cannot_be_ended_any_more(
    manager: Manager, store: SessionStore, events: Counted, hand: Hand
) -> None:
    # rule 4.3: 404 for any other
    session_id = await opened(store, "a")
    hand.let_pass(HOUR)
    assert not await manager.revoke("74", session_id)
    assert not events.seen


async def test_an_end_that_the_store_did_not_acknowledge_is_no_end_and_not_counted(tmp_path: Path) -> None:
    # rule 4.8, S15
    events = Counted()
    store_client = StoreClient(f"unix://{tmp_path}/nowhere", timeout_seconds=1)
    manager = Manager(SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=RULES)), events)
    for call in (
        manager.sessions("74"),
        manager.revoke("74", 1),
        manager.deactivate("74", 1),
        manager.revoke_all("74"),
        manager.log_out(token("a"), CLIENT),
    ):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(call, HANG_SECONDS)
    assert not events.seen
    await store_client.aclose()


def test_every_end_reason_has_an_event_and_a_refusal() -> None:
    # rules 4.10 and 6.1
    for reason in EndReason:
        assert Event(reason.value)
    assert {reason: reason.refusal.code for reason in EndReason} == {
        EndReason.LOGGED_OUT: "access_token_blacklisted",
        EndReason.IDLE: "session_inactivity_timeout",
        EndReason.EXPIRED: "session_expired",
        EndReason.REVOKED_BY_USER: "session_revoked_or_invalid",
        EndReason.REVOKED_BY_ADMIN: "session_revoked_or_invalid",
        EndReason.DEACTIVATED: "session_revoked_or_invalid",
        EndReason.EVICTED: "session_revoked_or_invalid",
        EndReason.REFRESH_REUSED: "session_revoked_or_invalid",
        EndReason.REPORTED: "session_revoked_or_invalid",
    }

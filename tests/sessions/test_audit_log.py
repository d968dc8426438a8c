"""The audit log in the store: how much it keeps of what, and the order in which it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions import audit_reader
from gatekeeper.sessions.audit import AuditLog, Retention
from gatekeeper.sessions.audit_event import Action, audit_event, timestamp
from gatekeeper.sessions.audit_reader import AuditReader, RecordedEvent
from gatekeeper.sessions.events import SYSTEM, Actor
from gatekeeper.store.client import StoreClient
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, Hand, token
from tests.waiting import HANG_SECONDS

STREAM, ROUTINE = "gk:audit", "gk:audit:routine"
SECOND, MINUTE = 1_000_000, 60_000_000
# The first millisecond of 2026, in microseconds.
BEGAN = 1_767_225_600 * SECOND
ANN = Actor(kind="user", user_id="ann")


@pytest.fixture
async def store_client(store_url: str) -> AsyncIterator[StoreClient]:
    made = StoreClient(store_url, timeout_seconds=5)
    yield made
    await made.aclose()


@pytest.fixture
def reader(store_client: StoreClient) -> AuditReader:
    return AuditReader(store_client, key_prefix="gk:")


def log(store_client: StoreClient, retention: Retention) -> AuditLog:
    return AuditLog(store_client, key_prefix="gk:", retention=retention)


def put(hand: Hand, arrived: int, happened: int, name: str, *, routine: bool = False) -> None:
    """An event as a process wrote it, that arrived and happened at these instants (microseconds)."""
    event = audit_event("session_ended", SYSTEM, at=happened, user=name, reason="idle" if routine else "logged_out")
    fields: Any = {name: "" if value is None else str(value) for name, value in _members(event).items()}
    hand.redis.xadd(ROUTINE if routine else STREAM, fields, id=f"{arrived // 1000}-*")


def _members(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


async def names(reader: AuditReader, since: int = 0, until: int | None = None) -> list[str]:
    return [event.user_id or "" async for event in reader.read(since, until)]


# What is kept


async def test_sessions_that_end_by_themselves_push_no_other_event_out(
    store_client: StoreClient, reader: AuditReader
) -> None:
    # Rule 4.12: a night in which everything expires leaves the failed logins of the evening
    audit_log = log(store_client, Retention(events=100))
    await audit_log.record(Action.LOGIN_FAILED, ANN)
    for reason in ("idle", "expired"):
        for number in range(1_000):
            await audit_log.write(audit_event("session_ended", SYSTEM, at=BEGAN + number, user="zoe", reason=reason))
    events = [event async for event in reader.read()]
    assert [event.actor_id for event in events if event.event == "login_failed"] == ["ann"]
    # Whole nodes of a hundred entries are removed.
    assert 100 <= len(events) - 1 <= 300


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason.value not in {"idle", "expired"}])
async def test_every_end_that_somebody_caused_is_among_the_events_of_persons(
    store_client: StoreClient, hand: Hand, reason: EndReason
) -> None:
    event = audit_event("session_ended", ANN, at=BEGAN, user="ann", reason=reason.value)
    await log(store_client, Retention()).write(event)
    assert (hand.redis.xlen(STREAM), hand.redis.xlen(ROUTINE)) == (1, 0)


async def test_a_number_of_events_is_kept(store_client: StoreClient, hand: Hand) -> None:
    audit_log = log(store_client, Retention(events=250))
    for _ in range(1_000):
        await audit_log.record(Action.LOGIN_FAILED, ANN)
    length: Any = hand.redis.xlen(STREAM)
    assert 250 <= length <= 350
    await audit_log.trim()
    assert hand.redis.xlen(STREAM) == length


async def test_events_are_kept_for_a_time_by_the_stores_clock(
    store_client: StoreClient, reader: AuditReader, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = hand.redis.time()
    seconds, micro = clock
    now = seconds * SECOND + micro
    hour = 3_600 * SECOND
    put(hand, now - 91 * 24 * hour, now - 91 * 24 * hour, "old")
    put(hand, now - 91 * 24 * hour, now - 91 * 24 * hour, "old", routine=True)
    put(hand, now - 89 * 24 * hour, now - 89 * 24 * hour, "young")
    put(hand, now - 89 * 24 * hour, now - 89 * 24 * hour, "young", routine=True)
    audit_log = log(store_client, Retention(events=None, seconds=90 * 86_400))
    # A host whose clock is years ahead removes nothing more.
    monkeypatch.setattr(time, "time_ns", lambda: (now + 9_000 * 24 * hour) * 1_000)
    await audit_log.record(Action.LOGIN_FAILED, ANN)
    await audit_log.trim()
    monkeypatch.undo()
    assert await names(reader) == ["young", "young", ""]


async def test_a_longer_time_than_there_is_keeps_everything(store_client: StoreClient, hand: Hand) -> None:
    put(hand, BEGAN, BEGAN, "ann")
    await log(store_client, Retention(events=None, seconds=1e11)).trim()
    assert hand.redis.xlen(STREAM) == 1


async def test_housekeeping_trims(make_store: MakeStore, hand: Hand, store_client: StoreClient) -> None:
    from gatekeeper.sessions.housekeeping import Housekeeping
    from gatekeeper.sessions.script_runner import ScriptRunner
    from gatekeeper.sessions.store import SessionStore

    rules = make_store()._runner.rules
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=rules, retention=Retention(events=None, seconds=60))
    put(hand, BEGAN, BEGAN, "ann")
    await Housekeeping(SessionStore(runner), runner.outbox).step()
    assert hand.redis.xlen(STREAM) == 0


# The order


async def test_both_streams_are_read_as_one_by_the_time_of_the_events(reader: AuditReader, hand: Hand) -> None:
    put(hand, BEGAN + 3 * SECOND, BEGAN + 2 * SECOND, "b")
    put(hand, BEGAN + 4 * SECOND, BEGAN + 1 * SECOND, "a", routine=True)
    put(hand, BEGAN + 50 * SECOND, BEGAN + 4 * SECOND, "d")
    put(hand, BEGAN + 60 * SECOND, BEGAN + 3 * SECOND, "c", routine=True)
    put(hand, BEGAN + 60 * SECOND, BEGAN + 5 * SECOND, "e")
    assert await names(reader) == list("abcde")
    events, _ = await reader.last(3)
    assert [(event.user_id, event.late) for event in events] == [("c", False), ("d", False), ("e", False)]


async def test_what_arrives_after_more_than_a_minute_stands_where_it_arrived(reader: AuditReader, hand: Hand) -> None:
    put(hand, BEGAN, BEGAN, "a")
    put(hand, BEGAN + 300 * SECOND, BEGAN + 300 * SECOND, "b")
    put(hand, BEGAN + 301 * SECOND, BEGAN + 241 * SECOND, "in time")
    put(hand, BEGAN + 302 * SECOND, BEGAN + 241 * SECOND, "late", routine=True)
    put(hand, BEGAN + 303 * SECOND, BEGAN + 303 * SECOND, "c")
    events = [event async for event in reader.read()]
    assert [(event.user_id, event.late) for event in events] == [
        ("a", False),
        ("in time", False),
        ("b", False),
        ("late", True),
        ("c", False),
    ]
    assert (await reader.last(2))[0] == events[-2:]


async def test_since_and_until_go_by_the_time_of_the_events(reader: AuditReader, hand: Hand) -> None:
    # By a host whose clock is ahead of the store's.
    put(hand, BEGAN + 40 * SECOND - 30 * MINUTE, BEGAN + 5 * SECOND, "ahead", routine=True)
    for second in range(10):
        put(hand, BEGAN + (20 + second) * SECOND, BEGAN + second * SECOND, f"{second}", routine=second % 2 == 1)
    # Arrived a day later, and still of that time.
    put(hand, BEGAN + 86_400 * SECOND, BEGAN + 4 * SECOND, "late")
    since, until = BEGAN + 3 * SECOND, BEGAN + 6 * SECOND
    assert await names(reader, since, until) == ["ahead", "3", "4", "5", "late"]
    assert await names(reader, BEGAN + 9 * SECOND) == ["9"]
    assert await names(reader, 0, BEGAN + 1) == ["0"]


async def test_an_export_that_is_longer_than_a_reply_is_whole(reader: AuditReader, hand: Hand) -> None:
    pipe = hand.redis.pipeline()
    for number in range(2_500):
        event = audit_event("session_ended", SYSTEM, at=BEGAN + number * 1000, user=f"{number}", reason="idle")
        fields: Any = {name: "" if value is None else str(value) for name, value in _members(event).items()}
        pipe.xadd(ROUTINE if number % 3 else STREAM, fields, id=f"{BEGAN // 1000 + number}-1")
    pipe.execute()
    assert await names(reader) == [f"{number}" for number in range(2_500)]
    assert [event.user_id for event in (await reader.last(1_500))[0]] == [f"{number}" for number in range(1_000, 2_500)]
    assert (await reader.last(0))[0] == []


async def test_following_goes_on_where_the_newest_ended_and_misses_nothing(
    reader: AuditReader, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_reader, "_FOLLOW_SECONDS", 0.01)
    put(hand, BEGAN, BEGAN, "old")
    _, position = await reader.last(1)
    seen = asyncio.Queue[str]()

    async def follow() -> None:
        async for event in reader.follow(position):
            seen.put_nowait(event.user_id or "")

    following = asyncio.create_task(follow())
    try:
        for number in range(20):
            put(hand, BEGAN + number * SECOND, BEGAN + number * SECOND, f"{number}", routine=number % 2 == 0)
            async with asyncio.timeout(HANG_SECONDS):
                assert await seen.get() == f"{number}"
    finally:
        following.cancel()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(-90, 200), st.booleans()), max_size=40))
def test_whatever_arrives_when_it_is_told_once_and_in_order(arrivals: list[tuple[int, int, bool]]) -> None:
    """What is not late is by its time, what is late by its arrival, and a longer log begins with the shorter one but
    for its last minute."""
    entries = sorted(
        _arrived(BEGAN + arrived * SECOND, BEGAN + (arrived - delay) * SECOND, number)
        for number, (arrived, delay, _) in enumerate(arrivals)
    )
    entries.sort(key=lambda entry: entry.arrived)
    read = asyncio.run(_ordered(entries))
    assert sorted(event.id for event in read) == sorted(entry.event.id for entry in entries)
    places = {entry.event.id: entry.place for entry in entries}
    assert [places[event.id] for event in read] == sorted(places.values())
    for cut in range(len(entries)):
        settled = entries[cut].arrived - MINUTE
        before = [event.id for event in asyncio.run(_ordered(entries[:cut])) if places[event.id] < settled]
        assert [event.id for event in read][: len(before)] == before


def _arrived(arrived: int, happened: int, number: int) -> audit_reader._Arrived:
    fields = {b"ts": timestamp(happened).encode(), b"event": b"x", b"actor": b"system", b"id": b"%d" % number}
    return audit_reader._read((b"%d-%d" % (arrived // 1000, number), fields), 0)[1]


async def _ordered(entries: list[audit_reader._Arrived]) -> list[RecordedEvent]:
    async def stream() -> AsyncIterator[audit_reader._Arrived]:
        for entry in entries:
            yield entry

    return [event async for event in audit_reader.in_order(stream(), 0, None)]


@pytest.mark.parametrize("ts", ["", "yesterday", "2026-11-25"])
async def test_what_is_no_event_is_said(reader: AuditReader, hand: Hand, ts: str) -> None:
    hand.redis.xadd(STREAM, {"ts": ts, "event": "x", "actor": "nobody", "id": "1"})
    with pytest.raises(StoreUnavailable, match="unexpected entry in the audit stream"):
        await names(reader)


async def test_a_session_that_became_idle_unseen_is_marked_late(
    make_store: MakeStore, hand: Hand, reader: AuditReader
) -> None:
    store = make_store(idle_seconds=1_800.0)
    await store.check(token("a"), CLIENT)
    await store._runner.outbox.flush()
    hand.let_pass(7_200)
    assert await make_store(idle_seconds=1_800.0).settle_due(100) == 1
    events, _ = await reader.last(2)
    assert [(event.event, event.late) for event in events] == [("session_opened", False), ("session_ended", True)]

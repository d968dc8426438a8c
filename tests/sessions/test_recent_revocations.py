"""Acknowledged revocations that are repeated: they end what they ended the first time, and nothing that began later.

A failover that loses writes is made by hand: the user's keys are put back to what they were before (rule 4.13).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import structs

from gatekeeper.models import Claims, EndReason
from gatekeeper.sessions.events import SYSTEM
from gatekeeper.sessions.recent_revocations import RecentRevocation, RecentRevocations
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import END_SID, SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from tests.conftest import RULES
from tests.sessions.by_hand import CLIENT, HOUR, Door, Hand, token

_KEYS = [*Hand.keys(), Hand.pairs()]


@pytest.fixture
async def runner(store_url: str) -> AsyncIterator[ScriptRunner]:
    store_client = StoreClient(store_url, timeout_seconds=5)
    yield ScriptRunner(store_client, key_prefix="gk:", rules=structs.replace(RULES, index_sids=True))
    await store_client.aclose()


@pytest.fixture
def door(runner: ScriptRunner) -> Door:
    return Door(SessionStore(runner))


def copied(hand: Hand) -> dict[str, Any]:
    return {key: hand.redis.dump(key) for key in _KEYS}


def lose(hand: Hand, copy: dict[str, Any]) -> None:
    """Makes the store what it was at the time of the copy."""
    for key, dumped in copy.items():
        hand.redis.delete(key)
        if dumped is not None:
            hand.redis.restore(key, 0, dumped)


async def repeat(runner: ScriptRunner) -> None:
    runner.recent.repeat_soon()
    while runner.recent.is_repeating:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def old(reference: str, *, issued_ago: float = 600.0) -> Claims:
    return token(reference, issued_ago=issued_ago)


ENDS: dict[str, Any] = {
    "logout": lambda door, _: door.store.log_out(old("a"), CLIENT),
    "one": lambda door, session_id: door.store.end("74", session_id, EndReason.REVOKED_BY_USER),
    "deactivate": lambda door, session_id: door.store.end("74", session_id, EndReason.DEACTIVATED),
    "all": lambda door, _: door.store.end_all("74", EndReason.REVOKED_BY_ADMIN),
    "sid": lambda door, _: door.store.end_sid("74", "a", tokens_expire_at=time.time() + HOUR),
    "left": lambda door, _: door.log_in("z", presented="a"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lost", ["the end", "the session too", "nothing"])
async def test_a_repetition_ends_what_was_ended_and_nothing_that_began_later(
    runner: ScriptRunner, door: Door, hand: Hand, end: str, lost: str
) -> None:
    nothing = copied(hand)
    ended = (await door.store.check(old("a"), CLIENT)).session_id
    before = copied(hand)
    await ENDS[end](door, ended)
    reason = await door.reason("a")
    assert reason is not None
    if lost != "nothing":
        lose(hand, before if lost == "the end" else nothing)
    # Later ones, of the same user: by adoption, by a login, and one by the token that was ended.
    assert (await door.check("later", issued_ago=-5))[0] == "opened"
    assert (await door.log_in(token("signed in", issued_ago=-5))).outcome == "opened"
    if lost != "nothing":
        assert (await door.store.check(old("a"), CLIENT)).outcome in {"touched", "opened"}
    for _ in range(2):
        await repeat(runner)
        assert {"later", "signed in"} <= await door.live()
        again = await door.store.check(old("a"), CLIENT)
        if lost == "the session too" and end == "all":
            # A session that began later: nothing tells whether its token was issued before the end of all.
            assert again.outcome == "touched"
            continue
        assert again.outcome in {"ended", "unknown"}
        assert again.end_reason in {reason, None}


async def test_a_session_that_all_others_spared_is_spared_again(runner: ScriptRunner, door: Door, hand: Hand) -> None:
    first = (await door.store.check(old("a"), CLIENT)).session_id
    await door.store.check(old("b"), CLIENT)
    before = copied(hand)
    await door.store.end_all("74", EndReason.REVOKED_BY_USER, spare=first)
    lose(hand, before)
    await repeat(runner)
    assert await door.live() == {"a"}
    # Where another process has spared the other one since, the earlier end holds nevertheless.
    lose(hand, before)
    other = SessionStore(ScriptRunner(runner._redis, key_prefix="gk:", rules=RULES))
    runner._redis.repeat_at_new_primaries(runner.recent)
    second = next(each.id for each in await other.sessions("74") if each.reference == "b")
    await other.end_all("74", EndReason.REVOKED_BY_USER, spare=second)
    await repeat(runner)
    assert await door.live() == set()


async def test_a_reused_refresh_token_ends_its_session_again(runner: ScriptRunner, door: Door, hand: Hand) -> None:
    await door.log_in("a", "one")
    for presented, successor in (("one", "two"), ("two", "three")):
        assert (await door.rotate(presented, successor)).outcome == "rotated"
    before = copied(hand)
    assert (await door.sign_ins.lookup_refresh_token("74", "one")).outcome == "reused"
    lose(hand, before)
    assert await door.word("three") == "live"
    await repeat(runner)
    assert await door.reason("a") is EndReason.REFRESH_REUSED
    assert await door.word("three") == "ended"


async def test_an_evicted_session_is_not_evicted_again(runner: ScriptRunner, door: Door, hand: Hand) -> None:
    await door.store.check(old("0"), CLIENT)
    before = copied(hand)
    for number in range(1, 4):
        await door.store.check(old(f"{number}"), CLIENT)
    assert await door.reason("0") is EndReason.EVICTED
    lose(hand, before)
    await repeat(runner)
    assert await door.live() == {"0"}


async def test_the_audit_log_knows_a_repetition_as_the_same_event(runner: ScriptRunner, door: Door, hand: Hand) -> None:
    await door.store.check(old("a"), CLIENT)
    before = copied(hand)
    outbox = runner.keys.outbox("74")
    hand.redis.delete(outbox)
    await door.store.log_out(old("a"), CLIENT)
    first = hand.redis.lrange(outbox, 0, -1)
    hand.redis.delete(outbox)
    lose(hand, before)
    await repeat(runner)
    assert hand.redis.lrange(outbox, 0, -1) == first != []


async def test_more_than_are_remembered_are_counted_and_old_ones_forgotten() -> None:
    now, forgotten = 0.0, 0

    class Counter:
        def store_lost_data(self, kind: str) -> None: ...

        def revocation_forgotten(self) -> None:
            nonlocal forgotten
            forgotten += 1

    async def run(_: RecentRevocation) -> None: ...

    def prepare(revocation: RecentRevocation) -> Command:
        return END_SID.command([revocation.user.encode()], ())

    recent = RecentRevocations(prepare, run, clock=lambda: now, most=3)
    recent.losses = Counter()
    for number in range(5):
        now += 1
        recent.remember(END_SID, f"{number}", {}, SYSTEM)
    assert forgotten == 2
    assert [make().key for make in recent.writes()] == [b"2", b"3", b"4"]
    now = 34.0
    assert [make().key for make in recent.writes()] == [b"4"]

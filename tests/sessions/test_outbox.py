"""Events reach the audit log and the token blacklist at least once, whichever process dies when."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.events import Actor, ActorKind, Event
from gatekeeper.sessions.outbox import MIRROR
from gatekeeper.sessions.store import SessionStore
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, token

IDLE = 1_800.0
OUTBOX, NOTES, STREAM = "gk:{74}:outbox", "gk:outboxes", "gk:audit"
ROUTINE = "gk:audit:routine"
CHIEF = Actor(kind="admin", user_id="1", client_ip="198.51.100.1", request_id="r-1")


def told(hand: Hand) -> list[tuple[str, str, int]]:
    """The events in the streams, as event, reason and session; those that ended by themselves come last."""
    entries: list[Any] = [each for stream in (STREAM, ROUTINE) for each in hand.redis.xrange(stream)]  # type: ignore[union-attr]
    rows = [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]
    return [(row["event"], row["reason"], int(row["session_id"] or 0)) for row in rows]


def last(hand: Hand) -> dict[str, str]:
    newest: Any = hand.redis.xrevrange(ROUTINE, count=1) or hand.redis.xrevrange(STREAM, count=1)
    [(_, fields)] = newest
    return {name.decode(): value.decode() for name, value in fields.items()}


async def carry(store: SessionStore) -> None:
    await store._runner.outbox.flush()


async def sweep(store: SessionStore, hand: Hand) -> int:
    """Sweeps as another process does, a while later."""
    notes: Any = hand.redis.zrange(NOTES, 0, -1)
    for note in notes:
        hand.redis.zincrby(NOTES, -60_000_000, note)
    return await store._runner.outbox.sweep()


async def test_an_act_and_its_word_are_one_step(make_store: MakeStore, hand: Hand) -> None:
    # dead before it could say anything, a process has said it
    store = make_store()
    checked = await store.check(token("a"), CLIENT)
    await store.end("74", checked.session_id, EndReason.REVOKED_BY_ADMIN, actor=CHIEF)
    assert told(hand) == []
    assert (hand.redis.llen(OUTBOX), hand.redis.zcard(NOTES)) == (2, 2)
    # Another one finds it.
    assert await sweep(make_store(), hand) == 2
    session = checked.session_id
    assert told(hand) == [("session_opened", "token", session), ("session_ended", "revoked_by_admin", session)]
    assert (last(hand)["actor"], last(hand)["actor_id"], last(hand)["request_id"]) == ("admin", "1", "r-1")
    assert (hand.redis.exists(OUTBOX), hand.redis.exists(NOTES)) == (0, 0)
    assert await sweep(make_store(), hand) == 0


async def test_what_is_under_way_is_not_swept(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("a"), CLIENT)
    assert await make_store()._runner.outbox.sweep() == 0
    assert hand.redis.zcard(NOTES) == 1


async def test_two_that_carry_the_same_lose_nothing_and_tell_the_same_id(make_store: MakeStore, hand: Hand) -> None:
    store, other = make_store(), make_store()
    for number in range(3):
        await store.check(token(f"{number}"), CLIENT)
    await asyncio.gather(carry(store), other._runner.outbox.deliver("74"), other._runner.outbox.deliver("74"))
    entries: Any = hand.redis.xrange(STREAM)
    assert len({fields[b"id"] for _, fields in entries}) == 3
    assert hand.redis.exists(OUTBOX) == 0


async def test_a_touch_leaves_no_word(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("a"), CLIENT)
    await carry(store)
    before: Any = hand.redis.info("commandstats")
    await store.check(token("a"), CLIENT)
    assert len(told(hand)) == 1
    after: Any = hand.redis.info("commandstats")
    for command in ("cmdstat_xadd", "cmdstat_rpush", "cmdstat_zrem"):
        assert after[command]["calls"] == before[command]["calls"]


async def test_every_way_to_open_and_to_end_is_told(make_store: MakeStore, hand: Hand) -> None:
    # A-24, C-12, D-07
    door = Door(make_store(device_limit=2, idle_seconds=IDLE, session_seconds=DAY))
    store = door.store
    first = (await door.log_in("a", user_name="zoe")).session_id
    second = (await store.check(token("b"), CLIENT)).session_id
    third = (await store.check(token("c"), CLIENT)).session_id
    await store.log_out(token("c"), CLIENT)
    await store.end("74", second, EndReason.DEACTIVATED)
    fourth = (await store.check(token("d"), CLIENT)).session_id
    await store.end_all("74", EndReason.REVOKED_BY_USER)
    await carry(store)
    assert told(hand) == [
        ("session_opened", "password", first),
        ("session_opened", "token", second),
        ("session_ended", "evicted", first),
        ("session_opened", "token", third),
        ("session_ended", "logged_out", third),
        ("session_ended", "deactivated", second),
        ("session_opened", "token", fourth),
        ("session_ended", "revoked_by_user", fourth),
    ]


async def test_a_refused_limit_is_told(make_store: MakeStore, hand: Hand) -> None:  # A-24, C-12, C-21
    store = make_store(device_limit=1, policy="reject")
    await store.check(token("a"), CLIENT)
    assert (await store.check(token("b"), CLIENT)).outcome == "full"
    await carry(store)
    assert told(hand)[1:] == [("limit_refused", "", 0)]
    assert (last(hand)["user_id"], last(hand)["client_ip"]) == ("74", CLIENT.ip_address)


@pytest.mark.parametrize("how", ["nobody asks", "a request finds it", "an open stream finds it", "a list finds it"])
async def test_what_became_idle_is_told_by_nobody_s_act(make_store: MakeStore, hand: Hand, how: str) -> None:
    # A-24, E-06: the housekeeping finds it, with or without a request; what finds it leaves no note
    store = make_store(idle_seconds=IDLE)
    session = (await store.check(token("a"), CLIENT)).session_id
    await carry(store)
    hand.let_pass(IDLE)
    if how == "a request finds it":
        assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE
    if how == "an open stream finds it":
        assert [each.end_reason for each in await store.session_states("74", {session: None})] == [EndReason.IDLE]
    if how == "a list finds it":
        assert await store.sessions("74") == []
    assert hand.redis.exists(NOTES) == 0
    assert await make_store(idle_seconds=IDLE).settle_due(100) == 1
    assert told(hand)[1:] == [("session_ended", "idle", session)]
    assert (last(hand)["actor"], last(hand)["client_ip"], last(hand)["request_id"]) == ("system", "", "")


async def test_of_more_sessions_than_a_step_ends_each_is_told_once(make_store: MakeStore, hand: Hand) -> None:
    # "end all" is one write; the records follow, whoever ends them
    store = make_store(device_limit=None)
    for start in range(0, 1_200, 100):
        await asyncio.gather(*(store.check(token(f"{start + each}"), CLIENT) for each in range(100)))
    assert await store.end_all("74", EndReason.REVOKED_BY_ADMIN, actor=CHIEF) == 1_200
    assert (await store.check(token("0"), CLIENT)).outcome == "ended"
    hand.redis.zadd("gk:due", {"74": 0})
    assert await store.settle_due(100) == 1
    await carry(store)
    ended = [
        session for event, reason, session in told(hand) if (event, reason) == ("session_ended", "revoked_by_admin")
    ]
    assert len(ended) == len(set(ended)) == 1_200


@pytest.mark.parametrize("lost", [0, 1])
async def test_what_the_store_has_lost_is_told_once_and_is_nobody_s_act(
    make_store: MakeStore, hand: Hand, lost: int
) -> None:
    # the sessions are over; which they were, nobody knows any more
    store = make_store()
    await store.check(token("a"), CLIENT)
    hand.index_in_key()
    hand.redis.delete(hand.keys()[lost])
    assert await store.end_all("74", EndReason.REVOKED_BY_USER, actor=CHIEF) == 0
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"
    await carry(store)
    assert told(hand)[1:] == [("sessions_lost", "", 0)]
    assert (last(hand)["actor"], last(hand)["actor_id"], last(hand)["user_id"]) == ("system", "", "74")


async def test_a_stream_that_is_not_ours_keeps_the_words_and_is_complained_of(
    make_store: MakeStore, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    # Once: not for every act
    store = make_store()
    hand.redis.set(STREAM, "in the way")
    for number in range(3):
        await store.check(token(f"{number}"), CLIENT)
        await carry(store)
    assert (hand.redis.llen(OUTBOX), hand.redis.zcard(NOTES)) == (3, 3)
    complaints = [each for each in caplog.records if each.name == "gatekeeper.audit" and each.levelname == "ERROR"]
    assert len(complaints) == 1
    assert "74" not in complaints[0].getMessage()
    hand.redis.delete(STREAM)
    assert await sweep(make_store(), hand) == 3
    assert len(told(hand)) == 3


async def test_one_user_s_outbox_is_in_no_other_s_way(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    for user in ("74", "75"):
        await store.check(token("a", user), CLIENT)
    hand.redis.rename(OUTBOX, "kept")
    hand.redis.set(OUTBOX, "in the way")
    with pytest.raises(StoreUnavailable):
        await sweep(store, hand)
    assert (len(told(hand)), hand.redis.zcard(NOTES)) == (1, 1)
    hand.redis.rename("kept", OUTBOX)
    await sweep(store, hand)
    assert len(told(hand)) == 2


async def test_what_two_carry_over_is_counted_once(make_store: MakeStore, hand: Hand) -> None:
    stores = [make_store(idle_seconds=IDLE) for _ in range(3)]
    counted: list[str] = []

    class Counting:
        def count(self, event: Event, actor: ActorKind, number: int = 1) -> None:
            counted.extend([event.value] * number)

    for store in stores:
        store._runner.outbox.events = Counting()
    for number in range(3):
        await stores[0].check(token(f"{number}"), CLIENT)
    hand.let_pass(IDLE)
    await stores[0].sessions("74")
    await asyncio.gather(*(store._runner.outbox.deliver("74") for store in stores))
    assert counted == ["idle"] * 3


async def test_a_word_that_is_not_ours_is_in_nobody_s_way(make_store: MakeStore, hand: Hand) -> None:
    # C07
    store = make_store()
    hand.redis.rpush(OUTBOX, b"\xc1garbage", b"\x90", b"\x95\x01\x02\x03\x04\x05")
    for at, *tokens in ([1e300], [float("inf")], [-(2**62)], [0, "j", -5], [0, "j", 2**63], [0, "j", float("nan")]):
        hand.redis.rpush(OUTBOX, msgspec.msgpack.encode(["session_ended", "7", at, "idle", "", *tokens]))
    session = (await store.check(token("a"), CLIENT)).session_id
    await carry(store)
    assert told(hand) == [("session_opened", "token", session)]
    assert hand.redis.exists(OUTBOX) == 0


async def test_no_token_and_no_digest_is_in_an_event(make_store: MakeStore, hand: Hand) -> None:
    #
    door = Door(make_store())
    await door.log_in("a-reference", "digest-of-a-refresh-token")
    await door.store.end_all("74", EndReason.REVOKED_BY_USER)
    await carry(door.store)
    assert b"digest" not in repr(hand.redis.xrange(STREAM)).encode()
    assert "a-reference" not in repr(hand.redis.xrange(STREAM))


# The mirror


def mirrored(hand: Hand) -> dict[str, str]:
    found: Any = hand.redis.keys(f"{MIRROR}*")
    return {key.decode().removeprefix(MIRROR): hand.redis.get(key).decode() for key in found}  # type: ignore[union-attr]


@pytest.mark.parametrize("reason", [EndReason.LOGGED_OUT, EndReason.REVOKED_BY_USER, EndReason.REVOKED_BY_ADMIN])
async def test_a_revoked_token_stands_in_the_mirror_until_it_expires(
    make_store: MakeStore, hand: Hand, reason: EndReason
) -> None:
    # C-13, C-32; rule 4.6
    store = make_store()
    checked = await store.check(token("j", jti="j", expires_in=HOUR), CLIENT)
    await store.check(token("alive", jti="alive"), CLIENT)
    await store.end("74", checked.session_id, reason)
    await carry(store)
    assert mirrored(hand) == {"j": reason.value}
    assert HOUR - 5 <= hand.leaves_at(f"{MIRROR}j") - time.time() <= HOUR + 15


async def test_of_a_refreshed_session_every_token_that_lives_is_mirrored(make_store: MakeStore, hand: Hand) -> None:
    # C-13, C-32
    door = Door(make_store())
    session = (await door.log_in(token("first", jti="first"), "r1")).session_id
    await door.refreshed(token("second", jti="second"), "r2", linked=session)
    await door.store.end_all("74", EndReason.REVOKED_BY_ADMIN)
    await carry(door.store)
    assert mirrored(hand) == {"first": "revoked_by_admin", "second": "revoked_by_admin"}


async def test_of_a_sign_in_with_a_sid_the_newest_token_is_mirrored(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    checked = await store.check(token("the-sid", jti="j1"), CLIENT)
    await store.check(token("the-sid", jti="j2", expires_in=2 * HOUR), CLIENT)
    await store.end("74", checked.session_id, EndReason.LOGGED_OUT)
    await carry(store)
    assert mirrored(hand) == {"j2": "logged_out"}


async def test_a_token_without_a_jti_or_over_its_exp_is_not_mirrored(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("the-sid"), CLIENT)
    await store.check(token("gone", jti="gone", expires_in=-60), CLIENT)
    await store.end_all("74", EndReason.LOGGED_OUT)
    await carry(store)
    assert mirrored(hand) == {}


# The housekeeping


async def test_what_the_housekeeping_ended_is_listed_and_counted_by_a_clean_up(
    make_store: MakeStore, hand: Hand
) -> None:
    # C-08, rule 4.7
    store = make_store(idle_seconds=IDLE, ended_seconds=HOUR)
    await store.check(token("a"), CLIENT)
    await store.check(token("b"), CLIENT)
    hand.let_pass(IDLE)
    assert await store.settle_due(100) == 1
    assert hand.redis.exists("gk:due") == 0
    assert [each.end_reason for each in await store.sessions("74", include_inactive=True)] == [EndReason.IDLE] * 2
    assert await store.clean_up() == 2
    assert await store.sessions("74", include_inactive=True) == []
    assert hand.redis.exists("gk:cleanable") == 0


async def test_a_user_who_lives_is_looked_at_again_in_time(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    await store.check(token("a"), CLIENT)
    hand.let_pass(IDLE - 60)
    await store.check(token("a"), CLIENT)
    hand.let_pass(60)
    assert await store.settle_due(100) == 1
    assert hand.hint() > time.time()
    assert len(await store.sessions("74")) == 1
    assert hand.redis.exists("gk:cleanable") == 0


async def test_two_that_keep_house_do_not_do_it_twice(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    users = [f"user-{number}" for number in range(50)]
    for user in users:
        await store.check(token("a", user), CLIENT)
        hand.let_pass(IDLE, user)
    others = [make_store(idle_seconds=IDLE) for _ in range(3)]
    await asyncio.gather(*(other.settle_due(50) for other in others))
    assert len([reason for event, reason, _ in told(hand) if event == "session_ended"]) == 50


async def test_a_user_claimed_by_who_died_is_looked_at_by_another(make_store: MakeStore, hand: Hand) -> None:
    store = make_store(idle_seconds=IDLE)
    await store.check(token("a"), CLIENT)
    hand.let_pass(IDLE)
    now = time.time_ns() // 1000
    assert await store._runner.indexes.claim_due(b"74", until=now + 60_000_000)
    hand.redis.zincrby("gk:cleanable", -61_000_000, b"74")
    assert await make_store(idle_seconds=IDLE).settle_due(100) == 1
    assert [reason for event, reason, _ in told(hand) if event == "session_ended"] == ["idle"]


async def test_when_all_is_over_nothing_is_left_but_the_trail(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.7; E-06: real time to live, nothing is scanned for
    rules = {"idle_seconds": None, "session_seconds": 0.3, "ended_seconds": 0.2, "leeway_seconds": 0.0}
    store = make_store(**rules)
    for number in range(200):
        await store.check(token(f"{number}", f"user-{number % 100}", expires_in=0.3, jti=f"{number}"), CLIENT)
    await carry(store)
    deadline = time.monotonic() + 30
    while hand.redis.dbsize() > 2 and time.monotonic() < deadline:
        await store.settle_due(100)
        await store._runner.outbox.sweep()
        time.sleep(0.05)
    assert set(hand.redis.keys("*")) == {STREAM.encode(), ROUTINE.encode()}

"""User ids made to break keys, and garbled data in the store."""

from __future__ import annotations

import asyncio
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, HOUR, Hand, token
from tests.waiting import HANG_SECONDS

USERS = [
    "74", "a", ":", "a:b", "a:sessions", "a}:sessions", "{}", "{", "}", "{a}", "{a", "a}", "}a{", "}{", "%7B", "%7b",
    "%257B", "%", "%25", "*", "a*", "?", "[ab]", "a b", "Admin", "admin", "😀", "é", "e\u0301", "x" * 512,
    "x" * 511 + "y", "{" * 512, "gk:{a}:sessions", "h:0", "r:a", "0",
]  # fmt: skip


def hash_slot(key: bytes) -> int:
    """The hash slot of a key: CRC16 (XMODEM) of its hash tag (Redis Cluster specification)."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    tag = key[start + 1 : end] if start >= 0 and end > start + 1 else key
    crc = 0
    for byte in tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
            crc &= 0xFFFF
    return crc % 16_384


def keys_of(user: str) -> tuple[bytes, ...]:
    store_client = StoreClient("unix:///nowhere", timeout_seconds=1)
    return ScriptRunner(store_client, key_prefix="gk:", rules=RULES).keys.of_user(user)


def test_the_slot_function_is_right() -> None:
    assert hash_slot(b"123456789") == 0x31C3 % 16_384
    assert hash_slot(b"foo{}{bar}") == hash_slot(b"foo{}{bar}" + b"") != hash_slot(b"bar")
    assert hash_slot(b"foo{bar}{zap}") == hash_slot(b"bar")


@pytest.mark.parametrize("user", USERS)
def test_all_keys_of_a_user_are_in_one_slot(user: str) -> None:
    # S29, T19
    assert len({hash_slot(key) for key in keys_of(user)}) == 1


def test_no_two_users_share_a_key() -> None:
    # S29, T18
    for one, other in combinations(USERS, 2):
        assert not set(keys_of(one)) & set(keys_of(other)), (one, other)


@given(
    st.text(alphabet=st.sampled_from("{}%:7BbD25a*"), min_size=1, max_size=12),
    st.text(alphabet=st.sampled_from("{}%:7BbD25a*"), min_size=1, max_size=12),
)
def test_different_users_have_different_keys_in_one_slot_each(one: str, other: str) -> None:
    # S29
    assert (one == other) == bool(set(keys_of(one)) & set(keys_of(other)))
    assert len({hash_slot(key) for key in keys_of(one)}) == 1


async def test_users_with_strange_names_do_not_touch_each_other(make_store: MakeStore, hand: Hand) -> None:
    # S29, T18, T19
    store = make_store()
    ids = {user: (await store.check(token("same reference", user), CLIENT)).session_id for user in USERS}
    assert len(hand.names() - {b"gk:due"}) == len(USERS)
    assert hand.redis.zcard("gk:due") == len(USERS)
    for user in USERS[::2]:
        assert await store.end_all(user, EndReason.REVOKED_BY_ADMIN) == 1
    for position, user in enumerate(USERS):
        checked = await store.check(token("same reference", user), CLIENT)
        assert (checked.outcome, checked.session_id) == ("ended" if position % 2 == 0 else "touched", ids[user])


@pytest.mark.parametrize("reference", ["74", "r:a", "*", "a:b:meta", "{x}", "x" * 256, "0"])
async def test_a_reference_is_never_taken_for_an_id(make_store: MakeStore, reference: str) -> None:
    # T19
    store = make_store()
    session_id = (await store.check(token(reference), CLIENT)).session_id
    assert (await store.check(token(str(session_id)), CLIENT)).outcome == "opened"
    assert (await store.check(token(reference), CLIENT)).outcome == "touched"


# C07: bytes in the store that another program wrote, or that a fault garbled

GARBAGE = [
    b"",
    b"\x00",
    b"g",
    b"(dp0\nS'a'\n.",
    b"\xc1",
    b"\x90",
    b"\x93\x01\x02\x03",
    b"\x80",
    b"\xff" * 64,
    b"\xdd\xff\xff\xff\xff",
    b"x" * 1_000_000,
]


async def every_answer(store: SessionStore, session_id: int) -> list[Any]:
    """Returns the result of each call, or its `StoreUnavailable`; raises any other error."""
    questions = (
        store.check(token("a"), CLIENT),
        store.check(token("unseen"), CLIENT),
        store.sessions("74"),
        store.sessions("74", include_inactive=True),
        store.end("74", session_id, EndReason.DEACTIVATED),
        store.end("74", session_id, EndReason.REVOKED_BY_USER),
        store.log_out(token("a"), CLIENT),
        store.check(token("a"), CLIENT),
        store.end_all("74", EndReason.REVOKED_BY_USER),
        store.check(token("a"), CLIENT),
    )
    answers: list[Any] = []
    for question in questions:
        try:
            answers.append(await question)
        except StoreUnavailable as error:
            answers.append(error)
    return answers


def admitted(answer: Any) -> bool:
    return getattr(answer, "outcome", "") in {"touched", "opened"}


async def assert_closed(store: SessionStore, session_id: int) -> None:
    answers = await every_answer(store, session_id)
    assert not any(admitted(answer) for answer in (answers[0], answers[-3], answers[-1])), answers


@pytest.mark.parametrize("garbage", GARBAGE, ids=[str(number) for number in range(len(GARBAGE))])
async def test_a_garbled_record_admits_nobody(make_store: MakeStore, hand: Hand, garbage: bytes) -> None:
    # C07, R19
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    hand.redis.hset(hand.keys()[0], str(session_id), garbage)
    await assert_closed(store, session_id)


@pytest.mark.parametrize("field", ["created_at", "expires_at", "token_expires_at", "exempt", "ended_at"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300, "0", "x" * 100])
async def test_a_record_with_a_wrong_number_admits_nobody(
    make_store: MakeStore, hand: Hand, field: str, value: float | str
) -> None:
    # C07: NaN is neither before nor after anything, so it would never expire
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    hand.write(session_id, field, value)
    await assert_closed(store, session_id)


async def test_an_end_reason_that_there_is_not_admits_nobody(make_store: MakeStore, hand: Hand) -> None:
    # C07
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    await store.log_out(token("a"), CLIENT)
    hand.write(session_id, "end_reason", "no such reason")
    await assert_closed(store, session_id)


WRONG_TYPES = [
    (position, kind)
    for position, right in enumerate(("hash", "zset", "string"))
    for kind in ("string", "list", "hash", "zset")
    if kind != right
]


@pytest.mark.parametrize(("position", "kind"), WRONG_TYPES)
async def test_a_key_of_the_wrong_type_admits_nobody(
    make_store: MakeStore, hand: Hand, position: int, kind: str
) -> None:
    # C07: WRONGTYPE
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    hand.index_in_key()
    key = hand.keys()[position]
    hand.redis.delete(key)
    match kind:
        case "string":
            hand.redis.set(key, "x")
        case "list":
            hand.redis.rpush(key, "x")
        case "hash":
            hand.redis.hset(key, "x", "y")
        case _:
            hand.redis.zadd(key, {"x": 1})
    answers = await every_answer(store, session_id)
    # Records that are there carry what they are judged by, so the last of these keys is only for those that come.
    judged = answers[1:] if position < 2 else answers[1:2]
    assert not any(admitted(answer) for answer in judged), answers


@pytest.mark.parametrize(
    "value", ["", "x", "0", "1 2", "-1 0 revoked_by_user", "1e99 0 x", "1 0 revoked_by_user\n", "9" * 400]
)
async def test_a_garbled_not_before_admits_nobody(make_store: MakeStore, hand: Hand, value: str) -> None:
    # C07
    store = make_store()
    await store.check(token("a"), CLIENT)
    hand.redis.set(hand.keys()[2], value)
    hand.redis.hset(hand.keys()[0], "b", value)
    for reference in ("a", "unseen"):
        with pytest.raises(StoreUnavailable):
            await store.check(token(reference), CLIENT)


@pytest.mark.parametrize(("lost", "has_many"), [(0, False), (0, True), (1, True)])
async def test_a_user_whose_records_are_lost_starts_anew(
    make_store: MakeStore, hand: Hand, lost: int, has_many: bool
) -> None:
    # R6, rule 4.9: what the store forgot may have been revoked, so no token of before is adopted
    store = make_store()
    await store.check(token("a"), CLIENT)
    revoked = (await store.check(token("revoked"), CLIENT)).session_id
    await store.end("74", revoked, EndReason.REVOKED_BY_USER)
    if has_many:
        hand.index_in_key()
    hand.redis.delete(hand.keys()[lost])
    for reference in ("a", "revoked", "unseen"):
        assert not admitted(await store.check(token(reference), CLIENT))
    for reference in ("a", "revoked", "unseen"):
        assert (await store.check(token(reference), CLIENT)).outcome == "unknown"
    assert await store.sessions("74", include_inactive=True) == []
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "opened"
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "touched"
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"


@pytest.mark.parametrize("ends", ["revoked", "logged out", "logged out unseen", "evicted", "idle"])
async def test_the_loss_of_all_records_shows_however_a_session_ended(
    make_store: MakeStore, hand: Hand, ends: str
) -> None:
    # R6: not only where all were ended, of which `not_before` knows
    store = make_store(device_limit=1, idle_seconds=HOUR)
    if ends != "logged out unseen":
        session_id = (await store.check(token("a"), CLIENT)).session_id
    match ends:
        case "revoked":
            await store.end("74", session_id, EndReason.REVOKED_BY_USER)
        case "evicted":
            assert (await store.check(token("b"), CLIENT)).evicted == 1
        case "idle":
            hand.let_pass(HOUR)
            assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.IDLE
        case _:
            await store.log_out(token("a"), CLIENT)
    hand.redis.delete(hand.keys()[0])
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"


async def test_only_live_sessions_that_are_lost_open_again(make_store: MakeStore, hand: Hand) -> None:
    # Nothing was revoked, so nothing can come back
    store = make_store()
    await store.check(token("a"), CLIENT)
    hand.redis.delete(hand.keys()[0])
    assert (await store.check(token("a"), CLIENT)).outcome == "opened"
    assert len(await store.sessions("74")) == 1


async def test_records_stand_without_the_key_that_shows_their_loss(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    await store.check(token("a"), CLIENT)
    await store.log_out(token("b"), CLIENT)
    hand.redis.delete(hand.keys()[1])
    assert (await store.check(token("b"), CLIENT)).end_reason is EndReason.LOGGED_OUT
    assert (await store.check(token("a"), CLIENT)).outcome == "touched"
    assert [session.reference for session in await store.sessions("74")] == ["a"]


async def test_what_ended_with_all_stays_so_without_its_key(make_store: MakeStore, hand: Hand) -> None:
    # Rule 4.9: a policy that evicts takes what is not asked for, which `not_before` is
    store = make_store()
    await store.check(token("a"), CLIENT)
    spared = (await store.check(token("spared"), CLIENT)).session_id
    await store.end_all("74", EndReason.REVOKED_BY_USER, spare=spared)
    hand.redis.delete(hand.keys()[2])
    assert (await store.check(token("a"), CLIENT)).outcome == "ended"
    assert (await store.check(token("spared"), CLIENT)).outcome == "touched"
    assert (await store.check(token("unseen"), CLIENT)).outcome == "unknown"
    # An opening brings the key back, and gives a copy to records that had none.
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "opened"
    hand.redis.delete(hand.keys()[0])
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"
    assert (await store.check(token("newer", issued_ago=-2), CLIENT)).outcome == "opened"
    hand.redis.delete(hand.keys()[2])
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"


async def test_a_user_with_very_many_sessions(make_store: MakeStore, hand: Hand) -> None:
    # Their index has a key of its own, so that a check of one does not read it all
    store = make_store(device_limit=None, ended_seconds=HOUR)
    await asyncio.gather(*(store.check(token(f"t{number}"), CLIENT) for number in range(33)))
    sessions, index, _ = hand.keys()
    assert hand.redis.hget(sessions, "i") == b"key"
    assert hand.redis.zcard(index) == 33
    assert len(await store.sessions("74")) == 33
    await store.log_out(token("t7"), CLIENT)
    outcomes = [(await store.check(token(f"t{number}"), CLIENT)).outcome for number in range(33)]
    assert outcomes == ["touched"] * 7 + ["ended"] + ["touched"] * 25
    assert await store.end_all("74", EndReason.REVOKED_BY_USER) == 32
    assert (await store.check(token("t8"), CLIENT)).outcome == "ended"
    hand.let_pass(3 * HOUR)
    for _ in range(2):
        # Each call forgets twenty.
        await store.sessions("74")
    assert not hand.redis.exists(sessions, index)
    assert (await store.check(token("new", issued_ago=-2), CLIENT)).outcome == "opened"
    assert hand.redis.hstrlen(sessions, "i") == 16


@pytest.mark.parametrize(("lost", "has_many"), [(0, False), (0, True), (1, True)])
@pytest.mark.parametrize("operation", ["list", "end", "end all", "log out"])
async def test_no_operation_hides_that_a_key_was_lost(
    make_store: MakeStore, hand: Hand, lost: int, has_many: bool, operation: str
) -> None:
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    await store.log_out(token("b"), CLIENT)
    if has_many:
        hand.index_in_key()
    hand.redis.delete(hand.keys()[lost])
    match operation:
        case "list":
            assert await store.sessions("74") == []
        case "end":
            assert not await store.end("74", session_id, EndReason.REVOKED_BY_USER)
        case "end all":
            assert await store.end_all("74", EndReason.REVOKED_BY_USER) == 0
        case _:
            assert await store.log_out(token("another"), CLIENT) is None
    for reference in ("a", "unseen"):
        assert (await store.check(token(reference), CLIENT)).outcome == "unknown"


async def test_an_index_entry_without_a_record_is_nothing(make_store: MakeStore, hand: Hand) -> None:
    # It must not stand in the way of a list, an opening, or an end of all
    store = make_store(device_limit=2)
    live = (await store.check(token("a"), CLIENT)).session_id
    for number in range(1, 4):
        hand.activity(number, 4_000_000_000_000_000 + number)
        hand.activity(number + 10, -4_000_000_000_000_000)
    assert [session.id for session in await store.sessions("74", include_inactive=True)] == [live]
    assert len(hand.index()) == 1
    hand.activity(9, 4_000_000_000_000_000)
    assert (await store.check(token("b"), CLIENT)).evicted == 0
    hand.activity(9, 4_000_000_000_000_000)
    assert await store.end_all("74", EndReason.REVOKED_BY_USER) == 2


async def test_a_record_that_the_index_does_not_know_admits_nobody_and_can_be_ended(
    make_store: MakeStore, hand: Hand
) -> None:
    # C07
    store = make_store()
    ids = [(await store.check(token(reference), CLIENT)).session_id for reference in "abc"]
    hand.unindex(*ids[:2])
    for reference in "ab":
        assert (await store.check(token(reference), CLIENT)).outcome == "unknown"
    await store.log_out(token("a"), CLIENT)
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.LOGGED_OUT
    await store.end("74", ids[1], EndReason.REVOKED_BY_USER)
    assert (await store.check(token("b"), CLIENT)).end_reason is EndReason.REVOKED_BY_USER
    assert (await store.check(token("c"), CLIENT)).outcome == "touched"


async def test_a_live_record_that_the_index_calls_ended_admits_nobody(make_store: MakeStore, hand: Hand) -> None:
    # C07
    store = make_store(idle_seconds=None)
    session_id = (await store.check(token("a"), CLIENT)).session_id
    hand.activity(session_id, -4_000_000_000_000_000)
    await assert_closed(store, session_id)


async def test_a_reference_to_a_record_that_is_gone_can_still_be_logged_out(make_store: MakeStore, hand: Hand) -> None:
    store = make_store()
    session_id = (await store.check(token("a"), CLIENT)).session_id
    await store.check(token("b"), CLIENT)
    hand.redis.hdel(hand.keys()[0], str(session_id))
    assert (await store.check(token("a"), CLIENT)).outcome == "unknown"
    assert await store.log_out(token("a"), CLIENT) is None
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.LOGGED_OUT


async def test_an_answer_about_somebody_else_is_a_fault(store_url: str) -> None:
    # R19, P0-S15
    class Swapped(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            reply = await super().call(command)
            return reply if command.script is None else [b"gk:{somebody else}:sessions", *reply[1:]]

    store_client = Swapped(store_url, timeout_seconds=HANG_SECONDS)
    store = SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=RULES))
    for question in (store.check(token("a"), CLIENT), store.sessions("74"), store.log_out(token("a"), CLIENT)):
        with pytest.raises(StoreUnavailable) as caught:
            await question
        assert caught.value.kind == "protocol"
    await store_client.aclose()


@pytest.mark.parametrize(
    "reply",
    [None, [], [b"K"], [b"K", b"touched"], [b"K", 1, 2, 3, 4, 5], [b"K", b"\xff", b"x", b"\xff", b""], 7, b"OK"],
)
async def test_an_answer_of_the_wrong_shape_is_a_fault(reply: Any) -> None:
    # R19, C07
    class Odd(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            if command.script is None:
                return [b"74"]
            return [command.key if part == b"K" else part for part in reply] if isinstance(reply, list) else reply

    odd = Odd("unix:///nowhere", timeout_seconds=1)
    store = SessionStore(ScriptRunner(odd, key_prefix="gk:", rules=RULES))
    for question in (
        store.check(token("a"), CLIENT),
        store.end_all("74", EndReason.IDLE),
        store.log_out(token("a"), CLIENT),
        store.clean_up(),
    ):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(question, HOUR)
    if reply != [b"K"]:
        with pytest.raises(StoreUnavailable):
            await store.end("74", 1, EndReason.IDLE)

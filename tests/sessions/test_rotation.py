"""Refresh tokens that Gatekeeper issues: each is valid once; reused, it ends its session (RFC 9700, 4.14.2)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.sign_ins import RefreshToken, Rotation, SignIns, Successor
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command
from gatekeeper.tokens.issuer import digest, new_refresh_token, seal, unseal
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, Noting, token
from tests.waiting import HANG_SECONDS

REUSED = EndReason.REFRESH_REUSED


@pytest.fixture
def make_door(make_store: MakeStore) -> Callable[..., Door]:
    def make(*, window: float = 10.0, **rules: Any) -> Door:
        return Door(make_store(**rules), window=window)

    return make


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


async def ask(door: Door, known: str) -> Rotation:
    return await door.sign_ins.lookup_refresh_token("74", known)


async def words(door: Door, *known: str) -> list[str]:
    """Returns the outcomes for refresh tokens, asked in turn. A question about a reused one ends its session."""
    return [(await ask(door, each)).outcome for each in known]


async def test_a_current_token_is_told_what_its_next_access_token_must_say(door: Door) -> None:
    # C-02, section 5: the same session, the claims of the login, and never over the session's `expires_at`
    opened = await door.log_in("the-sid", "1", kept_claims='{"roles":["admin"]}')
    assert await ask(door, "1") == Rotation(
        "current",
        opened.session_id,
        reference="the-sid",
        expires_at=opened.expires_at,
        claims='{"roles":["admin"]}',
    )
    await door.log_in("without", "2")
    assert (await ask(door, "2")).claims == ""


async def test_asking_moves_nothing(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a", "1")).session_id
    before, content = await door.session(session_id), hand.redis.hgetall(hand.keys()[0])
    assert await words(door, "1", "1", "1") == ["current"] * 3
    assert await door.session(session_id) == before
    assert hand.redis.hgetall(hand.keys()[0]) == content


async def test_a_current_token_makes_way_for_the_next(door: Door) -> None:
    # C-02: rotated at each use; the same session, moved, and no later end
    session_id = (await door.log_in(token("a", jti="first"), "1")).session_id
    for generation in range(1, 6):
        before = await door.session(session_id)
        rotated = await door.rotate(str(generation), str(generation + 1))
        assert rotated == Rotation("rotated", session_id)
        after = await door.session(session_id)
        assert after.last_activity > before.last_activity
        assert (after.created_at, after.expires_at) == (before.created_at, before.expires_at)
        assert (after.reference, after.jti) == ("a", f"jti of {generation + 1}")
        assert after.login_method == "password"
        assert await door.check("a") == ("touched", session_id)
    assert len(await door.store.sessions("74")) == 1
    assert await words(door, "6") == ["current"]


async def test_rotations_move_the_activity_strictly_even_in_the_same_instant(door: Door, hand: Hand) -> None:
    # E-06, and T1: the clock of the primary before was ahead
    session_id = (await door.log_in("a", "1")).session_id
    ahead = (await door.session(session_id)).last_activity + 60_000_000
    hand.activity(session_id, ahead)
    await door.rotate("1", "2")
    await door.rotate("2", "3")
    assert (await door.session(session_id)).last_activity == ahead + 2


async def test_a_lost_answer_is_given_again_within_the_window(door: Door) -> None:
    # S08: the client retries with the token that it has, and gets the very same successor
    session_id = (await door.log_in("a", "1")).session_id
    sealed = bytes(range(256))
    await door.rotate("1", "2", sealed=sealed)
    for _ in range(3):
        assert await ask(door, "1") == Rotation("repeated", session_id, sealed=sealed)
        assert await door.rotate("1", "another") == Rotation("repeated", session_id, sealed=sealed)
    assert await words(door, "another", "2") == ["unknown", "current"]
    assert (await door.rotate("2", "3")).outcome == "rotated"
    assert await door.check("a") == ("touched", session_id)


async def test_only_who_presents_the_token_can_read_what_it_gets_again(door: Door, hand: Hand) -> None:
    # S25: sealed under a key that is derived from the presented token; the store has neither
    first, second = new_refresh_token(), new_refresh_token()
    await door.log_in("a", digest(first))
    await door.rotate(digest(first), digest(second), sealed=seal(first, second.encode()))
    assert unseal(first, (await ask(door, digest(first))).sealed) == second.encode()
    stored: Any = [hand.redis.hgetall(hand.pairs()), hand.redis.hgetall(hand.keys()[0]), hand.names()]
    assert first not in str(stored)
    assert second not in str(stored)
    assert unseal(digest(first), (await ask(door, digest(first))).sealed) is None


@pytest.mark.parametrize("how", ["asked", "rotated"])
async def test_a_token_used_again_after_its_successor_was_used_ends_the_session(
    door: Door, hand: Hand, how: str
) -> None:
    # S06, S24: whoever has it, the thief or the robbed, everything of the session is over, within the window too
    session_id = (await door.log_in("a", "1")).session_id
    await door.rotate("1", "2")
    await door.rotate("2", "3")
    before = await door.session(session_id)
    reused = await ask(door, "1") if how == "asked" else await door.rotate("1", "thief")
    assert reused == Rotation("reused", session_id, REUSED)
    after = await door.session(session_id)
    assert (after.end_reason, after.last_activity) == (REUSED, before.last_activity)
    assert await door.reason("a") is REUSED
    for known in ("1", "2", "3"):
        assert await ask(door, known) == Rotation("ended", session_id, REUSED)
    assert await words(door, "thief") == ["unknown"]
    assert await door.store.sessions("74") == []
    assert not hand.redis.exists(hand.pairs())


@pytest.mark.parametrize("older", ["1", "2"])
async def test_the_window_is_for_the_immediate_predecessor_only(door: Door, older: str) -> None:
    # S07: RT(1) although RT(4) exists
    await door.log_in("a", "1")
    for generation in (1, 2, 3):
        await door.rotate(str(generation), str(generation + 1))
    assert (await ask(door, "3")).outcome == "repeated"
    assert (await ask(door, older)).end_reason is REUSED
    assert (await ask(door, "4")).outcome == "ended"


async def test_a_token_used_again_after_the_window_gets_a_new_pair_while_its_successor_is_unused(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # A phone that lost the response and slept is no thief
    door = make_door(window=600)
    session_id = (await door.log_in("a", "1", kept_claims='{"roles":[]}')).session_id
    await door.rotate("1", "2")
    hand.let_pass(540)
    assert await words(door, "1") == ["repeated"]
    hand.let_pass(60)
    asked = await ask(door, "1")
    assert (asked.outcome, asked.session_id, asked.reference, asked.claims) == (
        "current",
        session_id,
        "a",
        '{"roles":[]}',
    )
    assert await door.rotate("1", "3") == Rotation("rotated", session_id)
    # Within the window that begins then, once more the same pair.
    assert (await door.rotate("1", "another")).sealed == b"sealed for 1: 3"
    assert (await door.rotate("3", "4")).outcome == "rotated"
    assert await door.check("a") == ("touched", session_id)
    assert await words(door, "4", "1") == ["current", "reused"]


@pytest.mark.parametrize("void", ["2", "3"])
async def test_the_unused_successor_that_was_replaced_is_a_used_token(
    make_door: Callable[..., Door], hand: Hand, void: str
) -> None:
    # S06: a thief has the first token, or its owner has; the other one comes with the successor
    door = make_door(window=600)
    session_id = (await door.log_in("a", "1")).session_id
    for successor in ("2", "3", "4"):
        assert await door.rotate("1", successor) == Rotation("rotated", session_id)
        hand.let_pass(600)
    assert await door.rotate(void, "5") == Rotation("reused", session_id, REUSED)
    assert await words(door, "1", "4") == ["ended", "ended"]
    assert await door.reason("a") is REUSED


async def test_a_token_gets_ten_new_pairs_and_then_ends_the_session(make_door: Callable[..., Door], hand: Hand) -> None:
    door = make_door(window=60)
    session_id = (await door.log_in("a", "1")).session_id
    for number in range(11):
        assert await door.rotate("1", f"s{number}") == Rotation("rotated", session_id)
        hand.let_pass(60)
    assert await words(door, "s10", "1") == ["current", "reused"]


async def test_a_successor_that_was_used_makes_every_earlier_token_a_used_one(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # S06, S07: within the window and after it
    for pause in (0, 600):
        door = make_door(window=600)
        session_id = (await door.log_in(f"a{pause}", f"{pause}.1")).session_id
        await door.rotate(f"{pause}.1", f"{pause}.2")
        await door.rotate(f"{pause}.2", f"{pause}.3")
        hand.let_pass(pause)
        assert await door.rotate(f"{pause}.1", "thief") == Rotation("reused", session_id, REUSED)


async def test_rotations_at_once_after_the_window_have_one_new_successor(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # S05
    door, other = make_door(window=600), make_door(window=600)
    await door.log_in("a", "1")
    await door.rotate("1", "2")
    hand.let_pass(600)
    answers = await asyncio.gather(*((door, other)[n % 2].rotate("1", f"s{n}") for n in range(50)))
    assert Counter(answer.outcome for answer in answers) == {"rotated": 1, "repeated": 49}


async def test_giving_a_pair_again_does_not_make_the_window_longer(make_door: Callable[..., Door], hand: Hand) -> None:
    door = make_door(window=600)
    await door.log_in("a", "1")
    await door.rotate("1", "2")
    leaves_at = hand.needed_until(hand.pairs())
    for _ in range(5):
        hand.let_pass(110)
        assert (await door.rotate("1", "another")).outcome == "repeated"
    assert hand.needed_until(hand.pairs()) == leaves_at
    hand.let_pass(110)
    assert await words(door, "1") == ["current"]


async def test_without_a_window_a_second_use_gets_another_pair(make_door: Callable[..., Door], hand: Hand) -> None:
    # S24, REFRESH_REUSE_WINDOW=0
    door = make_door(window=0)
    await door.log_in("a", "1")
    assert (await door.rotate("1", "2")).outcome == "rotated"
    assert not hand.redis.exists(hand.pairs())
    assert await words(door, "2", "1", "2") == ["current", "current", "current"]
    assert (await door.rotate("1", "3")).outcome == "rotated"
    assert await words(door, "3", "2", "3") == ["current", "reused", "ended"]


async def test_a_window_that_was_switched_off_gives_nothing_again(make_door: Callable[..., Door], hand: Hand) -> None:
    before, door = make_door(window=600), make_door(window=0)
    await door.log_in("a", "1")
    await before.rotate("1", "2")
    await door.rotate("2", "3")
    assert not hand.redis.exists(hand.pairs())
    assert await words(door, "1") == ["reused"]


async def test_pairs_leave_by_themselves_with_the_window(make_door: Callable[..., Door], hand: Hand) -> None:
    # Section 5: "for the window only"
    door = make_door(window=2)
    await door.log_in("a", "1")
    await door.log_in("b", "b1")
    await door.rotate("1", "2")
    await door.rotate("b1", "b2")
    assert hand.needed_until(hand.pairs()) - time.time() <= 2
    hand.let_pass(2)
    assert await words(door, "1", "b2") == ["current", "current"]


async def test_a_longer_window_is_not_cut_short_by_the_next_rotation_of_another_session(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    door = make_door(window=600)
    for reference in "ab":
        await door.log_in(reference, f"{reference}1")
        await door.rotate(f"{reference}1", f"{reference}2")
    assert await words(door, "a1", "b1") == ["repeated", "repeated"]
    assert 590 < hand.needed_until(hand.pairs()) - time.time() <= 600
    assert (await door.rotate("b2", "b3")).outcome == "rotated"
    assert await words(door, "a1", "b2", "b1", "a1", "a2") == ["repeated", "repeated", "reused", "repeated", "current"]


async def test_100_rotations_at_once_have_one_successor(make_door: Callable[..., Door], hand: Hand) -> None:
    # S05: exactly one; all others get its pair, and never are two successors live
    door, other = make_door(), make_door()
    session_id = (await door.log_in("a", "1")).session_id
    answers = await asyncio.gather(*((door, other)[n % 2].rotate("1", f"s{n}") for n in range(100)))
    assert Counter(answer.outcome for answer in answers) == {"rotated": 1, "repeated": 99}
    [winner] = [n for n, answer in enumerate(answers) if answer.outcome == "rotated"]
    assert {answer.sealed for answer in answers} == {b"", f"sealed for 1: s{winner}".encode()}
    assert {answer.session_id for answer in answers} == {session_id}
    found = await words(door, *(f"s{n}" for n in range(100)))
    assert found == ["current" if n == winner else "unknown" for n in range(100)]
    assert {name for name in hand.fields() if name.startswith("f:")} == {"f:1", f"f:s{winner}"}


async def test_100_rotations_at_once_without_a_window_end_the_session(make_door: Callable[..., Door]) -> None:
    # S05
    door, other = make_door(window=0), make_door(window=0)
    await door.log_in("a", "1")
    answers = await asyncio.gather(*((door, other)[n % 2].rotate("1", f"s{n}") for n in range(100)))
    assert Counter(answer.outcome for answer in answers) == {"rotated": 11, "reused": 1, "ended": 88}
    assert await door.store.sessions("74") == []


async def test_a_rotation_that_races_an_end_never_revives_the_session(make_door: Callable[..., Door]) -> None:
    # S16, S10
    door, other = make_door(), make_door()
    for number in range(20):
        session_id = (await door.log_in(f"a{number}", f"{number}.0")).session_id
        rotating = [asyncio.create_task(door.rotate(f"{number}.0", f"{number}.{n}")) for n in range(1, 10)]
        assert await other.store.end("74", session_id, EndReason.REVOKED_BY_USER)
        assert (await door.rotate(f"{number}.0", "late")).outcome == "ended"
        assert {answer.outcome for answer in await asyncio.gather(*rotating)} <= {"rotated", "repeated", "ended"}
    assert await door.store.sessions("74") == []


ENDS = [each for each in EndReason if each not in {EndReason.IDLE, EndReason.EXPIRED}]


@pytest.mark.parametrize("reason", ENDS)
async def test_the_token_of_a_session_that_ended_is_told_why(door: Door, reason: EndReason) -> None:
    # S10, C-13: the predecessor within its window too: an end takes the window away
    session_id = (await door.log_in("a", "1")).session_id
    await door.rotate("1", "2")
    await door.store.end("74", session_id, reason)
    for known in ("2", "1"):
        assert await ask(door, known) == Rotation("ended", session_id, reason)
        assert await door.rotate(known, "3") == Rotation("ended", session_id, reason)
    assert await words(door, "3") == ["unknown"]
    assert await door.reason("a") is reason


async def test_the_token_of_a_session_that_fell_silent_comes_too_late(door: Door, hand: Hand) -> None:
    # S10: and the failed try does not count as activity
    session_id = (await door.log_in("a", "1")).session_id
    last_activity = (await door.session(session_id)).last_activity
    hand.let_pass(1_800)
    assert await door.rotate("1", "2") == Rotation("ended", session_id, EndReason.IDLE)
    session = await door.session(session_id)
    assert session.last_activity == last_activity - 1_800_000_000
    assert session.ended_at == session.last_activity + 1_800_000_000


async def test_rotations_keep_a_session_from_falling_silent_and_not_from_its_end(door: Door, hand: Hand) -> None:
    # B-12, C-20: refresh moves activity, never `expires_at`
    session_id = (await door.log_in("a", "0")).session_id
    for generation in range(95):
        hand.let_pass(900)
        assert (await door.rotate(str(generation), str(generation + 1))).outcome == "rotated"
    hand.let_pass(900)
    assert await door.rotate("95", "96") == Rotation("ended", session_id, EndReason.EXPIRED)
    session = await door.session(session_id)
    assert session.ended_at == session.expires_at


async def test_the_tokens_of_before_an_end_of_all_are_over_but_for_the_spared_session(door: Door) -> None:
    # S30
    spared = (await door.log_in("a", "a1")).session_id
    over = (await door.log_in("b", "b1")).session_id
    await door.store.end_all("74", EndReason.REVOKED_BY_USER, spare=spared)
    assert await door.rotate("b1", "b2") == Rotation("ended", over, EndReason.REVOKED_BY_USER)
    assert await door.rotate("a1", "a2") == Rotation("rotated", spared)


async def test_what_is_no_refresh_token_is_unknown(door: Door) -> None:
    await door.log_in("a", "1")
    for known in ("", "2", "a", "r:a", "f:1", "*", "x" * 10_000, "😀"):
        assert await ask(door, known) == Rotation("unknown")
        assert await door.rotate(known, "new") == Rotation("unknown")
    assert await words(door, "1", "new") == ["current", "unknown"]


async def test_older_tokens_than_a_thousand_generations_are_unknown_and_end_nothing(door: Door, hand: Hand) -> None:
    # What is kept of a session is bounded
    session_id = (await door.log_in("a", "1000")).session_id
    hand.name(session_id, [f"f:{generation}" for generation in range(1_000)], expire_in=HOUR)
    for generation in (1_000, 1_001):
        await door.rotate(str(generation), str(generation + 1))
    assert len(hand.older_names(session_id)) == 1_000
    assert await words(door, "0", "1", "1002", "2", "1002") == ["unknown", "unknown", "current", "reused", "ended"]


async def test_a_rotation_keeps_the_claims_for_the_next(door: Door, hand: Hand) -> None:
    session_id = (await door.log_in("a", "1", kept_claims='{"roles":[]}')).session_id
    await door.rotate("1", "2")
    await door.rotate("2", "3")
    assert (await ask(door, "3")).claims == '{"roles":[]}'
    await door.store.end("74", session_id, EndReason.LOGGED_OUT)
    hand.let_pass(3 * DAY)
    await door.store.sessions("74")
    assert hand.fields() == set()


async def test_the_access_token_of_a_rotation_is_known_for_as_long_as_it_is_accepted(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    # ENDED_SESSION_TTL, JWT_LEEWAY: a token is accepted for the leeway after its `exp`, that of a rotation too
    door = make_door(session_seconds=600, leeway_seconds=60, ended_seconds=0)
    session_id = (await door.log_in(token("a", expires_in=60), "1")).session_id
    await door.rotate("1", "2", lives=600)
    await door.store.end("74", session_id, EndReason.REVOKED_BY_USER)
    hand.let_pass(620)
    await door.store.sessions("74")
    # Twenty seconds after its `exp`
    checked = await door.store.check(token("a", expires_in=-20), CLIENT)
    assert (checked.outcome, checked.end_reason) == ("ended", EndReason.REVOKED_BY_USER)


async def test_keys_stay_as_long_as_what_a_rotation_gave(make_door: Callable[..., Door], hand: Hand) -> None:
    # R23: the index that finds the user of the new token, and what it confirms
    door = make_door(session_seconds=DAY, ended_seconds=HOUR)
    await door.log_in("a", "1")
    await door.rotate("1", "2")
    for key in (*hand.keys()[:1], "gk:refresh:1", "gk:refresh:2"):
        assert -60 < hand.needed_until(key) - time.time() - (DAY + HOUR) <= 1
    assert [await door.sign_ins.user_of(known) for known in ("1", "2", "3")] == ["74", "74", None]


async def test_the_index_is_written_before_the_record_knows_the_token(store_url: str) -> None:
    # rule 4.2: a token without a record is unknown, a record without an index is lost
    store_client = Noting(store_url)
    sign_ins = SignIns(ScriptRunner(store_client, key_prefix="gk:", rules=RULES), reuse_window_seconds=10)
    await sign_ins.log_in(token("a"), CLIENT, exempt=False, refresh=RefreshToken("1"))
    store_client.batches.clear()
    await sign_ins.rotate("74", "1", Successor("2", "jti", time.time() + HOUR, b"sealed"))
    sent = [call for batch in store_client.batches for call in batch]
    keys = [call[1] if call[0] in {"SET", "ZADD"} else call[0] for call in sent]
    assert keys == ["gk:refresh:2", "gk:outboxes", "gk:{74}:sessions"]
    assert sent[2][4] == "gk:{74}:pairs"
    await store_client.aclose()


async def test_an_answer_that_comes_too_late_has_rotated_and_is_given_again(store_url: str, door: Door) -> None:
    # S08, rule 4.8: the store did it, and nobody knows
    class Deaf(StoreClient):
        async def call(self, command: Command, *, is_probe: bool = False) -> Any:
            reply = await super().call(command)
            if command.script is None:
                return reply
            raise StoreUnavailable("the answer was lost", kind="timeout")

    await door.log_in("a", "1")
    store_client = Deaf(store_url, timeout_seconds=HANG_SECONDS)
    sign_ins = SignIns(ScriptRunner(store_client, key_prefix="gk:", rules=RULES), reuse_window_seconds=10)
    with pytest.raises(StoreUnavailable):
        await sign_ins.rotate("74", "1", Successor("2", "jti", time.time() + HOUR, b"the pair"))
    assert (await ask(door, "1")).sealed == b"the pair"
    assert (await door.rotate("1", "3")).sealed == b"the pair"
    assert await words(door, "2") == ["current"]
    await store_client.aclose()


@pytest.mark.parametrize("kind", ["string", "list", "zset"])
async def test_a_pair_key_of_the_wrong_type_gives_nothing_again(door: Door, hand: Hand, kind: str) -> None:
    # C07: WRONGTYPE
    await door.log_in("a", "1")
    await door.rotate("1", "2")
    hand.redis.delete(hand.pairs())
    match kind:
        case "string":
            hand.redis.set(hand.pairs(), "x")
        case "list":
            hand.redis.rpush(hand.pairs(), "x")
        case _:
            hand.redis.zadd(hand.pairs(), {"x": 1})
    with pytest.raises(StoreUnavailable):
        await ask(door, "1")
    assert await words(door, "2") == ["current"]

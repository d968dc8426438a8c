"""Logouts that an identity provider reports (OpenID Connect Back-Channel Logout 1.0).

A token names its session by `sid`, or by `<sid>:<auth_time>`. The provider tells the `sid` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest

from gatekeeper.identifiers import written
from gatekeeper.models import CheckResult, Claims, EndReason
from gatekeeper.sessions.events import ActorKind, Event
from gatekeeper.sessions.manager import Manager
from tests.conftest import MakeStore
from tests.sessions.by_hand import CLIENT, DAY, HOUR, Door, Hand, token

LOGGED_OUT = EndReason.LOGGED_OUT


@pytest.fixture
def make_door(make_store: MakeStore) -> Callable[..., Door]:
    return lambda **rules: Door(make_store(device_limit=None, index_sids=True, **rules))


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


async def end_sid(door: Door, sid: str, *, tokens_live: float = DAY, user: str = "74") -> int:
    return await door.store.end_sid(user, sid, tokens_expire_at=time.time() + tokens_live)


async def checked(door: Door, claims: Claims) -> tuple[str, EndReason | None]:
    answer: CheckResult = await door.store.check(claims, CLIENT)
    return answer.outcome, answer.end_reason


async def test_a_sid_ends_its_session(door: Door) -> None:
    # rule 4.10, C-13: listed as one that was logged out
    session_id = (await door.log_in("a-sid", "d")).session_id
    assert await end_sid(door, "a-sid") == 1
    assert await end_sid(door, "a-sid") == 0
    assert await checked(door, token("a-sid")) == ("ended", LOGGED_OUT)
    assert await door.word("d") == "ended"
    assert (await door.sign_ins.lookup_refresh_token("74", "d")).end_reason is LOGGED_OUT
    assert (await door.session(session_id)).end_reason is LOGGED_OUT
    assert await door.store.sessions("74") == []


async def test_a_sid_ends_every_sign_in_under_it_and_no_other(door: Door) -> None:
    # OpenID Connect Core section 2: a provider keeps `sid` over a new sign-in, and says so by `auth_time`
    ends = ["a-sid", "a-sid:100", "a-sid:200", "a-sid:200.5"]
    stays = ["a-si", "a-sid2", "a-sid2:100", "x-a-sid", "A-SID", "a-sid-:100", "h:a-sid", "100", "a.sid"]
    for reference in (*ends, *stays):
        await door.check(reference)
    await door.check("a-sid", user="75")
    assert await end_sid(door, "a-sid") == 4
    for reference in ends:
        assert await checked(door, token(reference)) == ("ended", LOGGED_OUT)
    for reference in stays:
        assert await checked(door, token(reference)) == ("touched", None)
    assert (await door.check("a-sid", user="75"))[0] == "touched"


@pytest.mark.parametrize("sid", ["a.sid", "a%sid", "a-sid", "[ab]", "a+", "^a", "(", "%", "x" * 256])
async def test_a_sid_is_no_pattern(door: Door, sid: str) -> None:
    for reference in (f"{written(sid)}:100", "axsid:100", "a:100", "aa:100", "anything"):
        await door.check(reference)
    assert await end_sid(door, sid) == 1
    assert await door.live() == {"axsid:100", "a:100", "aa:100", "anything"}
    assert await checked(door, token(f"{written(sid)}:200")) == ("ended", LOGGED_OUT)
    assert await checked(door, token("axsid:200")) == ("opened", None)


async def test_a_sid_called_h_does_not_name_the_tokens_without_an_id(door: Door) -> None:
    # `h:` and a hash is how a token without `sid` and `jti` is called
    hashed = "h:" + "5" * 64
    await door.check(hashed)
    await door.check("h:100")
    assert await end_sid(door, "h") == 1
    assert await checked(door, token(hashed)) == ("touched", None)
    assert await checked(door, token("h:" + "6" * 64)) == ("opened", None)
    assert await checked(door, token("h:200")) == ("ended", LOGGED_OUT)


@pytest.mark.parametrize("seen", ["nothing", "a-sid", "a-sid:100"])
async def test_tokens_of_before_are_over_although_they_were_never_seen(door: Door, seen: str) -> None:
    # A mobile app that has not asked since: its token must not open a session now
    if seen != "nothing":
        await door.check(seen)
    before = [token("a-sid"), token("a-sid:200"), token("a-sid:300", issued_ago=None), token("a-sid:0", issued_ago=0)]
    assert await end_sid(door, "a-sid") == (0 if seen == "nothing" else 1)
    for claims in before:
        for _ in range(2):
            assert await checked(door, claims) == ("ended", LOGGED_OUT)
        answer = await door.refreshed(claims, "d", linked=None)
        assert (answer.outcome, answer.end_reason) == ("ended", LOGGED_OUT)
    assert await door.store.sessions("74") == []
    # It is not one of the sessions that anybody had.
    assert len(await door.store.sessions("74", include_inactive=True)) == (0 if seen == "nothing" else 1)


async def test_a_later_sign_in_under_the_same_sid_is_admitted(door: Door) -> None:
    await door.check("a-sid:100")
    await end_sid(door, "a-sid")
    assert await checked(door, token("a-sid:200", issued_ago=-2)) == ("opened", None)
    assert (await door.refreshed(token("a-sid:300", issued_ago=-2), "d", linked=None)).outcome == "opened"
    assert await checked(door, token("a-sid:200", issued_ago=-2)) == ("touched", None)
    # Where nothing tells a later sign-in from the one that is over, it is over.
    assert await checked(door, token("a-sid", issued_ago=-2)) == ("ended", LOGGED_OUT)
    assert await checked(door, token("a-sid:100", issued_ago=-2)) == ("ended", LOGGED_OUT)


async def test_a_login_under_the_same_sid_opens_in_the_very_second(door: Door) -> None:
    # Section 5: an observed login answer opens regardless
    claims = token(f"a-sid:{int(time.time())}", issued_ago=0.0)
    await end_sid(door, "a-sid")
    assert (await door.log_in(claims)).outcome == "opened"
    assert await checked(door, claims) == ("touched", None)
    # … unless the provider ended that very sign-in.
    for reference in ("a-sid", "a-sid:200", f"a-sid:{int(time.time()) - 2}"):
        answer = await door.log_in(token(reference, issued_ago=-2))
        assert (answer.outcome, answer.end_reason) == ("ended", LOGGED_OUT)


async def test_a_sid_can_end_again(door: Door) -> None:
    # The second word covers what came after the first
    await end_sid(door, "a-sid")
    assert await checked(door, token("a-sid:200", issued_ago=-0.001)) == ("opened", None)
    never_seen = token("a-sid:300", issued_ago=-0.001)
    await asyncio.sleep(0.005)
    assert await end_sid(door, "a-sid") == 1
    assert await checked(door, token("a-sid:200")) == ("ended", LOGGED_OUT)
    assert await checked(door, never_seen) == ("ended", LOGGED_OUT)


async def test_a_second_word_keeps_what_it_says_as_long_as_tokens_may_turn_up(door: Door, hand: Hand) -> None:
    await end_sid(door, "a-sid", tokens_live=10 * DAY)
    hand.let_pass(9 * DAY)
    await end_sid(door, "a-sid", tokens_live=10 * DAY)
    hand.let_pass(9 * DAY)
    await door.store.sessions("74")
    never_seen = token("a-sid:200", issued_ago=9 * DAY + HOUR)
    assert await checked(door, never_seen) == ("ended", LOGGED_OUT)


@pytest.mark.parametrize("reason", [EndReason.REVOKED_BY_USER, EndReason.DEACTIVATED, EndReason.EVICTED])
async def test_a_sid_whose_session_was_over_otherwise_is_over_for_tokens_never_seen(
    door: Door, reason: EndReason
) -> None:
    # One device was revoked; then the whole sign-in ends at the provider
    session_id = (await door.log_in("a-sid")).session_id
    await door.store.end("74", session_id, reason)
    assert await end_sid(door, "a-sid") == 0
    assert await checked(door, token("a-sid")) == ("ended", reason)
    assert await checked(door, token("a-sid:200")) == ("ended", LOGGED_OUT)


async def test_an_idle_session_of_a_sid_is_not_counted_and_stays_idle(door: Door, hand: Hand) -> None:
    await door.check("a-sid:100")
    hand.let_pass(HOUR)
    await door.check("a-sid:200")
    assert await end_sid(door, "a-sid") == 1
    assert await checked(door, token("a-sid:100")) == ("ended", EndReason.IDLE)


async def test_the_session_of_a_sid_ends_although_a_refresh_gave_it_another(door: Door) -> None:
    # Tokens with the old `sid` are alive, and they are what the provider speaks of
    session_id = (await door.log_in("a-sid:100", "d1")).session_id
    await door.refreshed("b-sid:100", "d2", linked=session_id)
    assert await end_sid(door, "a-sid") == 1
    assert await checked(door, token("a-sid:100")) == ("ended", LOGGED_OUT)
    assert await checked(door, token("b-sid:100")) == ("ended", LOGGED_OUT)


async def test_a_sid_is_found_among_more_sessions_than_one_step_looks_at(door: Door, hand: Hand) -> None:
    # S28: rule 4.8, an end is answered with 2xx only when it has happened
    claims = [token(f"r{number}") for number in range(1_002)]
    await door.check("a-sid")
    await door.check("a-sid:100")
    for start in range(0, len(claims), 100):
        await asyncio.gather(*(door.store.check(each, CLIENT) for each in claims[start : start + 100]))
    assert hand.indexed_live() == 1_004
    assert await end_sid(door, "a-sid") == 2
    for reference in ("a-sid", "a-sid:100"):
        assert await checked(door, token(reference)) == ("ended", LOGGED_OUT)


async def test_a_refresh_with_a_token_never_seen_is_told_before_the_backend_is_asked(door: Door) -> None:
    # Section 5: if either names an ended session, the backend does not see the request; and RFC 7662 says inactive
    await end_sid(door, "a-sid")
    linked = await door.sign_ins.lookup("74", claims=token("a-sid:200"))
    assert (linked.outcome, linked.end_reason) == ("ended", LOGGED_OUT)
    assert (await door.sign_ins.lookup("74", claims=token("a-sid:200", issued_ago=-2))).outcome == "unknown"
    # … whatever else it brings
    await door.log_in("another", "d")
    assert (await door.sign_ins.lookup("74", digest="d", claims=token("a-sid:200"))).outcome == "ended"


async def test_the_logout_of_one_sign_in_leaves_the_others_of_its_sid_alone(door: Door) -> None:
    for reference in ("a-sid:100", "a-sid:200"):
        await door.check(reference)
    await door.store.log_out(token("a-sid:100"), CLIENT)
    assert await checked(door, token("a-sid:200")) == ("touched", None)
    assert await checked(door, token("a-sid:300")) == ("opened", None)


async def test_a_sid_that_nobody_knows_is_remembered_until_its_tokens_have_expired(
    make_door: Callable[..., Door], hand: Hand
) -> None:
    door = make_door(ended_seconds=60)
    await end_sid(door, "a-sid", tokens_live=10 * DAY)
    for key in hand.keys()[:1]:
        assert -60 < hand.needed_until(key) - time.time() - 10 * DAY <= 1
    assert await door.store.sessions("74", include_inactive=True) == []
    hand.let_pass(10 * DAY - 60)
    await door.store.sessions("74")
    assert await checked(door, token("a-sid:1", expires_in=60, issued_ago=10 * DAY)) == ("ended", LOGGED_OUT)
    hand.let_pass(120)
    await door.store.sessions("74")
    assert hand.fields() == set()


@pytest.mark.parametrize("reference", ["a-sid", "a-sid:100"])
async def test_a_sid_with_a_session_is_remembered_as_long_as_any_token_of_it_may_turn_up(
    make_door: Callable[..., Door], hand: Hand, reference: str
) -> None:
    # … although those that were seen have expired long before
    door = make_door(ended_seconds=60)
    await door.check(reference, expires_in=60)
    assert await end_sid(door, "a-sid", tokens_live=10 * DAY) == 1
    hand.let_pass(9 * DAY)
    await door.store.sessions("74")
    for never_seen in (reference, "a-sid:200"):
        claims = token(never_seen, expires_in=HOUR, issued_ago=9 * DAY + 1)
        assert await checked(door, claims) == ("ended", LOGGED_OUT)


async def test_what_is_remembered_of_a_sid_is_nobody_s_session(door: Door, hand: Hand) -> None:
    await end_sid(door, "a-sid")
    [record] = [field for field in hand.fields() if field.isdigit()]
    for reason in (EndReason.REVOKED_BY_USER, EndReason.DEACTIVATED, LOGGED_OUT):
        assert await door.store.end("74", int(record), reason) is None
    assert await door.store.end_all("74", EndReason.REVOKED_BY_USER) == 0
    assert await door.store.clean_up() == 0


async def test_tokens_that_come_while_a_sid_ends_open_nothing_that_lasts(make_door: Callable[..., Door]) -> None:
    # S14, S16: none that starts after the answer passes
    door, other = make_door(), make_door()
    early = [asyncio.create_task(other.store.check(token(f"a-sid:{n}"), CLIENT)) for n in range(50)]
    ending = asyncio.create_task(end_sid(door, "a-sid"))
    late = [asyncio.create_task(other.store.check(token(f"a-sid:{n}"), CLIENT)) for n in range(50, 100)]
    await ending
    for n in range(100):
        # Issued long ago: a slow machine may take more than a second for these.
        assert await checked(door, token(f"a-sid:{n}", issued_ago=60)) == ("ended", LOGGED_OUT)
    assert {answer.outcome for answer in await asyncio.gather(*early, *late)} <= {"opened", "ended"}
    assert await door.store.sessions("74") == []


async def test_the_index_tells_whose_a_sid_is(door: Door, hand: Hand) -> None:
    # rule 4.2: for the word that names no user
    for user, sid in (("74", "a-sid"), ("a:b{}", "b-sid")):
        await door.store.check(token(f"{sid}:100", user, claims={"sid": sid, "auth_time": 100}), CLIENT)
        assert await door.sign_ins.user_of_sid(sid) == user
        assert -60 < hand.needed_until(f"gk:sid:{sid}") - time.time() - 2 * DAY <= 1
    assert await door.sign_ins.user_of_sid("a-sid:100") is None
    assert await end_sid(door, "b-sid", user="a:b{}") == 1
    assert await checked(door, token("b-sid:100", "a:b{}")) == ("ended", LOGGED_OUT)


class Counted:
    def __init__(self) -> None:
        self.seen: Counter[tuple[Event, ActorKind]] = Counter()

    def count(self, event: Event, actor: ActorKind, number: int = 1) -> None:
        self.seen[event, actor] += number


async def test_a_provider_s_word_is_counted_as_the_system_s(door: Door) -> None:
    events = Counted()
    manager = Manager(door.store, events)
    for reference in ("a-sid:1", "a-sid:2", "b", "c", "d"):
        await door.check(reference)
    assert await manager.log_out_sid("74", "a-sid", tokens_expire_at=time.time() + DAY) == 2
    assert await manager.log_out_everywhere("74") == 3
    assert events.seen == {(Event.LOGGED_OUT, "system"): 5}


async def test_what_a_provider_s_word_about_a_user_ended_is_listed_as_logged_out(door: Door) -> None:
    # rules 4.3 and 4.10: `?include_inactive=true` adds what ended as `logged_out`, whoever said so
    ids = [(await door.log_in(reference)).session_id for reference in "abc"]
    assert await Manager(door.store, Counted()).log_out_everywhere("74") == 3
    shown = await door.store.sessions("74", include_inactive=True)
    assert {each.id: each.end_reason for each in shown} == dict.fromkeys(ids, LOGGED_OUT)
    assert await checked(door, token("a")) == ("ended", LOGGED_OUT)
    assert await checked(door, token("never seen")) == ("unknown", None)

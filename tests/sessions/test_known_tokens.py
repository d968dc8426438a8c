"""For a token that passed before, a process sends only what a check needs, and the result stays right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gatekeeper.models import Client, EndReason, Location
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.sessions.user_agents import packed
from tests.conftest import RULES
from tests.sessions.by_hand import CHROME, CLIENT, Hand, Noting, token

HINTS = (
    (b"sec-ch-ua", b'"Chromium";v="126", "Google Chrome";v="126"'),
    (b"sec-ch-ua-platform", b'"Windows"'),
    (b"sec-ch-ua-platform-version", b'"15.0.0"'),
    (b"sec-ch-ua-mobile", b"?0"),
)
AGENT = packed(CHROME).decode(errors="surrogateescape")
HINTED = Client(ip_address="203.0.113.9", user_agent=CHROME, headers=HINTS)
SESSIONS = "gk:{74}:sessions"


class Atlas:
    """A locator with one place, which records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def locate(self, ip_address: str) -> Location:
        self.asked.append(ip_address)
        return Location(city="New York", country="US")


class Watched:
    """A session store with a recording client and a recording locator."""

    def __init__(self, url: str, **rules: Any) -> None:
        self.store_client = Noting(url)
        self.atlas = Atlas()
        settled: dict[str, Any] = {name: getattr(RULES, name) for name in Rules.__struct_fields__} | rules
        self.store = SessionStore(
            ScriptRunner(self.store_client, key_prefix="gk:", rules=Rules(**settled), locator=self.atlas)
        )

    @property
    def sent(self) -> str:
        """Everything that was sent since the last time."""
        found = "\n".join(word for batch in self.store_client.batches for call in batch for word in call)
        self.store_client.batches.clear()
        return found


@pytest.fixture
async def watch(store_url: str) -> AsyncIterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(**rules: Any) -> Watched:
        made.append(Watched(store_url, **rules))
        return made[-1]

    yield make
    for watched in made:
        await watched.store_client.aclose()


async def test_the_second_check_of_a_token_sends_no_particulars(watch: Callable[..., Watched]) -> None:
    watched = watch()
    assert (await watched.store.check(token("a"), HINTED)).outcome == "opened"
    first = watched.sent
    assert AGENT in first
    assert "203.0.113.9" in first
    for _ in range(3):
        assert (await watched.store.check(token("a"), HINTED)).outcome == "touched"
        (((*_, exempt, second),),) = watched.store_client.batches
        assert exempt == "0"
        assert abs(int(second) - time.time()) < 60
        again = watched.sent
        assert not any(part in again for part in (AGENT, "203.0.113.9", "New York", "Chromium", "Windows"))
    # Rule 4.1: the place is looked up at the opening only.
    assert watched.atlas.asked == ["203.0.113.9"]


async def test_a_record_holds_hints_and_place(watch: Callable[..., Watched]) -> None:
    # A-13, E-04: at session creation
    watched = watch()
    await watched.store.check(token("a"), HINTED)
    (session,) = await watched.store.sessions("74")
    assert session.location == Location(city="New York", country="US")
    assert (session.user_agent, session.ip_address) == (CHROME, "203.0.113.9")
    # What only a hint tells: Windows 11 calls itself 10 in its agent.
    assert session.device.name_with_version == "Chrome on Windows 11"


async def test_a_record_that_vanished_is_opened_anew_with_all_particulars(
    watch: Callable[..., Watched], hand: Hand
) -> None:
    # UNKNOWN_SESSION=adopt: two round trips, and the second is like a first
    watched = watch()
    first = (await watched.store.check(token("a"), HINTED)).session_id
    hand.redis.flushdb()
    watched.store_client.batches.clear()
    checked = await watched.store.check(token("a"), HINTED, login_method="password")
    assert checked.outcome == "opened"
    assert checked.session_id != first
    assert watched.store_client.firsts == [[SESSIONS], ["ZADD", "ZADD", SESSIONS]]
    (session,) = await watched.store.sessions("74")
    assert (session.user_agent, session.ip_address, session.login_method) == (CHROME, "203.0.113.9", "password")
    assert session.location == Location(city="New York", country="US")
    assert session.device.name_with_version == "Chrome on Windows 11"
    watched.store_client.batches.clear()
    assert (await watched.store.check(token("a"), HINTED)).outcome == "touched"
    assert watched.store_client.firsts == [[SESSIONS]]


async def test_a_vanished_record_is_refused_at_once_where_nothing_is_adopted(
    watch: Callable[..., Watched], hand: Hand
) -> None:
    opener = watch()
    await opener.store.check(token("a"), CLIENT)
    watched = watch(adopt_unknown=False)
    assert (await watched.store.check(token("a"), CLIENT)).outcome == "touched"
    hand.redis.flushdb()
    watched.store_client.batches.clear()
    assert (await watched.store.check(token("a"), CLIENT)).outcome == "unknown"
    assert watched.store_client.firsts == [[SESSIONS]]


async def test_a_known_token_is_refused_like_any_other(watch: Callable[..., Watched]) -> None:
    # Rule 4.2: what this process knows is never what a verdict is made from
    watched, elsewhere = watch(), watch()
    session = (await watched.store.check(token("a"), CLIENT)).session_id
    await watched.store.check(token("b"), CLIENT)
    await elsewhere.store.end("74", session, EndReason.REVOKED_BY_USER)
    assert (await watched.store.check(token("a"), CLIENT)).end_reason is EndReason.REVOKED_BY_USER
    await elsewhere.store.end_all("74", EndReason.REVOKED_BY_ADMIN)
    assert (await watched.store.check(token("b"), CLIENT)).end_reason is EndReason.REVOKED_BY_ADMIN


async def test_after_an_end_of_all_a_vanished_record_opens_nothing(watch: Callable[..., Watched], hand: Hand) -> None:
    # Rule 4.4: `not_before` is asked although the token is known
    watched = watch()
    await watched.store.check(token("a"), CLIENT)
    await watched.store.end_all("74", EndReason.REVOKED_BY_USER)
    hand.redis.delete(*hand.keys()[:2])
    watched.store_client.batches.clear()
    assert (await watched.store.check(token("a"), CLIENT)).outcome == "unknown"
    assert watched.store_client.firsts == [[SESSIONS]]


async def test_a_policy_that_has_no_room_says_so_to_a_known_token_too(
    watch: Callable[..., Watched], hand: Hand
) -> None:
    # C-21
    watched, elsewhere = watch(device_limit=1, policy="reject"), watch(device_limit=1, policy="reject")
    await watched.store.check(token("a"), CLIENT)
    hand.redis.flushdb()
    await elsewhere.store.check(token("b"), CLIENT)
    assert (await watched.store.check(token("a"), CLIENT)).outcome == "full"


async def test_the_same_reference_of_another_user_is_another_token(watch: Callable[..., Watched]) -> None:
    # S29
    watched = watch()
    await watched.store.check(token("a", "74"), CLIENT)
    assert (await watched.store.check(token("a", "75"), CLIENT)).outcome == "opened"
    assert len(watched.atlas.asked) == 2


async def test_a_token_that_was_refused_is_not_known(watch: Callable[..., Watched]) -> None:
    watched = watch(adopt_unknown=False)
    await watched.store.check(token("a"), CLIENT)
    assert not watched.store._known


async def test_memory_is_bounded_and_keeps_what_is_used(
    watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper.sessions.store._KNOWN_TOKENS", 10)
    watched = watch(device_limit=None)
    for number in range(40):
        await watched.store.check(token(f"r{number}"), CLIENT)
        await watched.store.check(token("r0"), CLIENT)
        assert len(watched.store._known) <= 10
    watched.store_client.batches.clear()
    # r0 is known still, r1 no longer. Where more come than are known, what only an opening needs is sent to no other.
    assert (await watched.store.check(token("r0"), CLIENT)).outcome == "touched"
    assert (await watched.store.check(token("r1"), CLIENT)).outcome == "touched"
    assert AGENT not in watched.sent
    assert (await watched.store.check(token("new"), CLIENT)).outcome == "opened"
    assert AGENT in watched.sent


async def test_many_first_checks_at_once_open_one_session(watch: Callable[..., Watched]) -> None:
    # S01
    watched = watch()
    checks = await asyncio.gather(*(watched.store.check(token("a"), CLIENT) for _ in range(50)))
    assert sorted({checked.outcome for checked in checks}) == ["opened", "touched"]
    assert len({checked.session_id for checked in checks}) == 1

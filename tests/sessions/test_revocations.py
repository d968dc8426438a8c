"""Revocations that the scripts publish, and questions about sessions with open streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.sessions.revocations import Revocation, RevocationListener
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionState, SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from tests.conftest import RULES, MakeStore
from tests.sessions.by_hand import CLIENT, DAY, Door, Hand, token
from tests.waiting import HANG_SECONDS, until


class Heard:
    """A listener that records its revocations and gaps."""

    def __init__(self, url: str, store: SessionStore) -> None:
        self.ends: list[Revocation] = []
        self.doubts = 0
        self.listener = RevocationListener(
            StoreClient(url, timeout_seconds=HANG_SECONDS).subscribe,
            store._runner,
            on_revocation=self.ends.append,
            on_gap=self._doubt,
        )
        self._task = asyncio.create_task(self.listener.listen())

    def _doubt(self) -> None:
        self.doubts += 1

    async def begun(self, times: int = 1) -> None:
        await until(lambda: self.doubts >= times)

    async def of(self, act: Awaitable[Any]) -> set[tuple[int | None, int, str]]:
        """Returns the revocations published during `act`: id, spared id, and reason."""
        self.ends.clear()
        await act
        await until(lambda: self.ends)
        await asyncio.sleep(0.05)
        assert {end.user for end in self.ends} == {"74"}
        return {(end.session_id, end.spared_id, end.reason.value) for end in self.ends}

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def door(make_store: MakeStore) -> Door:
    return Door(make_store())


@pytest.fixture
async def heard(store_url: str, door: Door) -> AsyncIterator[Heard]:
    heard = Heard(store_url, door.store)
    await heard.begun()
    yield heard
    await heard.aclose()


async def test_every_way_to_end_one_session_is_announced(door: Door, heard: Heard, hand: Hand) -> None:  # T30, X12
    async def opened(name: str, refresh: str | None = None) -> int:
        return (await door.log_in(name, refresh)).session_id

    for reason in (EndReason.REVOKED_BY_USER, EndReason.REVOKED_BY_ADMIN, EndReason.DEACTIVATED, EndReason.LOGGED_OUT):
        session = await opened(reason.value)
        assert await heard.of(door.store.end("74", session, reason)) == {(session, 0, reason.value)}
    session = await opened("a")
    assert await heard.of(door.store.log_out(token("a"), CLIENT)) == {(session, 0, "logged_out")}
    # A login that brings a token: one device, one session.
    session = await opened("b")
    assert await heard.of(door.log_in("c", presented="b")) == {(session, 0, "logged_out")}
    session = await opened("d", "1")
    await door.rotate("1", "2")
    await door.rotate("2", "3")
    assert await heard.of(door.rotate("1", "4")) == {(session, 0, "refresh_reused")}
    session = await opened("idle")
    hand.let_pass(1801, only=session)
    assert await heard.of(door.check("idle")) == {(session, 0, "idle")}
    session = await opened("expired")
    hand.write(session, "expires_at", time.time() * 1e6 - 1)
    assert await heard.of(door.check("expired")) == {(session, 0, "expired")}


async def test_an_eviction_is_announced_whoever_signs_in(door: Door, heard: Heard) -> None:
    oldest = (await door.log_in("0")).session_id
    for name in "12":
        await door.log_in(name)
    assert await heard.of(door.check("by a token")) == {(oldest, 0, "evicted")}


async def test_the_end_of_all_is_one_announcement(door: Door, heard: Heard) -> None:
    ids = [(await door.log_in(name)).session_id for name in "abc"]
    assert await heard.of(door.store.end_all("74", EndReason.REVOKED_BY_USER, spare=ids[1])) == {
        (None, ids[1], "revoked_by_user")
    }
    (end,) = heard.ends
    assert [end.applies_to(session) for session in ids] == [True, False, True]
    assert await heard.of(door.store.end_all("74", EndReason.REVOKED_BY_ADMIN)) == {(None, 0, "revoked_by_admin")}


async def test_a_sign_out_at_the_provider_is_announced_for_each_session_of_it(door: Door, heard: Heard) -> None:
    ids = {(await door.log_in(name)).session_id for name in ("s", "s:1")}
    on_revocation = await heard.of(door.store.end_sid("74", "s", tokens_expire_at=time.time() + DAY))
    assert {(session, 0, "logged_out") for session in ids} <= on_revocation


async def test_a_user_who_starts_anew_is_announced(door: Door, heard: Heard, hand: Hand) -> None:
    await door.log_in("a")
    hand.index_in_key()
    hand.redis.delete(hand.keys()[1])
    assert await heard.of(door.store.sessions("74")) == {(None, 0, "revoked_by_admin")}


@pytest.mark.parametrize("user", ["74", "}:sessions", "a{b}%7Bc", "ü {x} %25", "gk:{a}:sessions"])
async def test_the_user_is_told_from_the_key_whatever_it_is_called(door: Door, heard: Heard, user: str) -> None:
    opened = await door.store.check(token("a", user), CLIENT)
    await door.store.end(user, opened.session_id, EndReason.DEACTIVATED)
    await until(lambda: heard.ends)
    assert heard.ends == [Revocation(user, opened.session_id, 0, EndReason.DEACTIVATED)]


async def test_a_store_of_two_gatekeepers_keeps_their_ends_apart(store_url: str, heard: Heard) -> None:
    store_client = StoreClient(store_url, timeout_seconds=HANG_SECONDS)
    other = SessionStore(ScriptRunner(store_client, key_prefix="other:", rules=RULES))
    opened = await other.check(token("a"), CLIENT)
    await other.end("74", opened.session_id, EndReason.DEACTIVATED)
    await store_client.aclose()
    await asyncio.sleep(0.05)
    assert heard.ends == []


async def test_what_no_script_says_is_not_heard(door: Door, heard: Heard, hand: Hand) -> None:
    key = hand.keys()[0]
    for said in (
        "",
        "x",
        f"1 idle {key}x",
        f"x idle {key}",
        f"1 bored {key}",
        f"*x idle {key}",
        "1 idle other:{74}:sessions",
    ):
        hand.redis.publish("gk:ends", said)
    hand.redis.publish("gk:ends", b"\xff\xff \xff \xff")
    session = (await door.log_in("a")).session_id
    assert await heard.of(door.store.end("74", session, EndReason.DEACTIVATED)) == {(session, 0, "deactivated")}
    assert heard.doubts == 1


async def test_a_lost_connection_is_made_again_and_said(door: Door, heard: Heard, hand: Hand) -> None:  # R22
    for times in (2, 3):
        hand.redis.client_kill_filter(_type="pubsub")
        await heard.begun(times)
    session = (await door.log_in("a")).session_id
    assert await heard.of(door.store.end("74", session, EndReason.DEACTIVATED)) == {(session, 0, "deactivated")}


@pytest.mark.slow
async def test_a_connection_that_says_nothing_is_given_up(store_url: str, door: Door) -> None:
    """Drops even the reply to a ping, as a network that loses everything does."""
    heard, asked = Heard("redis://127.0.0.1:1", door.store), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            if b"SUBSCRIBE" in data:
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$7\r\ngk:ends\r\n:1\r\n")
            elif b"PING" in data:
                asked.set()
            else:
                writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard.listener._subscribe = StoreClient(f"redis://127.0.0.1:{port}", timeout_seconds=HANG_SECONDS).subscribe
    await heard.begun(2)
    assert asked.is_set()
    await heard.aclose()
    server.close()


async def test_an_end_is_one_where_the_store_forbids_to_publish(store_url: str, hand: Hand) -> None:
    execute: Any = hand.redis.execute_command
    execute("ACL", "SETUSER", "mute", "on", ">pw", "~gk:*", "+@all", "resetchannels")
    store_client = StoreClient(store_url.replace("unix://", "unix://mute:pw@"), timeout_seconds=HANG_SECONDS)
    store = SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=RULES))
    opened = await store.check(token("a"), CLIENT)
    with pytest.raises(StoreUnavailable, match="NOPERM"):
        await store_client.call(command("PUBLISH", b"gk:ends", "x"))
    assert await store.end("74", opened.session_id, EndReason.DEACTIVATED) is not None
    assert (await store.check(token("a"), CLIENT)).end_reason is EndReason.DEACTIVATED
    await store_client.aclose()
    execute("ACL", "DELUSER", "mute")


# Asked about


async def test_asking_about_a_session_moves_nothing_and_tells_how_long_it_lasts(door: Door) -> None:
    session = (await door.log_in("a")).session_id
    before = await door.session(session)
    (found,) = await door.store.session_states("74", {session: None})
    assert (found.session_id, found.end_reason) == (session, None)
    assert 1790 < found.seconds_left <= 1800
    assert await door.session(session) == before


async def test_bytes_that_moved_are_activity_at_the_time_at_which_they_did(door: Door, hand: Hand) -> None:
    session = (await door.log_in("a")).session_id
    hand.let_pass(1000)
    (found,) = await door.store.session_states("74", {session: 100.0})
    assert 1690 < found.seconds_left <= 1700
    # Never back.
    (found,) = await door.store.session_states("74", {session: 200.0})
    assert 1690 < found.seconds_left <= 1700
    # It was not idle yet when they did, though it would be now.
    hand.let_pass(1900)
    (found,) = await door.store.session_states("74", {session: 300.0})
    assert 1490 < found.seconds_left <= 1500


@pytest.mark.parametrize("ago", [None, 0.0, 60.0])
async def test_what_is_over_stays_over_whatever_moves(door: Door, hand: Hand, ago: float | None) -> None:  # S16
    idle, old, ended, spared = [(await door.log_in(name)).session_id for name in ("idle", "old", "ended", "spared")][:4]
    hand.let_pass(1900, only=idle)
    hand.activity(old, time.time() * 1e6)
    hand.write(old, "expires_at", (time.time() - 1) * 1e6)
    await door.store.end("74", ended, EndReason.REVOKED_BY_USER)
    for _ in range(2):
        found = {
            each.session_id: each.end_reason for each in await door.store.session_states("74", {old: ago, ended: ago})
        }
        assert found == {old: EndReason.EXPIRED, ended: EndReason.REVOKED_BY_USER}
        (found_idle,) = await door.store.session_states("74", {idle: ago})
        # The first login made way for the fourth.
        assert found_idle.end_reason is EndReason.EVICTED
    await door.store.end_all("74", EndReason.REVOKED_BY_ADMIN)
    (last,) = await door.store.session_states("74", {spared: ago})
    assert last == SessionState(spared, EndReason.REVOKED_BY_ADMIN, 0.0)
    assert await door.store.sessions("74") == []


@pytest.mark.parametrize("ago", [None, 0.0, 60.0])
async def test_silence_that_was_broken_too_late_was_the_end(door: Door, hand: Hand, ago: float | None) -> None:
    session = (await door.log_in("a")).session_id
    hand.let_pass(1900)
    (found,) = await door.store.session_states("74", {session: ago})
    assert found == SessionState(session, EndReason.IDLE, 0.0)


async def test_a_session_that_the_store_has_lost_is_over(door: Door, hand: Hand) -> None:
    session = (await door.log_in("a")).session_id
    hand.redis.flushall()
    assert await door.store.session_states("74", {session: 0.0}) == [
        SessionState(session, EndReason.REVOKED_BY_ADMIN, 0.0)
    ]
    assert hand.names() == set()


async def test_no_idle_time_out_for_who_is_exempt(door: Door, hand: Hand) -> None:
    session = (await door.log_in("a", exempt=True)).session_id
    hand.let_pass(7200)
    (found,) = await door.store.session_states("74", {session: None})
    assert (found.end_reason, round(found.seconds_left / 60)) == (None, 22 * 60)


class Fake:
    def __init__(self, session_id: int) -> None:
        self.session_id, self.moved_at, self.ends_own_session = session_id, 0.0, False
        self.reasons: list[str] = []

    def end(self, reason: EndReason) -> None:
        self.reasons.append(reason.value)


async def test_a_stream_that_begins_just_after_its_end_was_announced_is_found_out(door: Door, heard: Heard) -> None:
    """The request was admitted before the session ended, and is added after the revocation was published."""
    streams = OpenStreams(door.store, idle_seconds=None)
    session = (await door.log_in("a")).session_id
    await heard.of(door.store.end("74", session, EndReason.DEACTIVATED))
    for end in heard.ends:
        streams.revoke(end)
    stream = Fake(session)
    streams.add("74", stream)
    watching = asyncio.create_task(streams.watch())
    await until(lambda: stream.reasons)
    assert set(stream.reasons) == {"deactivated"}
    streams.remove(stream)
    assert len(streams) == 0
    watching.cancel()

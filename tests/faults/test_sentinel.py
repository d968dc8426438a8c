"""A master that fails, seen through sentinels: the way to its successor, and no end that is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import EndReason
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.embedded import server_binary
from gatekeeper.store.redis_client import open_client
from tests.conftest import RULES
from tests.faults.topologies import Watched, until, watched
from tests.faults.traffic import CLIENT, traffic
from tests.machine import need
from tests.sessions.by_hand import token

pytestmark = pytest.mark.slow


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with watched(getattr(request, "param", server_binary)()) as made:
        yield made


@pytest.mark.parametrize(
    "store", [server_binary, partial(need, "redis-server")], ids=["valkey", "redis"], indirect=True
)
async def test_a_killed_master_is_followed_to_its_successor_and_no_end_is_lost(store: Watched) -> None:
    # R9, R11: the scripts are not there either
    async with traffic(store.url, replicas=1) as seen:
        await asyncio.sleep(0.5)
        store.master.kill()
        [successor] = store.replicas
        await asyncio.to_thread(until, lambda: store.names(successor), "a successor")
        # The one replica is the master now: without it nothing opens or ends any more.
        store.master.start()
        seconds = await seen.serves_again()
        await asyncio.sleep(0.3)
        await seen.look_back()
        print(f"master killed: {seen!r}; service {seconds:.2f} s after the successor was named")
        seen.assert_sound()
        assert seen.ended


async def test_a_master_that_was_frozen_is_left_before_it_comes_back(store: Watched) -> None:
    # R12: split brain, under load and for one that was idle all the while
    idle = StoreClient(store.url, timeout_seconds=1)
    [successor] = store.replicas
    try:
        async with traffic(store.url) as seen:
            await idle.call(command("GET", "warm"))
            store.master.freeze()
            await asyncio.to_thread(until, lambda: store.names(successor), "a successor")
            await seen.serves_again()
            await asyncio.sleep(1)
            store.master.thaw()
            # It still takes itself for the master.
            assert store.master.is_master()
            await idle.call(command("SET", "where", "now"))
            assert successor.client.get("where") == "now"
            assert await idle.call(command("GET", "where")) == b"now"
            # What only the old one acknowledged may be lost without STORE_REPLICAS.
            seen.ended.clear()
            seen.revived.clear()
            await asyncio.sleep(0.3)
            await seen.look_back()
            print(f"master frozen: {seen!r}")
            seen.assert_sound()
            assert seen.ended
    finally:
        await idle.aclose()


async def test_a_planned_failover_loses_no_end_and_is_over_in_time(store: Watched) -> None:
    # R7, R11: the old master lives on, read-only
    async with traffic(store.url, replicas=1, timeout_seconds=2) as seen:
        await asyncio.sleep(0.3)
        [successor] = store.replicas
        # Again while the sentinels do not know a replica that is good enough.
        until(lambda: store.sentinels[0].ask("SENTINEL", "FAILOVER", store.service), "a failover")
        await asyncio.to_thread(until, lambda: store.names(successor), "a successor")
        seconds = await seen.serves_again()
        await asyncio.sleep(0.3)
        await seen.look_back()
        print(f"planned failover: {seen!r}; service {seconds:.2f} s after the successor was named")
        seen.assert_sound()


async def test_an_end_that_no_replica_has_is_never_acknowledged(store: Watched) -> None:
    # R13, rule 4.8: so a failover cannot bring a session back whose end was answered with 2xx
    [replica] = store.replicas
    store_client = StoreClient(store.url, timeout_seconds=1, replicas=1)
    runner = ScriptRunner(store_client, key_prefix="gk:", rules=RULES)
    sessions = SessionStore(runner)
    try:
        for reference in ("a", "b"):
            assert (await sessions.check(token(reference), CLIENT)).outcome == "opened"
        assert await sessions.log_out(token("a"), CLIENT)
        replica.freeze()
        for ending in (sessions.log_out(token("b"), CLIENT), sessions.end_all("74", EndReason.REVOKED_BY_USER)):
            with pytest.raises(StoreUnavailable):
                await ending
        with pytest.raises(StoreUnavailable):
            await sessions.check(token("new", user="75"), CLIENT)
        # A touch waits for nobody. What was not acknowledged may have happened.
        assert (await sessions.check(token("a"), CLIENT)).outcome == "ended"
        assert (await sessions.check(token("b"), CLIENT)).outcome == "ended"
        store.master.kill()
        replica.thaw()
        await asyncio.to_thread(until, lambda: store.names(replica), "a successor")
        word = await asyncio.to_thread(until, replica.is_master, "a master") and await answered(sessions, "a")
        assert word == "ended"
    finally:
        await runner.recent.aclose()
        await store_client.aclose()


@pytest.mark.parametrize("guarded", [False, True])
async def test_the_password_is_the_masters_and_the_sentinels_where_they_ask_for_one(guarded: bool) -> None:
    # U10: and it is told to nobody who reads the log
    with watched(server_binary(), password="hunter2", guarded=guarded) as store:
        store_client = StoreClient(store.url, timeout_seconds=2)
        client = open_client(store.url, timeout_seconds=2)
        try:
            assert await store_client.call(command("SET", "x", "1")) == b"OK"
            assert await client.get("x") == b"1"
            pubsub = client.pubsub()
            await pubsub.subscribe("gk:ends")
            message = None
            while message is None:
                await store_client.call(command("PUBLISH", "gk:ends", "heard"))
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            assert message["data"] == b"heard"
            await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()
            await store_client.aclose()
        wrong = StoreClient(store.url.replace("hunter2", "hunter3"), timeout_seconds=2)
        with pytest.raises(StoreUnavailable) as caught:
            await wrong.call(command("GET", "x"))
        assert "hunter" not in f"{caught.value} {caught.value!r} {wrong!r}"
        await wrong.aclose()


async def answered(sessions: SessionStore, reference: str) -> str:
    while True:
        try:
            return (await sessions.check(token(reference), CLIENT)).outcome
        except StoreUnavailable:
            await asyncio.sleep(0.05)

"""A cluster: slots that move under load, and a primary that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest
import redis
from msgspec import structs
from redis.crc import key_slot

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.store import SessionStore
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.embedded import server_binary
from gatekeeper.store.redis_client import open_client
from tests.conftest import RULES
from tests.faults.topologies import Node, Sharded, sharded, until
from tests.faults.traffic import traffic
from tests.machine import need
from tests.sessions.by_hand import Door, token
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Sharded]:
    with sharded(getattr(request, "param", server_binary)()) as made:
        yield made


def test_every_key_of_a_user_is_in_one_slot() -> None:
    # R14
    runner = ScriptRunner(StoreClient("unix:///nowhere", timeout_seconds=1), key_prefix="gk:", rules=RULES)
    for user in ("74", "{", "}", "{}", "{}x", "a{b}c", "}{", "é", "%7B", " ", "a" * 512):
        assert len({key_slot(key) for key in (*runner.keys.of_user(user), runner.keys.pairs(user))}) == 1, user


async def test_indexes_in_other_slots_are_there_before_their_records(store: Sharded) -> None:
    # Rule 4.2: refresh token and `sid` lead to the user wherever they lie; clean-up finds all
    store_client = StoreClient(store.url, timeout_seconds=2, replicas=1)
    door = Door(
        SessionStore(ScriptRunner(store_client, key_prefix="gk:", rules=structs.replace(RULES, index_sids=True)))
    )
    try:
        for number in range(20):
            claims = token(f"{number}", claims={"sid": f"sid{number}"})
            assert (await door.log_in(claims, f"refresh{number}")).outcome == "opened"
            assert await door.sign_ins.user_of(f"refresh{number}") == "74"
            assert await door.sign_ins.user_of_sid(f"sid{number}") == "74"
        assert (await door.rotate("refresh19", "next")).outcome == "rotated"
        assert await door.sign_ins.user_of("next") == "74"
        assert await door.store.clean_up() == 0
        assert sum(bool(node.client.dbsize()) for node in store.primaries) == 3
    finally:
        await store_client.aclose()


async def test_slots_that_move_under_load_are_followed_without_a_fault(store: Sharded) -> None:
    # R14: ASK while a slot moves, MOVED when it has; TRYAGAIN is waited out
    source, target = store.primaries[:2]
    async with traffic(store.url, timeout_seconds=HANG_SECONDS) as seen:
        await asyncio.sleep(0.3)
        taken = [key_slot(f"u{number}".encode()) for number in range(16)]
        moving = sorted({slot for slot in taken if slot < 16_384 // 3})
        assert moving
        for slot in moving:
            await asyncio.to_thread(move, store, slot, source, target)
        await asyncio.sleep(0.3)
        await seen.look_back()
        print(f"{len(moving)} slots moved: {seen!r}")
        seen.assert_sound()
        assert not {"connection", "timeout", "refused", "protocol"} & seen.seen.keys(), seen
        assert seen.ended


def move(store: Sharded, slot: int, source: Node, target: Node) -> None:
    """As redis-cli does it, key by key."""
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", store.id_of(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", store.id_of(target))
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
        for key in keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
    for node in (target, source, store.primaries[2]):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", store.id_of(target))


@pytest.mark.parametrize(
    "store", [server_binary, partial(need, "redis-server")], ids=["valkey", "redis"], indirect=True
)
async def test_a_killed_primary_is_followed_to_its_replica_and_no_end_is_lost(store: Sharded) -> None:
    # R14, CLUSTERDOWN; the scripts are not there either
    primary, replica = store.primaries[0], store.replicas[0]
    async with traffic(store.url, replicas=1) as seen:
        await asyncio.sleep(0.5)
        primary.kill()
        await asyncio.to_thread(until, replica.is_master, "a successor")
        primary.start()
        seconds = await seen.serves_again()
        await asyncio.sleep(0.3)
        await seen.look_back()
        print(f"primary killed: {seen!r}; service {seconds:.2f} s after its replica took over")
        seen.assert_sound()
        assert seen.ended


async def test_a_cluster_without_a_part_is_unavailable_and_not_signed_out(store: Sharded) -> None:
    # R14: CLUSTERDOWN is a 503
    store_client = StoreClient(store.url, timeout_seconds=0.5)
    try:
        assert await store_client.call(command("SET", "x", "1")) == b"OK"
        for node in (store.replicas[0], store.primaries[0]):
            node.kill()
        await asyncio.to_thread(until, lambda: not any(map(store.is_whole, store.primaries[1:])), "a broken cluster")
        for key in ("x", "a", "b", "c", "d"):
            with pytest.raises(StoreUnavailable):
                await store_client.call(command("GET", key))
        with pytest.raises(StoreUnavailable):
            await store_client.time()
    finally:
        await store_client.aclose()


async def test_what_is_asked_of_the_servers_is_asked_of_all(store: Sharded) -> None:
    # Rule 4.9: one primary that forgets under pressure is as bad as three
    store_client = StoreClient(store.url, timeout_seconds=2)
    try:
        assert await store_client.configuration("maxmemory-policy") == "noeviction"
        store.primaries[2].client.config_set("maxmemory-policy", "allkeys-lru")
        assert await store_client.configuration("maxmemory-policy") == "allkeys-lru, noeviction"
        assert await store_client.configuration("no-such-parameter") is None
        assert await store_client.time() > 0
    finally:
        await store_client.aclose()


async def test_a_subscription_at_any_node_hears_what_is_published_at_another(store: Sharded) -> None:
    store_client = StoreClient(store.url, timeout_seconds=2)
    client = open_client(store.url, timeout_seconds=2)
    try:
        pubsub = client.pubsub()
        await pubsub.subscribe("gk:ends")
        heard, killed = set[bytes](), 0
        while len(heard) < 10:
            if len(heard) == 5 and not killed:
                # Whichever node it is at, it finds another.
                for node in store.nodes:
                    node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await store_client.call(command("PUBLISH", "gk:ends", str(len(heard))))
            try:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)
            except redis.ConnectionError:
                killed += 1
                continue
            if message is not None:
                heard.add(message["data"])
        assert killed
        await pubsub.aclose()  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()
        await store_client.aclose()

"""Sentinels and a cluster over TLS, by addresses and by names; and who is no store of ours. STORE_CA_FILE."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command as redis_command
from gatekeeper.store.redis_client import open_client
from tests.faults.certificates import certify
from tests.faults.topologies import Over, Sharded, Watched, sharded, until, watched
from tests.faults.traffic import traffic
from tests.machine import need
from tests.system.sidecar import Backend, World, command, eventually, sidecar, someone, token
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow

_PASSWORD = "a-password-of-the-store"
_NAME = "localhost"
_URLS = ("rediss://:{}@{}", "rediss+cluster://:{}@{}", "rediss+sentinel://:{}@{}/sessions")


@pytest.fixture(params=["127.0.0.1", _NAME], ids=["address", "name"])
def over(request: pytest.FixtureRequest, tmp_path: Path) -> Over:
    """Servers known as this, with certificates for nothing else."""
    return Over(certify(tmp_path / "ours", request.param), request.param)


@contextmanager
def cluster(over: Over, *, announced: str | None = None) -> Iterator[Sharded]:
    announcing = over if announced is None else Over(over.tls, announced)
    with sharded(need("redis-server"), password=_PASSWORD, over=announcing) as made:
        yield made


@contextmanager
def sentinels(over: Over) -> Iterator[Watched]:
    with watched(need("redis-server"), password=_PASSWORD, over=over) as made:
        yield made


@asynccontextmanager
async def scripts_to(url: str, ca_file: Path | None, *, timeout_seconds: float = 3) -> AsyncIterator[StoreClient]:
    store_client = StoreClient(url, timeout_seconds=timeout_seconds, ca_file=None if ca_file is None else str(ca_file))
    try:
        yield store_client
    finally:
        await store_client.aclose()


async def set_keys(store_client: StoreClient) -> None:
    """On every node."""
    for number in range(30):
        assert await store_client.call(redis_command("SET", f"key{number}", number)) == b"OK"


async def test_a_slot_that_has_moved_is_followed_by_the_name_that_is_verified(over: Over) -> None:
    with cluster(over) as store:
        async with scripts_to(store.url, over.tls.ca_file) as store_client:
            await set_keys(store_client)
            source, target = store.primaries[:2]
            key = next(f"k{number}" for number in range(10_000) if key_slot(f"k{number}".encode()) < 5_000)
            assert source.ask("CLUSTER", "COUNTKEYSINSLOT", key_slot(key.encode())) == 0
            for node in (target, source, store.primaries[2]):
                node.ask("CLUSTER", "SETSLOT", key_slot(key.encode()), "NODE", store.id_of(target))
            with pytest.raises(redis.ResponseError, match=f"{key_slot(key.encode())} {over.name}:{target.port}"):
                source.client.execute_command("GET", key)  # type: ignore[no-untyped-call]
            assert await store_client.call(redis_command("SET", key, "x")) == b"OK"
            assert target.client.get(key) == "x"
            assert {queue.server.host for queue in store_client._route.queues()} == {over.name}


async def test_a_killed_primary_over_tls_is_followed_and_no_end_is_lost(over: Over) -> None:
    # R14
    with cluster(over) as store:
        async with traffic(store.url, replicas=1, ca_file=str(over.tls.ca_file)) as seen:
            await asyncio.sleep(0.5)
            store.primaries[0].kill()
            await asyncio.to_thread(until, store.replicas[0].is_master, "a successor")
            store.primaries[0].start()
            await seen.serves_again()
            await seen.look_back()
            seen.assert_sound()
            assert seen.ended


async def test_a_killed_master_over_tls_is_followed(over: Over) -> None:
    # R11
    with sentinels(over) as store:
        async with traffic(store.url, ca_file=str(over.tls.ca_file)) as seen:
            await asyncio.sleep(0.5)
            store.master.kill()
            await asyncio.to_thread(until, lambda: store.names(store.replicas[0]), "a successor")
            await seen.serves_again()
            assert not seen.mixed_up


@pytest.mark.parametrize("make", [cluster, sentinels])
async def test_clients_for_subscriptions_and_applications_use_tls(over: Over, make: Callable[[Over], Any]) -> None:
    with make(over) as store:
        client = open_client(store.url, timeout_seconds=HANG_SECONDS, ca_file=str(over.tls.ca_file))
        try:
            # Of a cluster redis-py asks the address of "localhost", never that name, for which the certificate is.
            if over.is_address or isinstance(store, Watched):
                for number in range(10):
                    assert await client.set(f"key{number}", "x")
                    assert await client.get(f"key{number}") == b"x"
            pubsub = client.pubsub()
            await pubsub.subscribe("gk:ends")
            assert (await pubsub.get_message(timeout=HANG_SECONDS))["type"] == "subscribe"
            await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()


@pytest.mark.parametrize("make", [cluster, sentinels])
def test_the_whole_gate_over_tls(over: Over, make: Callable[[Over], Any]) -> None:
    settings = {"store_ca_file": str(over.tls.ca_file)}
    with make(over) as store, Backend() as backend, sidecar(backend.url, redis_url=store.url, **settings) as gate:
        eventually(lambda: gate.ready().status == 200)
        world = World(gate.url, lambda: backend.reached)
        for _ in range(4):
            bearing = token(someone())
            world.passed("/", bearing)
            assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200
            assert world.refused("/", bearing).status == 401
        assert not [line["event"] for line in gate.log if line["level"] in ("warning", "error")]
        # Without its authority: one clear line.
        done = command("check", "--online", redis_url=store.url, upstream_url=backend.url, store_timeout="20s")
        assert done.returncode == 1
        assert "TLS to" in done.stdout
        assert "certificate" in done.stdout
        assert _PASSWORD not in done.stdout + done.stderr


async def test_nodes_that_announce_addresses_need_certificates_for_those(tmp_path: Path) -> None:
    # By its name a node is believed; the addresses to which it leads are not.
    over = Over(certify(tmp_path / "ours", _NAME), _NAME)
    with cluster(over, announced="127.0.0.1") as store:
        url = store.url.replace("127.0.0.1", _NAME)
        async with scripts_to(url, over.tls.ca_file, timeout_seconds=1) as store_client:
            with pytest.raises(StoreUnavailable, match=r"TLS to 127\.0\.0\.1:\d+: IP address mismatch"):
                await set_keys(store_client)


async def test_a_node_that_lacks_the_name_it_should_announce_is_known_by_its_address(tmp_path: Path) -> None:
    over = Over(certify(tmp_path / "ours", "127.0.0.1"), "127.0.0.1")
    with cluster(over) as store:
        for node in store.nodes:
            node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
        async with scripts_to(store.url, over.tls.ca_file) as store_client:
            await set_keys(store_client)
            assert await store_client.configuration("cluster-preferred-endpoint-type") == "hostname"
            assert {queue.server.host for queue in store_client._route.queues()} == {"127.0.0.1"}


# Who is no store of ours


@asynccontextmanager
async def impostor(tls: ssl.SSLContext | None) -> AsyncIterator[tuple[int, list[bytes], list[str]]]:
    """Answers everything with an error; its port, what it was told, and how connections to it went."""
    told: list[bytes] = []
    met: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append("met")
        try:
            while data := await reader.read(65_536):
                told.append(data)
                writer.write(b"-ERR no\r\n")
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], told, met


@pytest.mark.parametrize("template", _URLS, ids=["server", "cluster", "sentinel"])
@pytest.mark.parametrize("case", ["another authority", "another name", "no authority", "no TLS"])
async def test_an_impostor_is_refused_and_gets_no_password(template: str, case: str, tmp_path: Path) -> None:
    ours = certify(tmp_path / "ours", "127.0.0.1" if case != "another name" else "store.example")
    theirs = certify(tmp_path / "theirs", "127.0.0.1") if case == "another authority" else ours
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.key)
    ca_file = None if case == "no authority" else ours.ca_file
    says = {"another name": "is not valid for '127.0.0.1'", "no TLS": "TLS to"}.get(case, "certificate")
    async with AsyncExitStack() as stack:
        port, told, met = await stack.enter_async_context(impostor(None if case == "no TLS" else context))
        url = template.format(_PASSWORD, f"127.0.0.1:{port}")
        store_client = await stack.enter_async_context(scripts_to(url, ca_file))
        with pytest.raises(StoreUnavailable) as raised:
            await store_client.call(redis_command("GET", "x"))
        assert raised.value.kind == "connection"
        assert f"TLS to 127.0.0.1:{port}: " in str(raised.value)
        assert says in str(raised.value)
        client = open_client(url, timeout_seconds=3, ca_file=None if ca_file is None else str(ca_file))
        stack.push_async_callback(client.aclose)
        pubsub = client.pubsub()
        stack.push_async_callback(pubsub.aclose)
        with pytest.raises((redis.RedisError, RedisClusterException)):
            await client.get("x")
        with pytest.raises((redis.RedisError, OSError)):
            await pubsub.subscribe("x")
        if case == "no TLS":
            assert met
            # A greeting of TLS, which says nothing.
            assert all(_PASSWORD.encode() not in each for each in told)
            assert told[0][:1] == b"\x16"
        else:
            assert told == []

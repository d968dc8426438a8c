"""A failover by plan or by force while sessions end in every way: nothing that was acknowledged lives again.

Two replicas and `STORE_REPLICAS=1`: the one that confirms is not the one that is promoted (R11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gatekeeper.store.embedded import server_binary
from tests.faults.leavers import Leavers, process
from tests.faults.topologies import Watched, sharded, until, watched

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[Watched]:
    with watched(server_binary(), replicas=2) as made:
        yield made


async def promoted(store: Watched) -> None:
    await asyncio.to_thread(until, lambda: any(store.names(each) for each in store.replicas), "a successor")


async def all_repeated(store: Watched, leavers: Leavers) -> None:
    """Waits until everybody has left, and what the old master acknowledged as such is at the new one.

    It acknowledges until it is told to be a replica, seconds after the sentinels named another master, and the replica
    that confirms has not left it either. Who is connected to it learns of the failover when that happens."""
    await leavers.finish()
    await asyncio.to_thread(until, lambda: not store.master.is_master(), "a master that has become a replica")
    await leavers.process.beats()
    await leavers.finish()


async def test_a_planned_failover_takes_no_acknowledged_revocation_back(store: Watched) -> None:
    async with process(store.url, replicas=1, timeout_seconds=2) as gate, process(store.url) as other:
        leavers = Leavers(gate)
        await leavers.prepare(100)
        await gate.runner.epoch.beat()
        leavers.begin()
        await asyncio.sleep(0.3)
        # Again while the sentinels do not know a replica that is good enough.
        until(lambda: store.sentinels[0].ask("SENTINEL", "FAILOVER", store.service), "a failover")
        await promoted(store)
        await all_repeated(store, leavers)
        revived = await leavers.revived(other)
        print(f"planned failover: {leavers!r}, {len(revived)} live again")
        assert not revived
        assert not await leavers.lost(other)
        assert all(leavers.acknowledged.values())


async def test_a_killed_master_takes_no_acknowledged_revocation_back(store: Watched) -> None:
    async with process(store.url, replicas=1, timeout_seconds=2) as gate, process(store.url) as other:
        leavers = Leavers(gate)
        await leavers.prepare(40)
        leavers.begin()
        await asyncio.sleep(0.2)
        store.master.kill()
        await promoted(store)
        await leavers.finish()
        revived = await leavers.revived(other)
        print(f"master killed: {leavers!r}, {len(revived)} live again")
        assert not revived
        assert not await leavers.lost(other)
        assert any(leavers.acknowledged.values())


async def test_a_master_that_was_frozen_and_comes_back_takes_none_back(store: Watched) -> None:
    # R12: it still takes itself for the master, and its replicas have left it
    async with process(store.url, replicas=1, timeout_seconds=2) as gate, process(store.url) as other:
        leavers = Leavers(gate)
        await leavers.prepare(40)
        leavers.begin()
        await asyncio.sleep(0.2)
        store.master.freeze()
        try:
            await promoted(store)
        finally:
            store.master.thaw()
        await all_repeated(store, leavers)
        revived = await leavers.revived(other)
        print(f"master frozen: {leavers!r}, {len(revived)} live again")
        assert not revived
        assert any(leavers.acknowledged.values())


async def test_without_a_replica_that_confirms_what_is_repeated_is_kept(store: Watched) -> None:
    # STORE_REPLICAS=0: nothing but the memory of the process
    async with process(store.url, timeout_seconds=2) as gate, process(store.url) as other:
        leavers = Leavers(gate)
        await leavers.prepare(100)
        leavers.begin()
        await asyncio.sleep(0.2)
        # Again while the sentinels do not know a replica that is good enough.
        until(lambda: store.sentinels[0].ask("SENTINEL", "FAILOVER", store.service), "a failover")
        await promoted(store)
        await all_repeated(store, leavers)
        assert not await leavers.revived(other)


@pytest.mark.parametrize("how", [(), ("FORCE",), ("TAKEOVER",)], ids=["agreed", "forced", "taken over"])
async def test_a_failover_of_a_cluster_takes_no_acknowledged_revocation_back(how: tuple[str, ...]) -> None:
    # R14
    with sharded(server_binary()) as cluster:
        async with process(cluster.url, replicas=1, timeout_seconds=2) as gate, process(cluster.url) as other:
            leavers = Leavers(gate)
            await leavers.prepare(20)
            leavers.begin()
            await asyncio.sleep(0.1)
            cluster.replicas[0].ask("CLUSTER", "FAILOVER", *how)
            await asyncio.to_thread(until, cluster.replicas[0].is_master, "a successor")
            await leavers.finish()
            revived = await leavers.revived(other)
            print(f"cluster {how}: {leavers!r}, {len(revived)} live again")
            assert not revived
            assert any(leavers.acknowledged.values())

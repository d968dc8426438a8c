"""A failover by plan or by force while sessions end in every way: nothing that was acknowledged lives again.

Two replicas and `STORE_REPLICAS=1`: the one that confirms is not the one that is promoted (R11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gatekeeper.store.embedded import server_binary
from tests.faults.leavers import Leavers, process
from tests.faults.topologies import Watched, until, watched

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[Watched]:
    with watched(server_binary(), replicas=2) as made:
        yield made


async def promoted(store: Watched) -> None:
    await asyncio.to_thread(until, lambda: any(store.names(each) for each in store.replicas), "a successor")


async def test_a_planned_failover_takes_no_acknowledged_revocation_back(store: Watched) -> None:
    async with process(store.url, replicas=1, timeout_seconds=2) as gate, process(store.url) as other:
        leavers = Leavers(gate)
        await leavers.prepare(100)
        await gate.runner.epoch.beat()
        leavers.begin()
        await asyncio.sleep(0.3)
        store.sentinels[0].ask("SENTINEL", "FAILOVER", store.service)
        await promoted(store)
        await leavers.finish()
        revived = await leavers.revived(other)
        print(f"planned failover: {leavers!r}, {len(revived)} live again")
        assert not revived
        assert not await leavers.lost(other)
        assert all(leavers.acknowledged.values())

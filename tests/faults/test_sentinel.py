"""A master that fails, seen through sentinels: the way to its successor, and no end that is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gatekeeper.embedded import server_binary
from tests.faults.topologies import Watched, until, watched
from tests.faults.traffic import traffic
from tests.machine import need

pytestmark = pytest.mark.slow


@pytest.fixture(params=["valkey", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with watched(server_binary() if request.param == "valkey" else need("redis-server")) as made:
        yield made


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

"""Sidecars whose store has a wrong clock, and a failover to a host whose clock is ahead (rule 4.14)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import server_binary
from tests.contracts.responses import error_body
from tests.faults.shifted import ShiftedClock
from tests.faults.test_clocks import AHEAD, Clock, door_of
from tests.faults.topologies import until, watched
from tests.sessions import by_hand
from tests.sessions.by_hand import Door
from tests.system.sidecar import (
    Backend,
    Sidecar,
    World,
    external_store,
    sidecar,
    someone,
    token,
)
from tests.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["deny", "allow_verified"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Sidecar, Clock]]:
    shifted = ShiftedClock(tmp_path_factory.mktemp("clock"))
    with external_store(environment=shifted.environment) as store, Backend() as backend:
        options = {"redis_url": store.url, "on_store_failure": request.param, "rate_limit": "off"}
        with sidecar(backend.url, **options) as gate:
            yield World(gate.url, lambda: backend.reached, store), gate, Clock(shifted, store)


@pytest.fixture
def clock(served: tuple[World, Sidecar, Clock]) -> Iterator[Clock]:
    _, gate, clock = served
    eventually(lambda: gate.ready().status == 200)
    yield clock
    clock.shift(0)


def test_a_jump_of_the_stores_clock_costs_no_session(served: tuple[World, Sidecar, Clock], clock: Clock) -> None:
    world, gate, _ = served
    live, out, out_later = (token(someone()) for _ in range(3))
    for each in (live, out, out_later):
        world.passed("/", each)
    assert world.fetch("/sessions/logout", out, method="DELETE").status == 200
    clock.shift(AHEAD)
    # The first request already, and however the store's failures are met: nothing is known about this session.
    response = world.refused("/", live)
    assert (response.status, response.body) == (503, error_body("store_unavailable"))
    assert "retry-after" in {name.lower() for name, _ in response.headers}
    # Every other one as ever.
    assert world.refused("/", out).status == 401
    assert world.fetch("/sessions/logout", out_later, method="DELETE").status == 200
    assert world.refused("/", out_later).status == 401
    new = token(someone())
    world.passed("/", new)
    world.passed("/", new)
    eventually(lambda: gate.ready().status == 503)
    assert gate.metric("gatekeeper_store_errors_total", kind="clock") >= 1
    clock.shift(0)
    world.passed("/", live)
    world.passed("/", new)
    assert len(world.session_ids(live)) == 1
    for each in (out, out_later):
        assert json.loads(world.refused("/", each).body)["code"] == "access_token_blacklisted"


async def outcome_of(door: Door, reference: str) -> str:
    """What a check came to, or the kind of the fault that it met."""
    try:
        return (await door.check(reference))[0]
    except StoreUnavailable as error:
        return error.kind


async def test_a_failover_to_a_host_that_is_ahead_ends_no_session(tmp_path: Path) -> None:
    shifted = ShiftedClock(tmp_path)
    with watched(server_binary()) as store:
        [replica] = store.replicas
        replica.kill()
        replica.environment = shifted.environment
        replica.start()
        await asyncio.to_thread(until, lambda: replica.ask("ROLE")[3] == "connected", "a replica")
        client = StoreClient(store.url, timeout_seconds=2)
        door = door_of(client)
        try:
            _, known = await door.check("known")
            over = (await door.check("over"))[1]
            await door.store.log_out(by_hand.token("over"), by_hand.CLIENT)
            assert await client.connected_replicas() == 1
            await asyncio.to_thread(until, lambda: replica.client.exists("gk:{74}:sessions"), "its data")
            shifted.shift_store(replica.client, AHEAD)
            # Again while the sentinels do not know a replica that is good enough.
            until(lambda: store.sentinels[0].ask("SENTINEL", "FAILOVER", store.service), "a failover")
            await asyncio.to_thread(until, lambda: store.names(replica), "a successor")
            await asyncio.to_thread(until, replica.is_master, "a primary")
            while (found := await outcome_of(door, "known")) != "clock":
                # `touched` is the word of the old primary, as long as the client still follows it.
                assert found not in {"ended", "opened", "unknown"}, found
                await asyncio.sleep(0.05)
            assert (await door.check("over")) == ("ended", over)
            assert (await door.check("new"))[0] == "opened"
            # Its host is put right.
            shifted.shift_store(replica.client, 0)
            assert await door.check("known") == ("touched", known)
            assert (await door.check("over")) == ("ended", over)
        finally:
            await client.aclose()

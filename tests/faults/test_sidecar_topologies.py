"""The whole gate on a store of several processes, by its URL alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gatekeeper.store.embedded import server_binary
from tests.faults.topologies import Sharded, Watched, sharded, watched
from tests.system.sidecar import Backend, World, command, eventually, sidecar, someone, token

pytestmark = pytest.mark.slow

_TOPOLOGIES: dict[str, Any] = {"sentinel": watched, "cluster": sharded}


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Watched | Sharded]:
    with ExitStack() as stack:
        yield stack.enter_context(_TOPOLOGIES[request.param](server_binary()))


@pytest.mark.parametrize("store", list(_TOPOLOGIES), indirect=True)
def test_a_gate_lists_ends_and_refuses_as_on_one_server(store: Watched | Sharded) -> None:
    # Rule 2.7: by REDIS_URL alone; rule 4.8: an end is answered once a replica has it
    with (
        Backend() as backend,
        sidecar(backend.url, redis_url=store.url, store_replicas="1") as gate,
    ):
        assert eventually(lambda: gate.ready().status == 200)
        world = World(gate.url, lambda: backend.reached)
        for _ in range(4):
            user = someone()
            first, second = token(user), token(user)
            for bearing in (first, second, first):
                world.passed("/", bearing)
            assert len(world.session_ids(first)) == 2
            assert world.fetch("/api/users/me/sessions", first, method="DELETE").status == 200
            assert world.refused("/", second).status == 401
            world.passed("/", first)
        done = command("check", "--online", redis_url=store.url, store_replicas="2", upstream_url=backend.url)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stdout
        assert "warning: the store has 1 replicas and STORE_REPLICAS is 2: nothing opens or ends" in done.stdout
        done = command("check", "--online", redis_url=store.url, store_replicas="1", upstream_url=backend.url)
        assert "note: the store has 1 replicas and STORE_REPLICAS is 1: acknowledged revocations survive" in done.stdout
        done = command("check", "--online", redis_url=store.url, upstream_url=backend.url)
        assert "warning: the store has 1 replicas and STORE_REPLICAS is 0: every failover may take" in done.stdout


@pytest.mark.parametrize("store", list(_TOPOLOGIES), indirect=True)
def test_a_loss_of_all_data_is_noticed_and_an_outage_passed_over(store: Watched | Sharded) -> None:
    # R15; rule 4.9. In a Cluster the epoch lies apart from the users, and each node fails by itself.
    with (
        Backend() as backend,
        sidecar(backend.url, redis_url=store.url, store_timeout="2s", on_store_failure="allow_verified") as gate,
    ):
        assert eventually(lambda: gate.ready().status == 200)
        world = World(gate.url, lambda: backend.reached)
        of_before = [token(someone()) for _ in range(8)]
        for bearing in of_before[:4]:
            world.passed("/", bearing)
        for node in store.primaries if isinstance(store, Sharded) else [store.master]:
            node.ask("FLUSHALL")
        eventually(lambda: any("lost data" in line["event"] for line in gate.log))
        for bearing in of_before:
            assert world.refused("/", bearing).status == 401
        eventually(lambda: world.fetch("/", token(someone())).status == 200)
        bearing = token(someone())
        assert world.passed("/", bearing).get_all("x-gatekeeper-degraded") == []
        for node in store.nodes:
            node.kill()
        eventually(lambda: gate.metric("gatekeeper_store_up") == 0.0)
        assert world.passed("/", bearing).get_all("x-gatekeeper-degraded") == ["1"]

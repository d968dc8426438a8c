"""The store is away, frozen, read-only or comes back: never a 401, never an admitted request, and no restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.gate import SETTINGS
from tests.contracts.responses import RETRY_SOON, assert_own_response, error_body
from tests.servers import ClientResponse, fetch
from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    World,
    embedded_pid,
    eventually,
    external_store,
    kill_embedded,
    sidecar,
    someone,
    token,
)

UNAVAILABLE = error_body("store_unavailable")


@pytest.fixture(scope="module")
def fragile() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="module")
def gate(fragile: Store, backend: Backend) -> Iterator[Sidecar]:
    with sidecar(backend.url, redis_url=fragile.url, store_timeout="2s", **SETTINGS) as running:
        yield running


@pytest.fixture
def world(gate: Sidecar, backend: Backend, fragile: Store) -> World:
    return World(gate.url, lambda: backend.reached, fragile)


def in_time(world: World, bearing: str, target: str = "/", method: str = "GET") -> ClientResponse:
    """The refusal while the store is away, however long that lasts."""
    answer = world.refused(target, bearing, method=method)
    assert answer.get_all("set-cookie") == []
    return answer


def assert_unavailable(world: World, gate: Sidecar) -> None:
    """Everything that needs the store is 503, all else is as ever."""
    bearing = token(someone())
    for _ in range(3):
        assert_own_response(in_time(world, bearing), 503, UNAVAILABLE)
    for method, target in (("GET", "/sessions/me"), ("DELETE", "/sessions/1"), ("DELETE", "/sessions/logout")):
        assert_own_response(in_time(world, bearing, target, method), 503, UNAVAILABLE)
    assert in_time(world, bearing, "/api/sessions", "DELETE").status == 503
    # What needs no store.
    assert world.refused("/").status == 401
    assert world.refused("/", "x").status == 401
    assert world.passed("/public/x").get_all("x-user-id") == []
    assert world.passed("/login", method="POST").get_all("x-user-id") == []
    # On a public path a token that cannot be judged is taken away.
    assert world.passed("/public/x", bearing).get_all("authorization") == []
    assert fetch(gate.ops, "GET", "/livez").status == 200
    assert eventually(lambda: (answer := gate.ready()).status == 503 and answer).body.startswith(b"session store")
    assert eventually(lambda: gate.metric("gatekeeper_store_up") == 0.0)


def assert_back(world: World, gate: Sidecar) -> None:
    """Service again, soon and without a restart."""
    # Where it has lost its data, a token of the same second opens no session.
    eventually(lambda: world.fetch("/", token(someone())).status == 200)
    bearing = token(someone())
    eventually(lambda: gate.ready().status == 200)
    eventually(lambda: gate.metric("gatekeeper_store_up") == 1.0)
    for _ in range(20):
        world.passed("/", bearing)
    assert gate.process.poll() is None


def test_a_store_that_is_killed_and_comes_back(world: World, gate: Sidecar, fragile: Store) -> None:  # R1
    world.passed("/", token(someone()))
    fragile.kill()
    assert_unavailable(world, gate)
    assert gate.metric("gatekeeper_store_errors_total", kind="connection") > 0
    assert gate.metric("gatekeeper_decisions_total", result="error", reason="store_unavailable", mode="sidecar") >= 7
    fragile.start()
    assert_back(world, gate)


def test_clients_of_one_outage_are_not_all_told_the_same_second(
    world: World, gate: Sidecar, fragile: Store
) -> None:  # R1, rule 6.4
    bearing = token(someone())
    world.passed("/", bearing)
    fragile.kill()
    told = {world.refused("/", bearing).get_all("retry-after")[0] for _ in range(60)}
    assert told <= RETRY_SOON
    # All sixty alike would be one chance in 5^59.
    assert len(told) > 1
    fragile.start()
    assert_back(world, gate)


def test_a_store_that_freezes_and_thaws(world: World, gate: Sidecar, fragile: Store) -> None:  # R2
    fragile.signal(signal.SIGSTOP)
    try:
        assert_unavailable(world, gate)
        assert gate.metric("gatekeeper_store_errors_total", kind="timeout") > 0
    finally:
        fragile.signal(signal.SIGCONT)
    assert_back(world, gate)


def test_a_store_that_takes_no_writes(world: World, gate: Sidecar, fragile: Store) -> None:  # R3, R7, S15
    bearing = token(someone())
    (session,) = world.session_ids(bearing)
    fragile.client.replicaof("127.0.0.1", "1")
    try:
        assert_own_response(in_time(world, bearing), 503, UNAVAILABLE)
        assert_own_response(in_time(world, bearing, f"/sessions/{session}", "DELETE"), 503, UNAVAILABLE)
    finally:
        fragile.client.replicaof("NO", "ONE")
    assert_back(world, gate)
    # What was not acknowledged did not happen, and repeating it is safe.
    assert world.fetch(f"/sessions/{session}", bearing, method="DELETE").status == 200
    assert world.refused("/", bearing).status == 401


def test_a_store_that_is_full(world: World, gate: Sidecar, fragile: Store) -> None:  # R5
    bearing = token(someone())
    world.passed("/", bearing)
    fragile.client.config_set("maxmemory", "1")
    try:
        assert_own_response(in_time(world, bearing), 503, UNAVAILABLE)
    finally:
        fragile.client.config_set("maxmemory", "0")
    assert_back(world, gate)


def test_a_store_that_forgets_its_scripts(world: World, fragile: Store) -> None:  # R9
    bearing = token(someone())
    for _ in range(5):
        world.passed("/", bearing)
        fragile.client.script_flush()


def test_sidecars_start_before_the_store_is_there(backend: Backend, tmp_path: Path) -> None:  # K11
    with external_store() as store:
        store.kill()
        with sidecar(backend.url, redis_url=store.url) as gate:
            world = World(gate.url, lambda: backend.reached, store)
            answer = gate.ready()
            assert (answer.status, answer.body.startswith(b"session store failed: connection")) == (503, True)
            bearing = token(someone())
            assert_own_response(world.refused("/", bearing), 503, UNAVAILABLE)
            store.start()
            eventually(lambda: gate.ready().status == 200)
            world.passed("/", bearing)


# The embedded store


def test_what_was_revoked_stays_revoked_over_a_kill_of_everything(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    settings = {"data_dir": str(data_dir)}
    user = someone()
    revoked, logged_out, everywhere, lives = token(user), token(user), token(someone()), token(someone())
    with sidecar(backend.url, **settings) as gate:
        world = World(gate.url, lambda: backend.reached)
        (session,) = world.session_ids(revoked)
        living = world.session_ids(lives)
        world.passed("/", everywhere)
        assert world.fetch(f"/sessions/{session}", revoked, method="DELETE").status == 200
        assert world.fetch("/sessions/logout", logged_out, method="DELETE").status == 200
        assert world.fetch("/sessions/all", everywhere, method="DELETE").status == 200
        gate.kill()
        kill_embedded(data_dir)
    with sidecar(backend.url, **settings) as gate:
        world = World(gate.url, lambda: backend.reached)
        assert world.refused("/", revoked).body == error_body("session_revoked_or_invalid", "revoked_by_user")
        assert world.refused("/", logged_out).body == error_body("access_token_blacklisted", "logged_out")
        assert world.refused("/", everywhere).status == 401
        assert world.session_ids(lives) == living


def test_a_store_left_behind_by_a_kill_is_taken_over(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    bearing = token(someone())
    with sidecar(backend.url, data_dir=str(data_dir)) as gate:
        session = World(gate.url, lambda: backend.reached).session_ids(bearing)
        gate.kill()
        left = embedded_pid(data_dir)
        assert left is not None
        with sidecar(backend.url, data_dir=str(data_dir)) as gate:
            assert embedded_pid(data_dir) == left
            assert World(gate.url, lambda: backend.reached).session_ids(bearing) == session
        # The last one to leave ends it.
        assert embedded_pid(data_dir) is None


def test_an_embedded_store_that_dies_is_started_again(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with sidecar(backend.url, data_dir=str(data_dir)) as gate:
        world = World(gate.url, lambda: backend.reached)
        bearing = token(someone())
        world.fetch("/sessions/all", bearing, method="DELETE")
        kill_embedded(data_dir)
        fresh = token(someone())
        # Until it is back: 503 and nothing else.
        answers: list[int] = []

        def is_back() -> bool:
            answers.append(world.fetch("/", fresh).status)
            return answers[-1] == 200

        eventually(is_back)
        assert set(answers) <= {200, 503}
        assert world.refused("/", bearing).status == 401
        eventually(lambda: any("embedded store died" in line["event"] for line in gate.log))


def test_two_sidecars_share_one_embedded_store(backend: Backend, tmp_path: Path) -> None:
    settings = {"data_dir": str(tmp_path / "data")}
    with sidecar(backend.url, **settings) as one:
        with sidecar(backend.url, **settings) as two:
            bearing = token(someone())
            first, second = (World(gate.url, lambda: backend.reached) for gate in (one, two))
            assert first.session_ids(bearing) == second.session_ids(bearing)
            second.fetch("/sessions/logout", bearing, method="DELETE")
            assert first.refused("/", bearing).status == 401
        # One leaves, the other goes on.
        assert json.loads(first.fetch("/sessions/me", token(someone())).body)

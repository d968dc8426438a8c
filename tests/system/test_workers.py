"""Several workers behind one address: they share the store, the metrics and the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, World, embedded_pid, eventually, metrics, sidecar, someone, token
from tests.system.slow import SlowBackend, refuses_connections, slow_request
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow


def workers_of(gate: Sidecar) -> list[int]:
    """The process ids of the workers: children that multiprocessing spawned, its resource tracker excepted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == gate.process.pid and state != "Z" and b"spawn_main" in command:
            found.append(int(process.name))
    return sorted(found)


@pytest.fixture(scope="module")
def gate(backend: Backend) -> Iterator[Sidecar]:
    """Two workers and an embedded store."""
    with sidecar(backend.url, workers="2") as running:
        yield running


@pytest.fixture
def world(gate: Sidecar, backend: Backend) -> World:
    return World(gate.url, lambda: backend.reached)


def allowed(gate: Sidecar) -> float:
    return gate.metric("gatekeeper_decisions_total", result="allow", reason="none", mode="sidecar")


def test_each_worker_answers_and_all_share_sessions_and_metrics(gate: Sidecar, world: World) -> None:
    bearing = token(someone())
    before = allowed(gate) + 1
    session = world.session_ids(bearing)
    # A request is counted after it has been answered.
    eventually(lambda: allowed(gate) == before)
    ends = gate.metric("gatekeeper_session_events_total", event="opened", actor="user")
    workers = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
    # While one is frozen the other must be the one that answers.
    for frozen in workers:
        os.kill(frozen, signal.SIGSTOP)
        try:
            for _ in range(5):
                assert world.session_ids(bearing) == session
        finally:
            os.kill(frozen, signal.SIGCONT)
    for _ in range(10):
        world.passed("/", bearing)
    assert eventually(lambda: allowed(gate) == before + 20)
    assert gate.metric("gatekeeper_session_events_total", event="opened", actor="user") == ends
    names = {name for name, _ in metrics(gate.ops)}
    assert {"gatekeeper_store_up", "gatekeeper_build_info", "gatekeeper_http_requests_in_flight"} <= names


def test_a_revocation_holds_on_every_worker(world: World) -> None:  # T30
    for _ in range(5):
        bearing = token(someone())
        world.passed("/", bearing)
        world.fetch("/sessions/logout", bearing, method="DELETE")
        for _ in range(6):
            assert world.refused("/", bearing).status == 401


def test_the_ops_port_tells_of_the_whole(gate: Sidecar) -> None:
    assert gate.ready().status == 200
    assert fetch(gate.ops, "GET", "/livez").body == b"ok\n"
    # The embedded store is one, and it is the parent's.
    assert len([line for line in gate.log if line["event"] == "server listening"]) == 1


def test_a_killed_worker_is_replaced_and_nothing_is_forgotten(gate: Sidecar, world: World) -> None:  # K3
    before = workers_of(gate)
    revoked, bearing = token(someone()), token(someone())
    session = world.session_ids(bearing)
    world.fetch("/sessions/all", revoked, method="DELETE")
    counted = allowed(gate)
    os.kill(before[0], signal.SIGKILL)
    after = eventually(lambda: len(found := workers_of(gate)) == 2 and before[0] not in found and found)
    assert before[1] in after
    # The new one answers too: it alone does while the other is frozen.
    os.kill(before[1], signal.SIGSTOP)
    try:
        assert world.session_ids(bearing) == session
        assert world.refused("/", revoked).status == 401
    finally:
        os.kill(before[1], signal.SIGCONT)
    assert allowed(gate) >= counted
    codes = eventually(lambda: [line["exit_code"] for line in gate.log if "exit_code" in line])
    assert codes == [-signal.SIGKILL]


def test_sigterm_drains_all_workers(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with sidecar(backend.url, workers="2", data_dir=str(data_dir)) as gate:
        workers = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        World(gate.url, lambda: backend.reached).passed("/", token(someone()))
        # As an orchestrator does it, to the parent alone; a worker may still be starting.
        gate.terminate()
        assert gate.exit_code() == 0
        assert embedded_pid(data_dir) is None
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_while_workers_drain_nobody_is_kept_waiting() -> None:
    with SlowBackend() as slow, sidecar(slow.url, workers="2") as gate:
        eventually(lambda: fetch(gate.url, "GET", "/", timeout=HANG_SECONDS).status == 401)
        with slow_request(slow, gate) as under_way:
            gate.terminate()
            eventually(lambda: gate.ready().status == 503)
            # Refused, not taken and forgotten.
            eventually(lambda: refuses_connections(gate))
            assert not under_way.done()
            slow.release.set()
            assert under_way.result(HANG_SECONDS).body == b"ok"
        assert gate.exit_code() == 0


def test_workers_end_with_their_parent(backend: Backend, tmp_path: Path) -> None:
    with sidecar(backend.url, workers="2", data_dir=str(tmp_path / "data")) as gate:
        workers = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        World(gate.url, lambda: backend.reached).passed("/", token(someone()))
        gate.process.kill()
        eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        # And the last of them ends the store.
        eventually(lambda: embedded_pid(tmp_path / "data") is None)

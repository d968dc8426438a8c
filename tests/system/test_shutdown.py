"""The end: nothing new is let in, what is under way is finished, and nothing is left behind."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import Backend, Store, bearer, embedded_pid, eventually, sidecar, someone, token
from tests.system.slow import SlowBackend, refuses_connections, slow_request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished_and_the_exit_is_0(store: Store, number: int) -> None:  # K1
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url) as gate:
        with slow_request(backend, gate) as under_way:
            assert gate.ready().status == 200
            gate.process.send_signal(number)
            answer = eventually(lambda: (ready := gate.ready()).status == 503 and ready, seconds=5)
            assert answer.body == b"shutting down\n"
            eventually(lambda: refuses_connections(gate))
            assert gate.process.poll() is None
            # The ops port lives until the end.
            assert fetch(gate.ops, "GET", "/livez").status == 200
            assert not under_way.done()
            backend.release.set()
            assert under_way.result(10).body == b"ok"
        assert gate.exit_code() == 0
        assert gate.access[-1]["status"] == 200


def test_during_the_delay_requests_are_still_accepted(store: Store, backend: Backend) -> None:
    with sidecar(backend.url, redis_url=store.url, shutdown_delay="2s") as gate:
        gate.terminate()
        eventually(lambda: gate.ready().status == 503, seconds=2)
        assert fetch(gate.url, "GET", "/", [bearer(token(someone()))]).status == 200
        assert gate.exit_code() == 0


def test_what_takes_longer_than_the_grace_is_cut(store: Store) -> None:  # P0-S17
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url, shutdown_grace="300ms") as gate:
        with slow_request(backend, gate) as under_way:
            gate.terminate()
            gate.exit_code(seconds=10)
            answer = under_way.result(10)
            assert answer.status == 504
            assert json.loads(answer.body)["code"] == "upstream_timeout"
        line = gate.access_of(answer.get_all("x-request-id")[0])
        assert (line["status"], line["decision"], line["reason"]) == (504, "error", "upstream_timeout")


def test_a_second_sigterm_ends_at_once(store: Store) -> None:
    with (
        SlowBackend() as backend,
        sidecar(backend.url, redis_url=store.url) as gate,
        slow_request(backend, gate) as under_way,
    ):
        gate.terminate()
        eventually(lambda: gate.ready().status == 503, seconds=5)
        began = time.monotonic()
        gate.terminate()
        gate.exit_code(seconds=10)
        assert time.monotonic() - began < 5
        # "At once" promises nobody an answer.
        with suppress(OSError):
            assert under_way.result(10).status == 504


def test_nothing_is_left_behind(backend: Backend, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with sidecar(backend.url, data_dir=str(data_dir)) as gate:
        fetch(gate.url, "GET", "/", [bearer(token(someone()))])
        pid = embedded_pid(data_dir)
        assert pid is not None
        gate.terminate()
        assert gate.exit_code() == 0
        assert embedded_pid(data_dir) is None
        assert not Path(f"/proc/{pid}").exists()

"""The ops port of several workers: it reports about them, not about their parent."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, Store, World, eventually, sidecar, someone, token
from tests.system.slow import SlowBackend, slow_request
from tests.system.test_workers import workers_of
from tests.waiting import HANG_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 120.0


def status(gate: Sidecar, path: str) -> int:
    return fetch(gate.ops, "GET", path).status


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def frozen(*processes: int) -> Iterator[None]:
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def answers(url: str, path: str, wanted: int) -> bool:
    try:
        return fetch(url, "GET", path).status == wanted
    except OSError:
        return False


@contextmanager
def starting(backend: Backend, store: Store, directory: Path, workers: int) -> Iterator[Sidecar]:
    """A sidecar that has just begun to start, with known ports."""
    url, ops = (f"127.0.0.1:{free_port()}" for _ in range(2))
    settings = {"listen": url, "ops_listen": ops, "workers": str(workers), "redis_url": store.url}
    gate = Sidecar({"upstream_url": backend.url, **settings}, directory)
    gate.url, gate.ops = f"http://{url}", f"http://{ops}"
    try:
        yield gate
    finally:
        gate.close()


@contextmanager
def killing(gate: Sidecar, sign: Callable[[int], None]) -> Iterator[None]:
    """Each new worker is treated by `sign` before it can serve."""
    over = threading.Event()

    def hunt() -> None:
        while not over.wait(0.01):
            for process in workers_of(gate):
                sign(process)

    hunter = threading.Thread(target=hunt, daemon=True)
    hunter.start()
    try:
        yield
    finally:
        over.set()
        hunter.join()


def test_it_is_not_ready_before_a_worker_serves(backend: Backend, store: Store, tmp_path: Path) -> None:
    seen: set[int] = set()

    def freeze(process: int) -> None:
        seen.add(process)
        os.kill(process, signal.SIGSTOP)

    with starting(backend, store, tmp_path, 2) as gate:
        with killing(gate, freeze):
            eventually(lambda: len(seen) == 2, seconds=SECONDS)
            eventually(lambda: answers(gate.ops, "/readyz", 503), seconds=SECONDS)
            unready = fetch(gate.ops, "GET", "/readyz")
            assert (unready.body, unready.get_all("retry-after")) == (b"no worker serves yet\n", ["1"])
        with pytest.raises(OSError, match="refused"):
            fetch(gate.url)
        os.kill(min(seen), signal.SIGCONT)
        eventually(lambda: answers(gate.ops, "/readyz", 200), seconds=SECONDS)
        assert fetch(gate.url).status == 401
        os.kill(max(seen), signal.SIGCONT)


def test_it_is_ready_and_alive_as_long_as_one_worker_is(backend: Backend, store: Store) -> None:
    with sidecar(backend.url, redis_url=store.url, workers="2") as gate:
        one, other = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        with frozen(one):
            eventually(lambda: any("does not respond" in line["event"] for line in gate.log), seconds=SECONDS)
            eventually(lambda: status(gate, "/readyz") == 200, seconds=SECONDS)
            assert status(gate, "/livez") == 200
            with frozen(other):
                eventually(lambda: status(gate, "/readyz") == 503, seconds=SECONDS)
                assert b"no worker has responded" in gate.ready().body
                eventually(lambda: status(gate, "/livez") == 503, seconds=SECONDS)
            eventually(lambda: status(gate, "/livez") == 200, seconds=SECONDS)
            eventually(lambda: status(gate, "/readyz") == 200, seconds=SECONDS)
        eventually(lambda: any(line["event"] == "worker responds again" for line in gate.log), seconds=SECONDS)
        # A parent that stood still hears at once what it has missed.
        with frozen(gate.process.pid):
            assert fetch(gate.url).status == 401
            threading.Event().wait(12)
        assert status(gate, "/livez") == 200
        eventually(lambda: status(gate, "/readyz") == 200, seconds=SECONDS)
        # What all workers need is reported too, and is no reason to restart any.
        store.signal(signal.SIGSTOP)
        try:
            eventually(lambda: status(gate, "/readyz") == 503, seconds=SECONDS)
            assert status(gate, "/livez") == 200
        finally:
            store.signal(signal.SIGCONT)
        eventually(lambda: status(gate, "/readyz") == 200, seconds=SECONDS)


def test_a_worker_that_dies_at_every_start_is_started_less_and_less_often(
    backend: Backend, store: Store, tmp_path: Path
) -> None:
    with starting(backend, store, tmp_path, 2) as gate:
        with killing(gate, lambda process: os.kill(process, signal.SIGKILL)):
            said = "worker started again in 2 s: the process exited before it served"
            eventually(lambda: any(line["event"] == said for line in gate.log), seconds=SECONDS)
            assert status(gate, "/readyz") == 503
            assert {line["exit_code"] for line in gate.log if "exit_code" in line} == {-signal.SIGKILL}
        eventually(lambda: answers(gate.ops, "/readyz", 200), seconds=SECONDS)
        eventually(lambda: len(workers_of(gate)) == 2, seconds=SECONDS)


def test_a_worker_that_hangs_at_the_end_does_not_hold_up_the_rest(backend: Backend, store: Store) -> None:
    with sidecar(backend.url, redis_url=store.url, workers="2", shutdown_grace="1s") as gate:
        one, _ = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        with frozen(one):
            gate.terminate()
            assert gate.exit_code(seconds=SECONDS) == 1
            assert not Path(f"/proc/{one}").exists()


def test_metrics_are_right_over_the_deaths_of_workers(store: Store) -> None:
    with SlowBackend() as backend, sidecar(backend.url, redis_url=store.url, workers="2") as gate:
        world = World(gate.url, lambda: backend.reached)
        bearing = token(someone())
        workers = eventually(lambda: len(found := workers_of(gate)) == 2 and found)
        environ = Path(f"/proc/{workers[0]}/environ").read_text().split("\0")
        (folder,) = (Path(line.partition("=")[2]) for line in environ if line.startswith("PROMETHEUS_MULTIPROC_DIR="))

        def allowed() -> float:
            return gate.metric("gatekeeper_decisions_total", result="allow", reason="none", mode="sidecar")

        for number in (1, 2, 3):
            before = allowed()
            for _ in range(4):
                world.passed("/", bearing)
            eventually(lambda: allowed() == before + 4)  # noqa: B023 - asked within the turn
            if number == 1:
                # One that dies with a request in flight no longer counts it.
                with slow_request(backend, gate) as under_way:
                    eventually(lambda: gate.metric("gatekeeper_http_requests_in_flight") == 1)
                    for worker in workers_of(gate):
                        os.kill(worker, signal.SIGKILL)
                    eventually(lambda: answers(gate.ops, "/readyz", 503), seconds=SECONDS)
                    with pytest.raises(OSError, match=r"."):
                        under_way.result(HANG_SECONDS)
            else:
                os.kill(workers_of(gate)[0], signal.SIGKILL)
            eventually(lambda: len(workers_of(gate)) == 2, seconds=SECONDS)
            eventually(lambda: answers(gate.ops, "/readyz", 200), seconds=SECONDS)
            assert allowed() >= before + 4
            assert gate.metric("gatekeeper_http_requests_in_flight") == 0
        assert fetch(gate.ops, "GET", "/metrics").body.count(b"\ngatekeeper_build_info{") == 1
        alive = {str(worker) for worker in workers_of(gate)}
        owners = {file.stem.rpartition("_")[2] for file in folder.glob("*.db")}
        assert owners <= alive | {"ended"}

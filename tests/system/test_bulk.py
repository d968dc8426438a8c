"""Much of everything through a running sidecar: gigabytes, a thousand streams of events, ten thousand requests that
break off. What it holds meanwhile is bounded, and nothing is left afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.backends.bulk import BLOCK
from tests.servers import RawClient, afetch, fetch, raw_client
from tests.system.sidecar import Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.system.streaming import requested

pytestmark = pytest.mark.slow

_BULK = Path(__file__).parent.parent / "backends" / "bulk.py"
GIGABYTES = 2 << 30
MANY_STREAMS = 1000
MANY_ABORTS = 10_000
BROKEN_OFF = 0
_NO_LINGER = struct.pack("ii", 1, 0)


class Bulk:
    """The backend's process."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, str(_BULK), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def connections(self) -> int:
        """Those of others."""
        return int(fetch(self.url, "GET", "/open").body) - 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def bulk() -> Iterator[Bulk]:
    running = Bulk()
    try:
        yield running
    finally:
        running.kill()


class Gate:
    """A sidecar before the backend, as its process is seen from outside."""

    def __init__(self, sidecar: Sidecar, backend: Bulk, store: Store) -> None:
        self.sidecar = sidecar
        self._store = store
        self.backend = backend
        self.url = sidecar.url
        self._proc = Path(f"/proc/{sidecar.process.pid}")
        self.sign_in()

    def sign_in(self) -> None:
        self.token = token(someone())
        self.head = f"HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {self.token}\r\n"

    def memory_mb(self, name: str = "VmRSS") -> float:
        """`VmHWM` is the most that it ever was."""
        found = re.search(rf"{name}:\s+(\d+) kB", (self._proc / "status").read_text())
        assert found is not None
        return int(found[1]) / 1000

    @property
    def descriptors(self) -> int:
        """Those of connections to the store are no request's: there is a second when there is much to ask."""
        return sum(1 for _ in (self._proc / "fd").iterdir()) - self._store.connections

    def is_left_alone(self, descriptors: int) -> None:
        """Returns when nothing is under way, and nothing open that was not open before."""
        eventually(lambda: self.sidecar.metric("gatekeeper_http_requests_in_flight") == 0)
        eventually(lambda: self.backend.connections == 0)
        eventually(lambda: self.descriptors <= descriptors)

    def curl(self, *arguments: str) -> bytes:
        command = ["curl", "-sSf", "-m", "390", "-H", f"Authorization: Bearer {self.token}", *arguments]
        return subprocess.run(command, capture_output=True, timeout=400, check=True).stdout


@pytest.fixture(scope="module")
def gate(store: Store) -> Iterator[Gate]:
    with bulk() as backend, sidecar(backend.url, redis_url=store.url) as running:
        made = Gate(running, backend, store)
        for _ in range(3):
            assert fetch(made.url, "GET", "/bytes/1", [bearer(made.token)]).status == 200
        yield made


@pytest.fixture
def idle(gate: Gate) -> Iterator[int]:
    """The descriptors of the sidecar when nobody is there; so many they must be again."""
    eventually(lambda: gate.backend.connections == 0)
    descriptors = gate.descriptors
    yield descriptors
    gate.is_left_alone(descriptors)


def test_two_gigabytes_come_down_in_constant_memory(gate: Gate, idle: int, tmp_path: Path) -> None:  # X05
    before = gate.memory_mb()
    size = gate.curl("-o", "/dev/null", "-w", "%{size_download}", f"{gate.url}/bytes/{GIGABYTES}")
    assert int(size) == GIGABYTES
    print(f"down: {before:.1f} MB before, {gate.memory_mb('VmHWM'):.1f} MB at most")
    assert gate.memory_mb("VmHWM") - before < 30


def test_two_gigabytes_go_up_in_constant_memory(gate: Gate, idle: int, tmp_path: Path) -> None:  # X05
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(GIGABYTES)
    before = gate.memory_mb()
    told = gate.curl("-H", "Expect:", "-T", str(tmp_path / "zeros"), f"{gate.url}/")
    assert len(told) == 64
    print(f"up: {before:.1f} MB before, {gate.memory_mb('VmHWM'):.1f} MB at most")
    assert gate.memory_mb("VmHWM") - before < 30


def test_bodies_arrive_as_they_were_sent(gate: Gate, idle: int) -> None:  # X05
    body = os.urandom(50_000_000)
    answer = fetch(gate.url, "PUT", "/", [bearer(gate.token)], body)
    assert answer.body.decode() == hashlib.sha256(body).hexdigest()
    answer = fetch(gate.url, "GET", f"/bytes/{100 * len(BLOCK)}", [bearer(gate.token)])
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(BLOCK * 100).digest()


async def test_a_thousand_streams_of_events_each_get_each_event(gate: Gate, idle: int) -> None:
    before = gate.memory_mb()
    async with AsyncExitStack() as stack:
        clients = []
        for start in range(0, MANY_STREAMS, 100):
            asked = [requested(gate.url, "/events", gate.token) for _ in range(start, start + 100)]
            clients += await asyncio.gather(*(stack.enter_async_context(each) for each in asked))
        assert gate.sidecar.metric("gatekeeper_http_requests_in_flight") == MANY_STREAMS
        for _ in range(5):
            told = await afetch(gate.backend.url, "GET", "/tell")
            assert int(told.body) == MANY_STREAMS
        print(f"{(gate.memory_mb() - before) * 1000 / MANY_STREAMS:.0f} kB a stream")
        assert gate.memory_mb() - before < 100
        # An end that each is told shows what each got before it.
        await afetch(gate.url, "DELETE", "/sessions/logout", [bearer(gate.token)])
        ends = [await client.end() for client in clients]
        expected = b"".join(b"data: %d\n\n" % number for number in range(1, 6))
        assert {end.body for end in ends} == {expected + b"\n\nevent: session-ended\ndata: logged_out\n\n"}
        assert all(end.whole for end in ends)
    gate.sign_in()


ABORTS = [
    "",
    "GET /bytes/1 HTTP/1.1\r\nHost",
    "GET /bytes/1 {head}\r\n",
    "GET /bytes/10000000 {head}\r\n",
    "GET /silent {head}\r\n",
    "POST /silent {head}Content-Length: 0\r\n\r\n",
    "PUT /put {head}Content-Length: 100000\r\n\r\nabc",
    "PUT /put {head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "PUT /put {head}Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    "GET /events {head}\r\n",
    "GET /reset/0 {head}\r\n",
    "GET /reset/20 {head}\r\n",
    "GET /reset/500 {head}\r\n",
    "DELETE /reset/0 {head}\r\n",
    "GET /bytes/1 {head}\r\n" * 5,
    "GET /bytes/1 HTTP/1.1\r\nHost: a\r\n\r\n",
]


def reset(client: RawClient) -> None:
    """Close with RST: a plain close could be that of the sending side alone (rule 3.20)."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    client.writer.transport.abort()


async def test_ten_thousand_requests_that_break_off_leave_nothing_behind(gate: Gate, idle: int) -> None:  # B5
    asked = [each.replace("{head}", gate.head).encode() for each in ABORTS]
    numbers = iter(range(MANY_ABORTS))

    async def abort_some() -> None:
        for number in numbers:
            data = asked[number % len(asked)]
            with suppress(ConnectionError, OSError):
                async with raw_client(gate.url) as client:
                    client.writer.write(data)
                    # At every stage: at once, a moment later, after the first of the answer.
                    if number % 3 == 1:
                        await asyncio.sleep(0.01)
                    elif number % 3 == 2:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(client.reader.read(100), 0.1)
                    reset(client)

    before = gate.memory_mb()
    await asyncio.gather(*(abort_some() for _ in range(50)))
    await asyncio.to_thread(gate.is_left_alone, idle)
    print(f"{before:.1f} MB before, {gate.memory_mb():.1f} MB after")
    assert gate.memory_mb() - before < 30
    answer = await afetch(gate.url, "GET", "/bytes/3", [bearer(gate.token)])
    assert (answer.status, answer.body) == (200, BLOCK[:3])


async def test_slow_clients_and_a_slow_backend_hold_nobody_up(gate: Gate, idle: int) -> None:  # B5
    async with AsyncExitStack() as stack:
        before = gate.memory_mb()
        for number in range(200):
            client = await stack.enter_async_context(raw_client(gate.url))
            stack.callback(reset, client)
            # Read by nobody; answered by nobody.
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            target = "/bytes/50000000" if number % 2 else "/silent"
            client.writer.write(f"GET {target} {gate.head}\r\n".encode())
        await asyncio.sleep(1)
        for _ in range(20):
            assert (await afetch(gate.url, "GET", "/bytes/3", [bearer(gate.token)])).status == 200
        print(f"{before:.1f} MB before, {gate.memory_mb():.1f} MB with 100 that are not read and 100 not answered")
        # Two buffers of a transport for each that is not read.
        assert gate.memory_mb() - before < 100


async def test_a_backend_that_restarts_loses_only_what_it_had(store: Store) -> None:  # B7
    running = Bulk()
    workers, restarts = 8, 4
    with sidecar(running.url, redis_url=store.url) as gate:
        credential = bearer(token(someone()))
        over = False
        failed: list[int] = []
        served = itertools.count()

        async def load() -> None:
            while not over:
                try:
                    status = (await afetch(gate.url, "GET", "/bytes/100", [credential])).status
                except http.client.IncompleteRead:
                    status = BROKEN_OFF
                if status == 200:
                    next(served)
                else:
                    failed.append(status)
                    # Until it is back, as a client would.
                    async with asyncio.timeout(60):
                        await up.wait()

        up = asyncio.Event()
        up.set()
        load_tasks = [asyncio.create_task(load()) for _ in range(workers)]
        for _ in range(restarts):
            await asyncio.sleep(0.5)
            up.clear()
            port = running.port
            await asyncio.to_thread(running.kill)
            running = await asyncio.to_thread(Bulk, port)
            up.set()
        await asyncio.sleep(0.5)
        over = True
        await asyncio.gather(*load_tasks)
        running.kill()
        print(f"{next(served)} served, {len(failed)} lost")
        assert set(failed) <= {502, BROKEN_OFF}
        # Each client has one at a time; what is asked while there is no backend is lost once.
        assert len(failed) <= workers * restarts
        eventually(lambda: gate.metric("gatekeeper_http_requests_in_flight") == 0)

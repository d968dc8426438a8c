"""Ten thousand connections that say nothing, as many as a worker takes by default, and what comes after them (D02)."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.machine import lacks
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token

pytestmark = pytest.mark.slow

CONNECTIONS = 10_000
# D02.
_MOST_BYTES_EACH = 10_000
_USUAL_SOFT_LIMIT = 1024
# Beside its connections a process has files of its own, and connections to the backend and the store.
_OTHER_FILES = 500


@contextmanager
def file_limit(soft: int) -> Iterator[None]:
    """This process, and those that it starts, may have so many files open, unless they raise that themselves."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextmanager
def started(store: Store, backend: Backend) -> Iterator[Sidecar]:
    """A sidecar with the defaults, started as most systems start a process; its connections may be idle for longer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + _OTHER_FILES:
        lacks(f"a process may have {hard} files open here (ulimit -Hn)")
    with ExitStack() as stack:
        with file_limit(_USUAL_SOFT_LIMIT):
            gate = stack.enter_context(sidecar(backend.url, redis_url=store.url, keepalive_timeout="15m"))
        stack.enter_context(file_limit(hard))
        yield gate


class Client:
    """One connection, closed at the end of `stack`."""

    def __init__(self, gate: Sidecar, stack: ExitStack) -> None:
        parts = urlsplit(gate.url)
        where = (str(parts.hostname), int(parts.port or 0))
        self.socket = stack.enter_context(socket.create_connection(where, timeout=60))

    def ask(self, request: bytes) -> bool:
        """Whether it is answered, and well. False for a connection that was refused."""
        try:
            self.socket.sendall(request)
            answer = self.socket.recv(65_536)
        except ConnectionError:
            return False
        while answer and not answer.endswith(b"\r\n\r\nok"):
            answer += self.socket.recv(65_536)
        return answer.startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        self.socket.close()


def requests(number: int) -> list[bytes]:
    tokens = [": ".join(bearer(token(someone()))) for _ in range(number)]
    return [f"GET / HTTP/1.1\r\nHost: a\r\n{each}\r\n\r\n".encode() for each in tokens]


def memory_of(gate: Sidecar) -> int:
    """Bytes that belong to the process, those that it shares in proportion."""
    lines = Path(f"/proc/{gate.process.pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def files_of(gate: Sidecar) -> int:
    return len(list(Path(f"/proc/{gate.process.pid}/fd").iterdir()))


@pytest.mark.timeout(600)
def test_ten_thousand_idle_connections_cost_little_and_what_comes_after_them_is_refused(
    store: Store, backend: Backend
) -> None:
    # D02
    with started(store, backend) as gate, ExitStack() as stack:
        asking = requests(100)
        for request in asking:
            client = Client(gate, stack)
            assert client.ask(request)
            assert client.ask(request)
            client.close()
        files, memory = files_of(gate), memory_of(gate)
        clients: list[Client] = []
        for number in range(CONNECTIONS):
            # Asked before the next comes: of what overflows the queue of the listener, the system drops some.
            clients.append(Client(gate, stack))
            assert clients[-1].ask(asking[number % 100]), number
        assert files_of(gate) >= CONNECTIONS
        each = (memory_of(gate) - memory) / CONNECTIONS
        assert each < _MOST_BYTES_EACH, f"{each:.0f} bytes for each idle connection"

        # The next are refused, and hurt nobody.
        for _ in range(200):
            assert not Client(gate, stack).ask(asking[0])
        assert gate.metric("gatekeeper_connections_refused_total") == 200
        assert all(client.ask(asking[0]) for client in clients[::100])

        # Who goes makes room.
        for client in clients[:200]:
            client.close()
        eventually(lambda: files_of(gate) <= CONNECTIONS - 200 + _OTHER_FILES)
        assert all(Client(gate, stack).ask(asking[0]) for _ in range(100))
        stack.close()
        eventually(lambda: files_of(gate) <= files + 5, seconds=60)
        assert gate.process.poll() is None


def test_a_sidecar_raises_its_own_limit_of_files(store: Store, backend: Backend) -> None:
    # D02
    with started(store, backend) as gate:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_sidecar_without_files_left_refuses_connections_and_goes_on(store: Store, backend: Backend) -> None:
    # D02: where the system gives it fewer than MAX_CONNECTIONS.
    with started(store, backend) as gate, ExitStack() as stack:
        (request,) = requests(1)
        first = Client(gate, stack)
        assert first.ask(request)
        most = files_of(gate) + 50
        resource.prlimit(gate.process.pid, resource.RLIMIT_NOFILE, (most, most))
        served = [Client(gate, stack).ask(request) for _ in range(200)]
        # One file is needed to refuse.
        assert 40 <= served.count(True) <= 50
        assert first.ask(request)
        stack.close()
        eventually(lambda: _is_served(gate, request))


def _is_served(gate: Sidecar, request: bytes) -> bool:
    with suppress(OSError), ExitStack() as stack:
        return Client(gate, stack).ask(request)
    return False

"""Many WebSockets, hostile ones and dying ones through a running sidecar: what it holds stays bounded while they last,
and nothing of them is left afterwards."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from gatekeeper.http.websocket_frames import MAX_MESSAGE_BYTES
from tests.forward.sockets import BINARY, CLOSE, CONT, DROPPED, PING, TEXT, Peer, Upgraded, close_payload, frame, opened
from tests.servers import fetch
from tests.system.sidecar import Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.waiting import HANG_SECONDS

_ECHO = Path(__file__).parent.parent / "backends" / "websocket_echo.py"
_MANY = 1000
# What one message on its way may cost, each way, and slack for the allocator.
_ROOM_MB = 3 * MAX_MESSAGE_BYTES / 1e6


class Echo:
    """The backend's process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(_ECHO)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def echoing() -> Iterator[Echo]:
    echo = Echo()
    try:
        yield echo
    finally:
        echo.kill()
        assert echo.process.stdout is not None
        echo.process.stdout.close()


class Gate:
    """A sidecar before the echo, as its process is seen from outside."""

    def __init__(self, sidecar: Sidecar, echo: Echo, store: Store) -> None:
        self.sidecar = sidecar
        self._store = store
        self.echo = echo
        self.headers = [bearer(token(someone()))]
        self._proc = Path(f"/proc/{sidecar.process.pid}")

    @property
    def sockets(self) -> int:
        """What the process has open, but for connections to the store: there is a second when there is much to ask."""
        count = 0
        for path in (self._proc / "fd").iterdir():
            with suppress(OSError):
                count += str(path.readlink()).startswith("socket:")
        return count - self._store.connections

    @property
    def rss_mb(self) -> float:
        pages = int((self._proc / "statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e6

    @asynccontextmanager
    async def open(self, target: str = "/ws") -> AsyncIterator[Upgraded]:
        async with opened(self.sidecar.url, target, self.headers) as client:
            yield client

    @asynccontextmanager
    async def peer(self, target: str = "/ws") -> AsyncIterator[Peer]:
        async with self.open(target) as client:
            assert client.status == 101, client
            yield client.peer

    async def is_left_alone(self, sockets: int) -> None:
        """Returns when nothing of any WebSocket is left."""
        open_now, in_flight = "gatekeeper_websockets_open", "gatekeeper_http_requests_in_flight"
        # What a client has sent by the million is read to its end before its leaving is seen.
        await asyncio.to_thread(eventually, lambda: self.sidecar.metric(open_now) == 0, seconds=60)
        await asyncio.to_thread(eventually, lambda: self.sidecar.metric(in_flight) == 0)
        await asyncio.to_thread(eventually, lambda: self.sockets <= sockets)


@pytest.fixture(scope="module")
def gate(store: Store) -> Iterator[Gate]:
    with echoing() as echo, sidecar(echo.url, redis_url=store.url) as running:
        made = Gate(running, echo, store)
        # The store is dialled with the first request.
        assert fetch(running.url, headers=made.headers).status == 200
        yield made


@pytest.fixture
async def idle(gate: Gate) -> AsyncIterator[int]:
    """The sockets of the sidecar when nobody is there; so many they must be again."""
    await asyncio.sleep(2)  # kept connections to the backend expire
    sockets = gate.sockets
    yield sockets
    await gate.is_left_alone(sockets)


async def test_a_thousand_websockets_at_once_leave_nothing_behind(gate: Gate, idle: int) -> None:
    before = gate.rss_mb
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(gate.peer()) for _ in range(_MANY)]
        assert gate.sidecar.metric("gatekeeper_websockets_open") == _MANY
        assert gate.sockets >= 2 * _MANY
        for turn in range(3):
            for number, peer in enumerate(peers):
                await peer.put(TEXT, b"%d %d" % (number, turn))
            for number, peer in enumerate(peers):
                assert await peer.get() == f"{number} {turn}"
        per_socket_kb = (gate.rss_mb - before) * 1000 / _MANY
        print(f"{per_socket_kb:.0f} kB a WebSocket")
        assert per_socket_kb < 200
        for peer in peers:
            assert await peer.close(4000, "over") == (4000, "over")


# W08
async def test_a_client_that_does_not_read_costs_one_message(gate: Gate, idle: int) -> None:
    async with gate.peer("/push") as peer:
        before = gate.rss_mb
        await asyncio.sleep(2)
        assert gate.rss_mb - before < _ROOM_MB
        # What has been pushed meanwhile comes, and more behind it.
        for _ in range(1000):
            assert await peer.get() == b"x" * 65536
        assert gate.rss_mb - before < _ROOM_MB


# W08
async def test_a_backend_that_does_not_read_costs_one_message(store: Store) -> None:
    with echoing() as echo, sidecar(echo.url, redis_url=store.url) as running:
        gate = Gate(running, echo, store)
        async with gate.peer("/deaf") as peer:
            before = gate.rss_mb

            async def push() -> None:
                for _ in range(10_000):
                    await peer.put(BINARY, b"x" * 100_000)

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(push(), 3)
            assert gate.rss_mb - before < _ROOM_MB
            echo.kill()
            assert await peer.end() == (1011, "the connection to the backend was lost")


# W05
async def test_a_flood_of_pings_is_answered_in_constant_memory(gate: Gate, idle: int) -> None:
    async with gate.peer() as peer:
        before = gate.rss_mb
        for _ in range(10):
            await peer.send(frame(PING, b"p" * 125, masked=True) * 10_000)
            await peer.put(TEXT, b"there")
            assert await peer.get() == "there"
        assert len(peer.pongs) == 100_000
        assert gate.rss_mb - before < _ROOM_MB


# W05
async def test_a_message_in_a_hundred_thousand_frames_is_held_nowhere(gate: Gate, idle: int) -> None:
    # The mask of zeros is as good as any.
    fragments = b"\x01\x81\0\0\0\0a" + b"\x00\x81\0\0\0\0a" * 99_999
    async with gate.peer() as peer:
        before = gate.rss_mb
        with suppress(ConnectionError):
            await peer.send(fragments)
        # It is the backend that takes no message in so many.
        assert (await peer.end()).code == 1009
        assert gate.rss_mb - before < _ROOM_MB


# W05
async def test_one_byte_over_the_limit_is_1009(gate: Gate, idle: int) -> None:
    async with gate.peer() as peer:
        data = os.urandom(MAX_MESSAGE_BYTES)
        await peer.put(BINARY, data)
        assert await peer.get() == data
        await peer.put(BINARY, length=MAX_MESSAGE_BYTES + 1)
        assert (await peer.end()).code == 1009


# W05, P0-S19
async def test_a_deflate_bomb_is_never_inflated(gate: Gate, idle: int) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(b"\0" * 300_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 300_000
    before = gate.rss_mb
    offer = [*gate.headers, ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    async with opened(gate.sidecar.url, "/ws", offer) as client:
        assert (client.status, client.get_all("sec-websocket-extensions")) == (101, [])
        await client.peer.put(BINARY, bomb[:-4], rsv=4)
        assert (await client.peer.end()).code == 1002
    assert gate.rss_mb - before < _ROOM_MB


# W07
@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize(
    "stage", ["handshake", "open", "a message", "a frame's head", "not read from", "pushed to", "close"]
)
async def test_a_client_that_vanishes_leaves_nothing_behind(gate: Gate, idle: int, stage: str, how: str) -> None:
    if stage == "handshake":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), gate.open("/silent"):
                pass
        return
    async with gate.peer({"pushed to": "/push"}.get(stage, "/ws")) as peer:
        if stage == "a message":
            await peer.put(TEXT, b"a", fin=False)
            await peer.put(CONT, b"b", fin=False)
        elif stage == "a frame":
            await peer.send(frame(BINARY, b"x" * 70_000, masked=True)[:5])
        elif stage == "pushed to":
            await asyncio.sleep(0.5)
        elif stage == "close":
            await peer.put(CLOSE, close_payload(1000))
        if how == "reset" or stage == "pushed to":
            peer.hang_up()


# W07
@pytest.mark.parametrize("how", ["reset", pytest.param("fin", marks=pytest.mark.slow)])
async def test_a_client_that_vanishes_while_the_backend_reads_nothing_leaves_nothing_behind(
    gate: Gate, idle: int, how: str
) -> None:
    async with gate.peer("/deaf") as peer:
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    await peer.put(BINARY, b"x" * 100_000)
        peer.hang_up(reset=how == "reset")
    # The end of a client whose bytes nobody takes comes behind them; a pong finds it out.
    await asyncio.to_thread(eventually, lambda: gate.sidecar.metric("gatekeeper_websockets_open") == 0, seconds=60)


# W07
@pytest.mark.parametrize("stage", ["before", "handshake", "open", "a message", "pushed to", "not read from"])
async def test_a_backend_that_is_killed_is_told(store: Store, stage: str) -> None:
    with echoing() as echo, sidecar(echo.url, redis_url=store.url) as running:
        gate = Gate(running, echo, store)
        assert fetch(running.url, headers=gate.headers).status == 200
        if stage == "before":
            echo.kill()
            async with gate.open() as client:
                assert client.status == 502
        elif stage == "handshake":
            async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
                opening = group.create_task(stack.enter_async_context(gate.open("/silent")))
                await asyncio.sleep(0.3)
                echo.kill()
                async with asyncio.timeout(HANG_SECONDS):
                    assert (await opening).status == 502
        else:
            async with gate.peer({"pushed to": "/push", "not read from": "/deaf"}.get(stage, "/ws")) as peer:
                if stage == "a message":
                    await peer.put(TEXT, b"a", fin=False)
                elif stage == "pushed to":
                    assert await peer.get() == b"x" * 65536
                elif stage == "not read from":
                    await peer.put(BINARY, b"x" * 10_000_000)
                echo.kill()
                async with asyncio.timeout(HANG_SECONDS):
                    end = await peer.end()
                    # Where a frame of the backend had begun, there is no place for a close frame.
                    assert end == (1011, "the connection to the backend was lost") or (
                        stage == "pushed to" and end == DROPPED
                    )
        await asyncio.to_thread(eventually, lambda: running.metric("gatekeeper_websockets_open") == 0)


# W07
async def test_a_backend_that_stands_still_stops_nobody_else(gate: Gate, idle: int) -> None:
    async with gate.peer() as peer:
        gate.echo.process.send_signal(signal.SIGSTOP)
        try:
            await peer.put(PING, b"there?")
            await peer.put(TEXT, b"a")
            assert gate.sidecar.ready().status == 200
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await peer.get()
        finally:
            gate.echo.process.send_signal(signal.SIGCONT)
        assert await peer.get() == "a"
        assert peer.pongs == [b"there?"]
        assert await peer.close() != DROPPED

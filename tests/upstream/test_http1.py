"""Our own HTTP/1.1 client, against backends that misbehave on raw sockets: responses cut, connections reused, waits
bounded."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvloop

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_writer import serialize_head
from gatekeeper.http.response_parser import ResponseHead, parse_head
from gatekeeper.upstream import coroutines, pool
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.interface import Failure, UpstreamRequest
from tests.forward.chain import CHUNKED
from tests.forward.sockets import sockets
from tests.servers import OK, RawConnection, RawRequest, RecordingBackend, Script
from tests.waiting import HANG_SECONDS, until

HOST = (b"host", b"a")


class Parts:
    """A request body in parts, which counts how many were read."""

    def __init__(self, *parts: bytes, wait: asyncio.Event | None = None, endless: bool = False) -> None:
        self._parts = list(parts)
        self._wait = wait
        self._endless = endless
        self.asked = 0
        self.closed = False
        self.trailers: HeaderList = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.asked += 1
        if self._endless:
            await asyncio.sleep(0)
            return self._parts[0]
        if not self._parts:
            if self._wait is not None:
                await self._wait.wait()
            raise StopAsyncIteration
        return self._parts.pop(0)

    async def aclose(self) -> None:
        self.closed = True


@asynccontextmanager
async def native(answer: bytes | Script = OK, *, read_bodies: bool = True, **settings: Any) -> AsyncIterator[Any]:
    """A backend and its client. Afterwards no socket and no task of the client may be left."""
    before, tasks = sockets(), asyncio.all_tasks()
    async with RecordingBackend(answer, read_bodies=read_bodies) as backend:
        upstream = Http1Upstream(backend.url, **settings)
        try:
            yield backend, upstream
        finally:
            await upstream.aclose()
        assert "0 open, 0 idle, 0 waiting" in repr(upstream)
    async with asyncio.timeout(HANG_SECONDS):
        while sockets() > before or asyncio.all_tasks() - tasks:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def ask(
    upstream: Http1Upstream, method: str = "GET", *, body: Parts | None = None, headers: Sequence[Any] = ()
) -> tuple[int, bytes]:
    response = await coroutines.send(upstream, UpstreamRequest(method, b"/", [HOST, *headers], body))
    try:
        return response.status, b"".join([part async for part in response.body])
    finally:
        await response.aclose()


WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 103 E\r\nA: b\r\n\r\n" + CHUNKED + b"2\r\nab\r\n1;x\r\nc\r\n0\r\nT: 1\r\n\r\n",
]


# B3, X08, X20
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("whole", WHOLE, ids=["length", "chunked"])
async def test_an_answer_cut_at_any_byte_is_never_taken_for_whole(whole: bytes, reset: bool) -> None:
    cut = 0

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(whole[:cut])
        if reset:
            await asyncio.sleep(0.001)
            connection.reset()
        else:
            connection.close()

    async with native(script) as (backend, upstream):
        for cut in range(len(whole)):
            with pytest.raises(UpstreamUnavailable) as failed:
                await ask(upstream)
            assert failed.value.kind == "reset"
            # A connection that was new: nothing is sent twice.
            assert len(backend.requests) == backend.connections == cut + 1
        cut = len(whole)
        assert await ask(upstream) == (200, b"abc")


# B3
async def test_an_answer_that_ends_with_its_connection_is_not_whole_when_that_is_reset() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await asyncio.sleep(0.01)
        connection.reset()

    async with native(script) as (_, upstream):
        with pytest.raises(UpstreamUnavailable) as failed:
            await ask(upstream)
        assert failed.value.kind == "reset"


# F22
@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", None),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na", None),
        ("GET", b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", None),
        ("GET", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", None),
        ("GET", b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nab", (204, b"")),
        ("GET", b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\nab", (304, b"")),
        ("GET", b"HTTP/1.1 205 R\r\nContent-Length: 2\r\n\r\nab", (205, b"ab")),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", (200, b"")),
    ],
)
async def test_what_breaks_the_rules_is_refused_and_its_connection_dropped(
    method: str, answer: bytes, expected: tuple[int, bytes] | None
) -> None:
    async with native(answer) as (backend, upstream):
        for count in (1, 2):
            if expected is None:
                with pytest.raises(UpstreamUnavailable) as failed:
                    await ask(upstream, method)
                assert failed.value.kind == "protocol"
            else:
                assert await ask(upstream, method) == expected
            if answer[9:12] != b"205":
                await until(lambda: not upstream.pool._all)
                assert backend.connections == count


# X01, X02
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: 1\r\n\r\n"),
        ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_connection_goes_on_after_an_answer_that_is_complete(method: str, answer: bytes) -> None:
    async with native(answer) as (backend, upstream):
        for _ in range(3):
            assert (await ask(upstream, method))[1] == b""
        assert backend.connections == 1


# B6
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", b"\x00"],
    ids=["interim answers", "status lines", "fields", "garbage"],
)
async def test_an_endless_head_is_cut(answer: bytes) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        while True:
            await connection.write(b"HTTP/1.1 200 OK\r\n" * (answer[:1] == b"X") + answer * 10_000)

    async with native(script, timeout_seconds=HANG_SECONDS) as (_, upstream):
        with pytest.raises(UpstreamUnavailable) as failed:
            await ask(upstream)
        assert failed.value.kind == "protocol"


# B4
async def test_a_backend_that_half_closes_after_its_answer_is_left() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(OK)
        connection._writer.write_eof()
        await connection.gone()

    async with native(script) as (backend, upstream):
        for _ in range(20):
            assert await ask(upstream) == (200, b"ok")
        assert backend.connections == len(backend.requests) == 20


# B4
async def test_a_backend_that_half_closes_may_end_its_answer_so() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        connection._writer.write_eof()
        await connection.gone()

    async with native(script) as (_, upstream):
        assert await ask(upstream) == (200, b"abc")


# B5
async def test_an_early_answer_survives_the_reset_that_follows() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await connection.read(1)
        connection.reset()

    async with native(script, read_bodies=False) as (_, upstream):
        for length in range(200):
            body = Parts(b"x" * (1 + 2000 * length), endless=True)
            assert await ask(upstream, "POST", body=body) == (413, b"big")
            assert body.closed


# X04
async def test_an_early_success_lets_the_upload_go_on() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
        received = await connection.body(request.head)
        await connection.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(received), received))

    more = asyncio.Event()
    async with native(script, read_bodies=False) as (backend, upstream):
        for number in (1, 2):
            more.clear()
            body = Parts(b"abc", b"def", wait=more)
            response = await coroutines.send(upstream, UpstreamRequest("POST", b"/", [HOST], body))
            parts = response.body
            assert await anext(parts) == b"early"
            more.set()
            rest = b"".join([part async for part in parts])
            await response.aclose()
            assert rest == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
            assert (len(backend.requests), backend.connections) == (number, 1)


# X04
async def test_an_early_failure_stops_the_upload_and_the_connection() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 300 Look\r\nContent-Length: 0\r\n\r\n")
        await connection.gone()

    async with native(script, read_bodies=False) as (backend, upstream):
        for number in (1, 2):
            body = Parts(b"abc", wait=asyncio.Event())
            assert await ask(upstream, "POST", body=body) == (300, b"")
            assert body.closed
            assert backend.connections == number


EXPECT = (b"expect", b"100-continue")


# X04, F12
async def test_a_body_that_expects_100_waits_for_it() -> None:
    asked, send_continue = asyncio.Event(), asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        asked.set()
        await send_continue.wait()
        await connection.write(b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        assert await connection.body(request.head) == b"abc"
        await connection.write(OK)

    async with native(script, read_bodies=False) as (_, upstream):
        body = Parts(b"abc")
        call = asyncio.create_task(ask(upstream, "POST", body=body, headers=[(b"content-length", b"3"), EXPECT]))
        await asked.wait()
        await asyncio.sleep(0.05)
        assert body.asked == 0
        send_continue.set()
        assert await call == (200, b"ok")


# X04, F12
async def test_a_body_that_expects_100_is_not_asked_for_after_a_refusal() -> None:
    async with native(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", read_bodies=False) as (backend, upstream):
        for number in (1, 2):
            body = Parts(b"abc")
            headers = [(b"content-length", b"3"), EXPECT]
            assert await ask(upstream, "POST", body=body, headers=headers) == (417, b"")
            assert (body.asked, body.closed, backend.connections) == (0, True, number)


# X04
async def test_a_backend_that_knows_nothing_of_100_gets_the_body_after_a_second() -> None:
    async with native() as (backend, upstream):
        assert await ask(upstream, "PUT", body=Parts(b"abc"), headers=[EXPECT]) == (200, b"ok")
        assert backend.requests[0].body == b"3\r\nabc\r\n0\r\n\r\n"


# F23, X07
async def test_a_thousand_requests_left_at_any_point_leave_nothing_behind() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        for part in (b"HTTP/1.1 103 E\r\n\r\n", CHUNKED, b"3\r\nabc\r\n"):
            await connection.write(part)
            await asyncio.sleep(0)
        if random.random() < 0.5:
            await connection.write(b"0\r\n\r\n")
        else:
            await connection.gone()

    async def leave(upstream: Http1Upstream, number: int) -> None:
        body = Parts(*[b"x" * 1000] * (number % 5), wait=asyncio.Event()) if number % 3 else None
        call = asyncio.create_task(ask(upstream, "POST" if body else "GET", body=body))
        for _ in range(random.randrange(12)):
            await asyncio.sleep(random.choice([0, 0, 0.001]))
        call.cancel()
        with suppress(asyncio.CancelledError, UpstreamUnavailable):
            await call

    async with native(script, read_bodies=False) as (backend, upstream):
        for start in range(0, 1000, 50):
            await asyncio.gather(*[leave(upstream, start + number) for number in range(50)])
        assert len(upstream.pool._all) <= 50
        assert all("idle" in repr(connection) for connection in upstream.pool._all)
        # Nothing complete that was not: a chunked body has its end only if its client had one, and these had none.
        assert not any(b"0\r\n\r\n" in request.body for request in backend.requests)


# X06
async def test_a_reader_that_is_slow_slows_the_backend_down() -> None:
    written = 0

    async def script(connection: RawConnection, request: RawRequest) -> None:
        nonlocal written
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(1024):
            await connection.write(b"x" * 65536)
            written += 65536

    async with native(script, timeout_seconds=1.5) as (_, upstream):
        response = await coroutines.send(upstream, UpstreamRequest("GET", b"/", [HOST], None))
        await asyncio.sleep(2)
        # What the kernel takes on loopback, not what the answer holds. And it was not the backend's silence.
        assert written < 16 << 20
        assert sum([len(part) async for part in response.body]) == 64 << 20
        await response.aclose()


# X06, B2
async def test_a_backend_that_takes_no_body_bounds_what_is_read_of_it_and_is_silent() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        connection._reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(5)

    async with native(script, read_bodies=False, timeout_seconds=0.5) as (_, upstream):
        body = Parts(b"x" * 65536, endless=True)
        with pytest.raises(UpstreamTimeout):
            await ask(upstream, "POST", body=body)
        assert body.asked < 300
        assert body.closed


async def test_a_client_that_is_slow_is_not_the_backends_silence() -> None:
    more = asyncio.Event()
    async with native(timeout_seconds=1.5) as (_, upstream):
        call = asyncio.create_task(ask(upstream, "POST", body=Parts(b"abc", wait=more)))
        await asyncio.sleep(2)
        more.set()
        assert await call == (200, b"ok")


# B2
async def test_silence_after_a_connection_has_served_is_noticed_too() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await (connection.gone() if request.get_all(b"x-silent") else connection.write(OK))

    async with native(script, timeout_seconds=1.5) as (backend, upstream):
        for _ in range(3):
            await ask(upstream)
            await asyncio.sleep(0.1)
        with pytest.raises(UpstreamTimeout):
            await ask(upstream, headers=[(b"x-silent", b"1")])
        assert backend.connections == 1
        assert len(backend.requests) == 4


# X19
async def test_connections_closed_at_the_moment_they_are_used_again_cost_no_safe_request() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(OK)
        if random.random() < 0.5:
            await asyncio.sleep(random.choice([0, 0, 0.0005, 0.001]))
            random.choice([connection.close, connection.reset])()

    async with native(script) as (_, upstream):
        for _ in range(500):
            assert await ask(upstream, random.choice(["GET", "OPTIONS"])) == (200, b"ok")
            await asyncio.sleep(random.choice([0, 0, 0.0005, 0.001]))


# X20
async def test_no_unsafe_request_is_sent_twice_whatever_happens_to_connections() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        if random.random() < 0.4:
            random.choice([connection.close, connection.reset])()
            return
        await connection.write(OK)

    async with native(script) as (backend, upstream):
        for number in range(300):
            with suppress(UpstreamUnavailable):
                await ask(upstream, "POST", headers=[(b"x-number", b"%d" % number), (b"content-length", b"0")])
        numbers = [request.get_all(b"x-number")[0] for request in backend.requests]
        assert len(numbers) == len(set(numbers))


async def test_who_waits_for_a_connection_gets_one_in_the_order_of_coming() -> None:
    order: list[int] = []

    async def script(connection: RawConnection, request: RawRequest) -> None:
        order.append(int(request.get_all(b"x-number")[0]))
        await asyncio.sleep(0.002)
        await connection.write(OK)

    async with native(script, max_connections=2) as (_, upstream):
        calls = []
        for number in range(30):
            calls.append(asyncio.create_task(ask(upstream, "PUT", headers=[(b"x-number", b"%d" % number)])))
            await asyncio.sleep(0)
        calls[10].cancel()
        calls[11].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        # Two serve at a time, so neighbours may change places.
        assert all(abs(place - sorted(order).index(number)) <= 2 for place, number in enumerate(order))
        assert sorted(order) == [number for number in range(30) if number not in (10, 11)]


async def test_never_more_connections_than_allowed_whatever_is_cancelled() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await asyncio.sleep(random.choice([0, 0.001]))
        await connection.write(OK)
        if random.random() < 0.3:
            connection.close()

    async with native(script, max_connections=5, connect_timeout_seconds=0.5) as (_, upstream):
        for _ in range(10):
            calls = [asyncio.create_task(ask(upstream)) for _ in range(60)]
            for call in random.sample(calls, 30):
                await asyncio.sleep(random.choice([0, 0, 0.001]))
                call.cancel()
                assert len(upstream.pool._all) <= upstream.pool._opened <= 5
            await asyncio.gather(*calls, return_exceptions=True)
            assert len(upstream.pool._all) == upstream.pool._opened <= 5
        assert await ask(upstream) == (200, b"ok")


async def test_as_many_connections_are_idle_as_were_in_use_at_once_and_are_closed_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 3.0)
    gate = asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await gate.wait()
        await connection.write(OK)

    async with native(script) as (backend, upstream):
        for turn in (1, 2, 3):
            gate.clear()
            calls = [asyncio.create_task(ask(upstream)) for _ in range(150)]
            await until(lambda turn=turn: len(backend.requests) == turn * 150)  # type: ignore[misc]
            gate.set()
            await asyncio.gather(*calls)
            assert len(upstream.pool._idle) == len(upstream.pool._all) == 150
        assert backend.connections == 150
        await asyncio.sleep(1)
        await ask(upstream)
        await until(lambda: len(upstream.pool._all) <= 1)
        await until(lambda: not upstream.pool._all)


# F21, P0-S9: bytes that are in the kernel and that the loop has not read yet.
async def test_what_nobody_asked_for_is_found_before_a_connection_is_used_again() -> None:
    opened: list[RawConnection] = []

    async def script(connection: RawConnection, request: RawRequest) -> None:
        opened.append(connection)
        await connection.write(OK)

    async with native(script) as (_, upstream):
        await ask(upstream)
        (connection,) = upstream.pool._idle
        with socket.socket(fileno=os.dup(opened[0]._writer.get_extra_info("socket").fileno())) as raw:
            raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        # No turn of the loop in between.
        assert upstream.pool.take_idle() is None
        assert connection.is_lost
        assert await ask(upstream) == (200, b"ok")


# X27
async def test_a_backend_on_ipv6_is_reached() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head.split(b"\r\n")[1])
        writer.close()

    try:
        server = await asyncio.start_server(serve, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    upstream = Http1Upstream(f"http://[::1]:{server.sockets[0].getsockname()[1]}")
    assert await ask(upstream) == (200, b"host: a")
    await upstream.aclose()
    server.close()
    await server.wait_closed()


# X27, B9
async def test_a_name_is_looked_up_for_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []

    def lookup(host: str, port: int, *_: Any, **__: Any) -> Any:
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]

    async with native(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n") as (backend, _):
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        port = backend.url.rpartition(":")[2]
        upstream = Http1Upstream(f"http://backend.test:{port}")
        answers += ["127.0.0.2", socket.gaierror("no such name"), "127.0.0.1"]
        for _ in range(2):
            with pytest.raises(UpstreamUnavailable) as failed:
                await ask(upstream)
            assert failed.value.kind == "connect"
        assert (await ask(upstream))[0] == 200
        await upstream.aclose()


# X27
async def test_a_backend_whose_name_moved_is_followed_under_steady_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    served: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        here = writer.get_extra_info("sockname")[0].encode()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(here), here))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    old = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = old.sockets[0].getsockname()[1]
    new = await asyncio.start_server(serve, "127.0.0.2", port)
    address = "127.0.0.1"
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
    )
    upstream = Http1Upstream(f"http://backend.test:{port}", max_age_seconds=0.5)
    assert await ask(upstream) == (200, b"127.0.0.1")
    address = "127.0.0.2"
    async with asyncio.timeout(HANG_SECONDS):
        while await ask(upstream) != (200, b"127.0.0.2"):  # noqa: ASYNC110 - asked under steady traffic
            await asyncio.sleep(0.01)
    await upstream.aclose()
    await asyncio.wait(served, timeout=10)
    old.close()
    new.close()


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (b"Keep-Alive: timeout=0", False),
        (b"keep-alive: max=3, Timeout=0", False),
        (b"Keep-Alive: timeout=5, max=100", True),
        (b"Keep-Alive: 300", True),
        (b"X: y", True),
    ],
)
async def test_a_connection_is_kept_idle_as_long_as_the_backend_says(header: bytes, kept: bool) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + header + b"\r\nContent-Length: 2\r\n\r\nok"
    async with RecordingBackend(answer) as backend:
        upstream = Http1Upstream(backend.url)
        for _ in range(3):
            assert await ask(upstream) == (200, b"ok")
        await upstream.aclose()
    assert backend.connections == (1 if kept else 3)


def test_a_second_of_idleness_is_used_with_a_margin() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\n\r\n").idle_seconds == 0.5


class RecordingCallbacks:
    """Records the calls of a connection."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.over = asyncio.Event()

    def on_informational(self, head: ResponseHead) -> None:
        self.told.append(head.status)

    def on_head(self, head: ResponseHead) -> None:
        self.told.append(head.status)

    def on_data(self, data: bytes) -> None:
        self.told.append(data)

    def on_end(self, trailers: HeaderList) -> None:
        self.told.append(trailers)
        self.over.set()

    def on_failure(self, error: Failure, *, untouched: bool) -> None:
        self.told.append((error.kind, untouched))
        self.over.set()

    takes_full_response = False

    def on_full_response(self, head: ResponseHead, body: bytes) -> None: ...

    def on_batch_end(self) -> None: ...

    def on_writable(self) -> None: ...


async def test_requests_need_neither_tasks_nor_futures() -> None:
    answer = b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n"
    async with native(answer) as (backend, upstream):
        head = serialize_head("GET", b"/", [HOST], authority=upstream.authority, has_body=False).head
        assert upstream.pool.take_idle() is None
        connection = await upstream.pool.acquire()
        for _ in range(3):
            sink = RecordingCallbacks()
            connection.start(head, sink)
            await sink.over.wait()
            assert [told for told in sink.told if told != b""] == [103, 200, b"abc", [(b"T", b"1")]]
            # It is idle before the sink is told, so that what the sink sends next can use it.
            connection = upstream.pool.take_idle()
        assert backend.connections == 1
        connection.abort()


async def test_a_sink_is_told_that_a_connection_may_have_died_before_the_request_came() -> None:
    heads = 0

    async def script(connection: RawConnection, request: RawRequest) -> None:
        nonlocal heads
        heads += 1
        if heads == 2:
            connection.close()
        else:
            await connection.write(OK)

    async with native(script) as (_, upstream):
        head = serialize_head("POST", b"/", [HOST], authority=b"a", has_body=False).head
        connection = await upstream.pool.acquire()
        told = []
        for _ in range(2):
            sink = RecordingCallbacks()
            connection.start(head, sink)
            await sink.over.wait()
            told.append(sink.told[-1])
            connection = upstream.pool.take_idle()
        assert told == [[], ("reset", True)]
        assert connection is None


async def test_an_aborted_request_tells_its_sink_nothing_more() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(OK)
        await connection.gone()

    async with native(script) as (_, upstream):
        sink = RecordingCallbacks()
        connection = await upstream.pool.acquire()
        connection.start(serialize_head("GET", b"/", [HOST], authority=b"a", has_body=False).head, sink)
        connection.abort()
        await asyncio.sleep(0.05)
        assert sink.told == []


_OF_BOTH_LOOPS: list[Callable[[], Coroutine[Any, Any, None]]] = [
    *(
        partial(test_an_answer_cut_at_any_byte_is_never_taken_for_whole, whole, reset)
        for whole in WHOLE
        for reset in (False, True)
    ),
    test_an_answer_that_ends_with_its_connection_is_not_whole_when_that_is_reset,
    test_a_backend_that_half_closes_after_its_answer_is_left,
    test_a_backend_that_half_closes_may_end_its_answer_so,
    test_an_early_answer_survives_the_reset_that_follows,
    test_an_early_success_lets_the_upload_go_on,
    test_an_early_failure_stops_the_upload_and_the_connection,
    test_a_body_that_expects_100_waits_for_it,
    test_a_thousand_requests_left_at_any_point_leave_nothing_behind,
    test_a_reader_that_is_slow_slows_the_backend_down,
    test_a_backend_that_takes_no_body_bounds_what_is_read_of_it_and_is_silent,
    test_a_client_that_is_slow_is_not_the_backends_silence,
    test_silence_after_a_connection_has_served_is_noticed_too,
    test_connections_closed_at_the_moment_they_are_used_again_cost_no_safe_request,
    test_no_unsafe_request_is_sent_twice_whatever_happens_to_connections,
    test_never_more_connections_than_allowed_whatever_is_cancelled,
    test_what_nobody_asked_for_is_found_before_a_connection_is_used_again,
    test_requests_need_neither_tasks_nor_futures,
    test_a_sink_is_told_that_a_connection_may_have_died_before_the_request_came,
]


@pytest.mark.parametrize("case", _OF_BOTH_LOOPS, ids=lambda case: getattr(case, "__name__", "cut at any byte"))
def test_it_is_so_on_the_loop_of_the_sidecar(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(case())

"""Bodies that arrive after their head, through the application and on the direct route: backend, client and access log
see no difference."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.servers import RawConnection, RawRequest, afetch, raw_client
from tests.system.sidecar import Backend, Store, bearer, external_store, someone, token
from tests.system.test_direct_route import Gate, gate_before, to_the_end
from tests.waiting import until

HEAD = "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nX-Request-Id: {id}\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WAYS = pytest.mark.parametrize("way", ["application", "direct"])
_numbers = iter(range(10**9))


class Reader:
    """The script of a backend that keeps the bytes of bodies as they arrive. What it does depends on the path."""

    def __init__(self) -> None:
        self.read = b""
        self.over = False

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        self.read, self.over = b"", False
        if request.target == b"/early":
            await connection.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await connection.gone()
        elif request.target == b"/refuses":
            await connection.write(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
            await connection.gone()
        elif request.target == b"/asks":
            await connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.read = await connection.body(request.head)
            await connection.write(OK)
        elif request.target == b"/digest":
            body = await connection.body(request.head)
            told = hashlib.sha256(body).hexdigest().encode()
            await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + told)
        elif request.target == b"/parts":
            while not self.read.endswith((b"end", b"X-T: 1\r\n\r\n")):
                try:
                    part = await connection.read(65536)
                except ConnectionError:
                    part = b""
                if not part:
                    self.over = True
                    return
                self.read += part
            await connection.write(OK)
        else:
            await connection.write(OK)


reader = Reader()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(reader, read_bodies=False) as running:
        yield running


@pytest.fixture(scope="module")
def gate(backend: Backend, store: Store) -> Iterator[Gate]:
    with gate_before(backend.url, store, body_timeout="2s") as running:
        yield running


class Sent:
    """One request, as far as its head: `{id}` and `{token}` filled in."""

    def __init__(self, path: str, framing: str, mine: str) -> None:
        self.id = f"up-{next(_numbers)}-{time.monotonic_ns()}"
        self.head = (HEAD.format(path=path, token=mine, id=self.id) + framing + "\r\n\r\n").encode()


async def known(gate: Gate, way: str) -> str:
    mine = token(someone())
    if way == "direct":
        await afetch(gate.url, "GET", "/", [bearer(mine)])
    reader.read, reader.over = b"", False
    return mine


@WAYS
@pytest.mark.parametrize("framing", ["Content-Length: 9", "Transfer-Encoding: chunked"])
async def test_every_part_goes_on_when_it_arrives(gate: Gate, way: str, framing: str) -> None:
    sent = Sent("/parts", framing, await known(gate, way))
    chunked = framing.startswith("T")
    async with raw_client(gate.url) as client:
        await client.send(sent.head)
        for part in (b"abc", b"def", b"end"):
            await client.send(b"3\r\n%b\r\n" % part if chunked else part)
            await until(lambda part=part: part in reader.read)  # type: ignore[misc]
        await client.send(b"0\r\nX-T: 1\r\n\r\n" * chunked)
        assert (await client.until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
    assert gate.taken[-1] == (way == "direct")
    assert (await asyncio.to_thread(gate.access_of, sent.id))["status"] == 200


@WAYS
@pytest.mark.parametrize("pieces", [1, 7, 200])
async def test_a_body_arrives_byte_for_byte_however_it_is_cut(gate: Gate, way: str, pieces: int) -> None:
    body = random.Random(pieces).randbytes(3_000_000)
    sent = Sent("/digest", f"Content-Length: {len(body)}", await known(gate, way))
    cuts = sorted(random.Random(pieces).sample(range(len(body)), pieces - 1))
    async with raw_client(gate.url) as client:
        await client.send(sent.head)
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            await client.send(body[start:end])
        assert await client.until(hashlib.sha256(body).hexdigest().encode())
    assert gate.taken[-1] == (way == "direct")


@WAYS
async def test_an_early_response_does_not_wait_for_the_body(gate: Gate, way: str) -> None:
    sent = Sent("/early", "Content-Length: 1000000", await known(gate, way))
    async with raw_client(gate.url) as client:
        await client.send(sent.head + b"x" * 10)
        assert (await client.until(b"\r\n\r\nbig")).startswith(b"HTTP/1.1 413")
        # The rest is read over, and the client's departure noticed.
        await client.send(b"x" * 10_000)
    assert (await asyncio.to_thread(gate.access_of, sent.id))["status"] == 413
    assert gate.taken[-1] == (way == "direct")


async def test_a_refusal_does_not_wait_for_the_body(gate: Gate, backend: Backend) -> None:
    mine = await known(gate, "direct")
    await afetch(gate.url, "DELETE", "/sessions/logout", [bearer(mine)])
    before = len(backend.raw)
    for framing in (
        "Content-Length: 1000000",
        "Transfer-Encoding: chunked",
        "Content-Length: 3\r\nExpect: 100-continue",
    ):
        sent = Sent("/parts", framing, mine)
        async with raw_client(gate.url) as client:
            await client.send(sent.head)
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        assert (await asyncio.to_thread(gate.access_of, sent.id))["status"] == 401
        assert gate.taken[-1]
    assert len(backend.raw) == before


@WAYS
async def test_a_client_that_leaves_its_upload_takes_it_along(gate: Gate, way: str) -> None:
    sent = Sent("/parts", "Content-Length: 100", await known(gate, way))
    async with raw_client(gate.url) as client:
        await client.send(sent.head + b"abc")
        await until(lambda: reader.read == b"abc")
        client.reset()
    await until(lambda: reader.over)
    line = await asyncio.to_thread(gate.access_of, sent.id)
    assert (line["status"], line["decision"]) == (0, "allow")
    assert gate.taken[-1] == (way == "direct")


@WAYS
async def test_the_backend_says_whether_an_expected_body_is_wanted(gate: Gate, way: str) -> None:
    mine = await known(gate, way)
    expecting = "Content-Length: 3\r\nExpect: 100-continue"
    async with raw_client(gate.url) as client:
        await client.send(Sent("/refuses", expecting, mine).head)
        assert (await client.until(b"\r\n\r\nno")).startswith(b"HTTP/1.1 417")
    if way == "application":
        mine = await known(gate, way)
    async with raw_client(gate.url) as client:
        await client.send(Sent("/asks", expecting, mine).head)
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert reader.read == b""
        await client.send(b"abc")
        assert (await client.until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        assert reader.read == b"abc"
    assert gate.taken[-1] == (way == "direct")


@pytest.mark.parametrize(
    ("framing", "rest", "status"),
    [
        ("Transfer-Encoding: chunked", b"3\r\nabcd\r\n", 400),
        ("Transfer-Encoding: chunked", b"q\r\n", 400),
        ("Content-Length: 10", b"", 408),
        ("Content-Length: 10", None, 400),
    ],
    ids=["chunk too long", "no chunk", "silent", "half-closed"],
)
async def test_a_body_that_breaks_off_is_the_same(gate: Gate, framing: str, rest: bytes | None, status: int) -> None:
    seen = []
    for way in ("application", "direct"):
        sent = Sent("/parts", framing, await known(gate, way))
        async with raw_client(gate.url) as client:
            await client.send(sent.head + (b"1\r\na\r\n" if framing.startswith("T") else b"abc"))
            await until(lambda: reader.read)
            if rest is None:
                client.writer.write_eof()
            elif rest:
                await client.send(rest)
            told = await to_the_end(client)
        assert gate.taken[-1] == (way == "direct")
        await until(lambda: reader.over)
        line = await asyncio.to_thread(gate.access_of, sent.id)
        line |= dict.fromkeys(("ts", "duration_ms", "upstream_ms", "request_id", "user_id", "session_id"), "")
        seen.append((re.sub(rb"(?im)^date: .*$", b"", told.replace(sent.id.encode(), b"")), line))
    assert seen[0] == seen[1]
    assert seen[1][1]["status"] == status


async def test_a_body_is_rejected_while_the_store_is_asked(backend: Backend) -> None:
    with external_store() as store, gate_before(backend.url, store, store_timeout="30s") as gate:
        mine = await known(gate, "direct")
        await afetch(gate.url, "GET", "/", [bearer(mine)])
        before = len(backend.raw)
        store.signal(signal.SIGSTOP)
        sent = Sent("/parts", "Transfer-Encoding: chunked", mine)
        async with raw_client(gate.url) as client:
            await client.send(sent.head + b"q\r\n")
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        store.signal(signal.SIGCONT)
        assert (await asyncio.to_thread(gate.access_of, sent.id))["status"] == 400
        assert len(backend.raw) == before


async def test_what_the_backend_does_not_read_is_not_taken_from_the_client(store: Store) -> None:
    async def stuck(connection: RawConnection, request: RawRequest) -> None:
        if request.target == b"/stuck":
            await asyncio.Event().wait()
        else:
            await connection.write(OK)

    settings = {"upstream_timeout": "4s"}
    with Backend(stuck, read_bodies=False) as backend, gate_before(backend.url, store, **settings) as gate:
        mine = await known(gate, "direct")
        sent = Sent("/stuck", "Content-Length: 200000000", mine)
        async with raw_client(gate.url) as client:
            await client.send(sent.head)
            written = 0
            try:
                async with asyncio.timeout(2):
                    while written < 200_000_000:
                        client.writer.write(b"x" * 1_000_000)
                        await client.writer.drain()
                        written += 1_000_000
            except TimeoutError:
                pass
            assert gate.taken[-1]
            # What the system's buffers hold, and little more.
            assert written < 50_000_000
            # A backend that takes nothing for so long is silent.
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 504")

"""Hostile bytes through the front door to strict and to lax backends: what a backend counts is what was let through.

Ids in comments are those of the attack catalogue.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.upstream.http1_client import Http1Upstream
from tests.forward.chain import chain
from tests.machine import need
from tests.servers import RawConnection, RawRequest, raw_client, serve_asgi
from tests.system.sidecar import eventually, external_store, sidecar, someone, token
from tests.waiting import HANG_SECONDS

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


class Counting(Protocol):
    """A backend that knows which targets it was asked for."""

    url: str

    def targets(self) -> list[str]: ...


class Lax:
    """An application under one of uvicorn's own parsers."""

    url: str

    def __init__(self) -> None:
        self._targets: list[str] = []

    def targets(self) -> list[str]:
        return self._targets

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self._targets.append(scope["raw_path"].decode())
        while (message := await receive()).get("more_body", False):
            pass
        if message["type"] == "http.request":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})


NODE = """
const server = require("http").createServer((request, response) => {
  console.log(request.url);
  request.resume();
  request.on("end", () => response.end());
  request.on("error", () => response.destroy());
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


class Node:
    """node, told to be as lenient as it can be."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        self._process, self._lines = process, lines
        self.url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def targets(self) -> list[str]:
        return self._lines


@contextmanager
def node() -> Iterator[Node]:
    command = ["node", "--insecure-http-parser", "-e", NODE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    backend = Node(process, lines)

    def read() -> None:
        assert process.stdout is not None
        lines.extend(line.strip() for line in process.stdout)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield backend
    finally:
        process.kill()
        process.wait()
        reader.join(HANG_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


NGINX = """
daemon off; master_process off; pid %(at)s/pid; error_log %(at)s/error crit;
events {}
http {
  log_format targets "$request_uri";
  access_log %(at)s/targets targets;
  client_body_temp_path %(at)s/body;
  server { listen 127.0.0.1:%(port)d; location / { return 200; } }
}
"""


class Nginx:
    """nginx, with every request in its log, those that it refuses too."""

    def __init__(self, directory: Path, port: int) -> None:
        self._log = directory / "targets"
        self.url = f"http://127.0.0.1:{port}"

    def targets(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx() -> Iterator[Nginx]:
    with tempfile.TemporaryDirectory(prefix="gk-nginx-") as name:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (Path(name) / "conf").write_text(NGINX % {"at": name, "port": port})
        process = subprocess.Popen(["nginx", "-p", name, "-c", f"{name}/conf", "-e", f"{name}/error"])
        try:
            eventually(lambda: _listens(port))
            yield Nginx(Path(name), port)
        finally:
            process.kill()
            process.wait()


@contextmanager
def backend_of(kind: str) -> Iterator[Counting]:
    if kind in {"node", "nginx"}:
        need(kind)
        with node() if kind == "node" else nginx() as running:
            yield running
        return
    app = Lax()
    with serve_asgi(app, http=kind) as url:
        app.url = url
        yield app


class Chained(NamedTuple):
    """A front before a backend; `credential` is what an admitted request shows it."""

    url: str
    backend: Counting
    credential: bytes

    async def admitted(self, data: bytes) -> int:
        """How many answers of 200 come back for `data`, if its first request shows who it is from."""
        before = len(self.backend.targets())
        data = data.replace(b"Host: a", b"Host: a" + self.credential, 1)
        return await admitted(self.url, data, lambda: len(self.backend.targets()) - before)


@pytest.fixture(scope="module", params=["h11", "httptools", "node", "nginx"])
def backend(request: pytest.FixtureRequest) -> Iterator[Counting]:
    with backend_of(request.param) as running:
        yield running


@pytest.fixture(scope="module", params=["proxy", pytest.param("sidecar", marks=pytest.mark.slow)])
def chained(request: pytest.FixtureRequest, backend: Counting) -> Iterator[Chained]:
    if request.param == "proxy":
        with serve_asgi(Proxy(Http1Upstream(backend.url), trusted_proxies=TrustedProxies([]))) as url:
            yield Chained(url, backend, b"")
        return
    with external_store() as store, sidecar(backend.url, redis_url=store.url) as gate:
        # The first of its token takes another way than those behind it.
        credential = "\r\nAuthorization: Bearer " + token(someone())
        yield Chained(gate.url, backend, credential.encode())


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"".join(line + b"\r\n" for line in (b"POST /p HTTP/1.1", b"Host: a", *lines, b"")) + body


def mutations() -> list[bytes]:
    """`Transfer-Encoding: chunked` beside a `Content-Length`, written as some parser or other would take for it: a byte
    put in at every place that matters (defparam/smuggler's lists)."""
    places = [
        *(b"%bTransfer-Encoding: chunked", b"Transfer-Encoding%b: chunked", b"Transfer-Encoding:%bchunked"),
        *(b"Transfer-Encoding: chunked%b", b"Transfer%bEncoding: chunked", b"X: y\r%bTransfer-Encoding: chunked"),
    ]
    bytes_in = [bytes((value,)) for value in (*range(0x21), 0x22, 0x27, 0x2C, 0x2E, 0x3B, 0x5F, 0x7F, 0x80, 0xA0, 0xFF)]
    found = [place.replace(b"%b", each) for place in places for each in bytes_in]
    found += [
        b"Transfer-Encoding: " + value for value in (b"identity, chunked", b"chunked, x", b"'chunked'", b"CHUNKED")
    ]
    return found


HOSTILE = [
    # F01 to F06
    post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    post(CHUNKED, b"Content-Length: 4", body=b"0\r\n\r\n" + SMUGGLED),
    post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    post(b"Content-Length: +35", body=SMUGGLED),
    post(b"Content-Length: 0, 35", body=SMUGGLED),
    post(b"Transfer-Encoding: chunked, identity", b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED),
    # F07, F08
    post(CHUNKED, body=b"3 \r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    post(CHUNKED, body=b"2\r\nabcd\r\n0\r\n\r\n" + SMUGGLED),
    post(CHUNKED, body=b"3;\nx\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    post(CHUNKED, body=b"10000000000000003\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    # F09
    b"GET /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    b"DELETE /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    b"HEAD /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    # F10, F11
    b"POST /p HTTP/1.1\nHost: a\nContent-Length: 0\n\n" + SMUGGLED,
    post(b"X: y\nContent-Length: 35", body=SMUGGLED),
    b"GET /p\r\n" + SMUGGLED,
    # F13, F14, H07
    post(b"Content-Length: 35", b"Expect: 100-continue", body=SMUGGLED),
    post(CHUNKED, body=b"0\r\nContent-Length: 35\r\nTransfer-Encoding: chunked\r\n\r\n"),
    post(CHUNKED, body=b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"),
    # F18
    post(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings"),
]


async def admitted(url: str, data: bytes, asked: Callable[[], int]) -> int:
    """How many answers of 200 come back for `data`; `asked` tells of how many requests the backend knows."""
    told = b""
    async with raw_client(url) as client:
        await client.send(data)
        begun = time.monotonic()
        while True:
            # Up to the end of the connection, or to silence: a request that was admitted leaves it open. A slow machine
            # is silent too, before its first answer and while the backend knows of more than was answered.
            try:
                part = await asyncio.wait_for(client.reader.read(65536), 0.7)
            except TimeoutError:
                waits = 5 if not told else HANG_SECONDS if told.count(b"HTTP/1.1 200 ") < asked() else 0
                if time.monotonic() - begun < waits:
                    continue
                part = b""
            told += part
            if not part:
                return told.count(b"HTTP/1.1 200 ")


async def test_a_backend_counts_the_requests_that_were_admitted(chained: Chained) -> None:
    # F16
    backend = chained.backend
    passed = 0
    before = len(backend.targets())
    for data in HOSTILE:
        passed += await chained.admitted(data)
    await _settled(backend, before + passed)
    assert "/smuggled" not in backend.targets()
    assert len(backend.targets()) == before + passed > 0


async def test_no_way_to_write_a_transfer_coding_splits_a_request(chained: Chained) -> None:
    # F17, F04
    backend = chained.backend
    passed = 0
    before = len(backend.targets())
    body = b"0\r\n\r\n" + SMUGGLED
    for line in mutations():
        passed += await chained.admitted(post(line, b"Content-Length: %d" % len(body), body=body))
    await _settled(backend, before + passed)
    assert "/smuggled" not in backend.targets()
    assert len(backend.targets()) == before + passed


EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
ANSWERS = [
    b"200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    b"200 OK\r\nContent-Length: 2\r\nContent-Length: 60\r\n\r\nok" + EVIL,
    b"200 OK\r\nContent-Length: -2\r\n\r\nok" + EVIL,
    b"101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + EVIL,
    b"204 No Content\r\nContent-Length: 60\r\n\r\n" + EVIL,
    b"304 Not Modified\r\nContent-Length: 60\r\n\r\n" + EVIL,
    b"200 OK\r\nContent-Length: 2\r\n\r\nok" + EVIL,
]


@pytest.mark.parametrize("answer", ANSWERS)
async def test_no_answer_of_a_backend_is_taken_for_two(answer: bytes) -> None:
    # F21, F22
    async def badly(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood" if b"/next" in request.head else told
        )

    told = b"HTTP/1.1 " + answer
    async with chain(badly) as made, raw_client(made.url) as client:
        for method in (b"HEAD", b"GET"):
            await client.send(method + b" /first HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n")
            seen = b""
            with suppress(TimeoutError):
                while not seen.endswith(b"good") and (
                    part := await asyncio.wait_for(client.reader.read(65536), HANG_SECONDS)
                ):
                    seen += part
            assert b"evil" not in seen
            if not seen.endswith(b"good"):
                # Broken off: there was an answer in the middle.
                break


async def _settled(backend: Counting, count: int) -> None:
    """Waits for what a backend has been asked to be told, and a moment for what must not come."""
    async with asyncio.timeout(HANG_SECONDS):
        while len(backend.targets()) < count:  # noqa: ASYNC110 - it comes from another thread
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)

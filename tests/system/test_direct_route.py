"""The same request three times: the first with a token goes through the application, the second takes the direct route,
the third goes through the application, without a direct route. Client, backend and access log see no difference."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import signal
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from prometheus_client import generate_latest

from gatekeeper.app import create_app
from gatekeeper.build import build
from gatekeeper.serve.listeners import limits
from gatekeeper.server import Exchange, http_protocol
from gatekeeper.settings import load
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.web.engine import Engine
from gatekeeper.web.server_errors import ServerErrors
from tests.servers import RawClient, RawConnection, RawRequest, RecordingBackend, afetch, raw_client, serve_asgi
from tests.system.sidecar import (
    Backend,
    Store,
    bearer,
    environment,
    eventually,
    external_store,
    hello,
    samples,
    sidecar,
    someone,
    token,
)
from tests.system.streaming import Streams, requested
from tests.upstream.http2_backend import Asked, ScriptedBackend
from tests.upstream.test_upstream import self_signed
from tests.waiting import HANG_SECONDS

CHUNKS = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
ANSWERS = {
    b"/length": b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX: 1\r\nx: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok",
    b"/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n" + CHUNKS,
    b"/trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
    b"/empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"/204": b"HTTP/1.1 204 No Content\r\n\r\n",
    b"/304": b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 77\r\n\r\n',
    b"/404": b"HTTP/1.1 404 Nothing Here\r\nContent-Length: 4\r\n\r\nnone",
    b"/599": b"HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
    b"/date": b"HTTP/1.1 200 OK\r\nDate: Tue, 01 Jan 2030 00:00:00 GMT\r\nServer: x\r\nContent-Length: 0\r\n\r\n",
    b"/ids": b"HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nContent-Length: 0\r\n\r\n",
    b"/hop": b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
    b"/hops": b"HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nTE: x\r\nContent-Length: 2\r\n\r\nok",
    b"/mine": b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nX-Request-ID: a\r\nX:  1 \r\nContent-Length: 2\r\n\r\nok",
    b"/100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"/103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"/events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
}
# After these the backend closes.
CLOSING = {
    b"/close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end",
    b"/1.0": b"HTTP/1.0 200 OK\r\n\r\nto the end",
    b"/cut-length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    b"/cut-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    b"/bad": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc",
    b"/folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    b"/600": b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
    b"/101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    b"/nothing": b"",
    b"/no-http": b"hello\r\n\r\n",
}
LARGE = b"x" * 20_000_000
MEDIUM = b"x" * 60_000


async def answering(connection: RawConnection, request: RawRequest) -> None:
    path = request.target.partition(b"?")[0]
    answer = ANSWERS.get(path, CLOSING.get(path))
    if path == b"/silent":
        await connection.gone()
        connection.close()
    elif path == b"/reset":
        connection.reset()
    elif path == b"/large":
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE)
    elif path == b"/medium":
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(MEDIUM) + MEDIUM)
    elif answer is None:
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    else:
        if request.method == b"HEAD":
            *interim, head = answer.split(b"\r\n\r\n")[: 2 if answer.startswith(b"HTTP/1.1 10") else 1]
            answer = b"".join(each + b"\r\n\r\n" for each in [*interim, head])
        await connection.write(answer)
        if path in CLOSING:
            connection.close()


class Gate:
    """The application of the sidecar behind its server, and which requests took the direct route."""

    def __init__(self, url: str, engine: Engine, taken: list[bool], out: io.BytesIO) -> None:
        self.url = url
        self.engine = engine
        self.taken = taken
        self._out = out
        self._read = 0

    def access_of(self, request_id: str) -> dict[str, Any]:
        """Return the one access log line of a request, among the lines since the last call."""

        def found() -> list[dict[str, Any]]:
            wanted = json.dumps(request_id).encode()
            lines = [line for line in self._out.getvalue()[self._read :].splitlines() if wanted in line]
            return [json.loads(line) for line in lines]

        (line,) = eventually(found)
        self._read = len(self._out.getvalue())
        return dict(line)

    @property
    def samples(self) -> dict[Any, float]:
        return samples(generate_latest(self.engine.telemetry.metrics.registry).decode())


@contextmanager
def gate_before(url: str, store: Store, direct: bool = True, /, **settings: str) -> Iterator[Gate]:
    chosen = load(environment(**({"redis_url": store.url, "upstream_url": url} | settings)), require_upstream=True)
    out = io.BytesIO()
    engine = build(chosen, mode="sidecar", access_log=AccessLog(out))
    app, fast_path = create_app(chosen, engine)
    taken: list[bool] = []

    def counted(exchange: Exchange) -> bool:
        taken.append(direct and fast_path(exchange))
        return taken[-1]

    server_errors = ServerErrors(engine.rules, engine.responder, engine.telemetry)
    with serve_asgi(
        app,
        http=http_protocol(limits(chosen), server_errors, fast_path=counted),
    ) as listening:
        yield Gate(listening, engine, taken, out)
    # Every request that was counted as begun was counted as finished.
    assert engine.telemetry.metrics._open == {True: 0, False: 0}
    assert len(engine.streams) == 0


@pytest.fixture(scope="module")
def answers() -> Iterator[Backend]:
    with Backend(answering) as running:
        yield running


class Gates(NamedTuple):
    """`direct` takes plain requests the direct way; with `indirect` all go through the application."""

    direct: Gate
    indirect: Gate


@contextmanager
def both(url: str, store: Store, **settings: str) -> Iterator[Gates]:
    with (
        gate_before(url, store, **settings) as direct,
        gate_before(url, store, False, **settings) as indirect,
    ):
        yield Gates(direct, indirect)


@pytest.fixture(scope="module")
def gates(answers: Backend, store: Store) -> Iterator[Gates]:
    with both(answers.url, store) as running:
        yield running


class Seen(NamedTuple):
    """One request from all sides: what its client got, what the backend got, and its access line."""

    answer: bytes
    reached: list[RawRequest]
    line: dict[str, Any]


async def to_the_end(client: RawClient) -> bytes:
    """Return the bytes until the connection ends, and `<reset>` if it ends with a reset."""
    received = b""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while part := await client.reader.read(65536):
                received += part
    except ConnectionResetError:
        return received + b"<reset>"
    return received


def unchunked(response: bytes) -> bytes:
    """An answer with its chunks joined: where they are cut says nothing. `<end>` where the last has come."""
    head, _, body = response.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" not in head.lower():
        return response
    joined, rest = b"", body
    while match := re.match(rb"([0-9a-f]+)\r\n", rest):
        size = int(match[1], 16)
        joined, rest = joined + rest[match.end() : match.end() + size], rest[match.end() + size + 2 :]
        if not size:
            joined += b"<end>"
            break
    return response.removesuffix(body) + joined + rest


_numbers = iter(range(1, 10**9))


async def seen(
    gate: Gate,
    backend: Backend,
    lines: list[str],
    version: str = "1.1",
    *,
    id_lines: bool = True,
    body: bytes = b"",
    apart: bool = False,
) -> Seen:
    """A request of its own connection, its body along with the head or `apart`. Its id, and what tells one moment from
    another, are masked."""
    number = f"id-{next(_numbers)}-{time.monotonic_ns()}"
    before = len(backend.raw)
    head = [lines[0] + f" HTTP/{version}", "Host: api.example", *lines[1:], "Connection: close"]
    head += [f"X-Request-Id: {number}"] * id_lines
    async with raw_client(gate.url) as client:
        sent = "\r\n".join([*head, "", ""]).encode()
        if apart:
            await client.send(sent)
            await asyncio.sleep(0.05)
            sent = b""
        await client.send(sent + body)
        told = await to_the_end(client)
    if not id_lines:
        number = re.search(rb"(?i)x-request-id: (\S+)", told)[1].decode()  # type: ignore[index]
    line = gate.access_of(number)
    assert set(line) >= {"ts", "duration_ms", "upstream_ms"}
    line |= {"ts": "", "duration_ms": 0, "upstream_ms": line["upstream_ms"] is not None, "request_id": ""}
    reached = [
        request._replace(head=request.head.replace(number.encode(), b"<id>")) for request in backend.raw[before:]
    ]
    told = re.sub(rb"(?im)^date: (?!Tue, 01 Jan 2030).*$", b"date: <now>", told.replace(number.encode(), b"<id>"))
    # Gatekeeper spreads the retries of clients at random.
    told = re.sub(rb"(?im)^retry-after: [1-5]\r$", b"retry-after: <seconds>\r", told)
    return Seen(unchunked(told), reached, line)


async def alike(
    gates: Gates,
    backend: Backend,
    lines: list[str],
    *,
    version: str = "1.1",
    strict: bool = True,
    body: bytes = b"",
) -> Seen:
    """What a request looks like, whichever way it goes. `{token}` is a token that is new to the first."""
    lines = [line.replace("{token}", token(someone(), roles=["a", "b"])) for line in lines]
    gates.direct.taken.clear()
    first = await seen(gates.direct, backend, lines, version, body=body)
    second = await seen(gates.direct, backend, lines, version, body=body)
    assert gates.direct.taken == [False, True]
    assert second == first
    # Their ids make all of these sections of headers new. Without, the second is one that is known already.
    for _ in range(2):
        assert await seen(gates.direct, backend, lines, version, body=body, id_lines=False) == first
    assert gates.direct.taken == [False, True, True, True]
    third = await seen(gates.indirect, backend, lines, version, body=body)
    if strict:
        assert third == first
    return second


BEARER = "Authorization: Bearer {token}"


# Without their bodies, these are answers like others.
ABOUT_BODIES = {"/cut-length", "/cut-chunks", "/close", "/1.0"}
ASKED = [
    (path, method, version)
    for path in [path.decode() for path in [*ANSWERS, *CLOSING, b"/reset"]]
    for method, version in [("GET", "1.1"), ("HEAD", "1.1"), ("GET", "1.0"), ("DELETE", "1.1")]
    if method != "HEAD" or path not in ABOUT_BODIES
]


@pytest.mark.parametrize(("path", "method", "version"), ASKED)
async def test_every_answer_is_the_same(gates: Gates, answers: Backend, path: str, method: str, version: str) -> None:
    # The other transport knows of no interim answers, and folds what is folded.
    strict = path not in {"/103", "/folded"}
    got = await alike(gates, answers, [f"{method} {path}", BEARER], version=version, strict=strict)
    if path.encode() in ANSWERS:
        assert got.answer.startswith(b"HTTP/1.1 " + (b"103" if path == "/103" and version == "1.1" else b""))
        assert got.line["status"] < 500 or path == "/599"


@pytest.mark.parametrize(
    "lines",
    [
        ["X-User-Id: 1", "x_user_id: 2", "X.Session.Id: 3", "X-USER-ROLES: admin", "X-Gatekeeper-Degraded: 1"],
        ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Real-IP: 1.1.1.1"],
        ["Forwarded: for=203.0.113.9", "X-Forwarded-Prefix: /a", "X-Original-URL: /admin", "X-Rewrite-URL: /b"],
        ["Connection: X-User-Id, X-Request-Id, X-Forwarded-For, Authorization, X-Mine", "X-Mine: 1", "X-Other: 2"],
        [
            "Keep-Alive: 5",
            "Proxy-Authorization: Basic eDp5",
            "Proxy-Connection: close",
            "Trailer: X",
            "HTTP2-Settings: A",
        ],
        ["X: 1", "X: 2", "x: 3", "Accept: */*", "Cookie: a=1; b=2", "Cookie: c=3", "Range: bytes=0-1", "X-Empty:"],
        ["Origin: https://a.example", "Referer: /", "If-None-Match: *", "Accept-Language: fr", "X-\xe4: 1", "X: \xe4"],
        ["Content-Length: 0"],
        ["Upgrade: h2c", "Connection: Upgrade"],
    ],
)  # H01, H02, H06, H10, P0-S10
async def test_a_backend_is_told_the_same(gates: Gates, answers: Backend, lines: list[str]) -> None:
    lines = ["GET //a/%2e%2e/b;c?x=1&&y=%00#"[:-1], BEARER, *lines]
    plain = not {"Upgrade: h2c"} & set(lines)
    mine = [line.replace("{token}", token(someone(), roles=["a,b", "\xe4"])) for line in lines]
    gates.direct.taken.clear()
    first, second = [await seen(gates.direct, answers, mine) for _ in range(2)]
    assert first == second == await seen(gates.indirect, answers, mine)
    if first.line["status"] == 200:
        assert gates.direct.taken == [False, plain]
        (request,) = second.reached
        assert len(request.get_all(b"x-request-id")) == len(request.get_all(b"x-user-id")) == 1


@pytest.mark.parametrize(
    ("method", "path", "size", "version"),
    [
        ("POST", "/length", 1, "1.1"),
        ("POST", "/chunked", 300, "1.1"),
        ("PUT", "/204", 4096, "1.1"),
        ("PATCH", "/404", 300, "1.0"),
        ("DELETE", "/hops", 300, "1.1"),
        ("GET", "/length", 300, "1.1"),
        ("PROPFIND", "/close", 60_000, "1.1"),
        ("POST", "/cut-length", 300, "1.1"),
        ("POST", "/bad", 300, "1.1"),
    ],
)
async def test_a_body_that_comes_along_goes_along(
    gates: Gates, answers: Backend, method: str, path: str, size: int, version: str
) -> None:
    body = random.Random(size).randbytes(size)
    lines = [f"{method} {path}", BEARER, f"Content-Length: {size}", "Content-Type: application/octet-stream"]
    got = await alike(gates, answers, lines, version=version, body=body)
    (request,) = got.reached
    assert request.body == body
    assert request.get_all(b"content-length") == [b"%d" % size]
    # In pieces it is the same.
    gates.direct.taken.clear()
    mine = [line.replace("{token}", token(someone(), roles=["a", "b"])) for line in lines]
    apart = [await seen(gates.direct, answers, mine, version, body=body, apart=apart) for apart in (True, False, True)]
    assert apart[0] == apart[1] == apart[2]
    assert gates.direct.taken == [False, True, True]


@pytest.mark.parametrize("line", ["Transfer-Encoding: chunked", "Expect: 100-continue"])
async def test_other_bodies_are_the_same(gates: Gates, answers: Backend, line: str) -> None:
    chunked = line.startswith("Transfer")
    lines = ["POST /length", f"Authorization: Bearer {token(someone())}", line]
    lines += [] if chunked else ["Content-Length: 3"]
    body = b"3\r\nabc\r\n0\r\n\r\n" if chunked else b"abc"
    gates.direct.taken.clear()
    first, second = [await seen(gates.direct, answers, lines, body=body) for _ in range(2)]
    assert first == second
    assert first.line["status"] == 200
    assert gates.direct.taken == [False, True]
    assert [request.body for request in [*first.reached, *second.reached]] == [body, body]


async def test_a_body_over_the_limit_is_refused_before_anybody_is_asked(answers: Backend, store: Store) -> None:
    lines = ["POST /length", f"Authorization: Bearer {token(someone())}"]
    with gate_before(answers.url, store, max_body="1000") as gate:
        for size, status in ((1000, 200), (1000, 200), (1001, 413)):
            got = await seen(gate, answers, [*lines, f"Content-Length: {size}"], body=b"x" * size)
            assert got.line["status"] == status
            assert [request.body for request in got.reached] == [b"x" * size] * (status == 200)
        assert gate.taken == [False, True]


@pytest.mark.parametrize(
    ("version", "end"),
    [("1.1", b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n7\r\nabcdefg\r\n0\r\n\r\n"), ("1.0", b"abcdefg")],
)
async def test_chunks_that_come_at_once_go_on_as_one(gates: Gates, answers: Backend, version: str, end: bytes) -> None:
    mine = token(someone())
    told = []
    for _ in range(2):
        async with raw_client(gates.direct.url) as client:
            await client.send(
                f"GET /chunked HTTP/{version}\r\nHost: a\r\nX-Request-Id: i\r\n"
                f"Authorization: Bearer {mine}\r\nConnection: close\r\n\r\n".encode()
            )
            told.append(await to_the_end(client))
    assert gates.direct.taken[-2:] == [False, True]
    assert told[0] == told[1]
    assert told[1].endswith(end)


async def test_without_an_id_one_is_made(gates: Gates, answers: Backend) -> None:
    mine = ["GET /length", f"Authorization: Bearer {token(someone())}"]
    assert await seen(gates.direct, answers, mine) == await seen(gates.direct, answers, mine, id_lines=False)


class Case(NamedTuple):
    """A token that was let pass, then something happens to it or its session."""

    name: str
    status: int
    settings: Mapping[str, str] = MappingProxyType({})
    claims: Mapping[str, Any] = MappingProxyType({})


async def ended(gate: Gate, backend: Backend, user: str, mine: str, name: str) -> None:
    """Makes happen what the case is called."""
    other = f"Authorization: Bearer {token(user)}"
    own = f"Authorization: Bearer {mine}"
    admin = f"Authorization: Bearer {token(someone(), roles=['admin'])}"
    if name == "logged out":
        await seen(gate, backend, ["DELETE /sessions/logout", own])
    elif name in {"revoked by the user", "deactivated"}:
        rows = json.loads((await seen(gate, backend, ["GET /sessions/me", own])).answer.partition(b"\r\n\r\n")[2])
        way = ["DELETE", ""] if name != "deactivated" else ["PATCH", "/deactivate"]
        await seen(gate, backend, [f"{way[0]} /api/sessions/{rows[0]['id']}{way[1]}", other])
    elif name == "revoked by an admin":
        await seen(gate, backend, [f"DELETE /sessions/user/{user}", admin])
    elif name == "evicted":
        for _ in range(3):
            await seen(gate, backend, ["GET /", f"Authorization: Bearer {token(user)}"])
    elif name in {"idle", "over", "expired meanwhile"}:
        await asyncio.sleep(3.3)


CASES = [
    Case("live", 200),
    Case("logged out", 401),
    Case("revoked by the user", 401),
    Case("deactivated", 401),
    Case("revoked by an admin", 401),
    Case("evicted", 401),
    Case("idle", 401, {"idle_timeout": "3s"}),
    Case("over", 401, {"session_ttl": "3s"}),
    Case("expired meanwhile", 401, {"jwt_leeway": "0s"}, {"exp": 3.2}),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_every_verdict_is_the_same(answers: Backend, store: Store, case: Case) -> None:
    with both(answers.url, store, **case.settings) as gates:
        user = someone()
        claims = dict(case.claims)
        if "exp" in claims:
            claims["exp"] = int(time.time() + 1 + claims["exp"])
        mine = token(user, **claims)
        asked = ["GET /length", f"Authorization: Bearer {mine}", "Accept-Language: fr"]
        for gate in gates:
            assert (await seen(gate, answers, asked)).line["status"] == 200
        if "exp" in claims:
            await asyncio.sleep(1)
        await ended(gates.direct, answers, user, mine, case.name)
        through = [await seen(gate, answers, asked) for gate in gates]
        assert through[0] == through[1]
        assert through[0].line["status"] == case.status


@pytest.mark.parametrize("forward", ["true", "false"])
@pytest.mark.parametrize(
    "credentials",
    [
        ["Authorization: Bearer {token}"],
        ["authorization:  bearer {token}"],
        ["Cookie: a=1; access_token={token}; b=2"],
        ["Authorization: Basic eDp5", "Cookie: access_token={token}"],
        ["Authorization: Bearer {token}", "Cookie: access_token={token}; a=1"],
        ["Authorization: Bearer {token}", "Cookie: access_token={other}; a=1"],
        ["Authorization: Bearer {token}", "Cookie: access_token=rubbish"],
        ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
        ["Cookie: access_token={token}; access_token={other}"],
        ["Cookie: access_token={other}", "Cookie: access_token={token}"],
    ],
)
async def test_every_way_to_show_a_token_is_the_same(
    answers: Backend, store: Store, credentials: list[str], forward: str
) -> None:
    with both(answers.url, store, forward_authorization=forward) as gates:
        user = someone()
        lines = [line.replace("{token}", token(user)).replace("{other}", token(someone())) for line in credentials]
        first = await seen(gates.direct, answers, ["GET /length", *lines])
        assert await seen(gates.direct, answers, ["GET /length", *lines]) == first
        assert await seen(gates.indirect, answers, ["GET /length", *lines]) == first


async def test_gates_of_one_process_keep_their_rules_apart(answers: Backend, store: Store) -> None:
    lines = ["GET /length", f"Authorization: Bearer {token(someone())}"]
    with (
        gate_before(answers.url, store) as telling,
        gate_before(answers.url, store, forward_authorization="false") as silent,
    ):
        told: list[list[bytes]] = []
        for gate in (telling, silent, telling, silent, telling, silent):
            (reached,) = (await seen(gate, answers, lines, id_lines=False)).reached
            told.append(reached.get_all(b"authorization"))
        assert told == [[lines[1].partition(": ")[2].encode()], []] * 3
        assert telling.taken == silent.taken == [False, True, True]


async def test_a_store_that_has_forgotten_everything_is_the_same(answers: Backend) -> None:
    with external_store() as store, both(answers.url, store) as gates:
        asked = ["GET /length", f"Authorization: Bearer {token(someone(), iat=int(time.time()) - 60)}"]
        for gate in gates:
            await seen(gate, answers, asked)
        store.client.flushall()
        await asyncio.sleep(1.5)
        through = [await seen(gate, answers, asked) for gate in gates]
        assert through[0] == through[1]
        assert gates.direct.taken[-1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_store_that_is_away_is_the_same(answers: Backend, how: int) -> None:  # K1
    with external_store() as store, both(answers.url, store, store_timeout="1s") as gates:
        asked = ["GET /length", f"Authorization: Bearer {token(someone())}"]
        for gate in gates:
            await seen(gate, answers, asked)
        store.signal(how)
        through = [await seen(gate, answers, asked) for gate in gates]
        store.signal(signal.SIGKILL)
        assert through[0] == through[1]
        assert through[0].line["status"] == 503
        assert gates.direct.taken[-1] or how == signal.SIGKILL
        errors = [gate.samples for gate in gates]
        assert [each["gatekeeper_http_requests_in_flight", frozenset()] for each in errors] == [0, 0]


# The backend's faults


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("HEAD", True), ("DELETE", False), ("POST", False)])
async def test_only_what_may_be_repeated_is_sent_once_more(store: Store, method: str, again: bool) -> None:
    served: dict[int, int] = {}

    async def once(connection: RawConnection, request: RawRequest) -> None:
        served[connection.number] = served.get(connection.number, 0) + 1
        if served[connection.number] > 1 or request.target == b"/never":
            connection.reset()
        else:
            await hello(connection, request)

    with Backend(once) as backend, gate_before(backend.url, store) as gate:
        mine = bearer(token(someone()))
        for target, status, times in (("/", 200 if again else 502, 1 + again), ("/never", 502, 1 + again)):
            # The connection is kept, and is dead when it serves next.
            assert (await afetch(gate.url, "GET", "/", [mine])).status == 200
            before = len(backend.raw)
            length = [("Content-Length", "0")] if method == "POST" else []
            assert (await afetch(gate.url, method, target, [mine, *length])).status == status
            assert gate.taken[-1]
            assert len(backend.raw) - before == times
        # With a body, it is not known to be one that may be repeated.
        assert (await afetch(gate.url, "GET", "/", [mine])).status == 200
        before = len(backend.raw)
        async with raw_client(gate.url) as client:
            head = f"{method} / HTTP/1.1\r\nHost: a\r\n{': '.join(mine)}\r\nContent-Length: 3\r\nConnection: close"
            await client.send(f"{head}\r\n\r\nabc".encode())
            assert (await to_the_end(client)).startswith(b"HTTP/1.1 502 ")
        assert gate.taken[-1]
        assert len(backend.raw) - before == 1


@pytest.mark.parametrize("path", ["/silent", "/length"])
async def test_a_backend_that_is_silent_or_gone_is_the_same(store: Store, path: str) -> None:
    with ExitStack() as stack:
        backend = Backend(answering)
        away = stack.enter_context(ExitStack())
        away.enter_context(backend)
        gates = stack.enter_context(both(backend.url, store, upstream_timeout="2s"))
        asked = [f"GET {path}", f"Authorization: Bearer {token(someone())}"]
        for gate in gates:
            await seen(gate, backend, ["GET /empty", asked[1]])
        if path == "/length":
            await asyncio.to_thread(away.close)
        through = [await seen(gate, backend, asked) for gate in gates]
        assert through[0] == through[1]
        assert through[0].line["status"] == (504 if path == "/silent" else 502)
        kind = frozenset({("kind", "timeout" if path == "/silent" else "connect")})
        assert [gate.samples["gatekeeper_upstream_errors_total", kind] for gate in gates] == [1, 1]


# The client's


@pytest.mark.parametrize("path", ["/silent", "/large"])
@pytest.mark.parametrize("way", ["application", "direct"])
async def test_a_client_that_leaves_takes_its_request_along(
    gates: Gates, answers: Backend, path: str, way: str
) -> None:
    mine = token(someone())
    if way == "direct":
        await afetch(gates.direct.url, "GET", "/", [bearer(mine)])
    number = f"left-{time.monotonic_ns()}"
    before = len(answers.raw)
    async with raw_client(gates.direct.url) as client:
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {mine}\r\nX-Request-Id: {number}\r\n\r\n"
        await client.send(head.encode())
        await asyncio.to_thread(eventually, lambda: len(answers.raw) > before)
        if path == "/large":
            await client.until(b"\r\n\r\n")
        # A plain close could be that of the sending side alone (rule 3.20).
        client.reset()
    assert gates.direct.taken[-1] == (way == "direct")
    line = await asyncio.to_thread(gates.direct.access_of, number)
    assert (line["status"], line["decision"]) == (0 if path == "/silent" else 200, "allow")
    assert line["bytes_out"] < len(LARGE)


async def test_a_client_that_leaves_before_the_verdict_is_counted_by_it(answers: Backend) -> None:
    with external_store() as store, gate_before(answers.url, store) as gate:
        mine = token(someone())
        await afetch(gate.url, "GET", "/", [bearer(mine)])
        store.signal(signal.SIGSTOP)
        async with raw_client(gate.url) as client:
            head = f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {mine}\r\nX-Request-Id: early\r\n\r\n"
            await client.send(head.encode())
            await asyncio.to_thread(eventually, lambda: len(gate.taken) == 2)
            client.reset()
        await asyncio.sleep(1)
        store.signal(signal.SIGCONT)
        line = await asyncio.to_thread(gate.access_of, "early")
        assert (gate.taken[-1], line["status"], line["decision"], line["user_id"] is None) == (True, 0, "allow", False)


async def test_pipelined_requests_are_answered_in_their_order(gates: Gates, answers: Backend) -> None:  # F20
    mine = token(someone())
    await afetch(gates.direct.url, "GET", "/", [bearer(mine)])
    gates.direct.taken.clear()
    head = f"HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {mine}\r\n"
    paths = ["/length", "/404", "/chunked", "/304", "/public", "/empty"] * 20
    upload = f"POST /length {head}Content-Length: 3\r\n\r\nabc"
    asked = "".join(f"GET {path} {head}\r\n" for path in paths) + upload + f"GET /close {head}Connection: close\r\n\r\n"
    async with raw_client(gates.direct.url) as client:
        await client.send(asked.encode())
        told = await to_the_end(client)
    statuses = [int(each) for each in re.findall(rb"HTTP/1.1 (\d+) ", told)]
    assert statuses == [200, 404, 200, 304, 200, 200] * 20 + [200, 200]
    assert gates.direct.taken == [True] * 122
    assert told.endswith(b"to the end\r\n0\r\n\r\n")


async def test_who_pipelines_and_reads_nothing_has_few_answers_made(gates: Gates, answers: Backend) -> None:  # B5
    mine = token(someone())
    await afetch(gates.direct.url, "GET", "/", [bearer(mine)])
    before = len(answers.raw)
    head = f"GET /medium HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {mine}\r\n\r\n"
    async with raw_client(gates.direct.url) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(head.encode() * 2000)
        await asyncio.sleep(2)
        # What the system itself holds, and little more.
        assert len(answers.raw) - before < 400


# Streams


@pytest.mark.parametrize("way", ["application", "direct"])
@pytest.mark.parametrize("path", ["/events", "/quiet", "/download", "/chunked"])
async def test_a_session_that_ends_ends_its_stream_on_either_way(store: Store, path: str, way: str) -> None:
    streams = Streams()
    with Backend(streams) as backend, gate_before(backend.url, store) as gate:
        mine = token(someone())
        if way == "direct":
            await afetch(gate.url, "GET", "/", [bearer(mine)])
        async with requested(gate.url, path, mine, headers=[("X-Request-Id", "stream")]) as client:
            assert gate.taken[-1] == (way == "direct")
            await asyncio.sleep(0.8)
            assert client.is_open
            await afetch(gate.url, "DELETE", "/sessions/logout", [bearer(mine)])
            ended = await client.end()
        of_events = path in {"/events", "/quiet"}
        assert ended.whole == of_events
        assert ended.body.endswith(b"\n\nevent: session-ended\ndata: logged_out\n\n") == of_events
        line = await asyncio.to_thread(gate.access_of, "stream")
        assert (line["status"], line["decision"]) == (200, "allow")
        if of_events:
            assert line["bytes_out"] == len(ended.body)
        await asyncio.to_thread(eventually, lambda: streams.given_up == 1)


async def test_the_end_of_the_grace_is_the_same_on_either_way(store: Store) -> None:  # P0-S17
    async def deciding(connection: RawConnection, request: RawRequest) -> None:
        if request.target == b"/silent":
            await connection.gone()
            connection.close()
        else:
            await Streams()(connection, request)

    with Backend(deciding) as backend, sidecar(backend.url, redis_url=store.url, shutdown_grace="700ms") as gate:
        known, new = token(someone()), [token(someone()) for _ in range(3)]
        await afetch(gate.url, "GET", "/", [bearer(known)])
        async with AsyncExitStack() as stack:
            silent = [
                asyncio.create_task(afetch(gate.url, "GET", "/silent", [bearer(each)])) for each in (known, new[0])
            ]
            clients = [
                await stack.enter_async_context(requested(gate.url, path, each))
                for path, of_path in (("/quiet", new[1]), ("/chunked", new[2]))
                for each in (known, of_path)
            ]
            await asyncio.to_thread(eventually, lambda: len(backend.raw) >= 7)
            gate.terminate()
            ends = [await client.end() for client in clients]
            assert [end.whole for end in ends] == [True, True, False, False]
            assert [(await each).status for each in silent] == [504, 504]
        assert await asyncio.to_thread(gate.exit_code) == 0
        lines = sorted((line["path"], line["status"], line["decision"], line["reason"]) for line in gate.access)
        assert lines[1::2] == lines[2::2]
        assert len(lines) == 7


async def test_a_backend_that_chooses_http_1_1_is_reached_the_direct_way(store: Store, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate := self_signed(tmp_path, "localhost"))
    async with RecordingBackend(tls=context) as backend:
        with gate_before(backend.url, store, upstream_http2="auto", upstream_ca_file=str(certificate)) as gate:
            credential = bearer(token(someone()))
            for _ in range(3):
                assert (await afetch(gate.url, "GET", "/", [credential])).status == 200
            assert gate.taken == [False, True, True]
        assert backend.connections == 1


async def test_a_backend_is_reached_the_direct_way_over_http_2(store: Store, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "localhost")

    async def script(asked: Asked) -> None:
        await asked.complete.wait()
        asked.head(200, (b"content-length", b"%d" % len(asked.body)))
        for at in range(0, len(asked.body), 10_000):
            asked.data(asked.body[at : at + 10_000])
        asked.end()

    backend = ScriptedBackend(script)
    async with backend.listening(certificate) as url:
        with gate_before(url, store, upstream_http2="auto", upstream_ca_file=str(certificate)) as gate:
            credential = bearer(token(someone()))
            bodies = [b"a", b"b" * 50_000, [b"c", b"d"]]
            answers = [await afetch(gate.url, "POST", "/", [credential], body=body) for body in bodies]
            assert [answer.body for answer in answers] == [b"a", b"b" * 50_000, b"cd"]
            assert gate.taken == [False, True, True]
        assert len(backend.connections) == 1

"""Logins, refreshes and logouts of a backend that issues its own tokens, watched by the whole sidecar: what clients get
to the byte and when they get it, what is written down, many at once, and the store or the keys away.

The rules themselves are in `tests/web/test_observed_sign_in.py`: they need no process.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import brotli
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec

from tests.contracts.dialect import CHROME_ON_WINDOWS, JSON
from tests.contracts.gate import cookie
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import sidecar_app
from tests.servers import ClientResponse, RawClient, RawConnection, RawRequest, Script, fetch, raw_client
from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    World,
    bearer,
    eventually,
    external_store,
    hello,
    sidecar,
    someone,
    token,
)
from tests.tokens import forge
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow

LOGIN, REFRESH, LOGOUT = "/auth/login", "/auth/refresh", "/auth/logout"
PREFIX = "observing:"
PASSWORD = "correct horse battery staple"
LOGGED_OUT = error_body("access_token_blacklisted", "logged_out")
UNAVAILABLE = error_body("store_unavailable")
FULL = error_body("session_limit_exceeded")
MOST_BYTES = 64 * 1024

Headers = Sequence[tuple[str, str]]


class Issuer(Backend):
    """A backend that answers every request as the test that sent it wants."""

    def __init__(self) -> None:
        self._planned: dict[bytes, bytes | Script] = {}
        super().__init__(self._answer)

    def plan(self, answer: bytes | Script) -> tuple[str, str]:
        """The header of requests that are to be answered so."""
        name = uuid.uuid4().hex
        self._planned[name.encode()] = answer
        return ("X-Planned", name)

    def asked(self, plan: tuple[str, str]) -> int:
        """How many requests of this plan came."""
        return sum(plan[1].encode() in request.head for request in list(self.raw))

    @property
    def open_connections(self) -> int:
        return len(self._backend._tasks)

    async def _answer(self, connection: RawConnection, request: RawRequest) -> None:
        names = request.get_all(b"x-planned")
        answer = self._planned.get(names[0], hello) if names else hello
        if isinstance(answer, bytes):
            await connection.write(answer)
        else:
            await answer(connection, request)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module")
def gate(issuer: Issuer, store: Store) -> Iterator[Sidecar]:
    with sidecar(issuer.url, redis_url=store.url, key_prefix=PREFIX) as running:
        yield running


@pytest.fixture
def world(gate: Sidecar, issuer: Issuer, store: Store) -> World:
    return World(gate.url, lambda: issuer.reached, store)


def live(store: Store, user: str) -> int:
    """How many live sessions a user has, without a request that might open one."""
    return store.live(user, PREFIX)


# Tokens, and answers with tokens in them; whatever was handed out here must not be found anywhere afterwards

_secrets: set[str] = {PASSWORD}


def access_of(user: str, **claims: Any) -> str:
    made = token(user, **claims)
    _secrets.add(made.rpartition(".")[2])
    return made


def opaque() -> str:
    made = uuid.uuid4().hex
    _secrets.add(made)
    return made


def of(**members: Any) -> bytes:
    return json.dumps(members).encode()


def head(*headers: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else []), *headers, "", ""]
    return "\r\n".join(lines).encode()


def whole(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    return head(*headers, f"Content-Length: {len(body)}", status=status, kind=kind) + body


def handed(access: str, refresh: str = "") -> bytes:
    return whole(of(access_token=access, refresh_token=refresh or opaque(), token_type="bearer", expires_in=900))


def post(
    world: World, path: str, plan: tuple[str, str], body: bytes = b"{}", headers: Headers = (JSON,), **options: Any
) -> ClientResponse:
    return world.fetch(path, options.get("token"), method="POST", headers=[plan, *headers], body=body)


def credentials(user: str) -> bytes:
    return of(username=user, password=PASSWORD)


# To the byte


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(body: bytes, *headers: str, size: int) -> bytes:
    parts = [chunk(body[at : at + size]) for at in range(0, len(body), size)]
    return head("Transfer-Encoding: chunked", *headers) + b"".join(parts) + b"0\r\n\r\n"


def gzipped(access: str) -> bytes:
    return coded("gzip", gzip.compress(of(access_token=access)))


def byte_by_byte(data: bytes) -> Script:
    async def answer(connection: RawConnection, request: RawRequest) -> None:
        for byte in data:
            await connection.write(bytes([byte]))
            await asyncio.sleep(0)

    return answer


def then_gone(data: bytes) -> Script:
    async def answer(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(data)
        connection.close()

    return answer


def coded(encoding: str, body: bytes, *headers: str) -> bytes:
    return whole(body, f"Content-Encoding: {encoding}", "Vary: Accept-Encoding", *headers)


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def with_wrong_trailer(packed: bytes) -> bytes:
    """A gzip member whose check sum and length are another content's (RFC 1952 section 2.3.1)."""
    return packed[:-8] + b"\x01\x02\x03\x04\x05\x06\x07\x08"


def page(access: str, *headers: str, status: str = "200 OK") -> bytes:
    return whole(
        b"<p>welcome</p>", f"Set-Cookie: access_token={access}; HttpOnly", *headers, status=status, kind="text/html"
    )


Made = Callable[[str], bytes | Script]
READ: dict[str, Made] = {
    "identity": lambda access: whole(of(access_token=access), "X-A: 1", "x-a: 2", "Set-Cookie: a=b", "Set-Cookie: c=d"),
    "identity, as it says": lambda access: coded("identity", of(access_token=access)),
    "gzip": gzipped,
    "x-gzip": lambda access: coded("X-GZip", gzip.compress(of(token=access))),
    "gzip with a wrong trailer": lambda access: coded("gzip", with_wrong_trailer(gzip.compress(of(token=access)))),
    "deflate": lambda access: coded("deflate", zlib.compress(of(accessToken=access))),
    "raw deflate": lambda access: coded("deflate", raw_deflate(of(access=access))),
    "br": lambda access: coded("br", brotli.compress(of(data={"access_token": access}))),
    "chunked": lambda access: chunked(of(data={"token": access}), size=7),
    "chunked byte by byte": lambda access: byte_by_byte(chunked(of(access_token=access), size=1)),
    "byte by byte": lambda access: byte_by_byte(whole(of(access_token=access))),
    "compressed in chunks": lambda access: byte_by_byte(
        chunked(gzip.compress(of(access_token=access)), "Content-Encoding: gzip", size=100)
    ),
    "until the end": lambda access: then_gone(head("Connection: close") + of(access_token=access)),
    "pretty": lambda access: whole(json.dumps({"access_token": access, "user": {"name": "Zoë"}}, indent=4).encode()),
    "not quite JSON": lambda access: whole(b'{"a": NaN, "token": "x", "token": "%s"}\n' % access.encode()),
    "64 KiB": lambda access: whole(of(token=access) + b" " * (MOST_BYTES - len(of(token=access)))),
    "a number of 5,000 digits": lambda access: whole(b'{"n": %s, "token": "%s"}' % (b"1" * 5000, access.encode())),
    "201": lambda access: whole(of(token=access), "Location: /me", status="201 Created"),
    "100 before": lambda access: b"HTTP/1.1 100 Continue\r\n\r\n" + whole(of(token=access)),
    "a redirect with a cookie": lambda access: page(access, "Location: /", status="302 Found"),
    "a page with a cookie": page,
    "nothing with a cookie": lambda access: head(
        f"Set-Cookie: access_token={access}", status="204 No Content", kind=""
    ),
    "a cookie and a page without end": lambda access: then_gone(
        head(f"Set-Cookie: access_token={access}", "Connection: close", kind="text/html") + b"<p>"
    ),
    "text": lambda access: whole(of(token=access), kind="text/plain"),
    "no type": lambda access: whole(of(token=access), kind=""),
}
UNREAD: dict[str, Made] = {
    "HTML": lambda access: whole(f"<script>token={access}</script>".encode(), kind="text/html"),
    "over 64 KiB": lambda access: whole(of(token=access) + b" " * MOST_BYTES),
    "over 64 KiB in chunks": lambda access: chunked(of(token=access) + b" " * MOST_BYTES, size=1000),
    "over 64 KiB inflated": lambda access: coded("gzip", gzip.compress(of(token=access) + b" " * MOST_BYTES)),
    "5 MB": lambda access: whole(of(token=access, rows=["x" * 100] * 50_000)),
    "another coding": lambda access: coded("zstd", of(token=access)),
    "two codings": lambda access: coded("gzip, br", of(token=access)),
    "a coding that it is not": lambda access: coded("gzip", of(token=access)),
    "half of one": lambda access: coded("gzip", gzip.compress(of(token=access))[:-20]),
    "half an object": lambda access: whole(of(token=access)[:-1]),
    "depth": lambda access: whole(b'{"token":"%s","x":%s}' % (access.encode(), b"[" * 20_000 + b"]" * 20_000)),
    "nothing": lambda _: head("Content-Length: 0"),
    "400": lambda access: whole(of(token=access), status="400 Bad Request"),
    "500 with a cookie": lambda access: page(access, status="500 Internal Server Error"),
}


def told(answer: ClientResponse) -> tuple[Any, ...]:
    headers = [(name.lower(), value) for name, value in answer.headers if name.lower() != "x-request-id"]
    return answer.status, answer.body, headers


def assert_transparent(world: World, issuer: Issuer, plan: tuple[str, str], path: str = LOGIN) -> None:
    """A client gets what the backend says, and nothing else but the request's id."""
    direct = fetch(issuer.url, "POST", path, [plan, JSON], b"{}")
    through = fetch(world.url, "POST", path, [plan, JSON], b"{}")
    assert len(through.get_all("x-request-id")) == 1
    passing = {"connection", "transfer-encoding"}
    for one, other in zip(told(direct), told(through), strict=True):
        if isinstance(one, list):
            assert [pair for pair in other if pair[0] not in passing] == [
                pair for pair in one if pair[0] not in passing
            ]
        else:
            assert other == one


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_an_answer_that_is_read_passes_as_it_came(world: World, issuer: Issuer, make: Made) -> None:
    # A-17, C-01, E-05, E-07
    user = someone()
    access = access_of(user)
    assert_transparent(world, issuer, issuer.plan(make(access)))
    assert live(world.store, user) == 1
    world.passed("/x", access)
    assert login_method(world, access) == "password"


@pytest.mark.parametrize("make", UNREAD.values(), ids=UNREAD)
def test_an_answer_that_cannot_be_read_passes_as_it_came(world: World, issuer: Issuer, make: Made) -> None:
    # Rule 5.3: beyond the limit the body passes unread
    user = someone()
    access = access_of(user)
    assert_transparent(world, issuer, issuer.plan(make(access)))
    assert live(world.store, user) == 0
    # Adopted when it is first used.
    world.passed("/x", access)
    assert login_method(world, access) == "token"


@pytest.mark.parametrize(
    "make", [READ["gzip"], READ["chunked byte by byte"], UNREAD["5 MB"], READ["a redirect with a cookie"]]
)
def test_a_renewal_passes_as_it_came_too(world: World, issuer: Issuer, make: Made) -> None:  # C-02
    user = someone()
    access = access_of(user)
    assert_transparent(world, issuer, issuer.plan(make(access)), REFRESH)
    world.passed("/x", access)
    assert login_method(world, access) in {"refresh", "token"}


def login_method(world: World, access: str) -> str:
    rows = json.loads(world.fetch("/api/v1/auth/users/me/sessions/", access).body)["data"]["sessions"]
    (found,) = [row["login_method"] for row in rows if row["is_current"]]
    return str(found)


def broken_off(url: str, plan: tuple[str, str]) -> tuple[int, bytes]:
    """What of an answer arrives that does not end."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_SECONDS)
    try:
        connection.request("POST", LOGIN, b"{}", dict([JSON, plan]))
        response = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        return response.status, caught.value.partial
    finally:
        connection.close()


@pytest.mark.parametrize("form", ["length", "chunks"])
@pytest.mark.parametrize("complete", [True, False])
def test_an_answer_that_breaks_off_breaks_off_at_the_client(
    world: World, issuer: Issuer, form: str, *, complete: bool
) -> None:
    """The same part of it, and no end; a session where the JSON was whole."""
    user = someone()
    body = of(access_token=access_of(user))[: None if complete else -1]
    if form == "length":
        answer = head(f"Content-Length: {len(body) + 50}") + body
    else:
        answer = head("Transfer-Encoding: chunked") + chunk(body)
    plan = issuer.plan(then_gone(answer))
    direct = broken_off(issuer.url, plan)
    assert direct == (200, body)
    assert broken_off(world.url, plan) == direct
    assert live(world.store, user) == complete


async def ask(client: RawClient, plan: tuple[str, str], body: bytes = b"{}", *, headers: str = "") -> None:
    await client.send(
        f"POST {LOGIN} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{plan[0]}: {plan[1]}\r\n{headers}\r\n".encode()
        + body
    )


async def test_interim_answers_do_not_end_a_login(world: World, issuer: Issuer) -> None:
    user = someone()
    body = of(token=access_of(user))
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    async with raw_client(world.url) as client:
        await ask(client, issuer.plan(early * 3 + whole(body)))
        received = await client.until(b"}")
    assert received.rpartition(b"HTTP/1.1 ")[2].startswith(b"200 OK\r\n")
    assert received.endswith(b"\r\n\r\n" + body)
    assert live(world.store, user) == 1


async def test_a_login_that_waits_for_100_continue_is_asked_for(world: World, issuer: Issuer) -> None:
    user = someone()
    plan, body = issuer.plan(handed(access_of(user))), credentials(user)
    async with raw_client(world.url) as client:
        await client.send(
            f"POST {LOGIN} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
            f"{plan[0]}: {plan[1]}\r\n\r\n".encode()
        )
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await client.send(body)
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 200 ")
    assert issuer.raw[-1].body == body
    assert live(world.store, user) == 1


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536])
@pytest.mark.parametrize("framed", ["length", "chunks"])
def test_a_login_reaches_the_backend_as_it_was_sent(world: World, issuer: Issuer, size: int, framed: str) -> None:
    user = someone()
    plan = issuer.plan(handed(access_of(user)))
    # The same at each run: some random bytes read as MessagePack with more names than are counted, which is 413.
    body = b"0123456789abcdef" * (size // 16) + b"x" * (size % 16)
    sent = body if framed == "length" else iter([body[at : at + 10_000] for at in range(0, size, 10_000)])
    target = f"{LOGIN}?next=%2Fa&x=1&x=2"
    headers = [plan, ("Content-Type", "application/octet-stream"), ("X-Mine", "1"), ("X-Mine", "2")]
    assert fetch(world.url, "POST", target, headers, sent).status == 200
    request = issuer.raw[-1]
    assert (request.target.decode(), request.get_all(b"x-mine")) == (target, [b"1", b"2"])
    assert (unchunked(request.body) if framed == "chunks" else request.body) == body
    assert live(world.store, user) == 1


def unchunked(framed: bytes) -> bytes:
    found = b""
    while framed:
        size, _, rest = framed.partition(b"\r\n")
        found, framed = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return found


# When it comes


class Stage:
    """A script in steps: each part is sent when the test says so."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts
        self._allowed = 1

    def next(self) -> None:
        self._allowed += 1

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        for number, part in enumerate(self._parts):
            while self._allowed <= number:  # noqa: ASYNC110 - set in another thread
                await asyncio.sleep(0.002)
            await connection.write(part)


def five_megabytes(access: str) -> tuple[bytes, bytes]:
    body = of(token=access, rows=["x" * 100] * 50_000)
    return head(f"Content-Length: {len(body)}") + body[:1000], body[1000:]


@pytest.mark.parametrize(
    "parts",
    [
        (head("Content-Length: 12", kind="text/html") + b"<", b"p>hello</p>"),
        (head("Content-Length: 12", kind="") + b"<", b"p>hello</p>"),
        (head("Content-Length: 2", status="401 Unauthorized") + b"{", b"}"),
        (head("Content-Encoding: zstd", "Transfer-Encoding: chunked") + chunk(b"<"), chunk(b">") + b"0\r\n\r\n"),
        (head("Transfer-Encoding: chunked") + chunk(b" " * (MOST_BYTES + 1)), chunk(b">") + b"0\r\n\r\n"),
        five_megabytes("x"),
    ],
    ids=["HTML", "no type", "401", "another coding", "64 KiB and more", "5 MB"],
)
async def test_what_holds_no_tokens_is_not_waited_for(world: World, issuer: Issuer, parts: tuple[bytes, bytes]) -> None:
    stage = Stage(*parts)
    async with raw_client(world.url) as client:
        await ask(client, issuer.plan(stage), headers="Connection: close\r\n")
        first = await client.until(b"\r\n\r\n")
        assert first.startswith(parts[0][:12])
        # A byte of the body, while the backend is not half through.
        assert await asyncio.wait_for(client.reader.readexactly(1), HANG_SECONDS)
        stage.next()
        assert (await client.rest()).endswith(parts[1][-1:])


async def test_a_stream_on_a_login_path_is_a_stream(world: World, issuer: Issuer) -> None:  # SSE
    user = someone()
    access = access_of(user)
    events = [b'data: {"token": "%s"}\n\n' % access.encode(), b": 2\n\n", b": 3\n\n"]
    start = head("Cache-Control: no-cache", "Transfer-Encoding: chunked", kind="text/event-stream")
    stage = Stage(start, *map(chunk, events), b"0\r\n\r\n")
    async with raw_client(world.url) as client:
        await ask(client, issuer.plan(stage), headers="Connection: close\r\n")
        assert b"text/event-stream" in await client.until(b"\r\n\r\n")
        for event in events:
            stage.next()
            assert (await client.until(b"\n\n")).endswith(event)
        stage.next()
        await client.rest()
    assert live(world.store, user) == 0


def peak_kibibytes(gate: Sidecar) -> int:
    status = Path(f"/proc/{gate.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def processor_seconds(gate: Sidecar) -> float:
    """What it has used: how busy the machine is does not count."""
    fields = Path(f"/proc/{gate.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bomb(encoding: str) -> bytes:
    """JSON of a hundred million bytes in under 64 KiB, or as near to it as the coding gets."""
    if encoding == "br":
        return bytes(brotli.compress(b'{"token": "' + b"x" * 100_000_000 + b'"}', quality=3))
    compressor = zlib.compressobj(9, wbits=zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    return compressor.compress(b'{"token": "' + b"x" * 63_000_000 + b'"}') + compressor.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_bomb_is_not_set_off(world: World, issuer: Issuer, gate: Sidecar, encoding: str) -> None:  # T08, D08
    packed = bomb(encoding)
    assert len(packed) <= MOST_BYTES
    plan = issuer.plan(coded(encoding, packed))
    post(world, LOGIN, issuer.plan(coded(encoding, b"x")))
    before, began = peak_kibibytes(gate), processor_seconds(gate)
    for _ in range(5):
        answer = post(world, LOGIN, plan)
        assert (answer.status, answer.body) == (200, packed)
        # In a request as well: one of a refresh cannot be read, and goes no further.
        refused = post(world, REFRESH, plan, packed, [JSON, ("Content-Encoding", encoding)])
        assert (refused.status, json.loads(refused.body)["code"]) == (413, "body_too_large")
    assert processor_seconds(gate) - began < 2
    assert peak_kibibytes(gate) - before < 5_000


# What is known afterwards


def test_the_session_of_a_login_is_the_one_the_backend_is_told_of(world: World, issuer: Issuer, gate: Sidecar) -> None:
    # C-14, E-05
    user, request_id = someone(), uuid.uuid4().hex
    access = access_of(user)
    headers = [JSON, ("User-Agent", CHROME_ON_WINDOWS), ("X-Request-Id", request_id)]
    assert post(world, LOGIN, issuer.plan(handed(access)), credentials(user), headers).status == 200
    line = gate.access_of(request_id)
    assert (line["route"], line["status"], line["decision"], line["reason"]) == ("upstream", 200, "bypass", "none")
    assert (line["user_id"], line["upstream_ms"] > 0) == (user, True)
    request = world.passed("/x", access, headers=[("User-Agent", "curl/8.5.0")])
    assert request.get_all("x-session-id") == [str(line["session_id"])]
    (row,) = json.loads(world.fetch("/api/v1/auth/users/me/sessions/", access).body)["data"]["sessions"]
    assert (row["id"], row["login_method"]) == (line["session_id"], "password")
    assert (row["ip_address"], row["user_agent"]) == ("127.0.0.1", CHROME_ON_WINDOWS)
    assert world.session_ids(access) == [line["session_id"]]


class Journal:
    """What is written of single requests."""

    def __init__(self, world: World, issuer: Issuer, gate: Sidecar) -> None:
        self._world, self._issuer, self._gate = world, issuer, gate

    def of(
        self, path: str, answer: bytes, body: bytes, headers: Headers = ()
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The audit lines, without what is the same in all of them, and the access line."""
        request_id = uuid.uuid4().hex
        post(self._world, path, self._issuer.plan(answer), body, [JSON, ("X-Request-Id", request_id), *headers])
        access = self._gate.access_of(request_id)
        # They follow the answer by a moment.
        lines = eventually(lambda: self._audited(request_id))
        for line in lines:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("ts"))
            assert (line.pop("level"), line.pop("client_ip")) == ("info", "127.0.0.1")
            assert (line.pop("actor"), line.pop("actor_id")) == ("user", line["user_id"])
            assert re.fullmatch("[0-9a-f]{32}", line.pop("id"))
            del line["event"], line["request_id"]
        return lines, access

    def _audited(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self._gate.log if line["event"] == "audit" and line["request_id"] == request_id]


def test_everything_that_happens_to_a_sign_in_is_on_record(world: World, issuer: Issuer, gate: Sidecar) -> None:
    # A-24, S22
    journal, user, name = Journal(world, issuer, gate), someone(), f"Zoë {someone()}"
    access, renewed, refresh, next_refresh = access_of(user), access_of(user), opaque(), opaque()
    login = of(username=name, password=PASSWORD)
    nobody = {"user_id": None, "session_id": None, "user_name": None, "reason": None}

    lines, line = journal.of(LOGIN, handed(access, refresh), login)
    session = line["session_id"]
    me = nobody | {"user_id": user, "session_id": session}
    assert lines == [me | {"action": "session_opened", "reason": "password", "user_name": name.lower()}]
    assert (line["user_id"], line["decision"]) == (user, "bypass")

    lines, line = journal.of(REFRESH, handed(renewed, next_refresh), of(refresh_token=refresh))
    assert lines == [me | {"action": "refreshed"}]
    assert (line["user_id"], line["session_id"], line["status"]) == (user, session, 200)

    lines, line = journal.of(LOGOUT, whole(b"{}"), of(access_token=renewed), [bearer(renewed)])
    assert lines == [me | {"action": "session_ended", "reason": "logged_out"}]
    assert (line["user_id"], line["session_id"], line["upstream_ms"] > 0) == (user, session, True)

    lines, line = journal.of(REFRESH, handed(access_of(user)), of(refresh_token=next_refresh))
    assert lines == [me | {"action": "refresh_refused", "reason": "logged_out"}]
    assert (line["status"], line["decision"], line["reason"]) == (401, "deny", "access_token_blacklisted")
    assert (line["user_id"], line["session_id"], line["upstream_ms"]) == (user, session, None)

    wrong = whole(b'{"detail":"no"}', status="401 Unauthorized")
    for _ in range(10):
        lines, line = journal.of(LOGIN, wrong, login)
        assert lines == [nobody | {"action": "login_failed", "user_name": name.lower()}]
        assert (line["status"], line["decision"], line["user_id"]) == (401, "bypass", None)
    lines, line = journal.of(LOGIN, wrong, login)
    assert lines == [nobody | {"action": "login_throttled", "user_name": name.lower()}]
    assert (line["status"], line["decision"], line["reason"]) == (429, "deny", "rate_limited")
    assert line["upstream_ms"] is None


def test_a_login_that_is_refused_for_want_of_room_is_on_record(issuer: Issuer, store: Store) -> None:  # C-21
    settings = {"device_limit": "1", "device_limit_policy": "reject", "key_prefix": PREFIX}
    with sidecar(issuer.url, redis_url=store.url, **settings) as gate:
        world, user = World(gate.url, lambda: issuer.reached, store), someone()
        journal = Journal(world, issuer, gate)
        journal.of(LOGIN, handed(access_of(user)), credentials(user))
        lines, line = journal.of(LOGIN, handed(access_of(user)), credentials(user))
        (told_,) = lines
        assert (told_["action"], told_["reason"]) == ("limit_refused", None)
        assert (told_["user_id"], told_["user_name"]) == (user, user)
        assert (line["status"], line["decision"], line["reason"]) == (403, "deny", "session_limit_exceeded")
        assert (line["user_id"], line["upstream_ms"] > 0) == (user, True)
        assert gate.metric("gatekeeper_session_events_total", event="limit_refused", actor="system") == 1
        assert_nothing_is_told(gate)


def test_a_name_is_written_down_harmlessly(world: World, issuer: Issuer, gate: Sidecar) -> None:  # H16
    journal = Journal(world, issuer, gate)
    wrong = whole(b"{}", status="401 Unauthorized")
    (line,), _ = journal.of(LOGIN, wrong, of(username='a"\r\n{"event":"audit"}\u2028\x00\ud800' + "b" * 5000))
    assert line["user_name"].startswith('a"{"event":"audit"}')
    assert len(line["user_name"]) <= 256


def test_a_login_is_counted(world: World, issuer: Issuer, gate: Sidecar) -> None:
    def opened() -> float:
        return gate.metric("gatekeeper_session_events_total", event="opened", actor="user")

    before, user = opened(), someone()
    access, refresh = access_of(user), opaque()
    post(world, LOGIN, issuer.plan(handed(access, refresh)))
    assert opened() - before == 1
    post(world, REFRESH, issuer.plan(handed(access_of(user))), of(refresh=refresh))
    world.passed("/x", access)
    assert opened() - before == 1


def assert_nothing_is_told(gate: Sidecar) -> None:
    written = gate.stdout + gate.stderr
    assert len(written) > 100
    assert [secret for secret in _secrets if secret in written] == []
    assert "eyJ" not in written


def everything(store: Store) -> bytes:
    """All that the store holds of this module, names and values."""
    found: list[bytes] = []

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.items():
                add(each)
        elif isinstance(value, list | tuple | set):
            for each in value:
                add(each)
        elif isinstance(value, bytes):
            found.append(value)

    with redis.Redis(unix_socket_path=str(store.path)) as client:
        for key in client.scan_iter(f"{PREFIX}*", count=1000):
            add(key)
            kind = client.type(key)
            if kind == b"hash":
                add(client.hgetall(key))
            elif kind == b"zset":
                add(client.zrange(key, 0, -1))
            elif kind == b"list":
                add(client.lrange(key, 0, -1))
            elif kind == b"stream":
                add(client.xrange(key))
            else:
                add(client.get(key))
    return b"\n".join(found)


def test_no_token_and_no_password_is_ever_written(world: World, issuer: Issuer, gate: Sidecar) -> None:  # S25
    """Neither in the logs nor in the store, where refresh tokens are known by their hash, and tried names too."""
    user, name = someone(), f"typed-by-mistake-{uuid.uuid4().hex}"
    refresh = opaque()
    answer = whole(of(access_token=access_of(user), refresh_token=refresh), f"Set-Cookie: refresh_token={refresh}")
    secret = ("X-Api-Key", opaque())
    for path in (LOGIN, f"{LOGIN}?password={PASSWORD.replace(' ', '+')}&token={opaque()}", REFRESH, LOGOUT):
        for bearing in (access_of(user), opaque()):
            jar = ("Cookie", f"access_token={bearing}; refresh_token={opaque()}")
            for headers in ([bearer(bearing)], [jar], [secret]):
                body = of(username=user, password=PASSWORD, refresh_token=refresh, access_token=bearing)
                post(world, path, issuer.plan(answer), body, [JSON, *headers])
    for _ in range(12):
        wrong = issuer.plan(whole(b"{}", status="401 Unauthorized"))
        post(world, LOGIN, wrong, of(username=name, password=PASSWORD))
    kept = everything(world.store)
    assert len(kept) > 1000
    assert [each for each in _secrets if each.encode() in kept] == []
    # What somebody typed as a name is on record, and may be a password: but in the log alone.
    assert name.encode() not in kept
    assert_nothing_is_told(gate)
    assert issuer.asked(wrong) == 0


# Without room: nothing of the token gets out, nothing of the backend's connection stays


@pytest.fixture(scope="module")
def strict(issuer: Issuer, store: Store) -> Iterator[World]:
    settings = {"device_limit": "1", "device_limit_policy": "reject", "key_prefix": PREFIX}
    with sidecar_app(store, issuer, **settings) as made:
        yield made


def endless(access: str) -> Script:
    async def answer(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(
            head(f"Set-Cookie: access_token={access}", "Transfer-Encoding: chunked", kind="text/html")
        )
        while True:
            await connection.write(chunk(b"<p>" * 1000))
            await asyncio.sleep(0.001)

    return answer


@pytest.mark.parametrize("make", [*READ.values(), endless], ids=[*READ, "without end"])
def test_without_room_nothing_of_the_token_is_told(strict: World, issuer: Issuer, make: Made) -> None:  # C-12, C-21
    user = someone()
    assert post(strict, LOGIN, issuer.plan(handed(access_of(user)))).status == 200
    access = access_of(user)
    answer = post(strict, LOGIN, issuer.plan(make(access)))
    assert_own_response(answer, 403, FULL)
    assert answer.get_all("set-cookie") == answer.get_all("location") == answer.get_all("content-encoding") == []
    assert access not in str(answer)
    assert live(strict.store, user) == 1


async def test_the_next_answer_on_the_connection_is_the_next_answer(strict: World, issuer: Issuer) -> None:
    """Whatever was withheld, nothing of it is found by who comes after, on either side."""
    user = someone()
    post(strict, LOGIN, issuer.plan(handed(access_of(user))))
    async with raw_client(strict.url) as client:
        for make in (handed, READ["chunked"], page, READ["byte by byte"], handed):
            access = access_of(user)
            await ask(client, issuer.plan(make(access)))
            first = await client.until(FULL)
            assert first.startswith(b"HTTP/1.1 403 ")
            await ask(client, issuer.plan(whole(b'{"mine":1}')))
            second = await client.until(b'{"mine":1}')
            assert second.startswith(b"HTTP/1.1 200 ")
            assert access.encode() not in first + second


def test_connections_to_the_backend_do_not_leak(strict: World, issuer: Issuer) -> None:
    user = someone()
    post(strict, LOGIN, issuer.plan(handed(access_of(user))))
    before = issuer.open_connections
    for make in (handed, page, endless, READ["until the end"]):
        with ThreadPoolExecutor(8) as pool:
            plans = [issuer.plan(make(access_of(user))) for _ in range(24)]
            answers = list(pool.map(lambda plan: post(strict, LOGIN, plan), plans))
        assert {answer.status for answer in answers} == {403}
    # Eight at most are kept for the next requests, and none that still speaks.
    eventually(lambda: issuer.open_connections <= before + 8)
    assert live(strict.store, user) == 1


def test_a_client_that_leaves_while_it_signs_in_leaves_nothing(world: World, issuer: Issuer) -> None:  # S02
    user, asked, gone = someone(), threading.Event(), threading.Event()

    async def slow(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(head("Transfer-Encoding: chunked") + chunk(of(token=access_of(user))))
        asked.set()
        await connection.gone()
        gone.set()

    connection = http.client.HTTPConnection(world.url.removeprefix("http://"), timeout=HANG_SECONDS)
    connection.request("POST", LOGIN, credentials(user), dict([JSON, issuer.plan(slow)]))
    assert asked.wait(HANG_SECONDS)
    # With RST: a plain close could be that of the sending side alone (rule 3.20).
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    # The backend is told, and the tokens that nobody got are nobody's.
    assert gone.wait(HANG_SECONDS)
    assert live(world.store, user) == 0


# Many at once


class Barrier:
    """Holds every answer back until as many requests are there as are to come, or the test lets them go."""

    def __init__(self, number: int = 10**6) -> None:
        self._number = number
        self.arrived = 0
        self.open = threading.Event()

    def before(self, answer: bytes) -> Script:
        async def script(connection: RawConnection, request: RawRequest) -> None:
            self.arrived += 1
            if self.arrived == self._number:
                self.open.set()
            while not self.open.is_set():  # noqa: ASYNC110 - set in another thread
                await asyncio.sleep(0.005)
            await connection.write(answer)

        return script


@pytest.mark.parametrize("policy", ["evict_idle", "evict_oldest", "reject"])
def test_a_hundred_logins_at_once_leave_three_sessions(issuer: Issuer, store: Store, policy: str) -> None:
    # C-12, C-21, D-07, S01
    user, barrier = someone(), Barrier(100)
    tokens = [access_of(user) for _ in range(100)]
    plans = [issuer.plan(barrier.before(handed(access))) for access in tokens]
    settings = {"device_limit_policy": policy, "key_prefix": PREFIX}
    with sidecar_app(store, issuer, **settings) as one, sidecar_app(store, issuer, **settings) as two:
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(post, [one, two] * 50, [LOGIN] * 100, plans))
        assert barrier.arrived == 100
        assert live(store, user) == 3
        got = [access for access, answer in zip(tokens, answers, strict=True) if answer.status == 200]
        for access, answer in zip(tokens, answers, strict=True):
            if access in got:
                assert json.loads(answer.body)["access_token"] == access
            else:
                assert_own_response(answer, 403, FULL)
                assert access not in str(answer)
        assert len(got) == (3 if policy == "reject" else 100)
        # Whoever has a token has a session, or learns that it had to go.
        outcomes = [one.fetch("/x", access) for access in got]
        gone = [answer for answer in outcomes if answer.status != 200]
        assert len(outcomes) - len(gone) == 3
        for answer in gone:
            assert_own_response(answer, 401, error_body("session_revoked_or_invalid", "evicted"))
        (alive, *_) = [access for access, answer in zip(got, outcomes, strict=True) if answer.status == 200]
        rows = json.loads(two.fetch("/api/users/me/sessions?include_inactive=true", alive).body)
        assert sorted(row["is_active"] for row in rows) == [False] * len(gone) + [True] * 3
        assert live(store, user) == 3


async def burst(url: str, plan: tuple[str, str], name: str, number: int) -> list[asyncio.Task[bytes]]:
    """As many wrong logins of one name, all under way."""
    body = credentials(name)

    async def one() -> bytes:
        async with raw_client(url) as client:
            await ask(client, plan, body, headers="Connection: close\r\n")
            return await client.rest()

    tasks = [asyncio.create_task(one()) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def assert_bounded(barrier: Barrier, tasks: list[asyncio.Task[bytes]]) -> None:
    """At most 256 are at the backend at once, and all others have been told to come back."""
    async with asyncio.timeout(HANG_SECONDS):
        while barrier.arrived + sum(task.done() for task in tasks) < len(tasks):  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.01)
    arrived = barrier.arrived
    barrier.open.set()
    answers = await asyncio.gather(*tasks)
    throttled = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert all(b"\r\nretry-after: 1\r\n" in answer.lower() for answer in throttled)
    assert (arrived, len(throttled)) == (barrier.arrived, len(tasks) - arrived)
    assert arrived <= 256


async def test_of_many_wrong_logins_at_once_few_reach_the_backend(world: World, issuer: Issuer) -> None:  # S22, D07
    barrier, name = Barrier(), "n" + someone()
    plan = issuer.plan(barrier.before(whole(b"{}", status="401 Unauthorized")))
    await assert_bounded(barrier, await burst(world.url, plan, name, 300))
    # From now on one has to wait, for long.
    answer = await asyncio.to_thread(post, world, LOGIN, plan, credentials(name))
    assert (answer.status, 1 < int(answer.get_all("retry-after")[0]) <= 900) == (429, True)


# The store or the keys away


@pytest.fixture
def fragile() -> Iterator[Store]:
    with external_store() as running:
        yield running


async def test_of_many_wrong_logins_few_reach_the_backend_although_the_store_is_slow(
    issuer: Issuer, fragile: Store
) -> None:  # S22, R2
    """All of them ask whether they may before any of them is at the backend."""
    barrier, name = Barrier(), "n" + someone()
    plan = issuer.plan(barrier.before(whole(b"{}", status="401 Unauthorized")))
    with sidecar_app(fragile, issuer, store_timeout="10s") as world:
        fragile.signal(signal.SIGSTOP)
        try:
            tasks = await burst(world.url, plan, name, 300)
            await asyncio.sleep(0.7)
        finally:
            fragile.signal(signal.SIGCONT)
        await assert_bounded(barrier, tasks)


def test_tokens_are_withheld_while_the_store_is_away(issuer: Issuer, fragile: Store) -> None:
    # R1, S15, rules 4.8 and 5.6
    with sidecar_app(fragile, issuer, store_timeout="10s") as world:
        user, refresh = someone(), opaque()
        assert post(world, LOGIN, issuer.plan(handed(access_of(user), refresh)), credentials(user)).status == 200
        forms: list[Callable[[str], bytes]] = [handed, page, gzipped, handed]
        tokens = [*(access_of(someone()) for _ in range(3)), access_of(user)]
        barrier = Barrier()
        plans = [issuer.plan(barrier.before(form(access))) for form, access in zip(forms, tokens, strict=True)]
        paths = [LOGIN, LOGIN, LOGIN, REFRESH]
        bodies = [*(credentials(someone()) for _ in range(3)), of(refresh_token=refresh)]
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(post, world, *each) for each in zip(paths, plans, bodies, strict=True)]
            eventually(lambda: barrier.arrived == 4)
            fragile.kill()
            barrier.open.set()
            answers = [each.result(HANG_SECONDS) for each in pending]
        for answer, access in zip(answers, tokens, strict=True):
            assert_own_response(answer, 503, UNAVAILABLE)
            assert answer.get_all("set-cookie") == answer.get_all("content-encoding") == []
            assert access not in str(answer)
        # What can be asked before, is.
        never = issuer.plan(handed(access_of(user)))
        bearing = access_of(user)
        asked: list[tuple[str, bytes, Headers]] = [
            (LOGIN, credentials(user), [JSON]),
            (REFRESH, of(refresh_token=refresh), [JSON]),
            (REFRESH, b"", [bearer(bearing)]),
            (REFRESH, b"", [("Cookie", f"refresh_token={refresh}")]),
            (LOGOUT, b"", [bearer(bearing)]),
            (LOGOUT, of(access_token=bearing), [JSON]),
            (LOGOUT, of(refresh_token=refresh), [JSON]),
        ]
        for path, body, headers in asked:
            assert_own_response(post(world, path, never, body, headers), 503, UNAVAILABLE)
        assert issuer.asked(never) == 0
        # What needs no store goes on.
        other = issuer.plan(whole(b"{}", status="401 Unauthorized"))
        for path in (LOGIN, LOGOUT):
            assert post(world, path, other).status == 401
        fragile.start()
        user = someone()
        eventually(lambda: post(world, LOGIN, issuer.plan(handed(access_of(user)))).status == 200)


def test_without_keys_no_token_is_handed_out(issuer: Issuer, store: Store) -> None:  # J05
    key = ec.generate_private_key(ec.SECP256R1())
    user, now = someone(), int(time.time())
    access = forge.signed_by(
        key, {"alg": "ES256", "kid": "1"}, {"sub": user, "jti": uuid.uuid4().hex, "exp": now + 600}
    )
    unavailable = error_body("keys_unavailable")
    with sidecar_app(store, issuer, jwks_url="http://127.0.0.1:9/keys", key_prefix=PREFIX) as world:
        for form in (handed, page):
            answer = post(world, LOGIN, issuer.plan(form(access)), credentials(user))
            assert_own_response(answer, 503, unavailable)
            assert answer.get_all("set-cookie") == []
            assert access not in str(answer)
        never = issuer.plan(handed(access))
        asked: list[tuple[str, bytes, Headers]] = [
            (REFRESH, b"", [bearer(access)]),
            (REFRESH, b"", [cookie(access)]),
            (LOGOUT, b"", [bearer(access)]),
            (LOGOUT, of(access_token=access), [JSON]),
        ]
        for path, body, headers in asked:
            assert_own_response(post(world, path, never, body, headers), 503, unavailable)
        assert issuer.asked(never) == 0
        # A refresh by a token that nobody knows is the backend's to judge, but its answer is ours.
        assert_own_response(post(world, REFRESH, issuer.plan(handed(access)), of(refresh=opaque())), 503, unavailable)
        failed = issuer.plan(whole(b"{}", status="401 Unauthorized"))
        assert post(world, LOGIN, failed, credentials(user)).status == 401
        assert live(store, user) == 0

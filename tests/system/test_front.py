"""The front door of a running sidecar: what it refuses is worded, counted and logged as everything else, its limits are
those of the settings. Raw bytes over a socket; ids in comments are those of the attack catalogue."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.house import answer
from tests.servers import RawClient, raw_client
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.waiting import HANG_SECONDS

ORIGIN = "https://app.example"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def front(store: Store, backend: Backend) -> Iterator[Sidecar]:
    with sidecar(backend.url, redis_url=store.url, cors_origins=ORIGIN, max_body="1000") as running:
        yield running


def request(*lines: str, start: str = "GET /x HTTP/1.1", host: str = "Host: a") -> bytes:
    return "".join(f"{line}\r\n" for line in (start, host, *lines) if line).encode("latin-1") + b"\r\n"


def authorization() -> str:
    return ": ".join(bearer(token(someone())))


HANDSHAKE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
REFUSED = [
    (request("Content-Length: 1", "Transfer-Encoding: chunked"), 400, "bad_request"),  # F01
    (b"GET http://evil/x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"),  # P14
    (request(start="TRACE /x HTTP/1.1"), 405, "method_not_allowed"),  # P16
    (request("Content-Length: 1001", start="PUT /x HTTP/1.1"), 413, "body_too_large"),
    (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),  # P19
    (request("Sec-WebSocket-Version: 12", *HANDSHAKE), 426, "upgrade_required"),  # F19
    (request("X: " + "y" * 100_000), 431, "headers_too_large"),  # H15
    (request(*["X: y"] * 100), 431, "headers_too_large"),  # H15
    # An HTTP/1.0 that asks for an upgrade, and a handshake with a body.
    (request("Sec-WebSocket-Version: 13", *HANDSHAKE, start="GET /x HTTP/1.0"), 400, "bad_request"),  # W10
    (request("Sec-WebSocket-Version: 13", "Content-Length: 35", *HANDSHAKE), 400, "bad_request"),  # F20
    (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request(), 400, "bad_request"),  # I06
    (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x00" * 12 + request(), 400, "bad_request"),  # I06
]


@pytest.mark.parametrize(("data", "status", "code"), REFUSED)
async def test_a_refusal_is_worded_counted_and_logged_once(
    front: Sidecar, backend: Backend, data: bytes, status: int, code: str
) -> None:
    reached, lines = len(backend.raw), len(front.access)
    counted = front.metric("gatekeeper_decisions_total", result="deny", reason=code, mode="sidecar")
    async with raw_client(front.url) as client:
        await client.send(data)
        got, headers, body = await answer(client)
        assert await client.rest() == b""
    assert (got, json.loads(body)["code"]) == (status, code)
    assert set(json.loads(body)) == {"detail", "code"}
    assert headers["cache-control"] == ["no-store"]
    assert headers["x-content-type-options"] == ["nosniff"]
    assert headers["content-type"] == ["application/json; charset=utf-8"]
    assert headers["connection"] == (["upgrade, close"] if status == 426 else ["close"])
    (request_id,) = headers["x-request-id"]
    assert re.fullmatch(UUID, request_id)
    line = front.access_of(request_id)
    assert (line["status"], line["decision"], line["reason"]) == (status, "deny", code)
    assert line["bytes_out"] == len(body)
    assert len(front.access) == lines + 1
    assert front.metric("gatekeeper_decisions_total", result="deny", reason=code, mode="sidecar") == counted + 1
    assert front.metric("gatekeeper_http_requests_in_flight") == 0
    assert len(backend.raw) == reached


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request()),
        ("PROXY protocol", b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n" + request()),
        ("PROXY protocol", b"PROXY UNKNOWN\r\n" + request()),
        ("PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
        ("PROXY protocol", PROXY_V2 + b"\x21\x11\x00\x0c" + b"\x0a" * 12 + request()),
        ("PROXY protocol", PROXY_V2 + b"\x21\x21\x00\x24" + bytes(36) + request()),
        ("PROXY protocol", PROXY_V2 + b"\x20\x00\x00\x00" + request()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    ],
)
async def test_another_protocol_in_the_place_of_http_is_named(front: Sidecar, name: str, data: bytes) -> None:
    for _ in range(3):
        async with raw_client(front.url) as client:
            await client.send(data)
            status, _, body = await answer(client)
        assert (status, json.loads(body)["detail"]) == (
            400,
            f"{'The ' * (name != 'TLS')}{name} is not spoken here, only HTTP",
        )
    # It begins every connection of a load balancer, and must not fill the log.
    lines = eventually(lambda: [line for line in front.log if line["event"].startswith(f"listener got the {name}")])
    assert len(lines) <= 3
    assert sum(line["times"] for line in lines) <= 30


async def test_a_method_that_is_called_proxy_is_the_backends(front: Sidecar, backend: Backend) -> None:
    async with raw_client(front.url) as client:
        await client.send(request(authorization(), start="PROXY /x HTTP/1.1"))
        assert (await answer(client))[0] == 200


async def test_a_refusal_keeps_the_request_id_and_speaks_the_language_and_to_the_origin(front: Sidecar) -> None:
    asked = ("X-Request-Id: mine-7", "Accept-Language: fr", f"Origin: {ORIGIN}", "X : y")
    async with raw_client(front.url) as client:
        await client.send(request(*asked))
        _, headers, body = await answer(client)
    assert json.loads(body) == {"detail": "Une ligne d'en-tête est malformée", "code": "bad_request"}
    assert headers["x-request-id"] == ["mine-7"]
    assert headers["access-control-allow-origin"] == [ORIGIN]
    assert headers["access-control-allow-credentials"] == ["true"]
    assert headers["vary"] == ["Origin"]


async def test_a_refusal_of_an_own_path_has_the_shape_of_its_dialect(front: Sidecar) -> None:
    for path, code in (("/api/sessions", "BAD_REQUEST"), ("/_gatekeeper/x", "bad_request"), ("/x", "bad_request")):
        async with raw_client(front.url) as client:
            await client.send(request("Content-Length: +1", start=f"DELETE {path} HTTP/1.1"))
            got, headers, body = await answer(client)
        told = json.loads(body)
        assert (got, (told.get("error") or told)["code"]) == (400, code)
        assert ("requestId" in told) == (path == "/api/sessions")
    line = front.access_of(headers["x-request-id"][0])
    assert (line["route"], line["path"]) == ("upstream", "/x")


async def test_a_body_that_grows_over_its_limit_is_413_under_one_request_id(front: Sidecar, backend: Backend) -> None:
    # X21: the backend sees the request break off.
    reached, lines = len(backend.raw), len(front.access)
    async with raw_client(front.url) as client:
        chunk = b"100\r\n" + b"x" * 256 + b"\r\n"
        await client.send(request(authorization(), "Transfer-Encoding: chunked", start="POST /up HTTP/1.1") + chunk * 2)
        await asyncio.sleep(0.2)
        await client.send(chunk * 2 + request(start="GET /smuggled HTTP/1.1"))
        got, headers, body = await answer(client)
        assert await client.rest() == b""
    assert (got, json.loads(body)["code"]) == (413, "body_too_large")
    line = front.access_of(headers["x-request-id"][0])
    assert (line["status"], line["reason"], line["path"]) == (413, "body_too_large", "/up")
    assert len(front.access) == lines + 1
    assert all(b"0\r\n\r\n" not in raw.body for raw in backend.raw[reached:])
    assert not any(raw.target == b"/smuggled" for raw in backend.raw)


async def test_slow_clients_are_cut_and_others_do_not_wait(store: Store, backend: Backend) -> None:
    # D01, P0-S5
    limits = {"header_timeout": "400ms", "body_timeout": "400ms", "keepalive_timeout": "1s"}
    with sidecar(backend.url, redis_url=store.url, **limits) as gate:
        body = request(authorization(), "Content-Length: 9", start="POST /x HTTP/1.1") + b"abc"
        beginnings = [b"", b"GET / HTT", request()[:-2], body] * 50
        slow = [await asyncio.open_connection(*_where(gate)) for _ in beginnings]
        for (_, writer), beginning in zip(slow, beginnings, strict=True):
            writer.write(beginning)
        async with raw_client(gate.url) as client:
            for _ in range(20):
                await client.send(request(authorization()))
                assert (await answer(client))[0] == 200
            # An idle connection ends without a word.
            assert await client.rest() == b""
        for reader, writer in slow:
            got, _, told = await answer(RawClient(reader, writer))
            assert (got, json.loads(told)["code"]) == (408, "request_timeout")
            assert await reader.read() == b""
            writer.close()
        eventually(lambda: gate.metric("gatekeeper_http_requests_in_flight") == 0)
        counted = eventually(lambda: [line for line in gate.access if line["status"] == 408])
        assert len(counted) == len(beginnings)


def _where(gate: Sidecar) -> tuple[str, int]:
    parts = urlsplit(gate.url)
    return str(parts.hostname), int(parts.port or 0)


def test_connections_over_the_limit_are_reset_and_told_of_once(store: Store, backend: Backend) -> None:
    # D02
    with sidecar(backend.url, redis_url=store.url, max_connections="30") as gate, ExitStack() as stack:
        kept = [stack.enter_context(socket.create_connection(_where(gate))) for _ in range(30)]
        for connection in kept:
            connection.sendall(request(authorization()))
            assert connection.recv(12) == b"HTTP/1.1 200"
        for _ in range(50):
            with socket.create_connection(_where(gate)) as refused, suppress(ConnectionResetError):
                assert refused.recv(1) == b""
        assert gate.metric("gatekeeper_connections_refused_total") == 50
        # The log is written beside the requests.
        eventually(lambda: any(line["event"] == "too many connections" for line in gate.log))
        assert len([line for line in gate.log if line["event"] == "too many connections"]) == 1
        kept.pop().close()
        eventually(lambda: _served(gate))


def _served(gate: Sidecar) -> bool:
    with socket.create_connection(_where(gate)) as connection:
        connection.sendall(request(authorization()))
        try:
            return connection.recv(12) == b"HTTP/1.1 200"
        except ConnectionResetError:
            return False


def test_connections_that_come_and_go_leave_no_file_open(front: Sidecar) -> None:
    # D09, C2
    assert _served(front)
    files = Path(f"/proc/{front.process.pid}/fd")
    before = len(list(files.iterdir()))
    for number in range(2_000):
        connection = socket.create_connection(_where(front))
        if number % 2:
            connection.sendall(request()[: number % 20])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    eventually(lambda: len(list(files.iterdir())) <= before + 2)
    assert _served(front)


async def test_ten_thousand_names_in_a_query_are_read_in_no_time(front: Sidecar) -> None:
    # D06, P19: under the limit of a head, and over it.
    query = "&".join(f"k{number}" for number in range(9_000))
    for path, count, status in (("/sessions/me", 9_000, 200), ("/x", 9_000, 200), ("/x", 12_000, 414)):
        query = "&".join(f"k{number}" for number in range(count))
        async with raw_client(front.url) as client:
            await client.send(request(authorization(), start=f"GET {path}?{query} HTTP/1.1"))
            async with asyncio.timeout(HANG_SECONDS):
                assert (await answer(client))[0] == status

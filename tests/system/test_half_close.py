"""Clients of a running sidecar that close their sending side after a whole request, as `nc -N` does (rule 3.20)."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.servers import RawClient, RawConnection, RawRequest, raw_client
from tests.system.sidecar import Backend, Sidecar, Store, eventually, sidecar, someone, token
from tests.system.streaming import CHUNKED, EVENTS


class Slow:
    """A backend that answers once `go` is set; `given_up` counts answers that it could not give."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = self.given_up = 0

    async def until(self, *, asked: int = 0, given_up: int = 0) -> None:
        await asyncio.to_thread(eventually, lambda: self.asked >= asked and self.given_up >= given_up)

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        self.asked += 1
        gone = asyncio.create_task(connection.gone())
        while not self.go.is_set() and not gone.done():
            await asyncio.wait({gone}, timeout=0.02)
        left = gone.done()
        gone.cancel()
        await asyncio.wait({gone})
        if left:
            self.given_up += 1
        elif request.target == b"/events":
            await connection.write(EVENTS + b"d\r\ndata: hello\n\n\r\n" * 3 + b"0\r\n\r\n")
        elif request.target == b"/stream":
            await connection.write(CHUNKED)
            for _ in range(200):
                await connection.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await connection.write(b"0\r\n\r\n")
        else:
            await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole")


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Slow, Backend]]:
    script = Slow()
    with Backend(script) as backend:
        yield script, backend


@pytest.fixture
def slow(shared: tuple[Slow, Backend]) -> Slow:
    script, _ = shared
    script.go.clear()
    script.asked = script.given_up = 0
    return script


@pytest.fixture(scope="module")
def front(store: Store, shared: tuple[Slow, Backend]) -> Iterator[Sidecar]:
    with sidecar(shared[1].url, redis_url=store.url) as running:
        yield running


def asking(target: str, token: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: a", f"Authorization: Bearer {token}", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def half_closed(url: str, data: bytes) -> AsyncIterator[RawClient]:
    async with raw_client(url) as client:
        await client.half_close(data)
        yield client


async def test_twenty_of_twenty_ends_are_carried_out_and_answered(front: Sidecar, store: Store) -> None:
    for _ in range(20):
        user = someone()
        mine = token(user)
        async with half_closed(front.url, asking("/sessions/all", mine, method="DELETE")) as client:
            answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["success"] is True
        assert store.live(user) == 0


async def test_own_endpoints_always_answer(front: Sidecar) -> None:
    mine = token(someone())
    for data in (
        asking("/sessions/me", mine),
        asking("/sessions/me", mine, "Expect: 100-continue"),
        asking("/_gatekeeper/openapi.json", mine),
        asking("/nothing", "x"),
        asking("/api/sessions/x", mine, method="DELETE", body=b"{}"),
        asking("/sessions/logout", mine, method="DELETE"),
    ):
        async with half_closed(front.url, data) as client:
            answer = await client.rest()
        assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (data, answer)
        assert answer.partition(b"\r\n\r\n")[2]


FORWARDED = [
    ("GET", "/plain", [], b"", b"whole"),
    ("POST", "/plain", [], b"body", b"whole"),
    ("GET", "/plain", ["TE: trailers", "Connection: TE"], b"", b"whole"),
    ("GET", "/stream", [], b"", b"\r\n0\r\n\r\n"),
    ("GET", "/events", ["Accept: text/event-stream"], b"", b"\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize(("method", "target", "lines", "body", "end"), FORWARDED)
async def test_what_is_forwarded_waits_for_the_backend_and_comes_back_whole(
    front: Sidecar,
    slow: Slow,
    method: str,
    target: str,
    lines: list[str],
    body: bytes,
    end: bytes,
) -> None:
    mine = token(someone())
    # The first request of a token takes the way of the application, the second the direct one.
    for asked in (1, 2):
        slow.go.clear()
        async with half_closed(front.url, asking(target, mine, *lines, method=method, body=body)) as client:
            await slow.until(asked=asked)
            await asyncio.sleep(0.1)
            slow.go.set()
            answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close\r\n" in answer.lower()
        assert answer.endswith(end)
    assert slow.given_up == 0


async def test_a_pipeline_is_answered_to_its_last_request(front: Sidecar, slow: Slow) -> None:
    mine = token(someone())
    slow.go.set()
    one = asking("/plain", mine)
    async with half_closed(front.url, one + asking("/sessions/me", mine) + one) as client:
        answer = await client.rest()
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.lower().count(b"connection: close") == 1


async def test_a_body_that_is_cut_short_is_400_and_reaches_nobody_whole(front: Sidecar, slow: Slow) -> None:
    data = asking("/plain", token(someone()), "Content-Length: 10", method="POST") + b"abc"
    async with half_closed(front.url, data) as client:
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()
    assert not slow.go.is_set()
    eventually(lambda: slow.given_up == slow.asked)


async def test_a_unix_socket_is_the_same(
    store: Store, shared: tuple[Slow, Backend], slow: Slow, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    slow.go.set()
    with sidecar(shared[1].url, redis_url=store.url, listen=f"unix:{path}"):
        for target in ("/plain", "/plain", "/sessions/me"):
            async with half_closed(f"unix:{path}", asking(target, token(someone()))) as client:
                assert (await client.rest()).startswith(b"HTTP/1.1 200 ")
        slow.go.clear()
        asked = slow.asked
        async with half_closed(f"unix:{path}", asking("/plain", token(someone()))):
            await slow.until(asked=asked + 1)
        # The other side is closed altogether, which shows on a Unix socket.
        await slow.until(given_up=1)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_client_that_then_vanishes_cancels_the_request_to_the_backend(
    front: Sidecar, slow: Slow, times: int
) -> None:
    mine = token(someone())
    for asked in range(1, times + 1):
        async with half_closed(front.url, asking("/plain", mine)) as client:
            await slow.until(asked=asked)
            client.reset()
        await slow.until(given_up=asked)
    eventually(lambda: front.metric("gatekeeper_http_requests_in_flight") == 0)


async def test_a_handshake_that_is_refused_is_refused_in_words(front: Sidecar) -> None:
    lines = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    async with half_closed(front.url, asking("/ws", "nonsense", *lines, key)) as client:
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "token_invalid"

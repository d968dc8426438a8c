"""A backend over HTTP/2 whose responses break the rules: their clients are told, and no other response is hurt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.servers import RawClient, afetch, raw_client
from tests.system.sidecar import Sidecar, Store, bearer, sidecar, someone, token
from tests.upstream.http2_backend import Asked, ScriptedBackend
from tests.waiting import HANG_SECONDS

_GET = "GET /hostile HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
_POST = "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"


class Hostile:
    """A sidecar, and the backend behind it, whose connection a bystander shares: `bystander` has its head, and its body
    comes at the end."""

    def __init__(self, gate: Sidecar, backend: ScriptedBackend) -> None:
        self.gate = gate
        self.backend = backend
        self.bystander: RawClient
        self.released = asyncio.Event()
        self.does: Callable[[Asked], None] = lambda _: None

    async def __call__(self, asked: Asked) -> None:
        if asked.path() == b"/hostile":
            await asked.complete.wait()
            self.does(asked)
        elif asked.path() == b"/bystander":
            asked.head(200, (b"content-length", b"9"))
            await self.released.wait()
            asked.data(b"bystander", end=True)
        else:
            await asked.complete.wait()
            asked.head()
            asked.data(asked.path(), end=True)


@asynccontextmanager
async def hostile(store: Store) -> AsyncIterator[Hostile]:
    async def script(asked: Asked) -> None:
        await running(asked)

    backend = ScriptedBackend(script)
    async with backend.listening(None) as url:
        with sidecar(url, redis_url=store.url, upstream_http2="prior") as gate:
            running = Hostile(gate, backend)
            async with raw_client(gate.url) as bystander:
                mine = token(someone())
                head = _POST.format(path="/bystander", token=mine)
                await bystander.send(head.encode())
                await bystander.until(b"\r\n\r\n")
                running.bystander = bystander
                yield running
                running.released.set()
                await bystander.send(b"0\r\n\r\n")
                assert await bystander.until(b"bystander") == b"bystander"
    assert len(backend.connections) == 1


def _head(*fields: tuple[bytes, bytes], end: bool = False) -> Callable[[Asked], None]:
    return lambda asked: asked.head(200, *fields, end=end)


def _length(length: bytes, data: bytes, *trailers: tuple[bytes, bytes]) -> Callable[[Asked], None]:
    def does(asked: Asked) -> None:
        asked.head(200, (b"content-length", length))
        asked.data(data, end=not trailers)
        if trailers:
            asked.end(*trailers)

    return does


_LARGE = [(b"x-%d" % number, b"v" * 1000) for number in range(100)]
# Each with whether the client gets the head of the response, before it is broken off.
CASES = {
    "too short": (_length(b"10", b"abc"), True),
    "too short, with trailers": (_length(b"10", b"abc", (b"x-t", b"1")), True),
    "too long": (_length(b"2", b"abc"), True),
    "no body": (_head((b"content-length", b"10"), end=True), False),
    "no length": (_length(b"1x", b"abc"), False),
    "two lengths": (_head((b"content-length", b"3"), (b"content-length", b"4")), False),
    "a header that is none, at the end": (_head((b"X", b"1"), end=True), False),
    "a header of a connection, at the end": (_head((b"connection", b"close"), end=True), False),
    "a head that is too large": (_head(*_LARGE, end=True), False),
}


async def test_a_response_that_breaks_the_rules_ends_no_other(store: Store) -> None:
    async with hostile(store) as world:
        for name, (does, has_begun) in CASES.items():
            world.does = does
            mine = token(someone())
            async with raw_client(world.gate.url) as client, asyncio.timeout(HANG_SECONDS):
                await client.send(
                    b"GET /hostile HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % mine.encode()
                )
                head = await client.until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200" if has_begun else b"HTTP/1.1 502"), (name, head)
                if has_begun:
                    assert await client.rest() in {b"", b"abc"}, name
            answer = await afetch(world.gate.url, "GET", "/mine", [bearer(mine)])
            assert (answer.status, answer.body) == (200, b"/mine"), name


async def test_what_arrives_with_a_broken_head_costs_nobody_s_window(store: Store) -> None:
    """The connection's window, which 100 streams share, is given back for data of streams that have failed."""

    def does(asked: Asked) -> None:
        # In one piece: so the data has arrived when the head is found to be none.
        frames = asked.served.frames
        frames.send_headers(asked.number, [(b":status", b"200"), (b"X", b"1")])
        for _ in range(7):
            frames.send_data(asked.number, bytes(16_384))
        asked.served.flush()

    async with hostile(store) as world:
        world.does = does
        mine = token(someone())
        async with asyncio.timeout(HANG_SECONDS), raw_client(world.gate.url) as client:
            for _ in range(120):
                await client.send(
                    b"GET /hostile HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % mine.encode()
                )
                assert (await client.until(b"}")).startswith(b"HTTP/1.1 502")

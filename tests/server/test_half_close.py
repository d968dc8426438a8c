"""Clients that close their sending side (RFC 9293 section 3.6), as `nc -N` does: what came whole is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.server.house import GET, House, answer, open_house
from tests.servers import raw_client
from tests.waiting import until

_HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def house() -> Iterator[House]:
    with open_house() as house:
        yield house


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET,
        b"\r\n" + GET,
        b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
)
async def test_a_whole_request_is_answered_and_then_the_connection_ends(house: House, request_bytes: bytes) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(request_bytes)
        status, headers, _ = await answer(client)
        assert await client.rest() == b""
    assert status == 200
    # An answer that takes no time may be under way before the end is read.
    assert headers.get("connection", ["close"] if b"/slow" not in request_bytes else []) == ["close"]
    assert house.left == 0


async def test_an_end_that_comes_later_than_the_request_is_the_same(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: house.running == 1)
        await client.half_close(b"")
        assert (await answer(client))[0] == 200
        assert await client.rest() == b""


async def test_pipelined_requests_are_all_answered_and_only_the_last_says_close(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + GET + GET)
        found = [await answer(client) for _ in range(3)]
        assert await client.rest() == b""
    assert [(status, headers.get("connection")) for status, headers, _ in found] == [
        (200, None),
        (200, None),
        (200, ["close"]),
    ]


async def test_an_answer_whose_head_was_sent_before_the_end_is_whole(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"\r\n\r\n")
        await client.half_close(b"")
        received = await client.rest()
    assert received.endswith(b"\r\n0\r\n\r\n")
    assert received.count(b"x" * 65536) == 1000


@pytest.mark.parametrize(
    "part",
    [
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_a_request_that_is_not_whole_is_never_taken_for_one(house: House, before: bytes, part: bytes) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(before + part)
        if before:
            assert (await answer(client))[0] == 200
        await client.until(b"HTTP/1.1 ")
        received = await client.rest()
        while received.startswith(b"100 "):
            received = received.partition(b"HTTP/1.1 ")[2]
    assert received.startswith(b"400 ")
    assert b"connection: close\r\n" in received.lower()
    assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert house.bodies == ([b""] if before else [])


async def test_an_idle_connection_that_ends_is_closed_without_a_word(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(GET)
        await answer(client)
        await client.half_close(b"")
        assert await client.rest() == b""
    async with raw_client(house.url) as client:
        await client.half_close(b"")
        assert await client.rest() == b""
    assert house.refusals == []


async def test_a_client_that_vanishes_after_the_end_is_noticed(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: house.running == 1)
        client.reset()
        await until(lambda: house.running == 0)
    assert house.left == 1


async def test_a_client_that_vanishes_is_noticed_when_writing(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(b"GET /drip HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"x")
    await until(lambda: house.running == 0)
    assert house.left == 1


async def test_a_handshake_is_answered_and_the_socket_then_ends(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.half_close(_HANDSHAKE)
        received = await client.rest()
    assert received.startswith(b"HTTP/1.1 101 ")
    await until(lambda: house.running == 0)
    async with raw_client(house.url) as client:
        await client.half_close(GET + _HANDSHAKE)
        await answer(client)
        assert (await client.rest()).startswith(b"HTTP/1.1 101 ")
    await until(lambda: house.running == 0)


async def test_no_connection_is_left_behind(house: House) -> None:
    async def one(data: bytes) -> None:
        async with raw_client(house.url) as client:
            await client.half_close(data)
            await client.rest()

    await asyncio.gather(*(one(data) for data in [GET, GET[:9], _HANDSHAKE, GET + GET, b""] for _ in range(10)))
    await until(lambda: house.running == 0)
    async with raw_client(house.url) as client:
        await client.send(GET)
        assert (await answer(client))[0] == 200

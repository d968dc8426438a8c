"""Raw bytes over a real socket. Ids in comments are those of docs/attacks.md."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from gatekeeper.server import Limits
from gatekeeper.server.protocol import HttpServerProtocol
from tests.server.house import GET, SMUGGLED, House, answer, open_house
from tests.servers import RawClient, raw_client
from tests.waiting import HANG_SECONDS, until

HOST = b"Host: a\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    with open_house() as house:
        yield house


@pytest.fixture
def house(shared: House) -> House:
    shared.requests.clear()
    shared.bodies.clear()
    shared.refusals.clear()
    shared.left = 0
    return shared


def post(*lines: bytes, body: bytes = b"", path: bytes = b"/") -> bytes:
    return b"POST %b HTTP/1.1\r\n" % path + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"


async def refused(client: RawClient, status: int) -> dict[str, list[str]]:
    """Read an error response of the server and the end of the connection behind it."""
    got, headers, body = await answer(client)
    assert got == status, body
    # RFC 9110 sections 7.8, 15.5.6 and 15.5.22.
    assert headers["connection"] == (["upgrade, close"] if status == 426 else ["close"])
    assert headers.get("upgrade") == (["websocket"] if status == 426 else None)
    assert headers.get("allow") == (["GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"] if status == 405 else None)
    assert headers["cache-control"] == ["no-store"]
    assert headers["x-content-type-options"] == ["nosniff"]
    assert len(headers["x-request-id"]) == len(headers["date"]) == 1
    assert set(json.loads(body)) == {"detail", "code"}
    assert await client.rest() == b""
    return headers


# Malformed: refused, closed, and the application never hears of it


@pytest.mark.parametrize(
    "data",
    [
        # F01
        post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n"),
        post(CHUNKED, b"Content-Length: 4", body=b"0\r\n\r\n"),
        # F02, F03
        post(b"Content-Length: 0", b"Content-Length: 0"),
        post(b"Content-Length: 0, 0"),
        post(b"Content-Length: +0"),
        post(b"Content-Length: "),
        # F04
        post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
        post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
        # F05
        post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
        # F06
        b"POST / HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n0\r\n\r\n",
        # F07
        post(CHUNKED, body=b"3 \r\nabc\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"3\nabc\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"3\r\nabcXX0\r\n\r\n"),
        post(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
        # F08
        post(CHUNKED, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"3;" + b"a" * 70_000 + b"\r\nabc\r\n0\r\n\r\n"),
        # F10
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nX-User-Id: evil\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\r",
        b"\r\n\rX",
        # F11
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n" * 1000 + GET,
        # H11, P0-S4
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        # H13
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: a\r\n\r\n",
        # rule 3.1
        b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
@pytest.mark.parametrize("before", [b"", GET])
async def test_what_is_malformed_is_refused_and_nothing_behind_it_is_read(
    house: House, data: bytes, before: bytes
) -> None:
    async with raw_client(house.url) as client:
        await client.send(before + data + SMUGGLED)
        if before:
            assert (await answer(client))[0] == 200
        await refused(client, 400)
    assert house.paths == ["/"] * bool(before)
    assert [refusal.status for refusal in house.refusals] == [400]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        # P0-S1, H15
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 300_000, 431),
        (b"GET /" + b"a" * 100_000, 414),
        # F19, F20, P0-S19
        (HANDSHAKE.replace(b"13\r\n", b"777\r\n"), 426),
        (HANDSHAKE.replace(b"Version: 13\r\n", b"Version: 13\r\nContent-Length: 35\r\n"), 400),
        (HANDSHAKE.replace(b"GET", b"POST"), 400),
        (HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400),
        (HANDSHAKE + SMUGGLED, 400),
    ],
)
async def test_what_is_refused_for_another_reason(house: House, data: bytes, status: int) -> None:
    async with raw_client(house.url) as client:
        await client.send(data + SMUGGLED)
        headers = await refused(client, status)
    assert house.paths == []
    assert headers.get("sec-websocket-version") == (["13"] if status == 426 else None)


async def test_a_refusal_keeps_the_request_id_and_has_no_body_for_head(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"HEAD / HTTP/1.1\r\nX-Request-Id: mine-1\r\nAccept-Language: fr\r\n\r\n")
        told = await client.rest()
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert told.endswith(b"\r\n\r\n")
    assert b"\r\nX-Request-Id: mine-1\r\n" in told
    (refusal,) = house.refusals
    assert (refusal.method, refusal.target, refusal.scope) == ("HEAD", b"/", None)
    assert (b"accept-language", b"fr") in refusal.headers


async def test_200_megabytes_of_header_are_not_kept(house: House) -> None:
    # P0-S1: the answer comes while the client is still sending, and reaches it.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with raw_client(house.url) as client:
        client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        reading = asyncio.create_task(answer(client))
        block = b"y" * (1 << 20)
        try:
            for _ in range(200):
                client.writer.write(block)
                await client.writer.drain()
        except ConnectionError:
            pass
        assert (await reading)[0] == 431
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB, ours and the client's


# Well-formed, in all ways it can come


async def test_a_request_is_seen_as_it_was_sent(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /a%20b/..;x?q=%41? HTTP/1.1\r\nHost: A\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
        status, headers, _ = await answer(client)
    assert (status, headers["x-request-id"]) == (200, ["app"])
    (scope,) = house.requests
    assert (scope["raw_path"], scope["path"], scope["query_string"]) == (b"/a%20b/..;x", "/a b/..;x", b"q=%41?")
    assert scope["headers"] == [(b"host", b"A"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert scope["client"][0] == "127.0.0.1"


async def test_byte_by_byte(house: House) -> None:
    data = b"\r\n" + post(CHUNKED, body=b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nX-User-Id: admin\r\n\r\n")
    data += post(b"Content-Length: 3", body=b"efg", path=b"/2")
    async with raw_client(house.url) as client:
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            client.writer.write(bytes((byte,)))
            await asyncio.sleep(0.0005)
        assert (await answer(client))[2] == b"/:abcd"
        assert (await answer(client))[2] == b"/2:efg"


async def test_pipelined_requests_are_answered_in_their_order(house: House) -> None:
    paths = [b"/slow", b"/1", b"/early", b"/2", b"/slow", b"/3"]
    data = b"".join(post(b"Content-Length: 2", body=b"xy", path=path) for path in paths)
    async with raw_client(house.url) as client:
        await client.send(data)
        bodies = [(await answer(client))[2] for _ in paths]
    assert bodies == [b"early" if path == b"/early" else path + b":xy" for path in paths]
    assert not house.refusals


async def test_what_is_pipelined_is_bounded_and_not_lost(house: House) -> None:
    request = post(b"Content-Length: 1000", body=b"x" * 1000, path=b"/n")
    async with raw_client(house.url) as client:
        sending = asyncio.create_task(client.send(post(path=b"/slow") + request * 1000))
        assert (await answer(client))[2] == b"/slow:"
        for _ in range(1000):
            assert (await answer(client))[2] == b"/n:" + b"x" * 1000
        await sending


async def test_the_limits_hold_to_the_byte_and_to_the_header(house: House) -> None:
    frame = len(b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n")
    large = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (65536 - frame) + b"\r\n\r\n"
    many = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n"
    async with raw_client(house.url) as client:
        for data in (large, many, large):
            await client.send(data)
            assert (await answer(client))[0] == 200
        await client.send(large.replace(b"X: ", b"X: y"))
        await refused(client, 431)


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS", b"PROPFIND"])
async def test_a_body_that_looks_like_a_request_is_a_body(house: House, method: bytes) -> None:
    # F09
    request = method + b" /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    async with raw_client(house.url) as client:
        await client.send(request + GET)
        assert (await answer(client))[2] == b"/x:" + SMUGGLED
        assert (await answer(client))[2] == b"/:"
    assert house.paths == ["/x", "/"]


async def test_trailers_are_never_seen(house: House) -> None:
    # P0-S2, H07
    async with raw_client(house.url) as client:
        await client.send(post(CHUNKED, body=b"3\r\nabc\r\n"))
        await until(lambda: len(house.requests) == 1)
        before = list(house.requests[0]["headers"])
        await client.send(b"0\r\nX-User-Id: admin\r\nContent-Length: 1\r\nHost: b\r\n\r\n" + GET)
        assert (await answer(client))[2] == b"/:abc"
        assert (await answer(client))[0] == 200
    assert house.requests[0]["headers"] == before
    assert all(name != b"x-user-id" for scope in house.requests for name, _ in scope["headers"])


@pytest.mark.parametrize("trailers", [b"X: y\r\n" * 200, b"X: " + b"y" * 70_000])
async def test_trailers_are_bounded(house: House, trailers: bytes) -> None:
    # P0-S1
    async with raw_client(house.url) as client:
        await client.send(post(CHUNKED, body=b"0\r\n" + trailers))
        await refused(client, 431)
    assert house.bodies == []


async def test_a_chunk_that_is_malformed_later_ends_the_request_that_has_begun(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(post(CHUNKED, body=b"3\r\nabc\r\n"))
        await until(lambda: len(house.requests) == 1)
        await client.send(b"x\r\n" + SMUGGLED)
        await refused(client, 400)
    await until(lambda: house.left == 1)
    assert (house.bodies, house.paths) == ([], ["/"])
    assert house.refusals[0].scope is house.requests[0]


async def test_an_answer_that_has_begun_is_broken_off_and_never_answered_twice(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(post(CHUNKED, body=b"3\r\nabc\r\n", path=b"/begin"))
        await client.until(b"begun\r\n")
        await client.send(b"x\r\n" + SMUGGLED)
        assert await client.rest() == b""
    assert (house.paths, house.refusals) == (["/begin"], [])


# Expect


async def test_a_client_that_asks_is_told_to_continue_when_its_body_is_wanted(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(post(b"Content-Length: 3", b"Expect: 100-continue"))
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await answer(client))[2] == b"/:abc"


async def test_a_client_that_was_not_told_to_continue_is_not_read_on(house: House) -> None:
    # F12, F13: what follows may be the body or the next request.
    async with raw_client(house.url) as client:
        await client.send(post(b"Content-Length: 100", b"Expect: 100-continue", path=b"/early"))
        status, headers, _ = await answer(client)
        assert (status, headers["connection"]) == (200, ["close"])
        await client.send(SMUGGLED)
        assert await client.rest() == b""
    assert house.paths == ["/early"]


async def test_http_1_0_is_never_told_to_continue(house: House) -> None:
    # P0-S4
    async with raw_client(house.url) as client:
        await client.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await asyncio.sleep(0.1)
        await client.send(b"abc")
        assert (await client.rest()).startswith(b"HTTP/1.1 200 ")


# Answers


async def test_http_1_0_closes_unless_asked_and_is_never_sent_chunks(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /unknown-length HTTP/1.0\r\n\r\n")
        told = await client.rest()
    assert told == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"
    async with raw_client(house.url) as client:
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await answer(client))[1]["connection"] == ["keep-alive"]
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await answer(client))[1]["connection"] == ["close"]
        assert await client.rest() == b""


async def test_close_is_close(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + SMUGGLED)
        assert (await answer(client))[1]["connection"] == ["close"]
        assert await client.rest() == b""
    assert house.paths == ["/"]


async def test_head_has_no_body_and_the_next_answer_is_the_next(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        assert b"content-length: 3\r\n" in await client.until(b"\r\n\r\n")
        assert (await answer(client))[2] == b"/:"


async def test_a_small_body_that_nobody_read_is_read_over(house: House) -> None:
    # F14
    async with raw_client(house.url) as client:
        await client.send(post(b"Content-Length: 100000", path=b"/early"))
        assert (await answer(client))[2] == b"early"
        await client.send(b"x" * 100_000 + GET)
        assert (await answer(client))[2] == b"/:"


async def test_a_large_body_that_nobody_reads_ends_the_connection_behind_a_whole_answer(house: House) -> None:
    # F14
    async with raw_client(house.url) as client:
        sending = asyncio.create_task(client.send(post(CHUNKED, path=b"/early") + b"1400000\r\n" + b"x" * (20 << 20)))
        assert (await answer(client))[2] == b"early"
        assert await client.rest() == b""
        await asyncio.gather(sending, return_exceptions=True)
    assert house.paths == ["/early"]


async def test_an_application_that_fails_is_answered_for_in_our_words(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n")
        await refused(client, 500)
    async with raw_client(house.url) as client:
        await client.send(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.rest()).endswith(b"\r\n5\r\nbegun\r\n")


async def test_a_failure_does_not_look_like_an_end_to_http_1_0(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(b"GET /half HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()


# Time


async def test_a_connection_of_age_says_so_with_its_next_response_and_ends() -> None:
    with open_house(Limits(keepalive_max_age=1.0)) as house:
        async with raw_client(house.url) as client:
            said: list[str] = []
            while not said:
                await client.send(GET)
                status, headers, _ = await answer(client)
                assert status == 200
                said = headers.get("connection", [])
                await asyncio.sleep(0.05)
            assert said == ["close"]
            assert await client.rest() == b""
        assert len(house.requests) > 1
        async with raw_client(house.url) as client:
            await client.send(GET)
            assert "connection" not in (await answer(client))[1]
            # An idle one ends too.
            assert await client.rest() == b""


async def test_slow_heads_are_cut_at_the_timer_whatever_trickles_in() -> None:
    # P0-S5, D01
    with open_house(Limits(header_timeout=0.2, keepalive_timeout=600)) as house:
        for begin in (b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n"):
            async with raw_client(house.url) as client:
                started = time.monotonic()
                await client.send(begin)
                trickling = asyncio.create_task(_trickle(client, b"X: y\r\n" if begin.endswith(b"\n") else b""))
                await refused(client, 408)
                assert time.monotonic() - started > 0.15
                trickling.cancel()
        assert house.requests == []


async def _trickle(client: RawClient, data: bytes) -> None:
    while data:
        await asyncio.sleep(0.02)
        client.writer.write(data)


async def test_the_timer_of_the_next_head_begins_with_its_first_byte() -> None:
    with open_house(Limits(header_timeout=0.2, keepalive_timeout=600)) as house:
        async with raw_client(house.url) as client:
            await client.send(GET)
            assert (await answer(client))[0] == 200
            await asyncio.sleep(0.4)
            started = time.monotonic()
            await client.send(GET[:-2])
            await refused(client, 408)
            assert time.monotonic() - started > 0.15


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    with open_house(Limits(keepalive_timeout=2)) as house:
        async with raw_client(house.url) as client:
            for _ in range(3):
                await client.send(GET)
                assert (await answer(client))[0] == 200
                await asyncio.sleep(1.1)  # twice that is more than is allowed at a time
            assert await client.rest() == b""
        assert house.refusals == []


@pytest.mark.parametrize(
    "begin", [post(b"Content-Length: 5", body=b"ab"), post(CHUNKED, body=b"5\r\nab"), post(CHUNKED)]
)
async def test_silence_inside_a_body_is_408(begin: bytes) -> None:
    # D01
    with open_house(Limits(body_timeout=0.3)) as house:
        async with raw_client(house.url) as client:
            await client.send(begin)
            await refused(client, 408)
        await until(lambda: house.left == 1)


async def test_a_slow_body_is_no_silence() -> None:
    with open_house(Limits(body_timeout=2)) as house:
        async with raw_client(house.url) as client:
            await client.send(post(b"Content-Length: 5"))
            for _ in range(5):
                await asyncio.sleep(0.5)
                await client.send(b"x")
            assert (await answer(client))[2] == b"/:xxxxx"


async def test_silence_inside_a_body_breaks_off_an_answer_that_has_begun() -> None:
    with open_house(Limits(body_timeout=0.2)) as house:
        async with raw_client(house.url) as client:
            await client.send(post(b"Content-Length: 5", path=b"/begin"))
            assert (await client.rest()).endswith(b"\r\n5\r\nbegun\r\n")
        await until(lambda: house.left == 1)
        assert house.refusals == []


async def test_a_client_is_not_blamed_for_an_application_that_does_not_read() -> None:
    with open_house(Limits(body_timeout=1, header_timeout=1)) as house:
        house.slow_seconds = 2.0
        async with raw_client(house.url) as client:
            data = post(b"Content-Length: 1000000", body=b"x" * 1_000_000, path=b"/slow")
            sending = asyncio.create_task(client.send(data))
            assert (await answer(client))[2] == b"/slow:" + b"x" * 1_000_000
            await sending
            # Nor for a body that it was not told to send yet.
            await client.send(post(b"Content-Length: 1", b"Expect: 100-continue", path=b"/slow"))
            await client.until(b"100 Continue\r\n\r\n")
            await client.send(b"x")
            assert (await answer(client))[0] == 200


async def test_a_client_that_stops_reading_is_given_up() -> None:
    # D01
    with open_house(Limits(write_timeout=0.2)) as house:
        async with raw_client(house.url) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: house.requests)
            await until(lambda: house.running == 0)


# Sizes


@pytest.mark.parametrize(
    "data",
    [
        post(b"Content-Length: 11"),
        post(b"Content-Length: 11", b"Expect: 100-continue"),
        post(CHUNKED, body=b"b\r\n"),
        post(CHUNKED, body=b"a\r\n0123456789\r\n1\r\n"),
    ],
)
async def test_a_body_over_its_limit_is_413(data: bytes) -> None:
    with open_house(Limits(max_body_bytes=10)) as house:
        async with raw_client(house.url) as client:
            await client.send(post(b"Content-Length: 10", body=b"0123456789") + data)
            assert (await answer(client))[2] == b"/:0123456789"
            await refused(client, 413)
        assert house.bodies == [b"0123456789"]


async def test_connections_over_the_limit_are_refused_and_leave_room_when_they_go() -> None:
    # D02
    with open_house(Limits(max_connections=20)) as house:
        kept = [await asyncio.open_connection("127.0.0.1", _port(house)) for _ in range(20)]
        for _ in range(200):
            async with raw_client(house.url) as client:
                try:
                    assert await client.rest() == b""
                except ConnectionResetError:
                    continue
        for reader, writer in kept:
            writer.write(GET)
            assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
            writer.close()
        await until(partial(_is_served, house))


async def _is_served(house: House) -> bool:
    try:
        async with raw_client(house.url) as client:
            await client.send(GET)
            return (await answer(client))[0] == 200
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


def _port(house: House) -> int:
    return int(house.url.rpartition(":")[2])


async def test_connections_that_break_off_anywhere_leave_nothing_behind(house: House) -> None:
    # D09, C2, F23
    data = post(CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n", path=b"/slow")
    gc.collect()
    before = (_connections(_port(house)), _protocols())
    for cut in range(len(data) + 1):
        connection = socket.create_connection(("127.0.0.1", _port(house)))
        connection.sendall(data[:cut])
        if cut % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    await until(lambda: _connections(_port(house)) <= before[0])
    await until(lambda: house.running == 0)
    await until(lambda: _protocols() <= before[1])
    assert house.bodies in ([], [b"abc"])


def _connections(port: int) -> int:
    """Counts the sockets of this process at a port: others open and close theirs meanwhile."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(file.name))) as copy:
            found += copy.getsockname()[1:2] == (port,)
    return found


def _protocols() -> int:
    gc.collect()
    return sum(isinstance(thing, HttpServerProtocol) for thing in gc.get_objects())


# WebSockets and the end


async def test_a_websocket_is_handed_over(house: House) -> None:
    async with raw_client(house.url) as client:
        await client.send(GET + HANDSHAKE)
        assert (await answer(client))[0] == 200
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await client.send(b"\x81\x82\x00\x00\x00\x00hi")
        assert await client.reader.readexactly(4) == b"\x81\x02hi"
    scope = house.requests[-1]
    assert (scope["type"], scope["path"]) == ("websocket", "/ws")
    assert [name for name, _ in scope["headers"]][:2] == [b"host", b"upgrade"]


async def test_another_upgrade_is_passed_over(house: House) -> None:
    # F18
    async with raw_client(house.url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + GET)
        assert (await answer(client))[0] == 200
        assert (await answer(client))[0] == 200


async def test_the_end_of_the_server_waits_for_answers_and_for_nothing_else() -> None:
    with open_house(timeout_graceful_shutdown=int(HANG_SECONDS)) as house:
        port = _port(house)
        idle, half, busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        idle[1].write(GET)
        assert await idle[0].readuntil(b"/:")
        half[1].write(GET[:10])
        busy[1].write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: "/slow" in house.paths)
    for reader, writer in (idle, half):
        assert await reader.read() == b""
        writer.close()
    told = await busy[0].read()
    busy[1].close()
    assert told.endswith(b"/slow:")
    assert b"connection: close\r\n" in told.lower()

"""Forwarding by the proxy on real sockets, in front of a backend that records the bytes it receives."""

from __future__ import annotations

import asyncio

import pytest

from tests.forward.chain import GET, chain, raw_chain
from tests.servers import OK, RawConnection, RawRequest, afetch, raw_client


# P0-S6, X23
@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb/../c",
        "/public/../admin",
        "/a/./b//c",
        "//evil.example/x",
        "/%2e%2e/%c3%a9?q=%2F&q=a+b&;=%00",
        "/a;b=c/d:e@f!$&'()*,",
        "/x?y?z=/../",
        "/~%7E%41",
        "/%zz",
    ],
)
async def test_the_backend_is_sent_the_bytes_of_the_path_and_query(target: str) -> None:
    async with chain() as made:
        await afetch(made.url, "GET", target)

        assert made.backend.requests[0].target == target.encode()


# P0-S10, X14, X18, H16
async def test_no_header_is_added_and_none_is_changed() -> None:
    async with raw_chain() as (made, client):
        lines = [
            b"Host: Shop.Example:81",
            b"X-B: 1",
            b"Accept-Encoding: br",
            b"X-A: caf\xe9 \xff",
            b"X-B: 2",
            b"X-Empty:",
            b"Cookie: a=1",
            b"Cookie: b=2",
        ]
        await client.send(b"GET / HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
        await client.until(b"ok")

        assert made.backend.requests[0].headers == [
            (b"host", b"Shop.Example:81"),
            (b"x-b", b"1"),
            (b"accept-encoding", b"br"),
            (b"x-a", b"caf\xe9 \xff"),
            (b"x-b", b"2"),
            (b"x-empty", b""),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"x-forwarded-for", b"127.0.0.1"),
            (b"x-real-ip", b"127.0.0.1"),
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-host", b"Shop.Example:81"),
            (b"x-forwarded-port", b"81"),
        ]


# H04, H05
async def test_connection_changes_neither_framing_nor_identity() -> None:
    async with raw_chain() as (made, client):
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, Host, x-USER-id, X-Forwarded-For\r\n"
            b"X-User-Id: 74\r\nContent-Length: 3\r\n\r\nabc"
        )
        await client.until(b"ok")

        request = made.backend.requests[0]
        assert request.body == b"abc"
        assert request.get_all(b"x-user-id") == [b"74"]
        assert request.get_all(b"host") == [b"a"]
        assert request.get_all(b"connection") == []
        assert request.get_all(b"x-forwarded-for") == [b"127.0.0.1"]


# F15
async def test_a_length_stays_a_length_and_chunks_are_framed_anew() -> None:
    async with chain() as made:
        await afetch(made.url, "POST", "/", body=b"whole")
        await afetch(made.url, "POST", "/", body=[b"two ", b"parts"])
        await afetch(made.url, "POST", "/", body=b"")

        whole, parts, empty = made.backend.requests
        assert (whole.get_all(b"content-length"), whole.get_all(b"transfer-encoding")) == ([b"5"], [])
        assert whole.body == b"whole"
        assert (parts.get_all(b"content-length"), parts.get_all(b"transfer-encoding")) == ([], [b"chunked"])
        assert parts.body.endswith(b"parts\r\n0\r\n\r\n")
        assert (empty.get_all(b"content-length"), empty.body) == ([b"0"], b"")


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "POST", "PUT"])
async def test_without_a_body_none_is_announced(method: str) -> None:
    async with raw_chain() as (made, client):
        await client.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await client.until(b"ok")

        assert made.backend.requests[0].get_all(b"content-length") == []
        assert made.backend.requests[0].get_all(b"transfer-encoding") == []


# X22
async def test_a_client_of_http_1_0_without_host_is_served() -> None:
    async with raw_chain() as (made, client):
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")

        assert (await client.rest()).endswith(b"\r\n\r\nok")
        assert made.backend.requests[0].get_all(b"host") == [made.backend.url.removeprefix("http://").encode()]


# X15, H17, P0-S8
async def test_an_answer_passes_with_its_order_and_repetition_and_no_cookie_is_kept() -> None:
    answer = (
        b"HTTP/1.1 200 Fine\r\nServer: Backend\r\nSet-Cookie: a=1\r\nVary: x\r\nSet-Cookie: b=2\r\nVary: y\r\n"
        b"X-Request-Id: theirs\r\nX-Bytes: \xe9\r\nContent-Length: 2\r\n\r\nok"
    )
    async with chain(answer) as made:
        first = await afetch(made.url)
        await afetch(made.url)

        assert first.headers == [
            ("server", "Backend"),
            ("set-cookie", "a=1"),
            ("vary", "x"),
            ("set-cookie", "b=2"),
            ("vary", "y"),
            ("x-bytes", "\xe9"),
            ("content-length", "2"),
        ]
        assert made.backend.requests[1].get_all(b"cookie") == []


# X01
async def test_the_answer_to_head_keeps_its_length_and_has_no_body() -> None:
    async with raw_chain(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n") as (made, client):
        for _ in range(2):
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"Content-Length: 1000000\r\n" in await client.until(b"\r\n\r\n")

        assert made.backend.connections == 1


# X02
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nETag: x\r\n\r\n",
    ],
)
async def test_answers_without_a_body_end_with_their_head(answer: bytes) -> None:
    async with raw_chain(answer) as (_, client):
        await client.send(GET)
        head = await client.until(b"\r\n\r\n")
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        again = await client.rest()

        assert b"content-length" not in head.lower()
        assert b"transfer-encoding" not in head.lower()
        assert again.startswith(head.split(b"\r\n")[0])
        assert again.endswith(b"\r\n\r\n")


# X03
async def test_interim_answers_are_not_taken_for_the_answer() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    async with chain(interim + OK) as made, raw_client(made.url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        _, _, answer = (await client.rest()).rpartition(b"HTTP/1.1 ")
        assert answer.startswith(b"200 ")
        assert answer.endswith(b"\r\n\r\nok")


# X09
async def test_an_answer_that_ends_with_its_connection_is_framed_anew() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        connection.close()

    async with chain(script) as made:
        answer = await afetch(made.url)

        assert answer.body == b"all of it"
        assert answer.get_all("transfer-encoding") == ["chunked"]


# X10
async def test_every_part_of_a_stream_arrives_when_it_is_sent() -> None:
    proceed = asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            await proceed.wait()
            proceed.clear()
            await connection.write(b"data: %d\n\n" % number)
        connection.close()

    async with raw_chain(script) as (_, client):
        await client.send(GET)
        await client.until(b"\r\n\r\n")
        for number in range(3):
            proceed.set()
            assert b"data: %d\n\n" % number in await client.until(b"\n\n\r\n")
        assert await client.until(b"0\r\n\r\n")


# X04
async def test_a_client_that_waits_for_100_is_told_to_go_on() -> None:
    async with raw_chain() as (made, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        await client.until(b"ok")

        assert made.backend.requests[0].body == b"abc"
        assert made.backend.requests[0].get_all(b"expect") == [b"100-continue"]


# F12
async def test_a_client_that_waits_for_100_is_not_told_when_nothing_can_take_the_body() -> None:
    async with raw_chain(url="http://127.0.0.1:1") as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")

        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 502")


async def test_the_time_until_the_head_is_told() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await asyncio.sleep(0.1)
        await connection.write(OK)

    async with chain(script) as made:
        await afetch(made.url)

        assert 0.1 <= made.upstream_seconds[0] < 1
        assert made.guarded.scopes[-1]["state"]["upstream_seconds"] == made.upstream_seconds[0]

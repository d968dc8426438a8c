"""Backends that answer early, break off, fall silent or fail, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.http import Proxy, ResponseTruncated
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.upstream.http1_client import Http1Upstream
from tests.forward.chain import CHUNKED, GET, chain, raw_chain
from tests.servers import RawConnection, RawRequest, RecordingBackend, Script, afetch, raw_client
from tests.waiting import HANG_SECONDS


# X04, B5
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_an_early_answer_arrives_while_the_body_is_still_going_up(framing: bytes, interim: bytes) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(interim)
        await connection.read(3)
        await connection.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await connection.gone()
        connection.close()

    async with raw_chain(script, read_bodies=False) as (made, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n3\r\nabc\r\n")

        assert (await client.until(b"\r\n\r\nbig")).startswith(b"HTTP/1.1 413")
        assert made.error_kinds == []
        # The connection whose request was not completed never serves another.
        assert (await afetch(made.url, "POST", "/", body=b"abc")).status == 413
        assert made.backend.connections == 2


# B5
async def test_an_early_answer_survives_a_backend_that_then_resets() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await connection.read(1)
        await asyncio.sleep(0.02)
        connection.reset()

    async with chain(script, read_bodies=False) as made:
        for _ in range(20):
            async with raw_client(made.url) as client:
                await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000)
                assert (await client.until(b"\r\n\r\nbig")).startswith(b"HTTP/1.1 413")


# F23
async def test_half_a_body_is_never_made_a_whole_one() -> None:
    finished = asyncio.Event()
    seen = b""

    async def script(connection: RawConnection, request: RawRequest) -> None:
        nonlocal seen
        while part := await connection.read(65536):
            seen += part
        finished.set()

    async with raw_chain(script, read_bodies=False) as (made, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(0.1)
        client.writer.transport.abort()
        async with asyncio.timeout(HANG_SECONDS):
            await finished.wait()
        await made.ended(1)

        assert seen == b"3\r\nabc\r\n"
        assert made.guarded.errors == []


# X07
@pytest.mark.parametrize("head", [b"", CHUNKED, CHUNKED + b"3\r\nabc\r\n"], ids=["no head", "head", "part of a body"])
async def test_when_the_client_leaves_the_backend_is_left(head: bytes) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(head)
        asked.set()
        await connection.gone()
        gone.set()

    async with raw_chain(script) as (made, client):
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        await asked.wait()
        await asyncio.sleep(0.05)
        client.reset()
        async with asyncio.timeout(HANG_SECONDS):
            await gone.wait()
        await made.ended(1)
        assert made.guarded.errors == []


# X04, X07
async def test_a_client_that_leaves_its_upload_for_an_early_answer_is_noticed() -> None:
    answered, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await asyncio.sleep(0.2)  # the upload is stuck by now, for nobody reads it
        await connection.write(CHUNKED)
        await answered.wait()
        await connection.gone()
        gone.set()

    async with raw_chain(script, read_bodies=False) as (made, client):
        client.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 19_999_999)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        client.writer.transport.abort()
        answered.set()
        async with asyncio.timeout(HANG_SECONDS):
            await gone.wait()
        await made.ended(1)


# X08, B3
@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize(
    "part",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n", CHUNKED + b"a\r\nabc"],
    ids=["length", "between chunks", "within a chunk"],
)
async def test_an_answer_that_breaks_off_has_no_clean_end(part: bytes, ending: str) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(part)
        await asyncio.sleep(0.1)
        getattr(connection, ending)()

    async with raw_chain(script) as (made, client):
        await client.send(GET)
        received = await client.rest()

        assert b"abc" in received
        assert not received.endswith(b"0\r\n\r\n")
        assert [type(error) for error in made.guarded.errors] == [ResponseTruncated]
        assert made.error_kinds == ["reset"]


async def test_a_stream_that_falls_silent_is_cut_and_one_that_speaks_may_last() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(CHUNKED)
        for _ in range(5):
            await asyncio.sleep(0.5)  # altogether longer than silence may last
            await connection.write(b"1\r\nx\r\n")
        await connection.gone()

    async with raw_chain(script, timeout_seconds=2) as (made, client):
        await client.send(GET)
        received = await client.rest()

        assert received.count(b"1\r\nx\r\n") == 5
        assert not received.endswith(b"0\r\n\r\n")
        assert made.error_kinds == ["timeout"]


# B1, B2, B3, B6
async def _silent(connection: RawConnection, request: RawRequest) -> None:
    await connection.gone()


async def _reset(connection: RawConnection, request: RawRequest) -> None:
    connection.reset()


async def _close(connection: RawConnection, request: RawRequest) -> None:
    connection.close()


async def _cut_head(connection: RawConnection, request: RawRequest) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nX-A")
    connection.close()


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        (_silent, 504, "timeout"),
        (_reset, 502, "reset"),
        (_close, 502, "reset"),
        (_cut_head, 502, "reset"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 502, "protocol"),
        (b"HTTP/1.1 200 OK\r\nX-A: a\rb\x00\r\n\r\n", 502, "protocol"),
        (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 300_000 + b"\r\n\r\n", 502, "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502, "protocol"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, "protocol"),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", 502, "protocol"),
    ],
)
async def test_a_backend_that_fails_before_it_answers_is_named(answer: bytes | Script, status: int, kind: str) -> None:
    async with chain(answer, timeout_seconds=0.3 if kind == "timeout" else HANG_SECONDS) as made:
        assert (await afetch(made.url)).status == status
        assert made.error_kinds == [kind]
        assert isinstance(made.guarded.errors[0], UpstreamTimeout if kind == "timeout" else UpstreamUnavailable)


# B1
async def test_a_backend_that_cannot_be_reached_is_named() -> None:
    async with chain(url="http://127.0.0.1:1") as made:
        assert (await afetch(made.url)).status == 502
        assert made.error_kinds == ["connect"]


async def test_cancellation_from_outside_is_not_swallowed() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        asked.set()
        await connection.gone()
        gone.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b"", "headers": [(b"host", b"a")]}
    async with RecordingBackend(script) as backend:
        proxy = Proxy(Http1Upstream(backend.url), trusted_proxies=TrustedProxies([]))
        call = asyncio.create_task(proxy(scope, receive, send))
        await asked.wait()
        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(HANG_SECONDS):
            await gone.wait()

"""The server's extensions of ASGI, with raw bytes over a real socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gatekeeper.server import EXTENSION
from tests.server.house import GET
from tests.servers import raw_client, serve_asgi

Application = Callable[[Any, Any], Awaitable[None]]
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
EARLY = {"type": "gatekeeper.http.informational", "status": 103, "headers": [(b"link", b"</a>")]}


@contextmanager
def serving(answer: Application) -> Iterator[tuple[str, list[Any], list[Exception]]]:
    """Run an application that responds as `answer` says. Yields its URL, its scopes, and the errors it got."""
    scopes: list[Any] = []
    faults: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        scopes.append(scope)
        try:
            await answer(receive, send)
        except Exception as fault:
            faults.append(fault)
            raise

    with serve_asgi(app) as url:
        yield url, scopes, faults


def start(status: int = 200, headers: Any = (), **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def part(body: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


def sends(*messages: dict[str, Any]) -> Application:
    async def answer(_: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return answer


async def response_to(url: str, data: bytes) -> bytes:
    """Return the response to `data` and all bytes after it."""
    async with raw_client(url) as client:
        await client.send(data)
        return await client.rest()


CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("target", [b"/", b"/x?", b"/x??", b"/a%20b?q=%41", b"/a?b?c"])
async def test_the_target_is_told_as_it_was_sent(target: bytes) -> None:
    # X23
    with serving(sends(start(), part())) as (url, scopes, _):
        await response_to(url, CLOSING.replace(b"GET / ", b"GET %b " % target))
    assert scopes[0]["extensions"][EXTENSION]["target"] == target
    assert scopes[0]["extensions"]["http.response.trailers"] == {}


async def test_a_reason_phrase_is_passed_and_one_is_made_where_there_is_none() -> None:
    for more, line in (
        ({"reason": b"Fine by me"}, b"200 Fine by me"),
        ({"reason": b""}, b"200 "),
        ({"reason": None}, b"200 OK"),
        ({}, b"200 OK"),
    ):
        with serving(sends(start(**more), part())) as (url, _, _):
            assert (await response_to(url, CLOSING)).startswith(b"HTTP/1.1 %b\r\n" % line)


@pytest.mark.parametrize("reason", [b"a\rb", b"a\r\nX: y", b"\x00", b"\x1b"])
async def test_a_reason_phrase_cannot_end_its_line(reason: bytes) -> None:
    # H18
    with serving(sends(start(reason=reason), part())) as (url, _, faults):
        answered = await response_to(url, CLOSING)
    assert answered.startswith(b"HTTP/1.1 500 ")
    assert isinstance(faults[0], RuntimeError)


@pytest.mark.parametrize(
    "headers",
    [[(b"x", b"a\r\nSet-Cookie: b")], [(b"x", b"a\nb")], [(b"x", b"\x00")], [(b"x\r\ny", b"a")], [(b"x:", b"a")]],
)
async def test_a_header_of_an_answer_cannot_end_its_line(headers: list[tuple[bytes, bytes]]) -> None:
    # H18
    for messages in ((start(headers=headers), part()), ({**EARLY, "headers": headers}, start(), part())):
        with serving(sends(*messages)) as (url, _, _):
            answered = await response_to(url, CLOSING)
        assert answered.startswith(b"HTTP/1.1 500 ")
        assert b"et-Cookie" not in answered


async def test_nothing_is_added_to_an_answer_but_its_framing() -> None:
    # X18
    with serving(sends(start(headers=[(b"ETag", b"a")]), part(b"x"))) as (url, _, _):
        assert await response_to(url, CLOSING) == (
            b"HTTP/1.1 200 OK\r\nETag: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        )


async def test_trailers_are_sent_behind_a_chunked_body() -> None:
    # X13
    messages = (
        start(trailers=True),
        part(b"abc"),
        trailers((b"X-Sum", b"1"), more=True),
        trailers((b"X-More", b"2"), (b"Content-Length", b"3")),
    )
    with serving(sends(*messages)) as (url, _, _):
        answered = await response_to(url, CLOSING)
        assert answered.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n")
        for request in (CLOSING.replace(b"HTTP/1.1", b"HTTP/1.0"), CLOSING.replace(b"GET", b"HEAD")):
            assert b"X-Sum" not in await response_to(url, request)


async def test_trailers_need_to_be_said_and_cannot_end_their_line() -> None:
    for messages in ((start(), part(), trailers()), (start(trailers=True), part(), trailers((b"x", b"a\r\nb: c")))):
        with serving(sends(*messages)) as (url, _, faults):
            assert b"b: c" not in await response_to(url, CLOSING)
        assert isinstance(faults[0], RuntimeError)


async def test_after_trailers_the_connection_is_good_for_the_next_request() -> None:
    with serving(sends(start(trailers=True), part(b"a"), trailers((b"x", b"y")))) as (url, _, _):
        answered = await response_to(url, GET + CLOSING)
    assert answered.count(b"0\r\nx: y\r\n\r\n") == answered.count(b"HTTP/1.1 200 OK\r\n") == 2


async def test_interim_answers_go_to_http_1_1_alone() -> None:
    # X03
    with serving(sends(EARLY, {**EARLY, "status": 102, "headers": []}, start(), part())) as (url, _, _):
        answered = await response_to(url, CLOSING)
        assert answered.startswith(
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200"
        )
        assert (await response_to(url, CLOSING.replace(b"HTTP/1.1", b"HTTP/1.0"))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("status", [99, 101, 200])
async def test_no_other_status_is_interim(status: int) -> None:
    with serving(sends({**EARLY, "status": status}, start(), part())) as (url, _, _):
        assert (await response_to(url, CLOSING)).startswith(b"HTTP/1.1 500 ")


async def test_an_interim_answer_never_follows_the_final_one() -> None:
    with serving(sends(start(), EARLY, part())) as (url, _, faults):
        assert b" 103 " not in await response_to(url, CLOSING)
    assert isinstance(faults[0], RuntimeError)


async def test_a_100_is_told_once_and_only_to_who_waits_for_it() -> None:
    # X04
    async def answer(receive: Any, send: Any) -> None:
        await send({**EARLY, "status": 100})
        await send({**EARLY, "status": 100})
        while (await receive())["more_body"]:
            pass
        await send(start(headers=[(b"content-length", b"0")]))
        await send(part())

    with serving(answer) as (url, _, _):
        async with raw_client(url) as client:
            await client.send(POST + b"Expect: 100-continue\r\n\r\n")
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"0\r\n\r\n")
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await client.send(POST + b"\r\n0\r\n\r\n")
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_trailers_of_a_request_come_with_its_end_and_never_among_its_headers() -> None:
    # P0-S2, H07
    messages: list[Any] = []

    async def answer(receive: Any, send: Any) -> None:
        while True:
            messages.append(await receive())
            if not messages[-1]["more_body"]:
                break
        await send(start())
        await send(part())

    with serving(answer) as (url, scopes, _):
        await response_to(url, POST + b"Connection: close\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1 \r\nX-User-Id: admin\r\n\r\n")
        assert messages[-1]["trailers"] == [(b"X-Sum", b"1"), (b"X-User-Id", b"admin")]
        assert all("trailers" not in message for message in messages[:-1])
        assert [name for name, _ in scopes[0]["headers"]] == [b"host", b"transfer-encoding", b"connection"]
        messages.clear()
        await response_to(url, POST + b"Connection: close\r\n\r\n0\r\n\r\n")
        assert messages == [{"type": "http.request", "body": b"", "more_body": False}]

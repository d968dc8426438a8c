"""The backend over HTTP/2, which it chooses at the TLS handshake, or is known to speak."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from h2.errors import ErrorCodes
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_writer import RequestNotForwardable, serialize_head
from gatekeeper.upstream import coroutines, http2
from gatekeeper.upstream.coroutines import UpstreamResponse
from gatekeeper.upstream.http2 import MAX_STREAMS, Http2Connection
from gatekeeper.upstream.http2_client import Http2Upstream
from gatekeeper.upstream.http2_stream import Http2Request
from gatekeeper.upstream.interface import UpstreamRequest
from tests.servers import RawConnection, RawRequest, RecordingBackend, raw_client, serve_asgi
from tests.upstream.http2_backend import Asked, HttpTwoScript, ScriptedBackend, hypercorn
from tests.upstream.test_http1 import RecordingCallbacks
from tests.upstream.test_upstream import Parts, ask, self_signed
from tests.waiting import HANG_SECONDS

_MEGABYTE = bytes(range(256)) * 4096
HOST: HeaderList = [(b"host", b"a.example:81")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"), "localhost")


def of_server(certificate: Path, alpn: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


@asynccontextmanager
async def upstream_to(url: str, certificate: Path | None, **settings: Any) -> AsyncIterator[Http2Upstream]:
    upstream = Http2Upstream(url, ca_file=None if certificate is None else str(certificate), **settings)
    try:
        yield upstream
    finally:
        await upstream.aclose()


@asynccontextmanager
async def scripted(
    script: HttpTwoScript, certificate: Path, *, max_streams: int = 100, reads: bool = True, **settings: Any
) -> AsyncIterator[tuple[ScriptedBackend, Http2Upstream]]:
    backend = ScriptedBackend(script, max_streams=max_streams, reads=reads)
    async with backend.listening(certificate) as url, upstream_to(url, certificate, **settings) as upstream:
        yield backend, upstream
    assert backend.errors == []


async def send(
    upstream: Http2Upstream,
    method: str = "GET",
    target: bytes = b"/",
    *,
    headers: HeaderList = HOST,
    body: Parts | None = None,
    **more: Any,
) -> UpstreamResponse:
    return await coroutines.send(upstream, UpstreamRequest(method, target, headers, body, **more))


async def whole(response: UpstreamResponse) -> bytes:
    try:
        return b"".join([part async for part in response.body])
    finally:
        await response.aclose()


class Waiting(Parts):
    """A body whose parts arrive when they are put in; None is its end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def __anext__(self) -> bytes:
        if (part := await self.queue.get()) is None:
            raise StopAsyncIteration
        return part


async def ok(asked: Asked) -> None:
    await asked.complete.wait()
    asked.head()
    asked.data(b"ok", end=True)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Respond with what was received, or send what the path names."""
    if scope["type"] != "http":
        return
    size, digest = 0, hashlib.sha256()
    more = scope["method"] != "GET"
    while more:
        message = await receive()
        size += len(message["body"])
        digest.update(message["body"])
        more = message["more_body"]
    status = int(scope["path"][1:]) if scope["path"][1:].isdigit() else 200
    headers = [
        (b"x-version", scope["http_version"].encode()),
        (b"x-received", b"%d %s" % (size, digest.hexdigest().encode())),
        (b"x-query", scope["query_string"]),
        *[(b"x-got", name + b"=" + value) for name, value in scope["headers"]],
        (b"set-cookie", b"b=1"),
        (b"set-cookie", b"a=2"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["path"] == "/large":
        for _ in range(40):
            await send({"type": "http.response.body", "body": _MEGABYTE, "more_body": True})
    if scope["path"] == "/events":
        for number in range(3):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"" if status in (204, 304) else b"end"})


@asynccontextmanager
async def real(certificate: Path, **settings: Any) -> AsyncIterator[Http2Upstream]:
    async with hypercorn(application, certificate, **settings) as url, upstream_to(url, certificate) as upstream:
        yield upstream


# Before a real server


async def test_a_backend_that_offers_http_2_is_spoken_to_in_it_with_the_fields_that_it_allows(
    certificate: Path,
) -> None:
    headers: HeaderList = [
        *HOST,
        (b"x-first", b"1"),
        (b"x-first", b"2"),
        (b"te", b"trailers"),
        (b"connection", b"te"),
        (b"authorization", b"Bearer x"),
        (b"cookie", b"a=b; c=d"),
    ]
    async with real(certificate) as upstream:
        response = await send(upstream, target=b"/a%2Fb?x=%41", headers=headers)
        assert await whole(response) == b"end"
    fields = response.headers
    assert (response.status, response.reason) == (200, b"OK")
    assert (b"x-version", b"2") in fields
    assert (b"x-query", b"x=%41") in fields
    assert [value for name, value in fields if name == b"x-got"] == [
        b"host=a.example:81",
        b"x-first=1",
        b"x-first=2",
        b"te=trailers",
        b"authorization=Bearer x",
        b"cookie=a=b; c=d",
    ]
    assert [value for name, value in fields if name == b"set-cookie"] == [b"b=1", b"a=2"]


async def test_a_backend_that_chooses_http_1_1_is_spoken_to_in_that(certificate: Path) -> None:
    async with real(certificate, alpn_protocols=["http/1.1"]) as upstream:
        for _ in range(2):
            response = await send(upstream)
            assert await whole(response) == b"end"
            assert (b"x-version", b"1.1") in response.headers


@pytest.mark.parametrize("on_unix_socket", [False, True])
async def test_a_backend_that_is_known_to_speak_it_is_not_asked(tmp_path: Path, *, on_unix_socket: bool) -> None:
    path = tmp_path / "s" if on_unix_socket else None
    async with hypercorn(application, path=path) as url, upstream_to(url, None, prior=True) as upstream:
        length = [(b"content-length", b"%d" % len(_MEGABYTE))]
        for _ in range(2):
            response = await send(upstream, "POST", b"/large", headers=HOST + length, body=Parts(_MEGABYTE))
            assert len(await whole(response)) == 40 * len(_MEGABYTE) + 3
            assert (b"x-version", b"2") in response.headers


async def test_a_backend_that_does_not_speak_it_after_all_is_said_to(certificate: Path) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\n\r\n")
        await connection.gone()

    async with RecordingBackend(script) as backend, upstream_to(backend.url, None, prior=True) as upstream:
        with pytest.raises(UpstreamUnavailable, match=r"it speaks HTTP/1\.1") as failed:
            await send(upstream)
        assert failed.value.kind == "protocol"
    async with RecordingBackend(tls=of_server(certificate, "http/1.1")) as backend:
        async with upstream_to(backend.url, certificate, prior=True) as upstream:
            with pytest.raises(UpstreamUnavailable) as failed:
                await send(upstream)
            assert failed.value.kind in ("protocol", "connect")
        assert backend.requests == []


def test_without_tls_there_is_no_choice() -> None:
    with pytest.raises(ValueError):
        Http2Upstream("http://a:1")


@pytest.mark.parametrize("alpn", ["http/1.1", None])
async def test_the_connection_of_the_choice_serves_as_http_1_1(certificate: Path, alpn: str | None) -> None:
    async with (
        RecordingBackend(tls=of_server(certificate, alpn)) as backend,
        upstream_to(backend.url, certificate) as upstream,
    ):
        for _ in range(3):
            assert await ask(upstream) == (200, b"ok")
            assert await ask(upstream, "POST", body=[b"a"]) == (200, b"ok")
        assert backend.connections == 1
        assert upstream.chose_http1


@pytest.mark.parametrize("with_length", [True, False])
async def test_large_bodies_pass_whole_in_both_directions(certificate: Path, *, with_length: bool) -> None:
    length = [(b"content-length", b"%d" % (20 * len(_MEGABYTE)))] if with_length else []
    async with real(certificate) as upstream:
        response = await send(upstream, "POST", b"/large", headers=HOST + length, body=Parts(*[_MEGABYTE] * 20))
        body = await whole(response)
    digest = hashlib.sha256(_MEGABYTE * 20).hexdigest().encode()
    assert (b"x-received", b"%d %s" % (20 * len(_MEGABYTE), digest)) in response.headers
    assert body == _MEGABYTE * 40 + b"end"


async def test_events_come_as_they_are_sent(certificate: Path) -> None:
    async with real(certificate) as upstream:
        response = await send(upstream, target=b"/events")
        parts = [part async for part in response.body]
        await response.aclose()
    assert parts[:3] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", b"/204", 204), ("GET", b"/304", 304), ("HEAD", b"/", 200)]
)
async def test_answers_without_a_body_end(certificate: Path, method: str, target: bytes, status: int) -> None:
    async with real(certificate) as upstream:
        response = await send(upstream, method, target)
        assert (response.status, await whole(response)) == (status, b"")


async def test_a_whole_sidecar_passes_it_all_on_and_knows_when_the_client_leaves(certificate: Path) -> None:
    left = asyncio.Event()

    async def script(asked: Asked) -> None:
        if asked.path() == b"/stream":
            asked.head()
            asked.data(b"one")
            await asked.was_reset.wait()
            left.set()
        else:
            await ok(asked)

    backend = ScriptedBackend(script)
    async with backend.listening(certificate) as url:
        proxy = Proxy(Http2Upstream(url, ca_file=str(certificate)), trusted_proxies=TrustedProxies([]))
        server = serve_asgi(proxy)
        front = await asyncio.to_thread(server.__enter__)
        try:
            async with raw_client(front) as client:
                await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.until(b"one")
                # A plain close could be that of the sending side alone (rule 3.20).
                client.reset()
            async with asyncio.timeout(HANG_SECONDS):
                await left.wait()
            async with raw_client(front) as client:
                await client.send(
                    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                )
                await client.send(b"2\r\nhi\r\n0\r\n\r\n")
                answer = await client.rest()
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert backend.requests[1].body == b"hi"
    assert len(backend.connections) == 1


# Many on one connection


async def test_many_requests_share_a_connection_and_more_than_it_takes_open_another(certificate: Path) -> None:
    together = asyncio.Event()

    async def script(asked: Asked) -> None:
        if len(backend.requests) == 25:
            together.set()
        await together.wait()
        asked.head()
        asked.data(asked.path(), end=True)

    async with scripted(script, certificate, max_streams=10) as (backend, upstream):

        async def one(number: int) -> bytes:
            return await whole(await send(upstream, target=b"/%d" % number))

        async with asyncio.timeout(HANG_SECONDS):
            assert await asyncio.gather(*[one(number) for number in range(25)]) == [b"/%d" % n for n in range(25)]
        assert [len(served.asked) for served in backend.connections] == [10, 10, 5]


async def test_a_backend_that_allows_no_requests_is_not_asked_for_connections_without_end(certificate: Path) -> None:
    async with scripted(ok, certificate, max_streams=0) as (backend, upstream):
        with pytest.raises(UpstreamUnavailable) as failed:
            await send(upstream)
        assert failed.value.kind == "connect"
        assert len(backend.connections) == 1


async def test_who_leaves_resets_its_stream_and_nobody_elses(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/slow":
            asked.head()
            asked.data(b"begun")
            await asked.was_reset.wait()
        elif asked.path() == b"/silent":
            await asked.was_reset.wait()
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        slow = await send(upstream, target=b"/slow")
        silent = asyncio.create_task(send(upstream, target=b"/silent"))
        uploading = asyncio.create_task(send(upstream, "POST", b"/silent", body=(body := Waiting())))
        body.queue.put_nowait(b"part")
        while len(backend.requests) < 3 or not backend.requests[2].body:  # noqa: ASYNC110 - frames come by themselves
            await asyncio.sleep(0.005)
        silent.cancel()
        uploading.cancel()
        await asyncio.wait({silent, uploading})
        await slow.aclose()
        async with asyncio.timeout(HANG_SECONDS):
            for asked in backend.requests:
                await asked.was_reset.wait()
        assert not backend.requests[2].complete.is_set()
        assert body.closed
        assert await ask(upstream) == (200, b"ok")
        assert len(backend.connections) == 1


async def test_answers_that_nobody_reads_are_in_nobodys_way(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() != b"/endless":
            await ok(asked)
            return
        asked.head()
        while not asked.was_reset.is_set():
            if room := min(asked.served.frames.local_flow_control_window(asked.number), 16_000):
                asked.data(b"x" * room)
            await asyncio.sleep(0.001 if room else 0.02)

    async with scripted(script, certificate) as (backend, upstream):
        endless = [await send(upstream, target=b"/endless") for _ in range(MAX_STREAMS - 1)]
        while any(asked.served.frames.local_flow_control_window(asked.number) for asked in backend.requests):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await ask(upstream) == (200, b"ok")
        for response in endless:
            await response.aclose()
        # The window that they held is given back.
        for _ in range(2):
            response = await send(upstream, target=b"/endless")
            size = 0
            async for part in response.body:
                size += len(part)
                if size > 1_000_000:
                    break
            await response.aclose()
        assert len(backend.connections) == 1


async def test_an_upload_goes_on_while_another_stream_is_silent(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/silent":
            asked.head()
            await asked.was_reset.wait()
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        silent = await send(upstream, target=b"/silent")
        reading = asyncio.create_task(whole(silent))
        async with asyncio.timeout(HANG_SECONDS):
            assert await ask(upstream, "POST", body=[_MEGABYTE] * 3, headers=HOST) == (200, b"ok")
        assert len(backend.requests[1].body) == 3 * len(_MEGABYTE)
        reading.cancel()
        await asyncio.wait({reading})


async def test_a_silent_stream_times_out_alone(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/silent":
            return
        asked.head()
        for _ in range(5):
            asked.data(b".")
            await asyncio.sleep(0.5)
        asked.end()

    async with scripted(script, certificate, timeout_seconds=2) as (backend, upstream):
        lively = asyncio.create_task(whole(await send(upstream, target=b"/lively")))
        with pytest.raises(UpstreamTimeout):
            await send(upstream, target=b"/silent")
        assert await lively == b"." * 5
        async with asyncio.timeout(HANG_SECONDS):
            await backend.requests[1].was_reset.wait()
        assert len(backend.connections) == 1


async def test_a_connection_that_fell_silent_altogether_takes_no_more(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/stalls":
            asked.served.transport.pause_reading()
        else:
            await ok(asked)

    async with scripted(script, certificate, timeout_seconds=2) as (backend, upstream):
        assert await ask(upstream) == (200, b"ok")
        with pytest.raises(UpstreamTimeout):
            await send(upstream, target=b"/stalls")
        assert await ask(upstream) == (200, b"ok")
        assert len(backend.connections) == 2


async def test_an_upload_that_the_backend_does_not_take_times_out(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.was_reset.wait()

    async with scripted(script, certificate, reads=False, timeout_seconds=0.3) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await send(upstream, "POST", body=Parts(_MEGABYTE))


# Both directions at once


async def test_an_answer_may_come_while_the_body_goes_up_and_end_after_it(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        asked.head()
        await asked.complete.wait()
        asked.data(asked.body, end=True)

    async with scripted(script, certificate) as (_, upstream):
        body = Waiting()
        response = await send(upstream, "POST", body=body)
        for part in (b"a", b"b", None):
            body.queue.put_nowait(part)
        assert await whole(response) == b"ab"


@pytest.mark.parametrize("resets", [True, False])
async def test_an_early_answer_is_heard_and_ends_the_upload(certificate: Path, *, resets: bool) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/":
            await ok(asked)
            return
        asked.head(413)
        asked.data(b"too large", end=True)
        if resets:
            asked.reset(ErrorCodes.NO_ERROR)

    async with scripted(script, certificate) as (backend, upstream):
        body = Waiting()
        body.queue.put_nowait(b"x")
        response = await send(upstream, "POST", b"/upload", body=body)
        assert (response.status, await whole(response)) == (413, b"too large")
        assert body.closed
        assert await ask(upstream) == (200, b"ok")
        assert len(backend.connections) == 1


async def test_interim_answers_and_trailers_pass_in_both_directions(certificate: Path) -> None:
    on_informational: list[tuple[int, HeaderList]] = []

    async def inform(status: int, headers: HeaderList) -> None:
        on_informational.append((status, headers))

    async def script(asked: Asked) -> None:
        asked.head(100)
        asked.head(103, (b"link", b"</a>"))
        await asked.complete.wait()
        asked.head()
        asked.data(b"ok")
        asked.end((b"x-sum", b"1"))

    async with scripted(script, certificate) as (backend, upstream):
        body = Parts(b"a")
        body.trailers = [(b"x-up", b"2")]
        headers: HeaderList = [*HOST, (b"expect", b"100-continue")]
        response = await send(upstream, "POST", headers=headers, body=body, on_informational=inform)
        assert response.may_have_trailers
        assert await whole(response) == b"ok"
        assert response.trailers == [(b"x-sum", b"1")]
        assert on_informational == [(103, [(b"link", b"</a>")])]
        assert backend.requests[0].trailers == [(b"x-up", b"2")]


# What breaks


@pytest.mark.parametrize("begun", [False, True])
async def test_a_stream_that_the_backend_resets_fails_and_no_other(certificate: Path, *, begun: bool) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/broken":
            if begun:
                asked.head()
                asked.data(b"part")
            asked.reset(ErrorCodes.INTERNAL_ERROR)
        else:
            await asyncio.sleep(0.1)
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        other = asyncio.create_task(ask(upstream))
        with pytest.raises(UpstreamUnavailable) as failed:
            await whole(await send(upstream, target=b"/broken"))
        assert failed.value.kind == "reset"
        assert await other == (200, b"ok")
        assert (len(backend.requests), len(backend.connections)) == (2, 1)


@pytest.mark.parametrize("parts", [None, [], [b"a", b"b" * 1000]])
async def test_a_request_that_the_backend_refused_to_begin_is_sent_again_whole(
    certificate: Path, parts: list[bytes] | None
) -> None:
    async def script(asked: Asked) -> None:
        if len(backend.requests) == 1:
            asked.reset(ErrorCodes.REFUSED_STREAM)
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        assert await ask(upstream, "PUT", body=parts) == (200, b"ok")
        assert [asked.body for asked in backend.requests[1:]] == [b"".join(parts or [])]


async def test_a_body_of_which_a_part_was_let_go_is_never_sent_again(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        while len(asked.body) < 100_000:  # noqa: ASYNC110 - frames come by themselves
            await asyncio.sleep(0.005)
        asked.reset(ErrorCodes.REFUSED_STREAM)

    async with scripted(script, certificate) as (backend, upstream):
        body = Waiting()
        body.queue.put_nowait(b"x" * 100_000)
        with pytest.raises(UpstreamUnavailable):
            await send(upstream, "POST", body=body)
        assert body.closed
        assert len(backend.requests) == 1


async def test_what_is_sent_again_has_the_part_that_came_before_and_what_comes_after(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if len(backend.requests) == 1:
            while asked.body != b"before":  # noqa: ASYNC110 - frames come by themselves
                await asyncio.sleep(0.005)
            asked.reset(ErrorCodes.REFUSED_STREAM)
        else:
            body.queue.put_nowait(b" after")
            body.queue.put_nowait(None)
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        body = Waiting()
        body.queue.put_nowait(b"before")
        assert await whole(await send(upstream, "POST", body=body)) == b"ok"
        assert backend.requests[1].body == b"before after"


async def test_a_body_that_comes_while_its_request_is_sent_again_goes_on(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if len(backend.requests) == 1:
            # Then nothing is open, and another connection takes its time.
            asked.served.going_away(0)
            while upstream._opening is None:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            for part in (b"b", b"c", b"d", None):
                body.queue.put_nowait(part)
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        body = Waiting()
        body.queue.put_nowait(b"a")
        async with asyncio.timeout(HANG_SECONDS):
            assert await whole(await send(upstream, "POST", body=body)) == b"ok"
        assert backend.requests[1].body == b"abcd"


async def test_a_connection_that_winds_up_completes_what_it_began_and_takes_no_more(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/last":
            asked.served.going_away(asked.number)
            await asyncio.sleep(0.1)
        await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        last = asyncio.create_task(whole(await send(upstream, target=b"/last")))
        assert await ask(upstream) == (200, b"ok")
        assert await last == b"ok"
        assert len(backend.connections) == 2


async def test_what_the_backend_never_saw_before_it_went_away_is_sent_again(certificate: Path) -> None:
    async def script(asked: Asked) -> None:
        if len(backend.connections) == 1:
            asked.served.going_away(0)
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        assert await ask(upstream, "POST") == (200, b"ok")
        assert len(backend.connections) == 2


@pytest.mark.parametrize("how", ["close", "goaway", "garbage"])
async def test_a_connection_that_breaks_fails_what_is_on_it_and_the_next_request_opens_another(
    certificate: Path, how: str
) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/":
            await ok(asked)
        elif how == "garbage":
            asked.served.transport.write(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x")  # DATA that belongs to no stream
        else:
            if how == "goaway":
                asked.served.going_away(asked.number, code=int(ErrorCodes.INTERNAL_ERROR))
            asked.served.transport.close()

    async with scripted(script, certificate) as (backend, upstream):
        async with asyncio.timeout(HANG_SECONDS):
            with pytest.raises(UpstreamUnavailable) as failed:
                await send(upstream, target=b"/broken")
            assert failed.value.kind == ("protocol" if how == "garbage" else "reset")
            assert await ask(upstream) == (200, b"ok")
        assert len(backend.requests) == 2


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("POST", 1)])
async def test_only_a_safe_request_is_sent_again_when_a_kept_connection_closes(
    certificate: Path, method: str, times: int
) -> None:
    async def script(asked: Asked) -> None:
        if len(backend.requests) == 2:
            asked.served.transport.close()
        else:
            await ok(asked)

    async with scripted(script, certificate) as (backend, upstream):
        assert await ask(upstream) == (200, b"ok")
        if times == 2:
            assert await ask(upstream, method) == (200, b"ok")
        else:
            with pytest.raises(UpstreamUnavailable):
                await ask(upstream, method)
        assert len(backend.requests) == 1 + times


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a\r\nb: c")],
        [(b"X", b"1")],
        [(b"connection", b"close")],
        [(b"transfer-encoding", b"chunked")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"+1")],
        [(b":other", b"1")],
    ],
)
async def test_a_header_that_http_2_does_not_allow_is_not_passed_on(certificate: Path, headers: HeaderList) -> None:
    async def script(asked: Asked) -> None:
        if asked.path() == b"/":
            await ok(asked)
        else:
            asked.head(200, *headers)

    async with scripted(script, certificate) as (_, upstream):
        with pytest.raises(UpstreamUnavailable) as failed:
            await send(upstream, target=b"/bad")
        assert failed.value.kind == "protocol"
        assert await ask(upstream) == (200, b"ok")


@pytest.mark.parametrize("headers", [[(b"x", b"a\r\nb: c")], [(b":path", b"/b")], [(b"a b", b"c")]])
async def test_what_http_2_does_not_allow_is_the_clients_fault(certificate: Path, headers: HeaderList) -> None:
    async with scripted(ok, certificate) as (backend, upstream):
        with pytest.raises(RequestNotForwardable):
            await send(upstream, headers=HOST + headers)
        assert await ask(upstream) == (200, b"ok")
        assert len(backend.requests) == 1


async def test_names_are_written_in_lower_case_and_values_without_space_around_them(certificate: Path) -> None:
    async with scripted(ok, certificate) as (backend, upstream):
        assert await ask(upstream, headers=[*HOST, (b"Xy", b" c"), (b"x-empty", b"")]) == (200, b"ok")
        assert backend.requests[0].headers[4:] == [(b"xy", b"c"), (b"x-empty", b"")]


@pytest.mark.parametrize("parts", [[b"abc"], [b"a"], []])
async def test_a_body_that_is_not_as_long_as_it_said_never_completes(certificate: Path, parts: list[bytes]) -> None:
    async with scripted(ok, certificate) as (backend, upstream):
        with pytest.raises(RequestNotForwardable):
            await send(upstream, "POST", headers=[*HOST, (b"content-length", b"2")], body=Parts(*parts))
        assert await ask(upstream) == (200, b"ok")
        assert not backend.requests[0].complete.is_set()


# P0-S9, F21
@pytest.mark.parametrize("gap_seconds", [0.0, 0.01])
@pytest.mark.parametrize("surplus", ["data", "head", "data of the next", "head of the next"])
async def test_what_a_stream_sends_after_its_end_is_given_to_nobody(
    certificate: Path, surplus: str, gap_seconds: float
) -> None:
    async def script(asked: Asked) -> None:
        await asked.complete.wait()
        asked.head()
        asked.data(b"for " + asked.path(), end=True)
        number = asked.number + (2 if surplus.endswith("next") else 0)
        frame: Frame = DataFrame(number, b"for /nobody", flags=["END_STREAM"])
        if surplus.startswith("head"):
            # `:status: 200`, out of the static table (RFC 7541).
            frame = HeadersFrame(number, b"\x88", flags=["END_HEADERS"])
        if gap_seconds:
            await asyncio.sleep(gap_seconds)
        asked.served.transport.write(frame.serialize())
        written.set()

    async with scripted(script, certificate) as (backend, upstream):
        for number in range(10):
            written = asyncio.Event()
            kind = "protocol"
            try:
                answer = await whole(await send(upstream, target=b"/%d" % number))
            except UpstreamUnavailable as error:
                kind = error.kind
            else:
                assert answer == b"for /%d" % number
            assert kind == "protocol"
            await written.wait()
            await asyncio.sleep(2 * gap_seconds)
        # Data is dropped and answered with a reset; anything else ends the connection.
        assert len(backend.connections) == 1 if surplus == "data" else len(backend.connections) >= 10


async def test_frames_without_data_are_not_held(certificate: Path) -> None:  # CVE-2019-9518
    async def script(asked: Asked) -> None:
        asked.head()
        asked.served.transport.write(DataFrame(asked.number, b"").serialize() * 20_000)
        asked.data(b"end", end=True)

    async with scripted(script, certificate) as (_, upstream):
        request, sink = await upstream.acquire(), RecordingCallbacks()
        assert isinstance(request, Http2Request)
        request.start(serialize_head("GET", b"/", HOST, authority=b"a", has_body=False).head, sink)
        request.pause_reading()
        async with asyncio.timeout(HANG_SECONDS):
            while not request._is_over:  # noqa: ASYNC110 - frames come by themselves
                await asyncio.sleep(0.005)
        # The head, the data, and the end.
        assert len(request._events) == 3
        request.resume_reading()
        await sink.over.wait()
        assert sink.told == [200, b"end", []]


async def test_a_head_without_an_end_is_not_held(certificate: Path) -> None:  # CVE-2024-27316
    async def script(asked: Asked) -> None:
        if asked.path() == b"/":
            await ok(asked)
        else:
            asked.served.transport.write(HeadersFrame(asked.number, b"\x88").serialize())
            asked.served.transport.write(ContinuationFrame(asked.number, b"").serialize() * 100)

    async with scripted(script, certificate) as (_, upstream):
        with pytest.raises(UpstreamUnavailable) as failed:
            await send(upstream, target=b"/endless")
        assert failed.value.kind == "protocol"
        assert await ask(upstream) == (200, b"ok")


async def test_replies_that_the_backend_does_not_read_end_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # CVE-2019-9512
    monkeypatch.setattr(http2, "_MAX_UNREAD_BYTES", 100_000)
    loop, lost = asyncio.get_running_loop(), asyncio.Event()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, connection = await loop.create_connection(
        lambda: Http2Connection(timeout_seconds=HANG_SECONDS, age_seconds=300, on_lost=lambda _: lost.set()), sock=ours
    )
    await loop.sock_sendall(theirs, SettingsFrame(0).serialize())
    await connection.ready

    async def no_other() -> None:
        """There is no other connection."""

    sink = RecordingCallbacks()
    request = Http2Request(connection, no_other)
    request.start(serialize_head("GET", b"/", HOST, authority=b"a", has_body=False).head, sink)
    with theirs, pytest.raises(OSError):  # noqa: PT012 - the end may come at any of them
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                await loop.sock_sendall(theirs, PingFrame(0, b"12345678").serialize() * 1000)
    await lost.wait()
    assert sink.told == [("protocol", False)]


async def test_a_line_of_its_own_speaks_http_1_1(certificate: Path) -> None:
    async with real(certificate) as upstream:
        await whole(await send(upstream))
        line = await upstream.dial()
        reader = asyncio.StreamReader()
        line.transport.set_protocol(asyncio.StreamReaderProtocol(reader))
        reader.set_transport(line.transport)
        line.transport.resume_reading()
        line.transport.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        line.transport.close()


def test_it_works_on_the_loop_of_the_sidecar(certificate: Path) -> None:
    uvloop.run(test_who_leaves_resets_its_stream_and_nobody_elses(certificate))
    uvloop.run(test_a_connection_that_winds_up_completes_what_it_began_and_takes_no_more(certificate))

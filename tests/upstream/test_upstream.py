"""The client to the backend: connections, retries, TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gatekeeper.errors import Reason, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_writer import RequestNotForwardable
from gatekeeper.upstream import coroutines
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.interface import Upstream, UpstreamRequest
from tests.servers import OK, RawConnection, RawRequest, RecordingBackend
from tests.waiting import HANG_SECONDS, until


class Parts:
    """A request body in parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)
        self.closed = False
        self.trailers: HeaderList = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop(0)

    async def aclose(self) -> None:
        self.closed = True


@asynccontextmanager
async def upstream_to(url: str, **settings: Any) -> AsyncIterator[Upstream]:
    upstream = Http1Upstream(url, **settings)
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def ask(
    upstream: Upstream,
    method: str = "GET",
    *,
    body: Sequence[bytes] | None = None,
    headers: HeaderList | None = None,
) -> tuple[int, bytes]:
    parts = None if body is None else Parts(*body)
    response = await coroutines.send(upstream, UpstreamRequest(method, b"/", headers or [(b"host", b"a")], parts))
    try:
        return response.status, b"".join([part async for part in response.body])
    finally:
        await response.aclose()


async def test_connections_are_kept_and_used_again() -> None:
    async with RecordingBackend() as backend, upstream_to(backend.url) as upstream:
        for _ in range(3):
            assert await ask(upstream) == (200, b"ok")
            assert await ask(upstream, "POST", body=[b"a", b"b"]) == (200, b"ok")

        assert backend.connections == 1


class ClosesWhenUsedAgain:
    """Responds to the first request of a connection and closes at the second: the race of X19, every time."""

    def __init__(self) -> None:
        self.heads = 0

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        self.heads += 1
        if self.heads == 2:
            connection.close()
        else:
            await connection.write(OK)


# X19
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_request_is_sent_again_when_its_connection_was_just_closed(method: str) -> None:
    async with RecordingBackend(ClosesWhenUsedAgain()) as backend, upstream_to(backend.url) as upstream:
        await ask(upstream)

        assert (await ask(upstream, method))[0] == 200
        assert (len(backend.requests), backend.connections) == (3, 2)


# X19, X20
@pytest.mark.parametrize(
    ("method", "body"), [("POST", None), ("DELETE", None), ("PUT", [b"a"]), ("PATCH", None), ("GET", [b"a"])]
)
async def test_no_other_request_is_ever_sent_twice(method: str, body: list[bytes] | None) -> None:
    async with RecordingBackend(ClosesWhenUsedAgain()) as backend, upstream_to(backend.url) as upstream:
        await ask(upstream)

        with pytest.raises(UpstreamUnavailable) as failed:
            await ask(upstream, method, body=body)
        assert failed.value.kind == "reset"
        assert len(backend.requests) == 2


# X20, B7
@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_nothing_is_sent_twice_on_a_new_connection_or_after_a_part_of_an_answer(part: bytes) -> None:
    heads = 0

    async def script(connection: RawConnection, request: RawRequest) -> None:
        nonlocal heads
        heads += 1
        if part and heads == 1:
            await connection.write(OK)
        else:
            await connection.write(part)
            connection.close()

    async with RecordingBackend(script) as backend, upstream_to(backend.url) as upstream:
        if part:
            await ask(upstream)
        with pytest.raises(UpstreamUnavailable):
            await ask(upstream)

        assert heads == 2 if part else 1
        assert len(backend.requests) == heads


# P0-S9, F21, CVE-2026-71324
@pytest.mark.parametrize("gap_seconds", [0.0, 0.05])
@pytest.mark.parametrize(
    "surplus",
    [b"", b"H", b"HTTP/1.1 200 OK\r\nX-For: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfor ", b"\r\n"],
    ids=["an answer", "a letter", "a part of a head", "a part of a body", "a line end"],
)
async def test_what_comes_after_an_answer_is_given_to_nobody(surplus: bytes, gap_seconds: float) -> None:
    """Whole answers, and beginnings of which the next user's answer would be the rest (RFC 9112 section 9.2)."""

    async def script(connection: RawConnection, request: RawRequest) -> None:
        own = b"for " + request.get_all(b"x-user-id")[0]
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(own), own)
        await connection.write(answer + (surplus or answer))

    async with RecordingBackend(script) as backend, upstream_to(backend.url) as upstream:
        for method in ("GET", "GET", "POST"):
            for user in (b"anna", b"bert"):
                kind = "protocol"
                try:
                    answer = await ask(upstream, method, headers=[(b"host", b"a"), (b"x-user-id", user)])
                except UpstreamUnavailable as error:
                    kind = error.kind
                else:
                    assert answer == (200, b"for " + user)
                assert kind == "protocol"
                await asyncio.sleep(gap_seconds)
        # Every answer was the last of its connection.
        assert backend.connections == len(backend.requests)


async def test_many_at_once_do_not_wait_for_each_other() -> None:
    release = asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        if request.get_all(b"x-slow"):
            await release.wait()
        await connection.write(OK)

    async with RecordingBackend(script) as backend, upstream_to(backend.url) as upstream:
        headers = [(b"host", b"a"), (b"x-slow", b"1")]
        slow = [asyncio.create_task(ask(upstream, headers=headers)) for _ in range(150)]
        async with asyncio.timeout(HANG_SECONDS):
            while len(backend.requests) < len(slow):  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.01)
            assert await ask(upstream) == (200, b"ok")
            release.set()
            assert await asyncio.gather(*slow) == [(200, b"ok")] * len(slow)


async def test_a_full_pool_is_a_timeout() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.gone()

    async with (
        RecordingBackend(script) as backend,
        upstream_to(
            backend.url, max_connections=1, connect_timeout_seconds=1, timeout_seconds=HANG_SECONDS
        ) as upstream,
    ):
        first = asyncio.create_task(ask(upstream))
        await until(lambda: backend.requests)
        with pytest.raises(UpstreamTimeout):
            await ask(upstream)
        first.cancel()
        await asyncio.wait({first})


@pytest.mark.parametrize("header", [(b"x-a", b"a\nb"), (b"x-a", b"\x00"), (b"x a", b"1"), (b"content-length", b"1, 2")])
async def test_what_http_does_not_allow_is_the_clients_fault_and_is_not_quoted(header: tuple[bytes, bytes]) -> None:
    async with RecordingBackend() as backend, upstream_to(backend.url) as upstream:
        with pytest.raises(RequestNotForwardable) as refused:
            await ask(upstream, headers=[(b"host", b"a"), header])

        assert refused.value.reason is Reason.BAD_REQUEST
        assert str(refused.value) == "The request has a header or a body that HTTP does not allow"
        assert backend.requests == []


# F23
@pytest.mark.parametrize("parts", [[b"ab"], [b"ab", b"cd"], []])
async def test_a_body_that_is_not_as_long_as_it_said_never_completes(parts: list[bytes]) -> None:
    async with RecordingBackend(read_bodies=True) as backend, upstream_to(backend.url) as upstream:
        with pytest.raises(RequestNotForwardable):
            await ask(upstream, "POST", body=parts, headers=[(b"host", b"a"), (b"content-length", b"3")])

        assert [request.body for request in backend.requests if request.body] == []


async def test_a_body_that_is_not_wanted_any_more_is_closed() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        await connection.gone()

    class Endless(Parts):
        async def __anext__(self) -> bytes:
            await asyncio.sleep(0.001)
            return b"x" * 1000

    body = Endless()
    async with RecordingBackend(script, read_bodies=False) as backend, upstream_to(backend.url) as upstream:
        response = await coroutines.send(upstream, UpstreamRequest("POST", b"/", [(b"host", b"a")], body))
        await response.aclose()

    assert response.status == 401
    assert body.closed


# X27
async def test_a_backend_on_a_unix_socket_is_reached(tmp_path: Path) -> None:
    async with RecordingBackend(path=tmp_path / "s") as backend, upstream_to(backend.url) as upstream:
        assert await ask(upstream) == (200, b"ok")
        assert await ask(upstream, headers=[(b"x-a", b"1")]) == (200, b"ok")
        assert backend.requests[1].get_all(b"host") == [b"localhost"]

    async with upstream_to(f"http+unix://{tmp_path}/none") as upstream:
        with pytest.raises(UpstreamUnavailable) as failed:
            await ask(upstream)
        assert failed.value.kind == "connect"


# P0-S10
async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with RecordingBackend() as backend, upstream_to(backend.url) as upstream:
        assert await ask(upstream) == (200, b"ok")


# X26
async def test_https_is_verified_against_the_given_authorities(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async with RecordingBackend(tls=context) as backend:
        async with upstream_to(backend.url, ca_file=str(certificate)) as upstream:
            assert await ask(upstream) == (200, b"ok")
            assert await ask(upstream, "POST", body=[b"a"]) == (200, b"ok")
            assert backend.connections == 1
        # Another name, and an authority that nobody knows.
        by_address = backend.url.replace("localhost", "127.0.0.1")
        for url, ca_file in ((by_address, str(certificate)), (backend.url, None)):
            async with upstream_to(url, ca_file=ca_file) as upstream:
                with pytest.raises(UpstreamUnavailable) as failed:
                    await ask(upstream)
                assert failed.value.kind == "connect"
        assert len(backend.requests) == 2


# X26
def test_tls_and_unix_sockets_work_on_the_loop_of_the_sidecar(tmp_path: Path) -> None:
    uvloop.run(test_https_is_verified_against_the_given_authorities(tmp_path))
    uvloop.run(test_a_backend_on_a_unix_socket_is_reached(tmp_path))


# X26
async def test_a_certificate_that_has_expired_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "localhost", ended_days_ago=1)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async with RecordingBackend(tls=context) as backend, upstream_to(backend.url, ca_file=str(certificate)) as upstream:
        with pytest.raises(UpstreamUnavailable) as failed:
            await ask(upstream)
        assert failed.value.kind == "connect"
        assert backend.requests == []


def self_signed(directory: Path, name: str, *, ended_days_ago: int = -1) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=ended_days_ago + 2))
        .not_valid_after(now - datetime.timedelta(days=ended_days_ago))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    "url", ["", "backend:8000", "ftp://a", "http://", "http://a/path", "http://u:p@a", "http+unix://a/b", "http://a:x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Http1Upstream(url)


def test_what_it_is_shows_where_it_leads() -> None:
    assert repr(Http1Upstream("http://a:1")).startswith("<Http1Upstream http://a:1")

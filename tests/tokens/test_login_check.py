"""The login check: one request for each login, and a user only from a clear response."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from gatekeeper.errors import UpstreamUnavailable
from gatekeeper.tokens.login_check import CheckedUser, asgi_transport
from tests.servers import RawConnection, RawRequest, RecordingBackend, serve_asgi
from tests.tokens.login_server import CREDENTIALS, PASSWORD, answer_to, asking, check_at, http
from tests.tokens.test_signing_keys import private_pem
from tests.waiting import until


async def test_a_right_password_gives_the_user_and_the_chosen_claims() -> None:
    answer = {"id": "74", "roles": ["admin"], "team": {"x": [1, None]}, "password_hash": "LEAK"}
    assert await answer_to(http(answer)) == CheckedUser("74", {"roles": ["admin"]})
    found = await answer_to(http(answer, "201 Created"), claims=["team", "roles", "missing"])
    assert found == CheckedUser("74", {"roles": ["admin"], "team": {"x": [1, None]}})
    assert await answer_to(http(answer), claims=[]) == CheckedUser("74", {})


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": "74"}', b"x" * 100_000])
async def test_a_wrong_password_gives_nobody(status: str, body: bytes) -> None:
    assert await answer_to(http(body, status)) is None


async def test_the_statuses_of_a_refusal_are_chosen() -> None:
    # Rule 5.10
    async with asking(http(b"no", "422 Unprocessable Content"), refusals=(400, 422)) as (check, _):
        assert await check.check({"username": "z", "password": PASSWORD}) is None
    async with asking(http(b"no", "401 Unauthorized"), refusals=(400, 422)) as (check, _):
        with pytest.raises(UpstreamUnavailable, match="status 401"):
            await check.check({"username": "z", "password": PASSWORD})


async def test_refusals_hold_no_connections() -> None:
    async def long_refusal(connection: RawConnection, _request: RawRequest) -> None:
        await connection.write(http(b"x" * 300_000, "401 Unauthorized", length=400_000))
        await connection.gone()

    async with asking(long_refusal) as (check, backend):
        # More than there are connections at once.
        for _ in range(120):
            assert await check.check(CREDENTIALS) is None
    assert len(backend.requests) == 120


async def test_one_exact_request_is_sent() -> None:
    async with asking(http({"id": 1})) as (check, backend):
        passed = [
            ("X-Request-Id", "r1"),
            ("User-Agent", "Zoë/1"),
            ("Accept-Encoding", "gzip, br"),
            ("content-length", "0"),
            ("Host", "evil"),
            ("Connection", "keep-alive, x-request-id"),
            ("Content-Type", "text/plain"),
        ]
        await check.check(CREDENTIALS, headers=passed)
    (request,) = backend.requests
    assert (request.method, request.target) == (b"POST", b"/auth/check?v=1")
    assert json.loads(request.body) == CREDENTIALS
    names = [name for name, _ in request.headers]
    assert len(names) == len(set(names))
    assert dict(request.headers) == {
        b"host": backend.url.removeprefix("http://").encode(),
        b"content-type": b"application/json",
        b"accept": b"application/json",
        b"accept-encoding": b"identity",
        b"connection": b"close",
        b"content-length": str(len(request.body)).encode(),
        b"x-request-id": b"r1",
        b"user-agent": "Zoë/1".encode("latin-1"),
    }


@pytest.mark.parametrize("password", ["", "\ud800", "\u0000", '"}', "x" * 50_000, "日本"])
async def test_any_password_is_sent_as_it_is(password: str) -> None:
    async with asking(http({"id": 1})) as (check, backend):
        await check.check({"username": "a", "password": password})
    assert json.loads(backend.requests[0].body) == {"username": "a", "password": password}


@pytest.mark.parametrize(
    ("answer", "pointer", "user"),
    [
        ({"id": 7}, "/id", "7"),
        ({"id": -(2**63)}, "/id", str(-(2**63))),
        ({"id": "007"}, "/id", "007"),
        ({"id": "Zoë"}, "/id", "Zoë"),
        ({"data": {"user": {"id": 7}}}, "/data/user/id", "7"),
        ([{"id": 7}, {"id": 8}], "/1/id", "8"),
        ({"users": ["a", "b"]}, "/users/0", "a"),
        ({"a/b": {"m~n": "x"}}, "/a~1b/m~0n", "x"),
        ({"~1": "x"}, "/~01", "x"),
        ({"": "empty"}, "/", "empty"),
        ({"0": "name"}, "/0", "name"),
        ("whole", "", "whole"),
        ({"é": "x"}, "/é", "x"),
    ],
)
async def test_the_user_is_found_at_a_json_pointer(answer: Any, pointer: str, user: str) -> None:
    assert await answer_to(http(answer), user_pointer=pointer) == CheckedUser(user, {})


async def test_claims_are_members_of_the_answer_or_of_what_holds_the_user() -> None:
    answer = {"roles": ["top"], "user": {"id": 7, "roles": ["below"], "team": "t", "x": 1}, "x": 2}
    found = await answer_to(http(answer), user_pointer="/user/id", claims=["roles", "team"])
    assert found == CheckedUser("7", {"roles": ["top"], "team": "t"})
    found = await answer_to(http([{"id": 7, "roles": "admin"}]), user_pointer="/0/id")
    assert found == CheckedUser("7", {"roles": "admin"})


async def test_a_slow_answer_within_the_deadline_counts() -> None:
    async def slow(connection: RawConnection, _request: RawRequest) -> None:
        await asyncio.sleep(0.3)
        await connection.write(http({"id": "74"}))

    assert await answer_to(slow) == CheckedUser("74", {})


async def test_every_check_has_a_connection_of_its_own() -> None:
    async def surplus(connection: RawConnection, _request: RawRequest) -> None:
        # A second answer after the first: kept for the next request, it would log that one in as another.
        await connection.write(http({"id": "first"}, "200 OK", "Connection: keep-alive") + http({"id": "evil"}))

    async with asking(surplus) as (check, backend):
        for _ in range(3):
            assert await check.check(CREDENTIALS) == CheckedUser("first", {})
        assert len(backend.requests) == backend.connections == 3


async def test_no_cookie_is_kept() -> None:
    async with asking(http({"id": "74"}, "200 OK", "Set-Cookie: session=zoë; Path=/")) as (check, backend):
        await check.check(CREDENTIALS)
        await check.check(CREDENTIALS)
    assert [request.get_all(b"cookie") for request in backend.requests] == [[], []]


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingBackend(http({"id": "evil"})) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert await answer_to(http({"id": "74"})) == CheckedUser("74", {})
        assert proxy.connections == 0


async def test_a_backend_on_a_unix_socket_is_asked(tmp_path: Path) -> None:
    async with RecordingBackend(http({"id": "74"}), path=tmp_path / "b.sock") as backend:
        check = check_at("http://localhost/auth/check", uds=str(tmp_path / "b.sock"))
        assert await check.check(CREDENTIALS) == CheckedUser("74", {})
        await check.aclose()
    assert backend.requests[0].target == b"/auth/check"
    assert backend.requests[0].get_all(b"host") == [b"localhost"]


async def test_https_is_verified_against_the_given_authorities(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with RecordingBackend(http({"id": "74"}), tls=context) as backend:
        check = check_at(backend.url, ca_file=str(certificate))
        assert await check.check(CREDENTIALS) == CheckedUser("74", {})
        await check.aclose()
        # Another name, and an authority that nobody knows.
        by_address = backend.url.replace("localhost", "127.0.0.1")
        for url, ca_file in ((by_address, str(certificate)), (backend.url, None)):
            check = check_at(url, ca_file=ca_file)
            with pytest.raises(UpstreamUnavailable) as caught:
                await check.check(CREDENTIALS)
            await check.aclose()
            assert caught.value.kind == "connect"
        assert len(backend.requests) == 1


def self_signed(directory: Path) -> Path:
    """Make a certificate for `localhost`, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + private_pem(key).encode())
    return path


async def test_a_real_application_is_asked() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        sent = json.loads((await receive())["body"])
        right = sent["password"] == PASSWORD
        await send({"type": "http.response.start", "status": 200 if right else 401, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"id": 7, "roles": ["user"]}).encode()})

    with serve_asgi(app) as url:
        async with aclosing(check_at(url + "/check")) as check:
            answers = await asyncio.gather(
                *(check.check({"username": "z", "password": PASSWORD if n % 2 else "wrong"}) for n in range(150))
            )
    assert answers == [CheckedUser("7", {"roles": ["user"]}) if n % 2 else None for n in range(150)]


async def test_a_cancelled_check_gives_its_answer_to_nobody() -> None:
    async def by_name(connection: RawConnection, request: RawRequest) -> None:
        name = json.loads(request.body)["username"]
        if name == "first":
            await left.wait()
        await connection.write(http({"id": name}))

    left = asyncio.Event()
    async with asking(by_name) as (check, backend):
        first = asyncio.create_task(check.check({"username": "first", "password": "x"}))
        await until(lambda: backend.requests)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        left.set()
        for name in ("second", "third"):
            assert await check.check({"username": name, "password": "x"}) == CheckedUser(name, {})


async def test_a_transport_can_be_given() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b'{"id": 1}'))

    limits = {"timeout_seconds": 7.0, "connect_timeout_seconds": 5.0}
    check = check_at("https://id.example/check", transport=httpx.MockTransport(answer), **limits)
    assert await check.check(CREDENTIALS) == CheckedUser("1", {})
    assert asked[0].extensions["timeout"] == {"connect": 5.0, "read": 7.0, "write": 7.0, "pool": 7.0}


@pytest.mark.parametrize("fails", [False, True])
async def test_an_application_in_this_process_can_be_asked(*, fails: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/check"
        if fails:
            raise RuntimeError("LEAK")
        sent = json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"id": sent["username"]}).encode()})

    check = check_at("http://localhost/check", transport=asgi_transport(app))
    if fails:
        with pytest.raises(UpstreamUnavailable, match="status 500"):
            await check.check(CREDENTIALS)
    else:
        assert await check.check(CREDENTIALS) == CheckedUser("zoë", {})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/auth/check",
        "ftp://backend/x",
        "http+unix:///b.sock",
        "http://",
        "https:///x",
        "http://user:LEAK@backend/x",
        "http://backend:port/",
        "http://back\x00end/",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_at(url)
    assert "LEAK" not in str(caught.value)
    assert "login check" in str(caught.value)


@pytest.mark.parametrize("pointer", ["id", "id/", "#/id", "/a~", "/a~2b", "/~", " /id", "$.id"])
def test_a_pointer_that_is_none_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="accepted: a JSON pointer"):
        check_at("http://backend/", user_pointer=pointer)


def test_its_representation_shows_where_and_nothing_else() -> None:
    assert repr(check_at("https://id.example:444/check?key=LEAK")) == "LoginCheck(id.example/check)"

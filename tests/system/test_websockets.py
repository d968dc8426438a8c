"""WebSockets through a running sidecar: judged before anything reaches the backend, then passed on."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.contracts.responses import NO_TOKEN, error_body
from tests.forward.sockets import TEXT, echo, frame, upgraded
from tests.system.sidecar import Backend, Sidecar, Store, World, bearer, eventually, sidecar, someone, token
from tests.waiting import HANG_SECONDS, START_SECONDS
from tests.web.handshakes import handshake, message, opened


@pytest.fixture(scope="module")
def talker() -> Iterator[Backend]:
    """A backend that accepts every WebSocket and sends back what it gets."""
    with Backend(upgraded(echo)) as running:
        yield running


def test_a_websocket_that_is_refused_reaches_no_backend(world: World) -> None:
    reached = len(world.reached)
    refused = handshake(world.url, "/ws")
    assert (refused.status, refused.body) == (401, NO_TOKEN)
    bad = handshake(world.url, "/ws", [bearer("x")])
    assert (bad.status, bad.body) == (401, error_body("token_invalid"))
    cross_site = handshake(world.url, "/ws", [("Cookie", f"access_token={token(someone())}")])
    assert (cross_site.status, cross_site.body) == (403, error_body("origin_not_allowed"))  # W01
    assert len(world.reached) == reached


def test_a_backend_without_websockets_is_a_bad_gateway(world: World) -> None:  # W03
    answer = handshake(world.url, "/ws", [bearer(token(someone())), ("X-Request-Id", "ws-200")])
    assert answer.status == 502
    assert answer.body == b'{"detail":"The backend is unavailable","code":"upstream_unavailable"}'
    assert answer.get_all("x-request-id") == ["ws-200"]


def test_a_websocket_that_is_admitted_is_passed_on(store: Store, talker: Backend) -> None:
    user = someone()
    with sidecar(talker.url, redis_url=store.url) as gate:
        headers = [bearer(token(user)), ("X-Request-Id", "ws-1"), ("X-User-Id", "1"), ("Sec-WebSocket-Extensions", "x")]
        with opened(gate.url, "/ws?a=%20", headers) as (answer, connection):
            assert (answer.status, answer.get_all("x-request-id")) == (101, ["ws-1"])
            seen = talker.reached[-1]
            told = {name: [value for key, value in seen.headers if key == name] for name, _ in seen.headers}
            assert (seen.method, seen.target) == ("GET", "/ws?a=%20")
            assert (told["x-user-id"], told["x-request-id"]) == ([user], ["ws-1"])
            assert "sec-websocket-extensions" not in told
            eventually(lambda: gate.metric("gatekeeper_websockets_open") == 1)
            connection.sendall(frame(TEXT, b"hello", masked=True))
            assert message(connection) == b"hello"
        line = gate.access_of("ws-1")
        # The frame, and no close frame.
        assert line["bytes_out"] == len(frame(TEXT, b"hello"))
        assert (line["status"], line["method"], line["path"], line["decision"]) == (101, "GET", "/ws", "allow")
        eventually(lambda: gate.metric("gatekeeper_websockets_open") == 0)


def test_the_end_of_the_sidecar_is_told(store: Store, talker: Backend) -> None:  # W09
    with sidecar(talker.url, redis_url=store.url) as gate:
        with opened(gate.url, "/ws", [bearer(token(someone()))]) as (answer, connection):
            assert answer.status == 101
            gate.process.send_signal(signal.SIGTERM)
            assert connection.recv(4) == b"\x88\x02" + (1012).to_bytes(2, "big")
        assert gate.process.wait(START_SECONDS) == 0


def test_tokens_of_websockets_stand_in_no_log(store: Store, talker: Backend) -> None:  # W02
    sources = "query:token,subprotocol"
    with sidecar(talker.url, redis_url=store.url, token_sources=sources, log_level="debug") as gate:
        good, bad = token(someone()), token(someone(), exp=1)
        for bearing, status in ((good, 101), (bad, 401)):
            assert handshake(gate.url, f"/ws?token={bearing}").status == status
            offered = handshake(gate.url, "/ws", [("Sec-WebSocket-Protocol", f"bearer, {bearing}")])
            assert (offered.status, offered.get_all("sec-websocket-protocol")) == (status, [])
        eventually(lambda: len(gate.access) == 4)
        written = gate.stdout + gate.stderr
        for bearing in (good, bad):
            assert not any(part in written for part in bearing.split("."))
        assert not any(bad in str(request) for request in talker.reached)


def test_a_handshake_with_two_versions_is_none(world: World) -> None:  # F19
    reached = len(world.reached)
    answer = handshake(world.url, "/ws", [bearer(token(someone())), ("Sec-WebSocket-Version", "777")])
    assert answer.status == 400
    assert len(world.reached) == reached


# W01
@pytest.mark.parametrize(
    "origins",
    [
        [],
        ["null"],
        ["NULL"],
        [""],
        ["https://evil.example"],
        ["HTTPS://EVIL.EXAMPLE"],
        ["{own}.evil.example"],
        ["https://{host}"],
        ["//{host}"],
        ["{host}"],
        ["{own}/"],
        ["http://evil@{host}"],
        ["{own} https://evil.example"],
        ["HTTPS://LISTED.EXAMPLE"],
        ["https://Listed.example"],
        ["https://listed.example:443"],
        ["https://listed.example.evil"],
        ["http://listed.example"],
    ],
)
def test_a_page_of_another_site_opens_no_websocket_with_a_cookie(
    listing: Sidecar, talker: Backend, origins: list[str]
) -> None:
    reached = len(talker.raw)
    host = listing.url.removeprefix("http://")
    named = [("Origin", text.replace("{own}", listing.url).replace("{host}", host)) for text in origins]
    bearing = token(someone())
    answer = handshake(listing.url, "/ws", [("Cookie", f"access_token={bearing}"), *named])
    assert (answer.status, answer.body) == (403, error_body("origin_not_allowed"))
    assert len(talker.raw) == reached
    # No browser sends these by itself, so they are nobody else's.
    offered = ("Sec-WebSocket-Protocol", f"bearer, {bearing}")
    assert handshake(listing.url, "/ws", [bearer(bearing), *named]).status == 101
    assert handshake(listing.url, "/ws", [offered, *named]).status == 101
    assert handshake(listing.url, f"/ws?token={bearing}", named).status == 101


@pytest.mark.parametrize("origin", ["{own}", "https://listed.example"])
def test_a_page_of_this_or_a_listed_site_opens_one(listing: Sidecar, origin: str) -> None:  # W01
    headers = [("Cookie", f"access_token={token(someone())}"), ("Origin", origin.replace("{own}", listing.url))]
    assert handshake(listing.url, "/ws", headers).status == 101


@pytest.fixture(scope="module")
def listing(store: Store, talker: Backend) -> Iterator[Sidecar]:
    """With every kind of token source, and one listed origin."""
    sources = "header,cookie:access_token,query:token,subprotocol"
    settings = {"token_sources": sources, "cors_origins": "https://listed.example"}
    with sidecar(talker.url, redis_url=store.url, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def choosing() -> Iterator[Backend]:
    """A backend that chooses the subprotocol `chat`."""
    with Backend(upgraded(echo, "Sec-WebSocket-Protocol: chat")) as running:
        yield running


# W02
@pytest.mark.parametrize(
    ("target", "offered", "left"),
    [
        ("/ws?token={token}", "chat", ("/ws", ["chat"])),
        ("/ws?a=%20&token={token}&b", "chat", ("/ws?a=%20&b", ["chat"])),
        ("/ws?token={token}&token={token}", "chat", ("/ws", ["chat"])),
        ("/ws?a", "bearer, {token}, chat", ("/ws?a", ["chat"])),
        ("/ws", "chat, Bearer, {token}", ("/ws", ["chat"])),
        ("/ws?token={token}", "chat, bearer, {token}", ("/ws", ["chat"])),
    ],
)
def test_the_backend_chooses_and_sees_the_token_in_authorization_alone(
    store: Store, choosing: Backend, target: str, offered: str, left: tuple[str, list[str]]
) -> None:
    bearing = token(someone())
    sources = "query:token,subprotocol"
    with sidecar(choosing.url, redis_url=store.url, token_sources=sources, log_level="debug") as gate:
        headers = [("Sec-WebSocket-Protocol", offered.replace("{token}", bearing))]
        answer = handshake(gate.url, target.replace("{token}", bearing), headers)
        assert (answer.status, answer.get_all("sec-websocket-protocol")) == (101, ["chat"])
        assert bearing not in str(answer)
        seen = choosing.reached[-1]
        assert (seen.target, seen.get_all("sec-websocket-protocol")) == left
        assert seen.get_all("authorization") == [f"Bearer {bearing}"]
        assert str(seen).count(bearing) == 1
        eventually(lambda: gate.access)
        assert not any(part in gate.stdout + gate.stderr for part in bearing.split("."))


def _answers(url: str, sent: bytes) -> bytes:
    """All that comes back until the connection closes, or nothing more has come for a second."""
    host, _, port = url.removeprefix("http://").partition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=HANG_SECONDS) as connection:
        connection.sendall(sent)
        with suppress(TimeoutError, ConnectionError):
            while data := connection.recv(65536):
                found += data
                connection.settimeout(1)
    return found


_UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
_VERSION = b"Sec-WebSocket-Version: 13\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def plain(store: Store, backend: Backend) -> Iterator[Sidecar]:
    """Everything is public, so that only the handshake decides."""
    with sidecar(backend.url, redis_url=store.url, public_paths="/*") as running:
        yield running


# F19, F20, W10
@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _KEY + b"Sec-WebSocket-Version: 777\r\n", {426}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _KEY + b"Sec-WebSocket-Version: 13, 777\r\n", {400, 426}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _KEY, {400, 426}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION, {400}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION + _KEY + _KEY, {400}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION + b"Sec-WebSocket-Key: AAAA\r\n", {400}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION + _KEY + b"Content-Length: 35\r\n", {400}),
        (b"GET /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION + _KEY + b"Transfer-Encoding: chunked\r\n", {400}),
        (b"GET /ws HTTP/1.0\r\n" + _UPGRADE + _VERSION + _KEY, {400}),
        (b"POST /ws HTTP/1.1\r\n" + _UPGRADE + _VERSION + _KEY, {400, 405}),
    ],
)
def test_what_is_no_handshake_is_answered_and_the_connection_is_no_tunnel(
    plain: Sidecar, backend: Backend, head: bytes, statuses: set[int]
) -> None:
    reached = len(backend.raw)
    found = _answers(plain.url, head + b"Host: a\r\n\r\n" + _SMUGGLED)
    assert int(found.split()[1]) in statuses
    # The bytes behind it are neither a request nor frames.
    assert found.count(b"HTTP/1.1 ") == 1
    assert len(backend.raw) == reached


@pytest.mark.parametrize("lines", [b"Upgrade: websocket\r\n", b"Upgrade: websocket\r\nConnection: close\r\n"])
def test_half_of_an_upgrade_is_a_malformed_one(plain: Sidecar, backend: Backend, lines: bytes) -> None:  # W10
    reached = len(backend.raw)
    found = _answers(plain.url, b"GET /half HTTP/1.1\r\nHost: a\r\n" + lines + _VERSION + _KEY + b"\r\n")
    assert found.startswith(b"HTTP/1.1 400 ")
    assert len(backend.raw) == reached


def test_an_upgrade_to_nothing_is_plain_http(plain: Sidecar, backend: Backend) -> None:  # W10
    lines = b"Connection: Upgrade\r\n" + _VERSION + _KEY
    found = _answers(plain.url, b"GET /half HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
    assert found.startswith(b"HTTP/1.1 200 ")
    assert backend.reached[-1].get_all("upgrade") == []


def test_an_idle_websocket_outlives_every_time_out(store: Store, talker: Backend) -> None:  # X11
    short = {"upstream_timeout": "2s", "keepalive_timeout": "2s"}
    with (
        sidecar(talker.url, redis_url=store.url, **short) as gate,
        opened(gate.url, "/ws", [bearer(token(someone()))]) as (answer, connection),
    ):
        assert answer.status == 101
        time.sleep(4.5)
        connection.sendall(frame(TEXT, b"still here", masked=True))
        assert message(connection) == b"still here"

"""WebSockets through a running sidecar: judged before anything reaches the backend, then passed on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.contracts.answers import NO_TOKEN, error_body
from tests.middleware.handshakes import handshake, message, opened
from tests.proxy.sockets import TEXT, echo, frame, upgraded
from tests.system.sidecar import Backend, Store, World, bearer, eventually, sidecar, someone, token


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
        assert (line["status"], line["method"], line["path"], line["decision"]) == (101, "GET", "/ws", "allow")
        eventually(lambda: gate.metric("gatekeeper_websockets_open") == 0)


def test_the_end_of_the_sidecar_is_told(store: Store, talker: Backend) -> None:  # W09
    with sidecar(talker.url, redis_url=store.url) as gate:
        with opened(gate.url, "/ws", [bearer(token(someone()))]) as (answer, connection):
            assert answer.status == 101
            gate.process.send_signal(signal.SIGTERM)
            assert connection.recv(4) == b"\x88\x02" + (1012).to_bytes(2, "big")
        assert gate.process.wait(10) == 0


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
            assert all(bearing not in str(request) for request in talker.reached)


def test_a_handshake_with_two_versions_is_none(world: World) -> None:  # F19
    reached = len(world.reached)
    answer = handshake(world.url, "/ws", [bearer(token(someone())), ("Sec-WebSocket-Version", "777")])
    assert answer.status == 400
    assert len(world.reached) == reached

"""The sidecar carries no WebSockets yet: they are judged, and never passed on."""

from __future__ import annotations

from tests.contracts.answers import NO_TOKEN, error_body
from tests.middleware.handshakes import handshake
from tests.system.sidecar import Backend, Sidecar, Store, World, bearer, eventually, sidecar, someone, token


def test_a_websocket_is_judged_first_and_then_refused(world: World, gate: Sidecar) -> None:
    reached = len(world.reached)
    refused = handshake(world.url, "/ws")
    assert (refused.status, refused.body) == (401, NO_TOKEN)
    bad = handshake(world.url, "/ws", [bearer("x")])
    assert (bad.status, bad.body) == (401, error_body("token_invalid"))
    cross_site = handshake(world.url, "/ws", [("Cookie", f"access_token={token(someone())}")])
    assert (cross_site.status, cross_site.body) == (403, error_body("origin_not_allowed"))  # W01
    for target in ("/ws", "/public/ws"):
        answer = handshake(world.url, target, [bearer(token(someone())), ("X-Request-Id", f"ws{target}")])
        assert answer.status == 501
        assert answer.body == b'{"detail":"WebSockets are not passed on","code":"not_implemented"}'
        assert answer.get_all("x-request-id") == [f"ws{target}"]
        assert answer.get_all("cache-control") == ["no-store"]
        line = gate.access_of(f"ws{target}")
        assert (line["status"], line["method"], line["path"]) == (501, "GET", target)
    assert len(world.reached) == reached
    eventually(lambda: gate.metric("gatekeeper_websockets_open") == 0)


def test_tokens_of_websockets_stand_in_no_log(store: Store, backend: Backend) -> None:  # W02
    sources = "query:token,subprotocol"
    with sidecar(backend.url, redis_url=store.url, token_sources=sources, log_level="debug") as gate:
        good, bad = token(someone()), token(someone(), exp=1)
        for bearing, status in ((good, 501), (bad, 401)):
            assert handshake(gate.url, f"/ws?token={bearing}").status == status
            assert handshake(gate.url, "/ws", [("Sec-WebSocket-Protocol", f"bearer, {bearing}")]).status == status
        eventually(lambda: len(gate.access) == 4)
        written = gate.stdout + gate.stderr
        for bearing in (good, bad):
            assert not any(part in written for part in bearing.split("."))

"""What operators see: health, metrics, the access line, and what none of them ever shows."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.servers import fetch
from tests.system.sidecar import (
    START_SECONDS,
    Backend,
    Sidecar,
    Store,
    World,
    bearer,
    eventually,
    metrics,
    sidecar,
    someone,
    token,
)
from tests.tokens import forge

FIELDS = [
    "ts",
    "level",
    "event",
    "request_id",
    "client_ip",
    "method",
    "route",
    "path",
    "status",
    "duration_ms",
    "upstream_ms",
    "decision",
    "reason",
    "user_id",
    "session_id",
    "bytes_out",
]
DENIALS = {
    "token_missing",
    "token_invalid",
    "token_expired",
    "access_token_blacklisted",
    "session_revoked_or_invalid",
    "session_inactivity_timeout",
    "session_expired",
    "insufficient_user_authentication",
    "session_limit_exceeded",
    "forbidden",
    "origin_not_allowed",
    "session_not_found",
    "not_found",
    "bad_request",
    "method_not_allowed",
}
ERRORS = {"store_unavailable", "keys_unavailable", "upstream_unavailable", "upstream_timeout", "internal_error"}
ENDS = ["logged_out", "revoked_by_user", "revoked_by_admin", "deactivated", "evicted", "idle", "expired"]


def line_of(gate: Sidecar, world: World, *arguments: str, **options: object) -> dict[str, object]:
    request_id = uuid.uuid4().hex
    world.fetch(*arguments, headers=[("X-Request-Id", request_id)], **options)  # type: ignore[arg-type]
    return gate.access_of(request_id)


def test_the_line_of_an_admitted_request(gate: Sidecar, world: World) -> None:
    user = someone()
    bearing = token(user)
    (session,) = world.session_ids(bearing)
    line = line_of(gate, world, "/a/b%20c?secret=1", bearing, method="POST", body=b"x")
    assert list(line) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["ts"]))
    told = {name: line[name] for name in FIELDS if name not in {"ts", "request_id", "duration_ms", "upstream_ms"}}
    assert told == {
        "level": "info",
        "event": "request",
        "client_ip": "127.0.0.1",
        "method": "POST",
        "route": "upstream",
        "path": "/a/b%20c",
        "status": 200,
        "decision": "allow",
        "reason": "none",
        "user_id": user,
        "session_id": session,
        "bytes_out": 2,
    }
    assert 0 < float(str(line["upstream_ms"])) <= float(str(line["duration_ms"])) < 10_000


def test_the_lines_of_other_requests(gate: Sidecar, world: World) -> None:
    def told(*arguments: str, **options: object) -> tuple[object, ...]:
        line = line_of(gate, world, *arguments, **options)
        # Why a token is bad: the rule, and nothing of the token.
        assert list(line) == FIELDS + (["why"] if line["reason"] == "token_invalid" else [])
        return tuple(line[name] for name in ("method", "route", "status", "decision", "reason"))

    bearing = token(someone())
    assert told("/x") == ("GET", "upstream", 401, "deny", "token_missing")
    assert told("/x", "x") == ("GET", "upstream", 401, "deny", "token_invalid")
    assert told("/public/x") == ("GET", "upstream", 200, "bypass", "none")
    assert told("/public/x", "x") == ("GET", "upstream", 200, "bypass", "none")
    assert told("/login", method="POST") == ("POST", "upstream", 200, "bypass", "none")
    assert told("/sessions/me", bearing) == ("GET", "/sessions/me", 200, "allow", "none")
    assert told("/sessions/me/", bearing, method="HEAD") == ("HEAD", "/sessions/me", 200, "allow", "none")
    assert told("/sessions/user/5", bearing) == ("GET", "/sessions/user/{user_id}", 403, "deny", "forbidden")
    assert told("//sessions/me", bearing)[2:] == (400, "deny", "bad_request")
    assert told("/x", bearing, method="PURGE") == ("PURGE", "upstream", 200, "allow", "none")
    line = line_of(gate, world, "/sessions/5", bearing, method="DELETE")
    assert (line["status"], line["path"], line["route"]) == (404, "/sessions/5", "/sessions/{id}")


def test_the_line_of_a_bad_token_says_which_rule_it_broke(gate: Sidecar, world: World) -> None:  # rule 5.15
    user = someone()
    for bad, why in (
        ("x", "the token is not three base64url segments"),
        (forge.token(forge.OTHER_SECRET), "no key verifies the signature"),
        (token(user, exp=...), "exp is missing"),
        (token(user, sub=...), "the user is missing: no claim sub"),
        (token(user, type="refresh"), "type is that of another kind of token"),
    ):
        for path in ("/x", "/sessions/me"):
            assert line_of(gate, world, path, bad)["why"] == why
    line = line_of(gate, world, "/x", token(user, exp=1))
    assert (line["reason"], "why" in line) == ("token_expired", False)


def test_metrics_are_there_before_anything_has_happened(store: Store, backend: Backend) -> None:
    with sidecar(backend.url, redis_url=store.url) as gate:
        found = metrics(gate.ops)
    decisions = {
        (dict(labels)["result"], dict(labels)["reason"])
        for name, labels in found
        if name == "gatekeeper_decisions_total"
    }
    assert decisions >= {("allow", "none"), ("bypass", "none")} | {("deny", code) for code in DENIALS}
    assert decisions >= {("error", code) for code in ERRORS}
    for end in ENDS:
        assert found["gatekeeper_session_events_total", frozenset({("event", end), ("actor", "user")})] == 0
    for kind in ("connect", "timeout", "reset", "protocol"):
        assert found["gatekeeper_upstream_errors_total", frozenset({("kind", kind)})] == 0
    names = {name for name, _ in found}
    assert names >= {
        "gatekeeper_decision_duration_seconds_bucket",
        "gatekeeper_http_request_duration_seconds_bucket",
        "gatekeeper_http_requests_in_flight",
        "gatekeeper_websockets_open",
        "gatekeeper_upstream_request_duration_seconds_bucket",
        "gatekeeper_store_up",
        "gatekeeper_store_errors_total",
        "gatekeeper_jwks_keys",
        "gatekeeper_build_info",
    }


def test_what_happened_is_counted(gate: Sidecar, world: World) -> None:
    def decided(result: str, reason: str) -> Callable[[], float]:
        labels = {"result": result, "reason": reason, "mode": "sidecar"}
        return lambda: gate.metric("gatekeeper_decisions_total", **labels)

    def event(name: str) -> Callable[[], float]:
        return lambda: gate.metric("gatekeeper_session_events_total", event=name, actor="user")

    def answered(route: str, method: str, code: str) -> Callable[[], float]:
        return lambda: gate.metric("gatekeeper_http_requests_total", route=route, method=method, code=code)

    def forwarded() -> float:
        return gate.metric("gatekeeper_upstream_request_duration_seconds_count")

    expected: dict[Callable[[], float], int] = {
        decided("allow", "none"): 3,
        decided("deny", "token_missing"): 1,
        decided("deny", "access_token_blacklisted"): 1,
        event("opened"): 1,
        event("logged_out"): 1,
        answered("upstream", "GET", "200"): 1,
        answered("upstream", "other", "200"): 1,
        answered("upstream", "GET", "401"): 2,
        answered("/sessions/logout", "DELETE", "200"): 1,
        forwarded: 2,
    }
    before = {count: count() for count in expected}
    bearing = token(someone())
    world.passed("/x", bearing)
    world.passed("/x", bearing, method="PURGE")
    world.refused("/x")
    world.fetch("/sessions/logout", bearing, method="DELETE")
    world.refused("/x", bearing)
    assert [count() - before[count] for count in expected] == list(expected.values())
    eventually(lambda: gate.metric("gatekeeper_store_up") == 1.0)
    assert gate.metric("gatekeeper_http_requests_in_flight") == 0.0


def test_no_label_tells_of_anybody(gate: Sidecar, world: World) -> None:
    user, path = someone(), f"/{uuid.uuid4().hex}"
    bearing = token(user)
    world.passed(path, bearing)
    (session,) = world.session_ids(bearing)
    world.fetch(f"/sessions/{session}", bearing, method="DELETE")
    text = fetch(gate.ops, "GET", "/metrics").body.decode()
    for secret in (user, path[1:], str(session), "127.0.0.1", *bearing.split(".")):
        assert secret not in text


def test_the_backends_faults_are_counted_by_kind(store: Store) -> None:
    with Backend(b"nonsense\r\n\r\n") as backend, sidecar(backend.url, redis_url=store.url) as gate:
        world = World(gate.url, lambda: backend.reached, store)
        assert world.fetch("/", token(someone())).status == 502
        assert gate.metric("gatekeeper_upstream_errors_total", kind="protocol") == 1
        assert (
            gate.metric("gatekeeper_decisions_total", result="error", reason="upstream_unavailable", mode="sidecar")
            == 1
        )
        line = eventually(lambda: gate.access)[0]
        assert (line["status"], line["level"], line["decision"]) == (502, "error", "error")


def test_the_ops_port_serves_nothing_else(gate: Sidecar) -> None:
    assert fetch(gate.ops, "GET", "/livez").body == b"ok\n"
    assert fetch(gate.ops, "GET", "/readyz").body == b"ok\n"
    assert fetch(gate.ops, "GET", "/sessions/me").status == 404
    # And its paths are the backend's on the public port.
    assert fetch(gate.url, "GET", "/metrics").status == 401


def test_the_ops_port_can_be_off(store: Store, backend: Backend) -> None:
    with sidecar(backend.url, redis_url=store.url, ops_listen="off") as gate:
        assert gate.ops == "off"
        assert fetch(gate.url, "GET", "/").status == 401


def test_answers_carry_one_date_and_no_server_of_ours(world: World) -> None:  # X18
    own = world.refused("/x")
    forwarded = world.fetch("/x", token(someone()))
    for answer in (own, forwarded):
        assert answer.get_all("server") == answer.get_all("via") == []
        assert len(answer.get_all("date")) <= 1
    request = world.passed("/x", token(someone()))
    assert request.get_all("user-agent") == request.get_all("via") == request.get_all("accept") == []


def test_paths_that_are_reserved(world: World) -> None:
    for target in ("/_gatekeeper/x", "/_gatekeeper/", "/_gatekeeper/openapi"):
        answer = world.refused(target, token(someone()))
        assert (answer.status, answer.body) == (404, b'{"detail":"Not found","code":"not_found"}')


def test_text_lines_for_terminals(store: Store, backend: Backend, tmp_path: Path) -> None:
    settings = {"upstream_url": backend.url, "redis_url": store.url, "log_format": "text"}
    gate = Sidecar(settings, tmp_path)
    try:
        url = eventually(lambda: re.search(r"http://127\.0\.0\.1:\d+", gate.stderr), seconds=START_SECONDS)[0]
        fetch(url, "GET", "/x?secret", [bearer(token("7\u00e9"))])
        line = eventually(lambda: gate.stdout)
        assert re.fullmatch(r"200 GET    /x  allow  user=7é  \d+\.\d ms\n", line)
    finally:
        gate.close()

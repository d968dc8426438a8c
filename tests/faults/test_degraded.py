"""`ON_STORE_FAILURE=allow_verified`: who has a good token passes while the store is away, for a while, and unless this
process knows better. R1 of the catalogue of faults, its grace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.contracts.responses import assert_own_response, error_body
from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import (
    Backend,
    Reached,
    Sidecar,
    Store,
    World,
    eventually,
    external_store,
    hello,
    sidecar,
    someone,
    token,
)
from tests.waiting import HANG_SECONDS

_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")
# Good for longer than the whole suite takes.
HANDED_OUT = token(someone(), exp=int(time.time()) + 36_000)


async def _answer(connection: RawConnection, request: RawRequest) -> None:
    if request.target != b"/login":
        await hello(connection, request)
        return
    body = json.dumps({"access_token": HANDED_OUT}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    await connection.write(head + body)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(_answer) as running:
        yield running


@contextmanager
def degradable(backend: Backend, **settings: str) -> Iterator[tuple[World, Store, Sidecar]]:
    with external_store(*_OPTIONS) as store:
        options = {"on_store_failure": "allow_verified", "store_timeout": "10s", "public_paths": "/public/*"} | settings
        with sidecar(backend.url, redis_url=store.url, **options) as gate:
            yield World(gate.url, lambda: backend.reached, store), store, gate


def refuses(world: World, bearing: str) -> bool:
    return world.fetch("/", bearing).status == 401


def assert_degraded(request: Reached) -> None:
    assert request.get_all("x-gatekeeper-degraded") == ["1"]


@pytest.fixture(scope="module")
def down(backend: Backend) -> Iterator[tuple[World, Sidecar, dict[str, str], int]]:
    """A sidecar whose store is away, with tokens that it has seen: live, logged_out, revoked, deactivated, everywhere,
    stranger (never seen); and the id of the live one."""
    with degradable(backend) as (world, store, gate):
        users = {name: someone() for name in ("live", "logged_out", "revoked", "deactivated", "everywhere", "stranger")}
        tokens = {name: token(user) for name, user in users.items()}
        (session,) = world.session_ids(tokens["live"])
        world.fetch("/sessions/logout", tokens["logged_out"], method="DELETE")
        (revoked,) = world.session_ids(tokens["revoked"])
        assert world.fetch(f"/sessions/{revoked}", tokens["revoked"], method="DELETE").status == 200
        (other,) = world.session_ids(tokens["deactivated"])
        answer = world.fetch(f"/api/sessions/{other}/deactivate", tokens["deactivated"], method="PATCH")
        assert answer.status == 200
        world.passed("/", tokens["everywhere"])
        assert world.fetch("/sessions/all", tokens["everywhere"], method="DELETE").status == 200
        tokens["everywhere_unseen"] = token(users["everywhere"])
        store.kill()
        eventually(lambda: gate.metric("gatekeeper_store_up") == 0.0)
        yield world, gate, tokens, session


def test_a_known_session_passes_with_its_id_and_is_marked(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, gate, tokens, session = down
    request = world.passed("/", tokens["live"])
    assert_degraded(request)
    assert request.get_all("x-session-id") == [str(session)]
    assert gate.metric("gatekeeper_degraded_requests_total") >= 1


def test_a_session_never_seen_passes_without_an_id(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    request = world.passed("/", tokens["stranger"])
    assert_degraded(request)
    assert request.get_all("x-session-id") == []
    assert len(request.get_all("x-user-id")) == 1


def test_what_this_process_was_told_is_over_stays_over(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    assert world.refused("/", tokens["logged_out"]).body == error_body("access_token_blacklisted", "logged_out")
    for name, reason in (("revoked", "revoked_by_user"), ("deactivated", "deactivated")):
        assert world.refused("/", tokens[name]).body == error_body("session_revoked_or_invalid", reason)
    for name in ("everywhere", "everywhere_unseen"):
        assert world.refused("/", tokens[name]).status == 401


def test_bad_tokens_and_none_are_refused_as_ever(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    assert world.refused("/").status == 401
    assert world.refused("/", tokens["live"][:-2]).status == 401
    assert world.refused("/", token(someone(), exp=1)).body == error_body("token_expired")


def test_no_client_marks_itself(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    forged = [("X-Gatekeeper-Degraded", "0"), ("x_gatekeeper_degraded", "0"), ("Connection", "X-Gatekeeper-Degraded")]
    request = world.passed("/", tokens["live"], headers=forged)
    assert [value for name, value in request.headers if "degraded" in name.replace("_", "-")] == ["1"]
    request = world.passed("/public/x", headers=[("X-Gatekeeper-Degraded", "1")])
    assert request.get_all("x-gatekeeper-degraded") == []


def test_its_own_endpoints_stay_503(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    unavailable = error_body("store_unavailable")
    for method, target in (("GET", "/sessions/me"), ("DELETE", "/sessions/1"), ("DELETE", "/sessions/logout")):
        assert_own_response(world.refused(target, tokens["live"], method=method), 503, unavailable)
    # Nor is a refresh or logout passed on without a word of the sessions that they name.
    for target in ("/refresh", "/logout"):
        assert world.refused(target, tokens["live"], method="POST").status == 503


def test_a_login_hands_out_its_token(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, _, _ = down
    body = json.dumps({"username": "a", "password": "b"}).encode()
    answer = world.fetch("/login", method="POST", body=body, headers=[("Content-Type", "application/json")])
    assert (answer.status, json.loads(answer.body)) == (200, {"access_token": HANDED_OUT})
    assert_degraded(world.passed("/", HANDED_OUT))


def test_a_websocket_is_judged_alike(down: tuple[World, Sidecar, dict[str, str], int]) -> None:
    world, _, tokens, _ = down
    for name in ("logged_out", "live"):
        before = len(world.reached)
        with pytest.raises(InvalidStatus):
            # The backend speaks no WebSocket, and so says 200: what it was asked is what counts.
            connect(
                world.url.replace("http", "ws") + "/socket",
                additional_headers={"Authorization": f"Bearer {tokens[name]}"},
                open_timeout=HANG_SECONDS,
            )
        asked = world.reached[before:]
        assert len(asked) == (1 if name == "live" else 0)
    assert_degraded(asked[0])


def test_an_ended_session_is_over_for_every_token_of_it(backend: Backend) -> None:
    with degradable(backend) as (world, store, _):
        user = someone()
        first, second = token(user, sid="one"), token(user, sid="one")
        world.passed("/", first)
        world.passed("/", second)
        world.fetch("/sessions/logout", first, method="DELETE")
        store.kill()
        assert world.refused("/", second).status == 401


def test_what_was_ended_elsewhere_is_over_here(backend: Backend) -> None:
    with (
        degradable(backend) as (world, store, _),
        sidecar(backend.url, redis_url=store.url, store_timeout="10s") as elsewhere,
    ):
        there = World(elsewhere.url, lambda: backend.reached, store)
        client: Any = store.client
        eventually(lambda: client.pubsub_numsub("gk:ends") == [("gk:ends", 2)])
        one, other, spared = someone(), someone(), someone()
        tokens = [token(one), token(other), token(other), token(spared), token(spared)]
        for each in tokens:
            world.passed("/", each)
        assert there.fetch("/sessions/logout", tokens[0], method="DELETE").status == 200
        assert there.fetch("/sessions/all", tokens[1], method="DELETE").status == 200
        assert there.fetch("/api/users/me/sessions", tokens[3], method="DELETE").status == 200
        store.kill()
        for each in (*tokens[:3], tokens[4]):
            eventually(partial(refuses, world, each))
        assert_degraded(world.passed("/", tokens[3]))


@pytest.mark.slow
def test_it_lasts_no_longer_than_it_may(backend: Backend) -> None:
    with degradable(backend, degraded_max="3s") as (world, store, gate):
        bearing = token(someone())
        world.passed("/", bearing)
        store.kill()
        assert_degraded(world.passed("/", bearing))
        eventually(lambda: world.fetch("/", bearing).status == 503)
        assert world.refused("/", bearing).body == error_body("store_unavailable")
        store.start()
        eventually(lambda: gate.ready().status == 200)
        assert world.passed("/", bearing).get_all("x-gatekeeper-degraded") == []
        # Another fault has another first failed call.
        store.kill()
        assert_degraded(world.passed("/", bearing))


def test_a_garbled_record_is_no_outage(backend: Backend) -> None:
    """What the store refuses is that very session: nobody passes by it, and nobody else is held up."""
    with degradable(backend) as (world, store, gate):
        user = someone()
        bearing = token(user)
        (session,) = world.session_ids(bearing)
        store.client.hset(f"gk:{{{user}}}:sessions", str(session), "garbage")
        asked = store.scripts_run
        for _ in range(10):
            assert world.refused("/", bearing).status == 503
        assert store.scripts_run == asked + 10
        assert world.passed("/", token(someone())).get_all("x-gatekeeper-degraded") == []
        assert gate.metric("gatekeeper_store_up") == 1.0
        assert gate.metric("gatekeeper_store_errors_total", kind="refused") >= 10
        assert [line for line in gate.log if "not called" in line["event"]] == []

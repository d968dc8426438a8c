"""Faults that a bed with traffic does not show: R6, R16, R20, R23, T1, T2 and K11 of the catalogue; and who never needs
the store."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import time_machine

from gatekeeper.settings import Settings
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from tests.contracts.responses import error_body
from tests.faults.bed import Bed, subject_of
from tests.servers import fetch, raw_client
from tests.system.sidecar import (
    Backend,
    Store,
    World,
    bearer,
    command,
    eventually,
    external_store,
    sidecar,
    someone,
    token,
)
from tests.tokens import forge
from tests.waiting import HANG_SECONDS

_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes")
# The commands of a request; what Gatekeeper asks by itself is a script too, and counted in the epoch.
# The housekeeping adds to sorted sets and takes away from them whenever it likes.
_COMMANDS = ("eval", "get", "set", "incr", "exists")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store(*_OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


@pytest.mark.slow
def test_a_store_that_evicts_is_warned_of(store: Store) -> None:  # R6
    store.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        told = command("check", "--online", redis_url=store.url).stdout
    finally:
        store.client.config_set("maxmemory-policy", "noeviction")
    assert "warning: the store's maxmemory-policy is allkeys-lru" in told


def asked(store: Store) -> dict[str, int]:
    stats: Any = store.client.info("commandstats")
    calls = {name: int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in _COMMANDS}
    return calls | {"evalsha": store.scripts_run}


def test_who_needs_no_verdict_never_touches_the_store(the_bed: Bed) -> None:
    world = World(the_bed.gates["deny"].url, lambda: the_bed.reached, the_bed.store)
    the_bed.service()

    def ask_all() -> list[int]:
        bad = [token(someone(), exp=1), token(someone())[:-3], "x", token(someone(), token_type="refresh")]
        return [
            *(world.fetch(target).status for target in ("/", "/public/x", "/sessions/me", "/_gatekeeper/openapi.json")),
            *(world.fetch("/", each).status for each in bad),
            *(world.fetch("/public/x", each).status for each in bad),
            *(world.fetch("/sessions/me", each).status for each in bad),
        ]

    expected = [401, 200, 401, 200, *[401] * 4, *[200] * 4, *[401] * 4]
    before = asked(the_bed.store)
    assert ask_all() == expected
    assert asked(the_bed.store) == before
    the_bed.store.signal(signal.SIGSTOP)
    try:
        assert ask_all() == expected
    finally:
        the_bed.store.signal(signal.SIGCONT)
    the_bed.service()


def _beats(store: Store) -> int:
    return int(store.client.hget("gk:epoch", "beats"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_restored_copy_is_warned_of_for_the_ends_that_it_lacks(store: Store, backend: Backend) -> None:  # R16
    """A session that had begun before the copy and ended after it lives again: that is what the warning says."""
    with sidecar(backend.url, redis_url=store.url, store_timeout="20s") as gate:
        world = World(gate.url, lambda: backend.reached, store)
        user = someone()
        bearing, unseen = token(user), token(someone())
        (session,) = world.session_ids(bearing)
        data, copy = store.directory / "appendonlydir", store.directory / "copy"
        shutil.copytree(data, copy)
        assert world.fetch(f"/sessions/{session}", bearing, method="DELETE").status == 200
        # It must have asked since, to know that the copy lacks something.
        asked = _beats(store)
        eventually(lambda: _beats(store) >= asked + 2)
        store.kill()
        shutil.rmtree(data)
        copy.rename(data)
        eventually(lambda: gate.ready().status == 503)
        store.start()
        eventually(lambda: gate.ready().status == 200)
        said = (
            "session store lost data: it is an older copy, in which sessions that were revoked since may be live again"
        )
        eventually(lambda: any(line["event"].startswith(said) for line in gate.log))
        assert world.refused("/", unseen).body == error_body("session_revoked_or_invalid")


def test_clients_that_leave_at_any_time_get_nobody_elses_answer(the_bed: Bed) -> None:  # R20
    gate = the_bed.gates["deny"]
    the_bed.service()
    tokens = [token(someone()) for _ in range(20)]
    before = len(the_bed.reached)

    async def come_and_go(bearing: str, longest: float) -> None:
        async with raw_client(gate.url) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + bearing.encode() + b"\r\n\r\n")
            await asyncio.sleep(random.uniform(0, longest))

    async def many() -> None:
        rounds, longest = 0, 0.004
        # On a slow machine all of them have left before their requests are passed on: until some have not.
        while rounds < 15 or len(the_bed.reached) < before + 20:
            await asyncio.gather(*(come_and_go(bearing, longest) for bearing in tokens))
            rounds, longest = rounds + 1, longest * 1.2
            assert longest < HANG_SECONDS

    the_bed.proxy.latency = 0.002
    try:
        asyncio.run(many())
    finally:
        the_bed.proxy.calm()
    asked = the_bed.reached[before:]
    the_bed.service()
    sessions = {}
    for bearing in tokens:
        ids = World(gate.url, lambda: the_bed.reached).session_ids(bearing)
        assert len(ids) == 1
        sessions[bearing] = ids[0]
    for request in asked:
        (sent,) = [value.removeprefix("Bearer ") for value in request.get_all("authorization")]
        assert request.get_all("x-user-id") == [subject_of(sent)]
        assert request.get_all("x-session-id") == [str(sessions[sent])]


@pytest.mark.slow
def test_a_store_that_expires_nothing_by_itself_expires_sessions(store: Store, backend: Backend) -> None:  # R23
    client: Any = store.client
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    try:
        with sidecar(backend.url, redis_url=store.url, session_ttl="1s", key_prefix="short:") as gate:
            world = World(gate.url, lambda: backend.reached, store)
            bearing = token(someone())
            world.passed("/", bearing)
            eventually(lambda: world.fetch("/", bearing).status == 401)
            assert world.refused("/", bearing).body == error_body("session_expired", "expired")
    finally:
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "1")


async def test_a_wall_clock_that_jumps_ends_no_session(store: Store) -> None:  # T1
    """Sessions live on the store's clock; tokens are judged on the host's, with its leeway."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        session = current_session(Asked(scope))
        assert session is not None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(session.session_id).encode()})

    settings = Settings(jwt_secret=forge.SECRET, redis_url=store.url, store_timeout="20s")
    app = GatekeeperMiddleware(application, settings)
    now = int(time.time())
    bearing = token(someone(), iat=now, exp=now + 600)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:

        async def ask(of: str) -> tuple[int, bytes]:
            answer = await client.get("/", headers={"Authorization": f"Bearer {of}"})
            return answer.status_code, answer.content

        first = await ask(bearing)
        assert first[0] == 200
        with time_machine.travel(now + 3600, tick=True):
            assert await ask(bearing) == (401, error_body("token_expired"))
            assert (await ask(token(someone())))[0] == 200
        with time_machine.travel(now - 3600, tick=True):
            assert await ask(bearing) == (401, error_body("token_invalid"))
        with time_machine.travel(now - 5, tick=True):
            assert await ask(bearing) == first
        assert await ask(bearing) == first
    await app._engine.runtime.aclose()


class Asked:
    """What `current_session` takes: anything with a scope."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope


def test_a_gatekeeper_that_was_frozen_lets_nobody_pass_who_is_out(the_bed: Bed) -> None:  # T2
    frozen, other = the_bed.gates["allow_verified"], the_bed.gates["deny"]
    the_bed.service()
    bearing, stays = token(someone()), token(someone())
    for each in (bearing, stays):
        assert fetch(frozen.url, "GET", "/", [bearer(each)]).status == 200
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        assert fetch(other.url, "DELETE", "/sessions/logout", [bearer(bearing)]).status == 200
        time.sleep(1)
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    assert fetch(frozen.url, "GET", "/", [bearer(bearing)]).status == 401
    assert fetch(frozen.url, "GET", "/", [bearer(stays)]).status == 200


@pytest.mark.slow
def test_a_gatekeeper_that_starts_before_its_store(backend: Backend) -> None:  # K11
    with external_store(*_OPTIONS) as store:
        store.kill()
        with sidecar(backend.url, redis_url=store.url, on_store_failure="allow_verified") as gate:
            world = World(gate.url, lambda: backend.reached, store)
            bearing = token(someone())
            assert fetch(gate.ops, "GET", "/livez").status == 200
            assert eventually(lambda: gate.ready().status == 503 and gate.ready().body).startswith(
                b"session store failed: connection"
            )
            # Nobody has told this process of any end.
            assert world.passed("/", bearing).get_all("x-gatekeeper-degraded") == ["1"]
            store.start()
            eventually(lambda: gate.ready().status == 200)
            assert world.passed("/", bearing).get_all("x-gatekeeper-degraded") == []

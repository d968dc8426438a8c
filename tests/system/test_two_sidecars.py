"""Two sidecars on one store: what one ends, the other refuses, and a limit holds over both."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contracts.responses import error_body
from tests.system.clients import status_of, statuses
from tests.system.sidecar import Backend, Sidecar, Store, World, sidecar, someone, token


@pytest.fixture(scope="module")
def second(store: Store, backend: Backend) -> Iterator[World]:
    with sidecar(backend.url, redis_url=store.url) as running:
        yield World(running.url, lambda: backend.reached, store)


ENDS = {
    "a logout": ("DELETE", "/sessions/logout", "access_token_blacklisted", "logged_out"),
    "a revocation": ("DELETE", "/sessions/{id}", "session_revoked_or_invalid", "revoked_by_user"),
    "a deactivation": ("PATCH", "/api/sessions/{id}/deactivate", "session_revoked_or_invalid", "deactivated"),
    "the end of all": ("DELETE", "/api/sessions", "session_revoked_or_invalid", "revoked_by_user"),
    "an administrator": ("DELETE", "/sessions/user/{user}/{id}", "session_revoked_or_invalid", "revoked_by_admin"),
    "an administrator's end of all": (
        "DELETE",
        "/sessions/user/{user}",
        "session_revoked_or_invalid",
        "revoked_by_admin",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_session_ended_through_one_is_refused_by_the_other_at_its_very_next_request(
    world: World, second: World, end: str
) -> None:  # C-13, E-07, T30
    method, path, code, reason = ENDS[end]
    user = someone()
    bearing = token(user)
    (session,) = second.session_ids(bearing)
    second.passed("/", bearing)
    actor = token(someone(), roles=["admin"]) if "administrator" in end else bearing
    ended = world.fetch(path.format(id=session, user=user), actor, method=method)
    assert ended.status == 200
    assert second.refused("/", bearing).body == error_body(code, reason)
    assert world.refused("/", bearing).body == error_body(code, reason)


def test_a_session_opened_through_one_is_the_same_through_the_other(world: World, second: World) -> None:
    bearing = token(someone())
    assert world.session_ids(bearing) == second.session_ids(bearing)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["evict_idle", "evict_oldest", "reject"])
async def test_200_first_requests_at_once_never_make_more_than_three_live_sessions(
    store: Store, backend: Backend, policy: str
) -> None:  # D-05, D-07, C-12
    user, most, over = someone(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, store.live(user))

    with ExitStack() as stack:
        gates = [
            stack.enter_context(sidecar(backend.url, redis_url=store.url, device_limit_policy=policy)) for _ in range(2)
        ]
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            tokens = [token(user) for _ in range(200)]
            urls = itertools.cycle(gate.url for gate in gates)
            found = await statuses(zip(urls, tokens, strict=False))
        finally:
            over.set()
            await asyncio.to_thread(watching.join)
    assert 1 <= most <= 3
    assert store.live(user) == 3
    if policy == "reject":
        assert sorted(found) == [200] * 3 + [403] * 197
    else:
        assert found == [200] * 200


async def test_what_starts_after_the_end_of_all_was_acknowledged_is_refused(world: World, second: World) -> None:  # S14
    user, sid = someone(), uuid.uuid4().hex
    bearing = token(user, sid=sid)
    world.passed("/", bearing)
    answers: list[tuple[float, int]] = []
    acknowledged: list[float] = []

    async def ask(url: str) -> None:
        left = 5
        while left:
            left -= bool(acknowledged)
            began = time.monotonic()
            answers.append((began, await status_of(url, bearing)))

    async def end() -> None:
        while len(answers) < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await status_of(world.url, bearing, "/sessions/all", "DELETE") == 200
        acknowledged.append(time.monotonic())

    await asyncio.gather(end(), *(ask(url) for url in (world.url, second.url) * 8))
    assert {status for _, status in answers} == {200, 401}
    assert all(status == 401 for began, status in answers if began > acknowledged[0])


async def test_a_touch_that_races_the_end_never_revives_a_session(world: World, second: World) -> None:  # S16
    for _ in range(5):
        user = someone()
        bearing = token(user)
        (session,) = world.session_ids(bearing)
        found = await asyncio.gather(
            *(status_of(url, bearing) for url in (world.url, second.url) * 10),
            status_of(world.url, bearing, f"/sessions/{session}", "DELETE"),
        )
        # The end itself may only be late for itself.
        assert found[-1] == 200
        assert world.refused("/", bearing).status == second.refused("/", bearing).status == 401
        assert world.store.live(user) == 0


def test_the_start_line_says_every_claimed_path(gate: Sidecar) -> None:
    assert gate.paths == [
        "GET /api/v1/auth/users/me/sessions",
        "DELETE /api/v1/auth/users/me/sessions",
        "DELETE /api/v1/auth/users/me/sessions/all",
        "DELETE /api/v1/auth/users/me/sessions/{session_id}",
        "GET /api/v1/users/me/sessions",
        "DELETE /api/v1/users/me/sessions",
        "DELETE /api/v1/users/me/sessions/all",
        "DELETE /api/v1/users/me/sessions/{session_id}",
        "GET /api/sessions",
        "DELETE /api/sessions",
        "DELETE /api/sessions/{id}",
        "PATCH /api/sessions/{id}/deactivate",
        "GET /admin/sessions/active",
        "POST /admin/sessions/cleanup",
        "GET /debug/session-info",
        "GET /sessions/me",
        "DELETE /sessions/logout",
        "DELETE /sessions/all",
        "DELETE /sessions/{id}",
        "GET /sessions/user/{user_id}",
        "DELETE /sessions/user/{user_id}",
        "DELETE /sessions/user/{user_id}/{id}",
        "GET /_gatekeeper/v1/me",
        "GET /_gatekeeper/v1/sessions",
        "GET /_gatekeeper/v1/sessions/{id}",
        "PATCH /_gatekeeper/v1/sessions/{id}",
        "DELETE /_gatekeeper/v1/sessions/{id}",
        "POST /_gatekeeper/v1/sessions/{id}/report",
        "POST /_gatekeeper/v1/sessions/end-others",
        "POST /_gatekeeper/v1/sessions/end-all",
        "GET /api/users/me/sessions",
        "DELETE /api/users/me/sessions",
        "DELETE /api/users/me/sessions/{session_id}",
        "GET /_gatekeeper/openapi.json",
    ]

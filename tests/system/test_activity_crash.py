"""Activity is written with the verdict, and nothing of it is held back: a sidecar that is killed right after an answer
has lost none, and another judges idleness by it (attack S18)."""

from __future__ import annotations

import time

import pytest

from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, sidecar, someone, token

IDLE_SECONDS = 4


def now(store: Store) -> int:
    """The store's clock, in microseconds."""
    seconds, microseconds = store.client.time()
    return int(seconds) * 1_000_000 + int(microseconds)


def answered_and_killed(store: Store, backend: Backend, user: str, bearing: str, targets: list[str]) -> None:
    """Requests to a sidecar that is killed as soon as the last has its answer: no activity is missing."""
    with sidecar(backend.url, redis_url=store.url, idle_timeout=f"{IDLE_SECONDS}s") as gate:
        asked_at = 0
        for target in targets:
            asked_at = now(store)
            assert fetch(gate.url, "GET", target, [bearer(bearing)]).status == 200
        gate.kill()
    assert asked_at <= store.last_activity(user) <= now(store)


# The first request with a token goes through the application, the second takes the direct route, and the last is one
# that Gatekeeper serves itself.
@pytest.mark.parametrize("targets", [["/a"], ["/a", "/b"], ["/a", "/b", "/c", "/sessions/me"]], ids=len)
def test_a_sidecar_that_is_killed_has_lost_no_activity_and_another_judges_by_it(
    store: Store, backend: Backend, targets: list[str]
) -> None:
    # S18
    user = someone()
    bearing = token(user)
    with sidecar(backend.url, redis_url=store.url, idle_timeout=f"{IDLE_SECONDS}s") as other:
        answered_and_killed(store, backend, user, bearing, targets)
        over_at = store.last_activity(user) + IDLE_SECONDS * 1_000_000
        # Nothing of the killed one's own is needed to find that.
        while now(store) < over_at:
            time.sleep(0.05)
        assert_idle(other, bearing)


def assert_idle(gate: Sidecar, bearing: str) -> None:
    answer = fetch(gate.url, "GET", "/a", [bearer(bearing)])
    assert answer.status == 401
    assert b"session_inactivity_timeout" in answer.body

"""A request that the backend may take for one of another method: what the sidecar does not forward directly then."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.contracts.gate import OVERRIDES, OVERRIDING_QUERIES
from tests.middleware.host import sidecar_app
from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import Backend, Store, World, someone, token
from tests.tokens.login_server import http


async def script(connection: RawConnection, request: RawRequest) -> None:
    """A backend that reads the method from where the client wants it, and hands out the token that it is sent."""
    given = dict(request.headers).get(b"x-given", b"").decode()
    await connection.write(http({"access_token": given}, "200 OK", "Content-Type: application/json"))


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with Backend(script) as backend, sidecar_app(store, backend) as running:
        yield running


WAYS = [
    *((f"/auth/login?{query}", []) for query in OVERRIDING_QUERIES),
    *(("/auth/login", [name]) for name in OVERRIDES),
]


@pytest.mark.parametrize(("target", "names"), WAYS)
def test_a_login_by_an_overridden_method_is_observed(world: World, target: str, names: list[str]) -> None:  # H08
    user = someone()
    known, given = token(user), token(user)
    for _ in range(2):
        # From the second time on it is forwarded directly.
        world.passed("/", known)
    answer = world.fetch(target, known, headers=[("X-Given", given), *((name, "POST") for name in names)])
    assert json.loads(answer.body) == {"access_token": given}
    # One device, one session: that of the token which the login presented is over.
    assert world.store.live(user) == 1
    world.refused("/", known)
    world.passed("/", given)

"""What a status requires of its response (RFC 9110 section 15): as middleware, for each kind of answer of Gatekeeper's
own. Those of the server are in `tests/server/test_bytes.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.responses import assert_says_what_is_accepted
from tests.middleware.host import around, mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, someone, token
from tests.web.shapes import ENDS, READS, admin

TEXT = [("Content-Type", "text/plain")]


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, around, rate_limit="2/1m") as made:
        yield made


def answers(world: World) -> Iterator[tuple[int, ClientResponse]]:
    """An answer of each status, with the status that it should have."""
    yield 401, world.fetch("/protected")
    yield 401, world.fetch("/protected", "no.token")
    yield 405, world.fetch("/protected", method="TRACE")
    yield 400, world.fetch("/%zz")
    yield 404, world.fetch("/_gatekeeper/nothing")
    for path in READS.values():
        yield 401, world.fetch(path)
    for method, path in ENDS.values():
        yield 415, world.fetch(path, admin(), method=method, headers=TEXT, body=b"x")
    user = admin(someone())
    for _ in range(2):
        world.fetch("/sessions/me", user)
    yield 429, world.fetch("/sessions/me", user)
    yield 404, world.fetch("/sessions/7", token(someone()), method="DELETE")


def test_an_answer_has_the_headers_that_its_status_requires(world: World) -> None:
    seen = set()
    for status, answer in answers(world):
        assert answer.status == status, answer
        seen.add(status)
        assert len(answer.get_all("www-authenticate")) == (status == 401)
        assert len(answer.get_all("retry-after")) == (status in {429, 503})
        allowed = ["GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"] if status == 405 else []
        assert answer.get_all("allow") == allowed
        if status == 415:
            assert_says_what_is_accepted(answer, TEXT, "application/json")
        else:
            assert answer.get_all("accept") == answer.get_all("accept-encoding") == []
    assert seen == {400, 401, 404, 405, 415, 429}

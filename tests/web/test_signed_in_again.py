"""Once signed out, in again: a fresh login under a reference whose session is over, where an application issues its own
tokens. What the store does about it is in `tests/sessions/test_signed_in_again.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from starlette.responses import JSONResponse

from tests.contracts.dialect import JSON
from tests.contracts.gate import cookie
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, bearer, eventually, someone, token
from tests.web.shapes import admin
from tests.web.test_observed_sign_in import (
    LOGGED_OUT,
    LOGIN,
    LOGOUT,
    REVOKED,
    Pair,
    current,
    end_all,
    handed,
    log_out,
    mount,
    of,
    opaque,
    post,
    renew,
    sign_in,
)

Maker = Callable[..., str]


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_rate_limit="off") as made:
        yield made


def sso(sid: str, auth_time: int) -> Maker:
    """Single sign-on: while the provider remembers the browser, `sid` and `auth_time` stay."""
    return lambda user, _="", **claims: token(user, sid=sid, auth_time=auth_time, **claims)


def by_bare_sid(sid: str) -> Maker:
    return lambda user, _="", **claims: token(user, sid=sid, **claims)


def devise(jti: str) -> Maker:
    """One `jti` a user."""
    return lambda user, _="", **claims: token(user, jti=jti, **claims)


MAKERS: dict[str, Callable[[], Maker]] = {
    "sso": lambda: sso(opaque(), int(time.time()) - 60),
    "sid": lambda: by_bare_sid(opaque()),
    "devise": lambda: devise(opaque()),
}
makers = pytest.mark.parametrize("new_maker", MAKERS.values(), ids=MAKERS)


def delete_one(world: World, bearing: str) -> None:
    assert world.fetch(f"/api/users/me/sessions/{current(world, bearing)}", bearing, method="DELETE").status == 200


def deactivate(world: World, bearing: str) -> None:
    path = f"/api/sessions/session_{current(world, bearing)}/deactivate"
    assert world.fetch(path, bearing, method="PATCH").status == 200


def forwarded_logout(world: World, bearing: str) -> None:
    assert post(world, LOGOUT, JSONResponse({}), headers=[bearer(bearing)]).status == 200


ENDS: dict[str, tuple[Callable[[World, str], None], bytes]] = {
    "logout": (log_out, LOGGED_OUT),
    "forwarded logout": (forwarded_logout, LOGGED_OUT),
    "one": (delete_one, REVOKED),
    "all": (end_all, REVOKED),
    "deactivated": (deactivate, error_body("session_revoked_or_invalid", "deactivated")),
}


@makers
@pytest.mark.parametrize(("end", "said"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("jar", ["empty", "kept"])
def test_who_was_signed_out_signs_in_again(
    world: World, new_maker: Callable[[], Maker], end: Callable[[World, str], None], said: bytes, jar: str
) -> None:
    make, user = new_maker(), someone()
    old = sign_in(world, user, lambda user, _: make(user, iat=int(time.time()) - 30))
    number = current(world, old.access)
    end(world, old.access)
    # The browser may send its old cookie along.
    headers = [cookie(old.access)] if jar == "kept" else []
    # Both of the second in which the session ended: one that this login hands out, and one that it does not.
    new, same_second = sign_in(world, user, make, headers=headers), make(user, n=1, iat=int(time.time()) - 30)
    assert current(world, new.access) != number
    for before in (old.access, same_second):
        assert_own_response(world.refused("/", before), 401, said)
    # Nothing of before acts on the new session: no refresh, no logout, no further login.
    for headers in ([bearer(old.access)], [cookie(old.access)]):
        assert renew(world, Pair(make(user, n=2), opaque()), headers=[JSON, *headers]).status == 401
        assert post(world, LOGOUT, JSONResponse({}), headers=headers).status == 200
    assert renew(world, Pair(make(user, n=3), opaque()), of(refresh_token=old.refresh)).status == 401
    world.fetch("/sessions/logout", old.access, method="DELETE")
    assert world.passed("/", new.access)
    assert world.store.live(user) == 1
    # The new one is as good as any: it is refreshed, and ends.
    time.sleep(1.01 - time.time() % 1)
    renewed = Pair(make(user, n=4), opaque())
    assert renew(world, renewed, of(refresh_token=new.refresh)).status == 200
    assert current(world, renewed.access) == current(world, new.access)
    forwarded_logout(world, renewed.access)
    for over in (new.access, renewed.access):
        assert_own_response(world.refused("/", over), 401, LOGGED_OUT)
    assert_own_response(world.refused("/", old.access), 401, said)


def _says(world: World, bearing: str, body: bytes) -> bool:
    return world.fetch("/", bearing).body == body


def test_who_was_evicted_or_idle_signs_in_again(store: Store) -> None:
    idle = error_body("session_inactivity_timeout", "idle")
    with mounted(store, mount, login_rate_limit="off", device_limit="1", idle_timeout="2s") as world:
        for new_maker in MAKERS.values():
            make, user = new_maker(), someone()
            old = sign_in(world, user, make)
            other = sign_in(world, user)
            assert_own_response(
                world.refused("/", old.access), 401, error_body("session_revoked_or_invalid", "evicted")
            )
            # Of the same second as the eviction.
            new = sign_in(world, user, partial(make, n=1))
            assert world.passed("/", new.access)
            assert world.refused("/", other.access).status == 401
            time.sleep(2)
            assert eventually(partial(_says, world, new.access, idle))
            again = sign_in(world, user, make)
            assert world.passed("/", again.access)
            # Neither the idle session's token nor the evicted one's is good for anything.
            assert world.refused("/", new.access).body == idle
            assert world.refused("/", old.access).status == 401


@makers
def test_only_a_login_opens_a_session_again(world: World, new_maker: Callable[[], Maker]) -> None:  # S24
    make, user = new_maker(), someone()
    old = sign_in(world, user, make)
    log_out(world, old.access)
    fresh = make(user, n=1, iat=int(time.time()) + 1)
    assert_own_response(world.refused("/", fresh), 401, LOGGED_OUT)
    # A refresh answer that holds a token of it, whatever linked or did not link the refresh.
    for body in (of(refresh_token=opaque()), of(refresh_token=sign_in(world, user).refresh)):
        assert_own_response(renew(world, Pair(fresh, opaque()), body), 401, LOGGED_OUT)
    assert_own_response(world.refused("/", fresh), 401, LOGGED_OUT)
    assert sign_in(world, user, lambda *_: fresh)
    assert world.passed("/", fresh)


CARRIED: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "header": lambda access: (b"{}", [bearer(access)]),
    "cookie": lambda access: (b"{}", [cookie(access)]),
    "another cookie": lambda access: (b"{}", [("Cookie", f"a=b; session={access}")]),
    "body": lambda access: (of(access_token=access), []),
}


@makers
@pytest.mark.parametrize("carry", CARRIED.values(), ids=CARRIED)
def test_a_backend_that_answers_the_token_it_was_sent_opens_nothing_again(
    world: World, new_maker: Callable[[], Maker], carry: Callable[[str], tuple[bytes, list[tuple[str, str]]]]
) -> None:
    """A backend that finds its own cookie good asks for no password: an ended device must not come back by that."""
    make, user = new_maker(), someone()
    old = sign_in(world, user, make)
    end_all(world, old.access)
    body, headers = carry(old.access)
    answer = post(world, LOGIN, handed(old), body, [JSON, *headers])
    assert_own_response(answer, 401, REVOKED)
    assert world.store.live(user) == 0
    # Nor does it make the old token one of a session that was opened since.
    new = sign_in(world, user, lambda user, _: make(user, n=1))
    assert post(world, LOGIN, handed(old), body, [JSON, *headers]).status == 401
    assert_own_response(world.refused("/", old.access), 401, REVOKED)
    assert world.passed("/", new.access)


@makers
def test_a_login_answer_with_somebody_else_s_token_ends_nothing(world: World, new_maker: Callable[[], Maker]) -> None:
    make, user, other = new_maker(), someone(), someone()
    mine, theirs = sign_in(world, user, make), sign_in(world, other, make)
    # One reference, two users: two sessions.
    log_out(world, theirs.access)
    assert (
        post(world, LOGIN, handed(Pair(make(other, n=1), opaque())), headers=[JSON, bearer(mine.access)]).status == 200
    )
    assert world.passed("/", mine.access)
    assert_own_response(world.refused("/", theirs.access), 401, LOGGED_OUT)


def _assert_stale(answer: ClientResponse, dialect: str) -> None:
    body = json.loads(answer.body)
    fault: dict[str, Any] = body.get("error", body)
    codes = {"django": "INSUFFICIENT_USER_AUTHENTICATION", "express": "UNAUTHORIZED"}
    assert fault["code"] == codes.get(dialect, "insufficient_user_authentication")
    assert fault.get("max_age") == (None if dialect == "django" else 0)
    assert answer.status == 401
    (challenge,) = answer.get_all("www-authenticate")
    assert 'error="insufficient_user_authentication"' in challenge
    assert challenge.endswith(", max_age=0")


@pytest.mark.parametrize("dialect", ["django", "express", "fastapi", "mockstream", "users_me"])
def test_whom_an_administrator_signed_out_signs_in_anew(store: Store, dialect: str) -> None:
    with mounted(store, mount, login_rate_limit="off", error_dialect=dialect) as world:
        user, jti = someone(), opaque()

        def make(user: str, _: str = "", *, ago: int, **claims: Any) -> str:
            return token(user, jti=jti, auth_time=int(time.time()) - ago, **claims)

        old = sign_in(world, user, lambda user, _: make(user, ago=60))
        assert world.fetch(f"/sessions/user/{user}", admin(), method="DELETE").status == 200
        again = make(user, ago=60, n=1)
        answer = post(world, LOGIN, handed(Pair(again, opaque())), of(username=user, password="x"))
        _assert_stale(answer, dialect)
        assert again not in str(answer)
        assert world.store.live(user) == 0
        assert world.refused("/", old.access).status == world.refused("/", again).status == 401
        new = sign_in(world, user, lambda user, _: make(user, ago=-2))
        assert world.passed("/", new.access)
        assert world.refused("/", old.access).status == 401

"""A Gatekeeper whose clock is late, or ahead: every session that a request asks to end ends, and no request is admitted
for it. A token from the future stands for a clock that is late, for only the difference counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.responses import PlainTextResponse

from tests.contracts.dialect import JSON
from tests.contracts.gate import cookie
from tests.contracts.responses import assert_own_response, error_body
from tests.middleware.host import mounted
from tests.servers import ClientResponse
from tests.system.sidecar import Store, World, bearer, someone, token
from tests.tokens import forge
from tests.web.test_observed_sign_in import (
    FORM,
    LOGGED_OUT,
    LOGIN,
    LOGOUT,
    REFRESH,
    Pair,
    handed,
    mount,
    of,
    opaque,
    post,
    refused,
    renew,
)

INVALID = error_body("token_invalid")
CLIENT, SECRET = "billing", forge.OTHER_SECRET
NOW = int(time.time())
# What a clock that is late, or ahead, takes a good token for. Hours, since a suite takes its time until it comes here.
TIMES: dict[str, dict[str, Any]] = {
    "iat in the future": {"iat": NOW + 36_000},
    "nbf in the future": {"nbf": NOW + 36_000},
    "a day in the future": {"iat": NOW + 86_400, "nbf": NOW + 86_400, "exp": NOW + 90_000},
    "exp in the past": {"iat": NOW - 900, "exp": NOW - 600},
}
times = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_rate_limit="off", introspection_clients=f"{CLIENT}:{SECRET}") as made:
        yield made


def own_logout(world: World, access: str) -> ClientResponse:
    return world.fetch("/sessions/logout", access, method="DELETE")


def own_logout_by_body(world: World, access: str) -> ClientResponse:
    return world.fetch("/sessions/logout", method="DELETE", headers=[JSON], body=of(access_token=access))


def logout_by_bearer(world: World, access: str) -> ClientResponse:
    return post(world, LOGOUT, PlainTextResponse("bye"), token=access)


def logout_by_cookie(world: World, access: str) -> ClientResponse:
    return post(world, LOGOUT, PlainTextResponse("bye"), headers=[cookie(access)])


def logout_by_body(world: World, access: str) -> ClientResponse:
    return post(world, LOGOUT, PlainTextResponse("bye"), of(access_token=access))


def oauth_revoke(world: World, access: str) -> ClientResponse:
    fields = urlencode({"token": access, "client_id": CLIENT, "client_secret": SECRET}).encode()
    return world.fetch("/oauth/revoke", method="POST", headers=[FORM], body=fields)


WAYS: list[Callable[[World, str], ClientResponse]] = [
    own_logout,
    own_logout_by_body,
    logout_by_bearer,
    logout_by_cookie,
    logout_by_body,
    oauth_revoke,
]
ways = pytest.mark.parametrize("end", WAYS)


@ways
@times
def test_a_session_ends_whatever_this_host_takes_the_time_of_its_token_for(
    world: World, times: dict[str, Any], end: Callable[[World, str], ClientResponse]
) -> None:  # rule 5.6
    user, sid = someone(), opaque()
    live = token(user, sid=sid)
    world.passed("/", live)
    untimely = token(user, sid=sid, **times)
    world.refused("/", untimely)
    assert end(world, untimely).status == 200
    assert_own_response(world.refused("/", live), 401, LOGGED_OUT)
    world.refused("/", untimely)


@ways
def test_a_token_never_seen_opens_no_session_when_its_time_has_come(
    world: World, end: Callable[[World, str], ClientResponse]
) -> None:  # rule 5.6
    user, sid = someone(), opaque()
    assert end(world, token(user, sid=sid, iat=int(time.time()) + 900)).status == 200
    assert_own_response(world.refused("/", token(user, sid=sid)), 401, LOGGED_OUT)


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "no user": {"sub": ""},
    "no exp": {"exp": ...},
    "absurd iat": {"iat": -1e303},
    "sid that is none": {"sid": "a\nb"},
    "refresh token": {"token_type": "refresh"},
}


@pytest.mark.parametrize("end", [logout_by_bearer, logout_by_cookie, logout_by_body, oauth_revoke])
@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS)
def test_what_is_well_signed_and_cannot_be_ended_is_no_success(
    world: World, claims: dict[str, Any], end: Callable[[World, str], ClientResponse]
) -> None:  # rule 5.6
    before = len(world.reached)
    answer = end(world, token(someone(), **claims))
    assert (answer.status, answer.get_all("retry-after") != []) == (503, True)
    assert world.reached[before:] == []


def test_a_refresh_token_that_goes_as_the_bearer_logs_out(world: World) -> None:  # rule 5.6
    # Flask-JWT-Extended: the refresh token is a JWT of the same key, and its logout takes either kind.
    user = someone()
    pair = Pair(token(user), token(user, type="refresh"))
    assert post(world, LOGIN, handed(pair)).status == 200
    world.passed("/", pair.access)
    for _ in range(2):
        assert logout_by_bearer(world, pair.refresh).status == 200
        assert_own_response(world.refused("/", pair.access), 401, LOGGED_OUT)


def test_a_bad_token_beside_a_good_one_does_not_keep_the_session_alive(world: World) -> None:  # rule 5.6
    access = token(someone())
    world.passed("/", access)
    body = of(access_token=token(someone(), token_type="refresh"))
    assert post(world, LOGOUT, PlainTextResponse("bye"), body, token=access).status == 200
    assert_own_response(world.refused("/", access), 401, LOGGED_OUT)


def test_tokens_that_contradict_each_other_never_get_the_success_of_the_application(world: World) -> None:
    mine, theirs, second = (token(user) for user in (someone(), someone(), someone()))
    for each in (mine, theirs):
        world.passed("/", each)
    for headers in (
        [bearer(mine), bearer(mine)],
        [bearer(mine), cookie(theirs)],
        [bearer("x"), cookie(mine)],
        [cookie(mine), cookie(second)],
    ):
        assert_own_response(refused(world, LOGOUT, headers=headers), 401, INVALID)
    for each in (mine, theirs):
        world.passed("/", each)


@times
def test_a_refresh_of_an_ended_session_is_refused(world: World, times: dict[str, Any]) -> None:  # rule 5.5
    user, sid = someone(), opaque()
    live = token(user, sid=sid)
    world.passed("/", live)
    assert own_logout(world, live).status == 200
    assert_own_response(refused(world, REFRESH, token=token(user, sid=sid, **times)), 401, LOGGED_OUT)


def test_what_a_login_hands_out_belongs_to_its_session_though_it_is_from_the_future(world: World) -> None:
    user, later = someone(), int(time.time()) + 900
    pair = Pair(token(user, iat=later, nbf=later, exp=later + 900), opaque())
    assert post(world, LOGIN, handed(pair)).status == 200
    assert world.store.live(user) == 1
    world.refused("/", pair.access)
    renewed = Pair(token(user, iat=later, exp=later + 900), opaque())
    assert renew(world, renewed, of(refresh=pair.refresh)).status == 200
    assert world.store.live(user) == 1
    assert logout_by_bearer(world, renewed.access).status == 200
    for each in (pair, renewed):
        assert_own_response(refused(world, REFRESH, of(refresh=each.refresh)), 401, LOGGED_OUT)

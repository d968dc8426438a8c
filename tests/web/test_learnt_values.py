"""What is learnt as a refresh token is a secret, and what a stranger knows or guesses ends and refuses nothing
(rule 5.13); a logout ends what its tokens name wherever they stand (rule 5.6)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tests.contracts.dialect import JSON
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, bearer, someone, token
from tests.web.test_observed_sign_in import (
    LOGIN,
    LOGOUT,
    REFRESH,
    REVOKED,
    end_all,
    log_out,
    mount,
    of,
    opaque,
    post,
    refused,
)


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_rate_limit="off") as made:
        yield made


def secret() -> str:
    return opaque() + opaque()


KNOWN = str(uuid.uuid4())
# Each gives a value that is no secret: in the first place of a login's response, and in a request later.
NO_SECRETS: dict[str, tuple[dict[str, str], str, str]] = {
    "a time": ({"refresh_token_expires_at": "2026-12-07T20:50:00Z"}, "", "2026-12-07T20:50:00Z"),
    "a time under another name": (
        {"refreshWindow": "2026-12-07T20:51:00.000+01:00"},
        "",
        "2026-12-07T20:51:00.000+01:00",
    ),
    "a date": ({"refreshUntil": "Mon, 07 Dec 2026 20:52:00 GMT"}, "", "Mon, 07 Dec 2026 20:52:00 GMT"),
    "a number": ({"refresh_n": "17645364001234567890"}, "", "17645364001234567890"),
    "an address": ({"refresh_uri": "https://api.example.com/auth/refresh"}, "", "https://api.example.com/auth/refresh"),
    "mail": ({"refreshed_by": "somebody.with.a.name@example.com"}, "", "somebody.with.a.name@example.com"),
    "a kind": (
        {"refresh_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        "",
        "urn:ietf:params:oauth:token-type:refresh_token",
    ),
    "words": ({"refresh_hint": "Use it before it is too late"}, "", "Use it before it is too late"),
    "an id": ({"refreshTokenId": KNOWN}, "", KNOWN),
    "the id of a user": ({}, f"user_id={KNOWN}", KNOWN),
    "an id that the body tells": ({"userId": KNOWN[::-1]}, f"who={KNOWN[::-1]}", KNOWN[::-1]),
    "hardly anything": ({}, f"x={'ab' * 20}", "ab" * 20),
}


@pytest.mark.parametrize(("members", "cookie", "value"), NO_SECRETS.values(), ids=NO_SECRETS)
def test_what_is_no_secret_is_not_learnt(
    world: World, members: dict[str, str], cookie: str, value: str
) -> None:  # S09, rule 5.13
    user = someone()
    access = token(user)
    headers = {"set-cookie": f"{cookie}; HttpOnly"} if cookie else {}
    post(world, LOGIN, JSONResponse({"access_token": access, **members}, headers=headers), of(username=user))
    sent = [("Cookie", cookie)] if cookie else []
    for body in (of(**(members or {"x": value})), of(list=[value])):
        assert post(world, LOGOUT, PlainTextResponse("ok"), body, [JSON, *sent]).status == 200
    assert world.store.live(user) == 1
    log_out(world, access)
    assert post(world, REFRESH, JSONResponse({}), of(x=value), [JSON, *sent]).status == 200


@pytest.mark.parametrize("claim", ["sub", "email", "tenant"])
def test_what_the_token_tells_of_its_user_is_not_learnt(world: World, claim: str) -> None:  # S09, rule 5.13
    value = str(uuid.uuid4())
    access = token(value) if claim == "sub" else token(someone(), **{claim: value})
    answer = JSONResponse({"access_token": access}, headers={"set-cookie": f"who={value}; HttpOnly"})
    post(world, LOGIN, answer, of(username="x"))
    assert post(world, LOGOUT, PlainTextResponse("ok"), b"", [("Cookie", f"who={value}")]).status == 200
    world.passed("/", access)


@pytest.mark.parametrize("place", ["rt", "directus_refresh_token", "connect.sid", "PHPSESSID", "session_id"])
def test_a_learnt_secret_ends_its_session_only_where_it_stood(world: World, place: str) -> None:  # S09, C-03, rule 5.13
    """In a log or a list a stranger may see it, and a guess can be one of many texts in a body."""
    user, kept = someone(), secret()
    access = token(user)
    answer = JSONResponse({"access_token": access}, headers={"set-cookie": f"{place}={kept}; HttpOnly"})
    post(world, LOGIN, answer, of(username=user))
    for body, headers in ((of(x=kept), [JSON]), (of(list=[kept, secret()]), [JSON]), (b"", [("Cookie", f"y={kept}")])):
        assert post(world, LOGOUT, PlainTextResponse("ok"), body, headers).status == 200
    assert world.store.live(user) == 1
    assert post(world, LOGOUT, PlainTextResponse("ok"), b"", [("Cookie", f"{place}={kept}")]).status == 200
    assert world.store.live(user) == 0


def given_a_constant(world: World) -> tuple[str, list[tuple[str, str]]]:
    """The user of an ended session that was given a cookie which every client sends, and that cookie."""
    user, constant = someone(), f"blue-{secret()}"
    access = token(user)
    answer = JSONResponse({"access_token": access}, headers={"set-cookie": f"variant={constant}; HttpOnly"})
    post(world, LOGIN, answer, of(username=user))
    end_all(world, access)
    return user, [JSON, ("Cookie", f"variant={constant}")]


@pytest.mark.parametrize("name", ["refresh_token", "myRefresh"])
def test_the_refresh_of_one_user_is_not_refused_by_what_another_was_given(
    world: World, name: str
) -> None:  # S09, rule 5.13
    _, cookie = given_a_constant(world)
    user, own = someone(), secret()
    new = token(user)
    assert post(world, REFRESH, JSONResponse({"access_token": new}), of(**{name: own}), cookie).status == 200
    world.passed("/", new)
    assert world.store.live(user) == 1


@pytest.mark.parametrize("shown", [True, False])
def test_an_unknown_token_beside_it_does_not_renew_an_ended_session(
    world: World, *, shown: bool
) -> None:  # S10, rule 5.13
    """What comes back is for the user of the ended session, or cannot be read: it is withheld."""
    user, cookie = given_a_constant(world)
    new = token(user)
    answer = JSONResponse({"access_token": new}) if shown else Response(b"x", headers={"content-encoding": "zstd"})
    got = post(world, REFRESH, answer, of(refresh_token=secret()), cookie)
    assert (got.status, got.body) == (401, REVOKED)
    assert world.store.live(user) == 0


def test_what_is_called_a_refresh_token_refuses_whatever_stands_beside_it(world: World) -> None:  # S10, rule 5.13
    user, kept = someone(), secret()
    access = token(user)
    answer = JSONResponse({"access_token": access}, headers={"set-cookie": f"my_refresh={kept}; HttpOnly"})
    post(world, LOGIN, answer, of(username=user))
    end_all(world, access)
    for cookie in (f"my_refresh={kept}", f"other={kept}"):
        got = refused(world, REFRESH, of(refresh_token=secret()), [JSON, ("Cookie", cookie)])
        assert got.body == REVOKED


HIDES: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "member": lambda text: (of(jwt=text), [JSON]),
    "deep": lambda text: (of(user={"session": [text]}), [JSON]),
    "scheme": lambda text: (b"", [("Authorization", f"JWT {text}")]),
    "X-Access-Token": lambda text: (b"", [("X-Access-Token", text)]),
    "cookie": lambda text: (b"", [("Cookie", f"jwt={text}")]),
}


@pytest.mark.parametrize("hide", HIDES.values(), ids=HIDES)
def test_a_logout_ends_the_session_of_an_access_token_wherever_it_stands(
    world: World, hide: Callable[[str], tuple[bytes, list[tuple[str, str]]]]
) -> None:  # C-03, rule 5.6
    user = someone()
    access = token(user)
    post(world, LOGIN, JSONResponse({"jwt": access}), of(username=user))
    body, headers = hide(access)
    assert post(world, LOGOUT, PlainTextResponse("ok"), body, headers).status == 200
    assert world.store.live(user) == 0
    # Beside a token that is named, those of the same user end too, and those of others do not.
    first, second, other = token(user), token(user), token(someone())
    for each in (first, second, other):
        world.passed("/", each)
    for each in (second, other):
        body, headers = hide(each)
        headers = (
            [*headers, ("Cookie", f"access_token={first}")] if headers[0][0] != "Cookie" else [bearer(first), *headers]
        )
        assert post(world, LOGOUT, PlainTextResponse("ok"), body, headers).status == 200
    assert world.store.live(user) == 0
    world.passed("/", other)


def test_a_logout_with_found_tokens_of_two_users_ends_nothing(world: World) -> None:  # S27, rule 5.6
    users = [someone(), someone()]
    tokens = [token(user) for user in users]
    for each in tokens:
        world.passed("/", each)
    assert refused(world, LOGOUT, of(jwt=tokens[0], other=tokens[1])).status == 401
    assert [world.store.live(user) for user in users] == [1, 1]

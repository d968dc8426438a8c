"""One path for logins and refreshes, as in OAuth, and refreshes that are sent to a path for logins (rule 5.14)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.responses import JSONResponse

from tests.contracts.dialect import JSON
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, bearer, someone, token
from tests.web.test_observed_sign_in import (
    FORM,
    LOGIN,
    REVOKED,
    THROTTLED,
    WRONG,
    Pair,
    current,
    end_all,
    handed,
    mount,
    of,
    opaque,
    post,
    refused,
    session,
    sign_in,
)

TOKEN = "/oauth/token"
Sent = tuple[str, bytes, list[tuple[str, str]]]

GRANTS: dict[str, Callable[[str], Sent]] = {
    "form": lambda kept: (
        TOKEN,
        urlencode({"grant_type": "refresh_token", "refresh_token": kept, "client_id": "app"}).encode(),
        [FORM],
    ),
    "json": lambda kept: (TOKEN, of(grant_type="refresh_token", refresh_token=kept), [JSON]),
    "camel": lambda kept: (TOKEN, of(grantType="refresh_token", token=kept), [JSON]),
    "query": lambda kept: (f"{TOKEN}?grant_type=refresh_token", of(refresh_token=kept), [JSON]),
    "only the query": lambda kept: (f"{TOKEN}?grant_type=refresh_token&refresh_token={kept}", b"", [JSON]),
    "with a user name": lambda kept: (
        TOKEN,
        urlencode({"grant_type": "refresh_token", "username": "a", "password": "b", "refresh_token": kept}).encode(),
        [FORM],
    ),
    "capitals": lambda kept: (TOKEN, of(grant_type="REFRESH_TOKEN", refresh_token=kept), [JSON]),
    "a zero byte": lambda kept: (TOKEN, f"grant_type=refresh_token%00&refresh_token={kept}".encode(), [FORM]),
    "spaces": lambda kept: (TOKEN, of(grant_type="\u200b refresh_token\n", refresh_token=kept), [JSON]),
    "said twice": lambda kept: (
        f"{TOKEN}?grant_type=password",
        urlencode([("grant_type", "password"), ("grant_type", "refresh_token"), ("refresh_token", kept)]).encode(),
        [FORM],
    ),
}
grants = pytest.mark.parametrize("say", GRANTS.values(), ids=GRANTS)


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    """One endpoint for both, named in both lists."""
    with mounted(
        store, mount, login_rate_limit="off", login_paths=f"{TOKEN},/auth/login", refresh_paths=f"{TOKEN},/auth/refresh"
    ) as made:
        yield made


def by_password(world: World, user: str) -> Pair:
    pair = Pair(token(user), opaque())
    body = urlencode({"grant_type": "password", "username": user, "password": "x"}).encode()
    assert post(world, TOKEN, handed(pair), body, [FORM]).status == 200
    assert session(world, pair.access)["login_method"] == "password"
    return pair


@grants
def test_a_refresh_is_the_same_session(world: World, say: Callable[[str], Sent]) -> None:  # C-02, rule 5.14
    user = someone()
    pair = by_password(world, user)
    path, body, headers = say(pair.refresh)
    new = Pair(token(user), opaque())
    assert post(world, path, handed(new), body, headers).status == 200
    assert world.store.live(user) == 1
    assert current(world, new.access) == current(world, pair.access)


@grants
def test_an_ended_session_cannot_be_renewed(world: World, say: Callable[[str], Sent]) -> None:  # S10, rule 5.14
    user = someone()
    pair = by_password(world, user)
    end_all(world, pair.access)
    path, body, headers = say(pair.refresh)
    assert refused(world, path, body, headers).body == REVOKED
    assert world.store.live(user) == 0


@pytest.mark.parametrize(
    "grant", ["password", "authorization_code", "urn:ietf:params:oauth:grant-type:device_code", ""]
)
def test_any_other_grant_is_a_login(world: World, grant: str) -> None:  # rule 5.14
    user = someone()
    access = token(user)
    body = urlencode({"grant_type": grant, "code": "x", "username": user}).encode()
    assert post(world, TOKEN, handed(Pair(access, opaque())), body, [FORM]).status == 200
    assert session(world, access)["login_method"] == "password"


REVIVALS: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]], str]]] = {
    "body": lambda kept: (of(refresh_token=kept), [JSON], ""),
    "another name": lambda kept: (of(x=kept), [JSON], ""),
    "empty fields": lambda kept: (of(username="", password="", x=kept), [JSON], ""),
    "form": lambda kept: (urlencode({"x": kept}).encode(), [FORM], ""),
    "query": lambda kept: (b"{}", [JSON], f"?x={kept}"),
    "bearer": lambda kept: (b"{}", [JSON, bearer(kept)], ""),
    "another scheme": lambda kept: (b"{}", [JSON, ("Authorization", f"Token {kept}")], ""),
    "long": lambda kept: (of(pad="x" * 9000, x=kept), [JSON], ""),
    "behind a long text": lambda kept: (urlencode({"x" * 9000: kept}).encode(), [FORM], ""),
}


@pytest.mark.parametrize("learnt", [False, True], ids=["named", "learnt"])
@pytest.mark.parametrize("send", REVIVALS.values(), ids=REVIVALS)
def test_the_refresh_token_of_an_ended_session_is_no_login(
    world: World, send: Callable[[str], tuple[bytes, list[tuple[str, str]], str]], *, learnt: bool
) -> None:  # S10, rule 5.14
    user = someone()
    pair = Pair(token(user), opaque())
    members: dict[str, Any] = {"token": pair.access, "my_refresh" if learnt else "refresh_token": pair.refresh}
    post(world, LOGIN, JSONResponse(members), of(username=user))
    end_all(world, pair.access)
    body, headers, query = send(pair.refresh)
    assert refused(world, LOGIN + query, body, headers).body == REVOKED
    assert world.store.live(user) == 0


def test_too_many_texts_hide_no_refresh_token(world: World) -> None:  # S10, rule 5.14
    user = someone()
    pair = sign_in(world, user)
    end_all(world, pair.access)
    many = of(list=[opaque() for _ in range(300)], x=pair.refresh)
    assert refused(world, LOGIN, many).status == 413
    # What names a user is a login.
    login = json.dumps({"username": user, "list": [opaque() for _ in range(300)]}).encode()
    assert post(world, LOGIN, handed(Pair(token(user, iat=int(time.time()) + 1), opaque())), login).status == 200


@pytest.mark.parametrize("field", ["username", "email", "password", "code", "assertion", "SAMLResponse"])
def test_who_proves_a_user_signs_in_whatever_else_they_send(world: World, field: str) -> None:  # rule 5.14
    """A browser that still has the old refresh token signs in anew."""
    user = someone()
    pair = sign_in(world, user)
    end_all(world, pair.access)
    new = token(user)
    body = of(**{field: "x"}, refresh_token=pair.refresh)
    assert post(world, LOGIN, handed(Pair(new, opaque())), body).status == 200
    assert session(world, new)["login_method"] == "password"


def test_a_login_without_fields_and_with_an_old_cookie_is_a_login(world: World) -> None:  # rule 5.14
    """By a certificate or a header, say: a cookie comes by itself, and says nothing of what is meant."""
    user = someone()
    pair = sign_in(world, user)
    end_all(world, pair.access)
    new = token(user)
    answer = post(world, LOGIN, handed(Pair(new, opaque())), b"", [("Cookie", f"refresh_token={pair.refresh}")])
    assert answer.status == 200
    assert session(world, new)["login_method"] == "password"


def test_a_refresh_at_a_login_path_guesses_no_passwords(store: Store) -> None:  # S22, rules 5.10 and 5.14
    """The backend may not look at `grant_type`, so it must not keep failures from being counted."""
    with mounted(store, mount, login_rate_limit="3/15m") as world:
        name = someone()
        guess = urlencode({"username": name, "password": "x", "grant_type": "refresh_token"}).encode()
        statuses = [post(world, LOGIN, WRONG, guess, [FORM]).status for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        assert refused(world, LOGIN, of(username=name, password="y")).body == THROTTLED


PAD = "&p=" + "A" * 66_000
UNREADABLE: dict[str, Callable[[bytes], tuple[bytes, list[tuple[str, str]], str]]] = {
    "too long": lambda body: (body + PAD.encode(), [FORM], ""),
    "too long, with a user name": lambda body: (b"username=a&" + body + PAD.encode(), [FORM], ""),
    "the grant behind the bound": lambda body: (b"username=a&password=b" + PAD.encode() + b"&" + body, [FORM], ""),
    "the grant in the query": lambda body: (body + PAD.encode(), [FORM], "?grant_type=refresh_token"),
    "too many fields": lambda body: (body + b"".join(b"&a=%s" % opaque().encode() for _ in range(400)), [FORM], ""),
    "zstd": lambda body: (body, [FORM, ("Content-Encoding", "zstd")], ""),
    "packed twice": lambda body: (body, [FORM, ("Content-Encoding", "gzip, gzip")], ""),
}


@pytest.mark.parametrize("limit", ["off", "10/15m"])
def test_at_one_endpoint_for_both_what_cannot_be_read_is_no_login(store: Store, limit: str) -> None:  # S10, rule 5.14
    with mounted(store, mount, login_rate_limit=limit, login_paths=TOKEN, refresh_paths=TOKEN) as world:
        user = someone()
        pair = by_password(world, user)
        end_all(world, pair.access)
        for send in UNREADABLE.values():
            body, headers, query = send(f"grant_type=refresh_token&refresh_token={pair.refresh}".encode())
            assert refused(world, TOKEN + query, body, headers).status == 413
        assert world.store.live(user) == 0


def test_at_a_path_for_logins_alone_a_long_login_passes(world: World) -> None:  # rule 5.14
    """Such as a long `SAMLResponse`, where failures are not counted. What does not say so may be a refresh."""
    user = someone()
    body = f"SAMLResponse={'A' * 70_000}".encode()
    assert post(world, LOGIN, handed(Pair(token(user), opaque())), body, [FORM]).status == 200
    for hidden in (f"x={PAD}", f"username=a&grant_type=refresh_token{PAD}"):
        assert refused(world, LOGIN, hidden.encode(), [FORM]).status == 413

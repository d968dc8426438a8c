"""Backends that hand out tokens where no name says so: sessions open at the door all the same, and stay ended (item by
item: rules 5.12 and 5.13). Beside each rule stand the responses and requests that would abuse it."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tests.contracts.dialect import JSON
from tests.middleware.host import mounted
from tests.system.sidecar import Store, World, bearer, someone, token
from tests.tokens import forge
from tests.web.test_observed_sign_in import (
    FORM,
    LOGIN,
    LOGOUT,
    REFRESH,
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
    refused,
    session,
)

Answer = Callable[[str], Response]


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_rate_limit="off", device_limit="off") as made:
        yield made


def long_text() -> str:
    return opaque() + opaque()


# Access tokens

ELSEWHERE: dict[str, Answer] = {
    "jwt": lambda access: JSONResponse({"jwt": access}),
    "user.token": lambda access: JSONResponse({"user": {"id": 1, "token": access}}),
    "id_token": lambda access: JSONResponse({"id_token": access}),
    "result.auth.jwt": lambda access: JSONResponse({"result": {"auth": {"jwt": access}}}),
    "list": lambda access: JSONResponse([{"kind": "bearer", "value": access}]),
    "a scheme before it": lambda access: JSONResponse({"token": f"Bearer {access}"}),
    "an opaque text under the usual name": lambda access: JSONResponse({"token": long_text(), "jwt": access}),
    "JSON in JSON": lambda access: JSONResponse({"statusCode": 200, "body": json.dumps({"jwt": access})}),
    "a string": lambda access: JSONResponse(access),
    "a text": PlainTextResponse,
    "a text with a scheme": lambda access: PlainTextResponse(f"Bearer {access}\n"),
    "JSON called text/html": lambda access: Response(of(token=access), media_type="text/html"),
    "JSON called text/plain": lambda access: Response(b"\n " + of(jwt=access), media_type="text/plain"),
    "JSON without a type": lambda access: Response(of(jwt=access)),
    "packed and called text/html": lambda access: Response(
        gzip.compress(of(jwt=access)), media_type="text/html", headers={"content-encoding": "gzip"}
    ),
    "Authorization": lambda access: JSONResponse({"user": 1}, headers={"Authorization": f"Bearer {access}"}),
    "Authorization of a page": lambda access: PlainTextResponse("<html>", headers={"Authorization": access}),
    "X-Auth-Token": lambda access: Response(status_code=204, headers={"X-Auth-Token": access}),
    "X-Access-Token": lambda access: Response(status_code=204, headers={"X-Access-Token": access}),
    "a cookie": lambda access: Response(headers={"set-cookie": f"jwt={access}; HttpOnly"}),
    "a cookie with a scheme": lambda access: Response(headers={"set-cookie": f"auth=Bearer%20{access}"}),
    "two places": lambda access: JSONResponse({"jwt": access}, headers={"Authorization": f"Bearer {access}"}),
}


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_login_opens_the_session_wherever_its_token_stands(world: World, place: Answer) -> None:  # E-07, rule 5.12
    user = someone()
    access = token(user)
    answer = post(world, LOGIN, place(access), of(username=user))
    assert answer.status < 300
    assert world.store.live(user) == 1
    assert session(world, access)["login_method"] == "password"


NOISE: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.text(max_size=40)
NAMES = st.sampled_from(["token", "data", "jwt", "access", "user", "refresh_token", "body", "x-y", "a.b", "/", "~"])
HOLE = "here-it-stands"


def shapes() -> st.SearchStrategy[Any]:
    """JSON documents with one hole at any depth, among anything else."""

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        others = st.dictionaries(NAMES | st.text(max_size=8), NOISE, max_size=4)
        return st.one_of(
            st.tuples(others, NAMES | st.text(max_size=8), inner).map(lambda parts: parts[0] | {parts[1]: parts[2]}),
            st.tuples(st.lists(NOISE, max_size=3), inner).map(lambda parts: [*parts[0], parts[1]]),
        )

    documents = st.recursive(st.just(HOLE), around, max_leaves=4)
    return documents | documents.map(json.dumps)


def filled(shape: Any, text: str) -> Any:
    return json.loads(json.dumps(shape).replace(HOLE, text))


@profile(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=shapes(),
    carrier=st.sampled_from(["body", "header", "cookie", "text"]),
    noise=st.lists(st.sampled_from(["foreign", "expired", "unsigned", "old"]), max_size=3),
    called=st.sampled_from(["application/json", "text/html", "text/plain", "application/octet-stream", ""]),
)
def test_any_response_that_holds_one_good_token_opens_the_session_at_the_door(
    world: World, shape: Any, carrier: str, noise: list[str], called: str
) -> None:  # rule 5.12
    user = someone()
    access = token(user)
    bad = {
        "foreign": forge.token(forge.OTHER_SECRET, sub=user),
        "expired": token(user, exp=int(time.time()) - 3600),
        "unsigned": access.rpartition(".")[0] + ".AAAA",
        "old": token(someone(), iat=int(time.time()) - 3600),
    }
    document: Any = {"others": [bad[each] for each in noise]}
    headers = {"content-type": called} if called else {}
    if carrier == "body":
        document["shape"] = filled(shape, access)
    elif carrier == "header":
        headers["authorization"] = f"Bearer {access}"
    elif carrier == "cookie":
        headers["set-cookie"] = f"any={access}; Path=/"
    content = access.encode() if carrier == "text" else of(**document)
    assert post(world, LOGIN, Response(content, headers=headers), of(username=user)).status == 200
    assert world.store.live(user) == 1


def test_up_to_four_tokens_of_one_user_are_one_session(world: World) -> None:  # rule 5.12
    user, now = someone(), int(time.time())
    tokens = [token(user, exp=now + 600 + each) for each in range(5)]
    post(world, LOGIN, JSONResponse({"list": tokens[:4]}))
    assert world.store.live(user) == 1
    (number,) = {current(world, each) for each in tokens[:4]}
    # The one that lives longest names it.
    listed = json.loads(world.fetch("/api/v1/auth/users/me/sessions/", tokens[0]).body)["data"]["sessions"]
    assert [each["id"] for each in listed] == [number]
    end_all(world, tokens[1])
    for each in tokens[:4]:
        assert world.refused("/", each).body == REVOKED
    other = someone()
    post(world, LOGIN, JSONResponse({"list": [token(other) for _ in range(5)]}))
    assert world.store.live(other) == 0


def test_tokens_of_two_users_open_nothing(world: World) -> None:  # S11, rule 5.12
    users = [someone(), someone()]
    post(world, LOGIN, JSONResponse({"me": token(users[0]), "friend": {"jwt": token(users[1])}}))
    assert [world.store.live(user) for user in users] == [0, 0]


def test_an_old_token_of_somebody_else_opens_nothing(world: World) -> None:  # S11, rule 5.12
    user, other = someone(), someone()
    old = token(other, iat=int(time.time()) - 60)
    none = token(other, iat=...)
    mine = token(user)
    post(world, LOGIN, JSONResponse({"invited_by": {"jwt": old}, "note": none, "jwt": mine}))
    assert (world.store.live(user), world.store.live(other)) == (1, 0)
    post(world, LOGIN, JSONResponse({"invited_by": {"jwt": old}, "note": none}))
    assert world.store.live(other) == 0


@pytest.mark.parametrize("beside", [True, False], ids=["beside a new one", "alone"])
def test_a_revoked_token_in_a_response_stays_revoked(world: World, *, beside: bool) -> None:  # S11, S24, rule 5.12
    """However new it is: it may be one of a list of sign-ins that the backend shows."""
    user = someone()
    gone = token(user)
    world.passed("/", gone)
    number = current(world, gone)
    keeper = token(user)
    world.passed("/", keeper)
    assert world.fetch(f"/api/users/me/sessions/{number}", keeper, method="DELETE").status == 200
    new = token(user, exp=int(time.time()) + 300)
    post(world, LOGIN, JSONResponse({"devices": [{"jwt": gone}], "mine": new if beside else None}), of(username=user))
    assert world.refused("/", gone).body == REVOKED
    if beside:
        assert session(world, new)["login_method"] == "password"


ECHOES: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "bearer": lambda access: (b"{}", [JSON, bearer(access)]),
    "body": lambda access: (of(username="a", anything=access), [JSON]),
    "form": lambda access: (urlencode({"username": "a", "x": f"Bearer {access}"}).encode(), [FORM]),
    "escaped": lambda access: (
        b'{"username": "a", "x": "%s"}' % "".join(f"\\u{ord(each):04x}" for each in access).encode(),
        [JSON],
    ),
    "cookie": lambda access: (of(username="a"), [JSON, ("Cookie", f"x={quote(access)}")]),
    "header": lambda access: (of(username="a"), [JSON, ("X-Mine", access)]),
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "elsewhere"])
@pytest.mark.parametrize("send", ECHOES.values(), ids=ECHOES)
def test_a_response_that_repeats_the_token_of_its_request_signs_nobody_in(
    world: World, send: Callable[[str], tuple[bytes, list[tuple[str, str]]]], *, named: bool
) -> None:  # S24, rule 5.12
    user = someone()
    gone = token(user)
    world.passed("/", gone)
    log_out(world, gone)
    body, headers = send(gone)
    post(world, LOGIN, JSONResponse({"token" if named else "sent": gone}), body, headers)
    assert world.store.live(user) == 0
    assert world.refused("/", gone).status == 401


def test_a_token_of_the_second_of_its_request_is_new(store: Store) -> None:  # rule 5.12
    """`iat` is whole seconds, and a leeway of none is allowed."""
    with mounted(store, mount, login_rate_limit="off", jwt_leeway="0s") as world:
        for _ in range(5):
            user = someone()

            # Issued when the backend answers, a moment after the request came.
            async def app(scope: Any, receive: Any, send: Any, user: str = user) -> None:
                await JSONResponse({"jwt": token(user)})(scope, receive, send)

            post(world, LOGIN, app)
            assert world.store.live(user) == 1


# Refresh tokens: learnt


def signed_in(world: World, user: str, answer: Answer) -> str:
    access = token(user)
    assert post(world, LOGIN, answer(access), of(username=user)).status < 300
    assert world.store.live(user) >= 1
    return access


LEARNT: dict[str, Callable[[str, str], Response]] = {
    "a cookie of another name": lambda access, kept: JSONResponse(
        {"jwt": access}, headers={"set-cookie": f"directus_refresh_token={kept}; HttpOnly"}
    ),
    "a cookie without a name for it": lambda access, kept: JSONResponse(
        {"token": access}, headers={"set-cookie": f"rt={kept}; Path=/; httponly ; Secure"}
    ),
    "a member deep down": lambda access, kept: JSONResponse({"user": {"jwt": access, "refreshTokenValue": kept}}),
    "a member in other case": lambda access, kept: JSONResponse({"Tokens": [{"JWT": access, "REFRESH_JWT": kept}]}),
    "a response called text/html": lambda access, kept: Response(
        of(jwt=access, my_refresh=kept), media_type="text/html"
    ),
}

HIDES: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "member": lambda kept: (of(anything=kept), [JSON]),
    "deep": lambda kept: (of(a=[{"b": {"c": kept}}]), [JSON]),
    "form": lambda kept: (urlencode({"x": kept}).encode(), [FORM]),
    "cookie": lambda kept: (b"", [("Cookie", f"any={kept}")]),
    "quoted cookie": lambda kept: (b"", [("Cookie", f'a=b; any="{kept}"')]),
    "header": lambda kept: (b"", [("X-Renew", kept)]),
    "bearer": lambda kept: (b"", [("Authorization", f"Bearer {kept}")]),
    "token scheme": lambda kept: (b"", [("Authorization", f"Token {kept}")]),
    "text": lambda kept: (kept.encode(), [("Content-Type", "text/plain")]),
    "string": lambda kept: (json.dumps(kept).encode(), [JSON]),
}


@pytest.mark.parametrize("give", LEARNT.values(), ids=LEARNT)
def test_a_revoked_device_does_not_come_back_by_its_next_refresh(
    world: World, give: Callable[[str, str], Response]
) -> None:  # S10, C-13, rule 5.13
    user, kept = someone(), long_text()
    access = signed_in(world, user, lambda access: give(access, kept))
    # A refresh is the same session, and what it hands out is learnt too.
    new, next_kept = token(user), long_text()
    assert post(world, REFRESH, give(new, next_kept), of(x=kept)).status == 200
    assert world.store.live(user) == 1
    assert current(world, new) == current(world, access)
    end_all(world, new)
    for each in (kept, next_kept):
        for hide in HIDES.values():
            body, headers = hide(each)
            assert refused(world, REFRESH, body, headers).body == REVOKED
    assert world.store.live(user) == 0


@profile(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    give=st.sampled_from(list(LEARNT.values())),
    shape=shapes(),
    way=st.sampled_from(["json", "form", "query", *HIDES]),
    kind=st.sampled_from(["opaque", "jwt"]),
)
def test_in_whatever_place_the_refresh_token_of_an_ended_session_stands_it_is_refused(
    world: World, give: Callable[[str, str], Response], shape: Any, way: str, kind: str
) -> None:  # S10, rule 5.13
    user = someone()
    kept = long_text() if kind == "opaque" else token(user, type="refresh")
    access = signed_in(world, user, lambda access: give(access, kept))
    end_all(world, access)
    path = REFRESH
    if way == "json":
        body, headers = json.dumps(filled(shape, kept)).encode(), [JSON]
    elif way == "form":
        body, headers = urlencode({"a": json.dumps(filled(shape, kept)), "b": "c"}).encode(), [FORM]
    elif way == "query":
        body, headers, path = b"", [JSON], f"{REFRESH}?{urlencode({'any': kept})}"
    else:
        body, headers = HIDES[way](kept)
    before = len(world.reached)
    answer = post(world, path, handed(Pair(token(user), opaque())), body, headers)
    # 413: beside it, in the place of a token, stands a text that no client is given.
    assert answer.body == REVOKED or answer.status == 413
    assert world.reached[before:] == []


def test_a_value_that_every_client_sends_names_nobody(world: World) -> None:  # S09, rule 5.13
    """A CSRF cookie with `HttpOnly` that all users share: the logout of one user refuses nobody else's refresh."""
    shared = long_text()
    give: Answer = lambda access: JSONResponse(  # noqa: E731
        {"jwt": access, "refresh_hint": shared[::-1]}, headers={"set-cookie": f"csrf={shared}; HttpOnly"}
    )
    users = [someone() for _ in range(3)]
    accesses = [signed_in(world, user, give) for user in users]
    log_out(world, accesses[0])
    for user in users:
        new = token(user)
        answer = post(world, REFRESH, JSONResponse({"jwt": new}), of(csrf=shared[::-1]), [("Cookie", f"csrf={shared}")])
        assert answer.status == 200
    # Nor does it join anything, or end anything.
    assert [world.store.live(user) for user in users] == [1, 2, 2]
    post(world, LOGOUT, PlainTextResponse("ok"), b"", [("Cookie", f"csrf={shared}")])
    assert [world.store.live(user) for user in users] == [1, 2, 2]


def test_a_value_that_two_sessions_of_one_user_were_given_names_neither(world: World) -> None:  # rule 5.13
    user, shared = someone(), long_text()
    give: Answer = lambda access: JSONResponse(  # noqa: E731
        {"jwt": access}, headers={"set-cookie": f"device={shared}; HttpOnly"}
    )
    first, second = signed_in(world, user, give), signed_in(world, user, give)
    log_out(world, first)
    new = token(user)
    assert post(world, REFRESH, JSONResponse({"jwt": new}), b"", [("Cookie", f"device={shared}")]).status == 200
    assert current(world, new) != current(world, second)


def test_one_value_cannot_be_taken_from_its_session(world: World) -> None:  # S09, rule 5.13
    """Once a second session was given it, it stays nobody's, also when the first is given it again."""
    users, shared = [someone(), someone()], long_text()
    give: Answer = lambda access: JSONResponse({"jwt": access, "refresh_key": shared})  # noqa: E731
    accesses = [signed_in(world, user, give) for user in users]
    assert post(world, REFRESH, give(token(users[0])), b"{}", token=accesses[0]).status == 200
    log_out(world, accesses[0])
    assert post(world, REFRESH, JSONResponse({}), of(x=shared)).status == 200


def test_short_texts_readable_cookies_and_other_members_are_not_learnt(world: World) -> None:  # rule 5.13
    user, texts = someone(), [opaque()[:19], long_text(), long_text(), "x" * 4097]
    cookies = {"set-cookie": f"prefs={texts[1]}"}
    access = signed_in(
        world,
        user,
        lambda access: JSONResponse(
            {"jwt": access, "refresh_a": texts[0], "state": texts[2], "refresh_b": texts[3]}, headers=cookies
        ),
    )
    log_out(world, access)
    for each in texts:
        assert post(world, REFRESH, JSONResponse({}), of(x=each)).status == 200


def test_at_most_eight_texts_of_a_response_are_learnt(world: World) -> None:  # rule 5.13
    user, texts = someone(), [long_text() for _ in range(12)]
    members = {f"refresh_{each}": text for each, text in enumerate(texts)}
    access = signed_in(world, user, lambda access: JSONResponse({"jwt": access, **members}))
    log_out(world, access)
    statuses = [post(world, REFRESH, JSONResponse({}), of(x=each)).status for each in texts]
    assert statuses == [401] * 8 + [200] * 4


def test_the_named_token_decides_before_what_was_learnt(world: World) -> None:  # rule 5.13
    """A cookie of the browser that an earlier, ended session of it was given does not refuse the next one's refresh."""
    user, device = someone(), long_text()
    first = signed_in(
        world, user, lambda access: JSONResponse({"jwt": access}, headers={"set-cookie": f"d={device}; HttpOnly"})
    )
    log_out(world, first)
    pair = Pair(token(user), opaque())
    post(world, LOGIN, handed(pair), of(username=user))
    sent = [JSON, ("Cookie", f"d={device}")]
    assert post(world, REFRESH, handed(Pair(token(user), opaque())), of(refresh_token=pair.refresh), sent).status == 200
    assert post(world, REFRESH, JSONResponse({}), b"{}", sent, token=pair.access).status == 200
    assert refused(world, REFRESH, b"{}", sent).status == 401


def test_somebody_elses_bearer_does_not_renew_an_ended_session(world: World) -> None:  # S09, rule 5.13
    """The bearer is live, so it decides; but what comes back is for the user of the learnt text."""
    user, thief, kept = someone(), someone(), long_text()
    access = signed_in(world, user, lambda access: JSONResponse({"jwt": access, "refresh_key": kept}))
    end_all(world, access)
    own = token(thief)
    world.passed("/", own)
    new = token(user, iat=int(time.time()) + 1)
    answer = post(world, REFRESH, JSONResponse({"jwt": new}), of(x=kept), token=own)
    assert (answer.status, answer.body) == (401, REVOKED)
    assert world.store.live(user) == 0


@pytest.mark.parametrize("is_expired", [True, False])
def test_a_bearer_that_was_never_seen_is_not_refused_by_what_somebody_else_was_given(
    world: World, *, is_expired: bool
) -> None:  # S09, rule 5.13
    """A cookie that all clients have, and that one session was given so far: the others are from before Gatekeeper."""
    user, other, shared = someone(), someone(), long_text()
    access = signed_in(
        world, user, lambda access: JSONResponse({"jwt": access}, headers={"set-cookie": f"csrf={shared}; HttpOnly"})
    )
    log_out(world, access)
    times = {"exp": int(time.time()) - 600} if is_expired else {}
    new, sent = token(other), [JSON, ("Cookie", f"csrf={shared}")]
    bearing = token(other, **times)
    assert post(world, REFRESH, JSONResponse({"jwt": new}), b"{}", sent, token=bearing).status == 200
    world.passed("/", new)
    # That bearer renews nothing for the user whose session has ended, and makes the text no less that session's.
    again = token(user, iat=int(time.time()) + 1)
    never_seen = token(someone(), **times)
    answer = post(world, REFRESH, JSONResponse({"jwt": again}), b"{}", sent, token=never_seen)
    assert answer.status == 401
    assert world.store.live(user) == 0


def test_the_refresh_token_of_a_request_that_linked_to_nothing_is_learnt(world: World) -> None:  # rule 5.13
    """Of a session from before Gatekeeper, or one that was adopted: its first refresh shows its refresh token."""
    for body, headers in (
        (of(refreshKey="{}"), [JSON]),
        (b"{}", [JSON, ("Cookie", "session={}")]),
    ):
        user, kept = someone(), long_text()
        sent = body.replace(b"{}", kept.encode()) if b"Key" in body else body
        carried = [(name, value.replace("{}", kept)) for name, value in headers]
        new = token(user)
        assert post(world, REFRESH, JSONResponse({"jwt": new}), sent, carried).status == 200
        assert session(world, new)["login_method"] == "refresh"
        end_all(world, new)
        assert refused(world, REFRESH, sent, carried).body == REVOKED


def test_a_logout_ends_the_session_of_what_was_learnt(world: World) -> None:  # C-03, rule 5.13
    user, kept = someone(), long_text()
    access = signed_in(
        world, user, lambda access: JSONResponse({"jwt": access}, headers={"set-cookie": f"rt={kept}; HttpOnly"})
    )
    assert post(world, LOGOUT, PlainTextResponse("ok"), b"", [("Cookie", f"rt={kept}")]).status == 200
    assert world.store.live(user) == 0
    assert world.refused("/", access).status == 401


# Settings


@pytest.fixture(scope="module")
def named(store: Store) -> Iterator[World]:
    places = {
        "login_token_pointers": "/session/0/key,header:X-Session,cookie:sess",
        "login_refresh_pointers": "/session/0/renewal,header:X-Renewal,cookie:ren",
        "refresh_token_sources": "/renewal,header:X-Renewal,cookie:ren",
    }
    with mounted(store, mount, login_rate_limit="off", **places) as made:
        yield made


GIVEN: dict[str, Callable[[str, str], Response]] = {
    "pointer": lambda access, kept: JSONResponse({"session": [{"key": access, "renewal": kept}]}),
    "header": lambda access, kept: Response(headers={"X-Session": f"Bearer {access}", "X-Renewal": kept}),
    "cookie": lambda access, kept: JSONResponse({"session": [{"key": access}]}, headers={"set-cookie": f"ren={kept}"}),
    "header and pointer": lambda access, kept: JSONResponse(
        {"session": [{"renewal": kept}]}, headers={"X-Session": access}
    ),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_settings_name_the_places_of_both_tokens(named: World, give: Callable[[str, str], Response]) -> None:
    """There the backend has the word: old tokens count, readable cookies, and texts of any length."""
    user, kept = someone(), opaque()[:16]
    access = token(user, iat=int(time.time()) - 3600)
    post(named, LOGIN, give(access, kept), of(username=user))
    assert session(named, access)["login_method"] == "password"
    new, next_kept = token(user), opaque()
    assert post(named, REFRESH, give(new, next_kept), of(renewal=kept)).status == 200
    assert current(named, new) == current(named, access)
    log_out(named, new)
    for each in (kept, next_kept):
        assert refused(named, REFRESH, of(renewal=each)).status == 401
        assert refused(named, REFRESH, b"", [("Cookie", f"ren={each}")]).status == 401


def test_of_several_places_with_names_none_is_forgotten(named: World) -> None:
    """A backend may hand out two refresh tokens: one in its body, and one in a cookie that scripts can read."""
    user, first, second, third = someone(), long_text(), long_text(), long_text()
    access = token(user)
    answer = JSONResponse(
        {"session": [{"key": access, "renewal": first}], "refresh_token": third},
        headers={"set-cookie": f"ren={second}"},
    )
    post(named, LOGIN, answer, of(username=user))
    log_out(named, access)
    for each in (first, second, third):
        assert refused(named, REFRESH, of(any=each)).status == 401


SENT: dict[str, Callable[[str], tuple[bytes, list[tuple[str, str]]]]] = {
    "pointer": lambda kept: (of(renewal=kept), [JSON]),
    "form": lambda kept: (urlencode({"renewal": kept}).encode(), [FORM]),
    "header": lambda kept: (b"", [("X-Renewal", kept)]),
    "cookie": lambda kept: (b"", [("Cookie", f"ren={kept}")]),
}


@pytest.mark.parametrize("send", SENT.values(), ids=SENT)
def test_settings_name_the_refresh_token_of_a_request(
    named: World, send: Callable[[str], tuple[bytes, list[tuple[str, str]]]]
) -> None:
    """An unknown one becomes that of the session which the refresh opens, and ends with it."""
    user, kept, new = someone(), opaque(), token(someone())
    body, headers = send(kept)
    new = token(user)
    assert post(named, REFRESH, JSONResponse({"session": [{"key": new}]}), body, headers).status == 200
    log_out(named, new)
    assert refused(named, REFRESH, body, headers).status == 401

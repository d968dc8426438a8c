"""Logins, refreshes and logouts of an application that issues its own tokens, watched by the gate mounted in it.

What only the sidecar does (bytes, streams, logs, faults of its store) is in `tests/system/test_observing.py`.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import json
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import brotli
import pytest
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from gatekeeper.messages import CATALOGUES
from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from tests.contracts.dialect import CHROME_ON_WINDOWS, JSON, SAFARI_ON_IPHONE, admin
from tests.contracts.gate import SPOOFED, cookie
from tests.contracts.responses import NO_TOKEN, TABLE, assert_own_response, error_body
from tests.middleware.host import environ_for, mounted
from tests.servers import ClientResponse, serve_asgi
from tests.system.sidecar import Reached, Store, World, bearer, someone, token
from tests.tokens import forge
from tests.waiting import HANG_SECONDS, unless_slow
from tests.web.handshakes import handshake
from tests.web.shapes import assert_refused

LOGIN, REFRESH, LOGOUT = "/auth/login", "/auth/refresh", "/auth/logout"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
XML = ("Content-Type", "application/xml")
TEXT = ("Content-Type", "text/plain")
CHROME, SAFARI = ("User-Agent", CHROME_ON_WINDOWS), ("User-Agent", SAFARI_ON_IPHONE)
REVOKED = error_body("session_revoked_or_invalid", "revoked_by_user")
LOGGED_OUT = error_body("access_token_blacklisted", "logged_out")
THROTTLED = b'{"detail":"Too many requests, try again later","code":"rate_limited"}'

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
Headers = Sequence[tuple[str, str]]

_planned: dict[str, ASGIApp] = {}


def planned(answer: ASGIApp) -> tuple[str, str]:
    """The header of a request that is to be answered by `answer`."""
    name = uuid.uuid4().hex
    _planned[name] = answer
    return ("X-Planned", name)


def host(reached: list[Reached]) -> ASGIApp:
    """An application that answers every request as its test wants, and keeps what it was asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        reached.append(Reached(scope.get("method", "WEBSOCKET"), scope["path"], headers))
        answer = _planned.get(dict(headers).get("x-planned", ""), PlainTextResponse("ok"))
        await answer(scope, receive, send)

    return app


def mount(reached: list[Reached], environ: dict[str, str]) -> ASGIApp:
    return GatekeeperMiddleware(host(reached), load(environ))


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    """The defaults, every login allowed to fail as often as a test wants it to: names are shared here."""
    with mounted(store, mount, login_rate_limit="off") as made:
        yield made


@pytest.fixture(scope="module")
def limited(store: Store) -> Iterator[World]:
    with mounted(store, mount) as made:
        yield made


@pytest.fixture(scope="module")
def proxied(store: Store) -> Iterator[World]:
    """Behind a proxy that is trusted."""
    with mounted(store, mount, trusted_proxies="127.0.0.0/8") as made:
        yield made


# Tokens


class Pair(NamedTuple):
    access: str
    refresh: str


def opaque() -> str:
    return uuid.uuid4().hex


def by_sid(user: str, sid: str) -> str:
    return token(user, sid=sid)


def by_jti(user: str, _: str) -> str:
    return token(user)


def by_payload(user: str, _: str) -> str:
    """Nothing names the session of such a token but its own content."""
    return token(user, jti=..., n=opaque())


OF = {"sid": by_sid, "jti": by_jti, "h": by_payload}
kinds = pytest.mark.parametrize("make", OF.values(), ids=OF)


def handed(pair: Pair, **more: Any) -> Response:
    """The usual answer of a login or a refresh."""
    return JSONResponse({"access_token": pair.access, "refresh_token": pair.refresh, "token_type": "bearer"} | more)


def of(**members: Any) -> bytes:
    return json.dumps(members).encode()


# What clients do


def post(
    world: World,
    path: str,
    answer: ASGIApp,
    body: bytes = b"{}",
    headers: Headers = (JSON,),
    *,
    token: str | None = None,
    method: str = "POST",
) -> ClientResponse:
    return world.fetch(path, token, method=method, headers=[planned(answer), *headers], body=body)


def refused(world: World, path: str, body: bytes = b"{}", headers: Headers = (JSON,), **options: Any) -> ClientResponse:
    """The answer to a request that must not reach the application, which would have handed out tokens."""
    before = len(world.reached)
    answer = post(world, path, handed(Pair(token(someone()), opaque())), body, headers, **options)
    assert answer.status >= 400, answer
    assert world.reached[before:] == []
    return answer


def sign_in(
    world: World, user: str, make: Callable[[str, str], str] = by_jti, *, sid: str = "", **options: Any
) -> Pair:
    """A login that goes well; what it hands out."""
    pair = Pair(make(user, sid or opaque()), opaque())
    options["headers"] = (JSON, *options.get("headers", ()))
    answer = post(world, LOGIN, handed(pair), of(username=user, password="x"), **options)
    assert (answer.status, json.loads(answer.body)["access_token"]) == (200, pair.access)
    return pair


def renew(
    world: World, answered: Pair, body: bytes = b"{}", headers: Headers = (JSON,), **options: Any
) -> ClientResponse:
    """A refresh that goes well, as far as the application is concerned."""
    return post(world, REFRESH, handed(answered), body, headers, **options)


def sessions(world: World, bearing: str) -> list[dict[str, Any]]:
    """The caller's live sessions."""
    answer = world.fetch("/api/users/me/sessions", bearing)
    assert answer.status == 200, answer
    rows: list[dict[str, Any]] = json.loads(answer.body)
    return rows


def session(world: World, bearing: str) -> dict[str, Any]:
    """The caller's current session, but for its activity, with how it was opened."""
    (row,) = [row for row in sessions(world, bearing) if row["is_current"]]
    told = json.loads(world.fetch("/api/v1/auth/users/me/sessions/", bearing).body)["data"]["sessions"]
    (method,) = [each["login_method"] for each in told if each["id"] == row["id"]]
    del row["last_activity"]
    return row | {"login_method": method}


def current(world: World, bearing: str) -> int:
    return int(session(world, bearing)["id"])


def end_all(world: World, bearing: str) -> None:
    assert world.fetch("/sessions/all", bearing, method="DELETE").status == 200


def log_out(world: World, bearing: str) -> None:
    assert world.fetch("/sessions/logout", bearing, method="DELETE").status == 200


# Login: where tokens are

PLACES: dict[str, Callable[[str], Response]] = {
    "access_token": lambda access: JSONResponse({"access_token": access}),
    "accessToken": lambda access: JSONResponse({"accessToken": access, "expiresIn": 900}),
    "token": lambda access: JSONResponse({"user": {"id": 1}, "token": access}),
    "access": lambda access: JSONResponse({"refresh": "x", "access": access}),
    "data.access_token": lambda access: JSONResponse({"success": True, "data": {"access_token": access}}),
    "data.token": lambda access: JSONResponse({"status": "ok", "data": {"token": access}}, status_code=201),
    "vendor": lambda access: Response(of(token=access), media_type="application/vnd.api+json; charset=utf-8"),
    "bom": lambda access: Response(b"\xef\xbb\xbf" + of(token=access), media_type="application/json"),
    "second": lambda access: JSONResponse({"token": 5, "access": access}),
    "gzip": lambda access: Response(
        gzip.compress(of(token=access)), headers={"content-encoding": "gzip"}, media_type="application/json"
    ),
    "br": lambda access: Response(
        brotli.compress(of(token=access)), headers={"content-encoding": "br"}, media_type="application/json"
    ),
    "cookie": lambda access: Response(status_code=204, headers={"set-cookie": f"access_token={access}; HttpOnly"}),
    "redirect": lambda access: RedirectResponse("/", headers={"set-cookie": f'access_token="{access}"'}),
    "page": lambda access: PlainTextResponse("welcome", headers={"set-cookie": f"access_token={access}"}),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_login_opens_the_session_before_the_client_has_its_token(
    world: World, place: Callable[[str], Response]
) -> None:  # A-17, C-01, E-05, E-07
    user = someone()
    access = token(user)
    answer = post(world, LOGIN, place(access), headers=[JSON, CHROME])
    assert 200 <= answer.status < 400
    assert world.store.live(user) == 1
    told = world.passed("/x", access, headers=[SAFARI]).get_all("x-session-id")
    row = session(world, access)
    assert told == [str(row["id"])]
    # The device is that of the login, not of the first request.
    assert (row["device_name"], row["ip_address"]) == ("Chrome on Windows", "127.0.0.1")
    assert row["login_method"] == "password"


@kinds
def test_whatever_names_the_session_a_login_opens_it(world: World, make: Callable[[str, str], str]) -> None:  # E-07
    user = someone()
    pair = sign_in(world, user, make)
    assert world.store.live(user) == 1
    assert session(world, pair.access)["login_method"] == "password"
    assert world.store.live(user) == 1


NOWHERE: dict[str, Callable[[str], Response]] = {
    "page": lambda access: PlainTextResponse(f"<!doctype html><p>welcome {access}"),
    "error": lambda access: JSONResponse({"token": access}, status_code=400),
    "redirect": lambda access: Response(of(token=access), status_code=302, media_type="application/json"),
    "large": lambda access: JSONResponse({"token": access, "more": "x" * 65_536}),
    "cookie of an error": lambda access: Response(status_code=500, headers={"set-cookie": f"access_token={access}"}),
    "deleted cookie": lambda access: Response(headers={"set-cookie": f"access_token={access}; Max-Age=0"}),
    "broken": lambda access: Response(of(token=access)[:-1], media_type="application/json"),
    "unknown coding": lambda access: Response(
        of(token=access), headers={"content-encoding": "zstd"}, media_type="application/json"
    ),
}


@pytest.mark.parametrize("place", NOWHERE.values(), ids=NOWHERE)
def test_a_token_elsewhere_is_adopted_when_it_is_first_used(world: World, place: Callable[[str], Response]) -> None:
    user = someone()
    access = token(user)
    post(world, LOGIN, place(access))
    assert world.store.live(user) == 0
    world.passed("/x", access)
    assert session(world, access)["login_method"] == "token"


def test_what_is_no_good_access_token_opens_nothing_and_passes(world: World) -> None:  # T17
    user = someone()
    for bad in (
        forge.token(forge.OTHER_SECRET, sub=user),
        token(user, exp=int(time.time()) - 60),
        token(user, token_type="refresh"),
        token(user) + "=",
        "opaque",
    ):
        answer = post(world, LOGIN, JSONResponse({"token": bad}))
        assert (answer.status, json.loads(answer.body)) == (200, {"token": bad})
    assert world.store.live(user) == 0


def test_a_login_is_not_told_who_the_client_says_it_is(world: World) -> None:
    """The path is the application's, and nobody is signed in on it, whatever the request carries."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_session(scope))
        await PlainTextResponse("ok")(scope, receive, send)

    bearing = token(someone())
    world.passed("/x", bearing)
    answer = post(world, LOGIN, app, headers=[(name, "1") for name in SPOOFED], token=bearing)
    assert (answer.status, seen) == (200, [None])
    assert not [name for name, _ in world.reached[-1].headers if "user" in name]
    assert world.reached[-1].get_all("authorization") == [f"Bearer {bearing}"]


# Any ASGI application


def test_an_answer_in_many_messages_and_in_headers_of_any_case_is_read(world: World) -> None:
    user = someone()
    access = token(user)
    content = of(token=access)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Type", b"Application/JSON"), (b"X-Mine", b"1"), (b"X-Mine", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for byte in content:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
        await send({"type": "http.response.body"})

    answer = post(world, LOGIN, app)
    assert (answer.body, answer.get_all("x-mine")) == (content, ["1", "2"])
    assert world.store.live(user) == 1


def test_headers_that_can_be_read_once_only_arrive(world: World) -> None:
    """ASGI promises an iterable, not a list."""
    user = someone()
    content = of(token=token(user))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = iter([(b"content-type", b"application/json"), (b"x-mine", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    answer = post(world, LOGIN, app)
    assert (answer.body, answer.get_all("content-type")) == (content, ["application/json"])
    assert answer.get_all("x-mine") == ["1"]
    assert world.store.live(user) == 1


def test_an_application_that_fails_after_its_answer_has_answered(world: World) -> None:
    user = someone()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"token": token(user)})(scope, receive, send)
        raise ZeroDivisionError

    assert post(world, LOGIN, app).status == 200
    assert world.store.live(user) == 1


def test_an_application_that_fails_before_its_answer_is_as_without_a_gate(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    answer = post(world, LOGIN, app)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")


@pytest.mark.parametrize("fails", [True, False])
def test_an_answer_that_breaks_off_breaks_off_at_the_client_too(world: World, *, fails: bool) -> None:
    """As without a gate: a head, some of the body, and the end of the connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        # A connection that is closed with a body unread is reset, and what was sent on it may be lost.
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"token":', "more_body": True})
        if fails:
            raise ZeroDivisionError

    with serve_asgi(host([])) as url:
        bare = broken_off(url, app)
    assert bare == (200, b'{"token":')
    assert broken_off(world.url, app) == bare


def broken_off(url: str, answer: ASGIApp) -> tuple[int, bytes]:
    """What of an answer arrives that does not end."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=HANG_SECONDS)
    try:
        connection.request("POST", LOGIN, b"{}", dict([JSON, planned(answer)]))
        response = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        return response.status, caught.value.partial
    finally:
        connection.close()


def test_work_after_the_answer_is_done_although_the_token_was_withheld(store: Store) -> None:
    done = threading.Event()
    with mounted(store, mount, device_limit="1", device_limit_policy="reject") as world:
        user = someone()
        sign_in(world, user)
        answer = JSONResponse({"token": token(user)}, background=BackgroundTask(done.set))
        assert post(world, LOGIN, answer).status == 403
        assert done.wait(HANG_SECONDS)


async def test_messages_of_extensions_pass_in_their_place(store: Store) -> None:
    """Of a file that the server itself is to send nothing can be read; it goes on as it came."""
    user = someone()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    file = {"type": "http.response.pathsend", "path": "/tmp/x"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send(file)

    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    gate = GatekeeperMiddleware(app, load(environ_for(store)))
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": LOGIN, "query_string": b"", "headers": []}
    try:
        await asyncio.wait_for(
            gate({**scope, "raw_path": LOGIN.encode(), "scheme": "http"}, receive, send), HANG_SECONDS
        )
    finally:
        await gate._engine.runtime.aclose()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.pathsend"]
    assert sent[1] == file
    assert store.live(user) == 0


# Which requests are logins


def test_only_a_post_is_a_login(world: World) -> None:
    for path in (LOGIN, "/login", "/auth/login/", REFRESH, LOGOUT):
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = world.refused(path, method=method)
            assert answer.status == 401
            assert answer.body == (b"" if method == "HEAD" else NO_TOKEN)
    assert world.refused(LOGIN, method="POST", headers=[("X-HTTP-Method-Override", "GET")]).status == 401  # H08
    assert world.passed(LOGIN, token(someone()), method="GET").get_all("x-user-id")


@pytest.fixture(scope="module")
def callback(store: Store) -> Iterator[World]:
    with mounted(store, mount, login_paths="GET /auth/callback,/signin/*", refresh_paths="PUT /renew") as made:
        yield made


def test_logins_are_where_the_settings_say(callback: World) -> None:
    user = someone()
    page = RedirectResponse("/", headers={"set-cookie": f"access_token={token(user)}"})
    assert post(callback, "/auth/callback", page, method="GET").status == 307
    assert callback.store.live(user) == 1
    # GET includes HEAD; its answer has no body to read, but cookies.
    user = someone()
    cookies = Response(headers={"set-cookie": f"access_token={token(user)}"})
    assert post(callback, "/auth/callback", cookies, method="HEAD").status == 200
    assert callback.store.live(user) == 1
    user = someone()
    pair = Pair(token(user), opaque())
    assert post(callback, "/signin/a/b", handed(pair)).status == 200
    assert callback.store.live(user) == 1
    assert post(callback, "/renew", handed(Pair(token(user), opaque())), of(refresh=pair.refresh), method="PUT")
    assert callback.store.live(user) == 1
    for method, path in (("POST", "/auth/callback"), ("POST", LOGIN), ("POST", "/renew"), ("GET", "/signin/a")):
        assert callback.refused(path, method=method).status == 401


def test_a_websocket_on_the_path_of_a_login_is_a_websocket(callback: World) -> None:
    """It is no login: nobody reads tokens out of one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000, "reason": ""})

    assert handshake(callback.url, "/auth/callback", [planned(app)]).status == 401
    assert handshake(callback.url, "/auth/callback", [planned(app), bearer(token(someone()))]).status == 101


# The client's own words


def test_a_client_cannot_choose_its_session(world: World) -> None:  # S11
    user, victim = someone(), someone()
    theirs = sign_in(world, victim, by_sid, sid="theirs-" + victim)
    before = session(world, theirs.access)
    wanted = str(before["id"])
    body = of(sid="theirs-" + victim, jti="mine", session_id=wanted, session_key=wanted, username=user)
    jar = ("Cookie", f"sid=mine; jti=mine; session_id={wanted}; sessionid=mine")
    answers = [
        post(world, path, handed(Pair(access, opaque())), body, [JSON, jar, ("X-Session-Id", wanted)])
        for path, access in ((LOGIN, token(user)), (f"{LOGIN}?sid=mine&session_id={wanted}", token(user)))
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert world.reached[-1].get_all("x-session-id") == []
    rows = sessions(world, json.loads(answers[0].body)["access_token"])
    assert len({row["id"] for row in rows} | {before["id"]}) == 3
    assert session(world, theirs.access) == before


def test_a_session_id_is_nobodys_choice_and_never_the_same(world: World) -> None:  # S25
    users = [someone() for _ in range(50)]
    ids = [current(world, sign_in(world, user).access) for user in users]
    assert len(set(ids)) == 50
    assert all(0 < number < 2**53 for number in ids)
    # Not one after the other: the highest bits differ.
    assert len({number >> 45 for number in ids}) > 20


@pytest.mark.parametrize("carried", ["header", "cookie", "expired"])
def test_a_login_with_a_token_of_ones_own_ends_that_session(world: World, carried: str) -> None:  # S12
    user, jti = someone(), opaque()
    first = token(user, jti=jti)
    post(world, LOGIN, handed(Pair(first, opaque())))
    (before,) = sessions(world, first)
    sent = token(user, jti=jti, exp=int(time.time()) - 60) if carried == "expired" else first
    second = sign_in(world, user, headers=[cookie(sent) if carried == "cookie" else bearer(sent)])
    assert_own_response(world.refused("/", first), 401, LOGGED_OUT)
    (after,) = sessions(world, second.access)
    assert after["id"] != before["id"]
    ended = json.loads(world.fetch("/api/users/me/sessions?include_inactive=true", second.access).body)
    assert {row["id"]: row["is_active"] for row in ended} == {before["id"]: False, after["id"]: True}


def test_it_takes_the_place_of_that_session(store: Store) -> None:  # C-21, S12
    """Who signs in again on the same device needs no further room."""
    with mounted(store, mount, device_limit="1", device_limit_policy="reject") as world:
        user = someone()
        first = sign_in(world, user)
        second = sign_in(world, user, token=first.access)
        assert world.refused("/", first.access).body == LOGGED_OUT
        assert world.passed("/", second.access)


def test_a_login_with_somebody_elses_token_ends_nothing(world: World) -> None:  # S12
    theirs, user = sign_in(world, someone()), someone()
    for headers in ([bearer(theirs.access)], [cookie(theirs.access)]):
        sign_in(world, user, headers=headers)
    assert len(sessions(world, theirs.access)) == 1
    assert world.store.live(user) == 2
    # Nor one that is no good token, or with credentials that disagree.
    mine = sign_in(world, user)
    for headers in ([bearer(mine.access + "=")], [bearer(mine.access), cookie(theirs.access)]):
        sign_in(world, someone(), headers=headers)
    assert world.passed("/", mine.access)


def test_a_failed_login_ends_nothing(world: World) -> None:  # S12
    mine = sign_in(world, someone())
    assert post(world, LOGIN, JSONResponse({}, status_code=401), token=mine.access).status == 401
    assert world.passed("/", mine.access)


# A backend that answers the same token again


def test_the_same_token_after_a_logout_is_a_new_session(world: World) -> None:
    """Rule 5.4: an `h:` reference whose session has ended opens a new session under it."""
    user = someone()
    access = by_payload(user, "")
    for end in (log_out, end_all, log_out):
        assert post(world, LOGIN, handed(Pair(access, opaque()))).status == 200
        number = current(world, access)
        end(world, access)
        assert world.refused("/", access).status == 401
        assert world.store.live(user) == 0
        assert post(world, LOGIN, handed(Pair(access, opaque()))).status == 200
        assert current(world, access) != number
        end_all(world, access)


def test_the_same_token_again_is_the_same_session_while_that_lives(world: World) -> None:
    for make in OF.values():
        user = someone()
        access = make(user, opaque())
        numbers = []
        for _ in range(3):
            assert post(world, LOGIN, handed(Pair(access, opaque()))).status == 200
            numbers.append(current(world, access))
        assert len(set(numbers)) == 1
        assert world.store.live(user) == 1


def test_after_the_end_of_all_a_login_of_the_same_second_opens(world: World) -> None:  # C-13, rule 4.4
    user = someone()
    first = sign_in(world, user)
    time.sleep(1.01 - time.time() % 1)
    end_all(world, first.access)
    second = sign_in(world, user)
    assert world.passed("/", second.access)
    # While a token of that second that no login answered is refused, and so is what could renew the first.
    assert_own_response(world.refused("/", token(user)), 401, error_body("session_revoked_or_invalid"))
    assert_own_response(refused(world, REFRESH, of(refresh_token=first.refresh)), 401, REVOKED)
    assert world.store.live(user) == 1


# The device limit


@pytest.fixture(scope="module")
def strict(store: Store) -> Iterator[World]:
    with mounted(store, mount, device_limit_policy="reject") as made:
        yield made


@pytest.mark.parametrize("place", [name for name in PLACES if name not in {"bom", "vendor"}])
def test_without_room_the_token_is_withheld(strict: World, place: str) -> None:  # C-12, C-21, D-07
    user = someone()
    kept = [sign_in(strict, user) for _ in range(3)]
    access = token(user)
    answer = post(strict, LOGIN, PLACES[place](access), of(username=user))
    assert_own_response(answer, 403, error_body("session_limit_exceeded"))
    assert access not in str(answer)
    assert answer.get_all("set-cookie") == answer.get_all("location") == answer.get_all("content-encoding") == []
    assert strict.store.live(user) == 3
    # The token that nobody got would not do either.
    assert strict.refused("/", access).status == 403
    # Room again.
    log_out(strict, kept[0].access)
    assert post(strict, LOGIN, PLACES[place](access)).status < 400
    assert strict.store.live(user) == 3


@pytest.mark.parametrize("dialect", ["django", "express", "fastapi", "mockstream", "users_me"])
def test_it_is_said_in_the_shape_that_is_configured(store: Store, dialect: str) -> None:  # A-21, B-05, C-21
    settings = {"device_limit": "1", "device_limit_policy": "reject", "error_dialect": dialect}
    with mounted(store, mount, login_rate_limit="1/15m", **settings) as world:
        user = someone()
        sign_in(world, user)
        answer = post(world, LOGIN, handed(Pair(token(user), opaque())))
        assert assert_refused(dialect, answer, 403, "session_limit_exceeded") == TABLE["session_limit_exceeded"][1]
        body = of(username=user)
        assert post(world, LOGIN, JSONResponse({}, status_code=401), body).status == 401
        assert_refused(dialect, refused(world, LOGIN, body), 429, "rate_limited")
        assert_refused(dialect, refused(world, REFRESH, b" " * 65_537), 413, "body_too_large")


def test_a_page_of_another_origin_may_read_what_is_refused(store: Store) -> None:  # C-21
    origin = ("Origin", "https://app.example")
    settings = {"device_limit": "1", "device_limit_policy": "reject", "cors_origins": origin[1]}
    with mounted(store, mount, login_rate_limit="1/15m", **settings) as world:
        user = someone()
        pair = sign_in(world, user)
        assert post(world, LOGIN, WRONG, of(username=user), [JSON, origin]).get_all("vary") == []
        answers = [
            post(world, LOGIN, handed(Pair(token(user), opaque())), headers=[JSON, origin]),
            refused(world, LOGIN, of(username=user), [JSON, origin]),
        ]
        log_out(world, pair.access)
        answers.append(refused(world, REFRESH, of(refresh=pair.refresh), [JSON, origin]))
        assert [answer.status for answer in answers] == [403, 429, 401]
        for answer in answers:
            assert answer.get_all("access-control-allow-origin") == [origin[1]]
            assert answer.get_all("access-control-allow-credentials") == ["true"]
            assert answer.get_all("vary") == ["Origin"]


@pytest.mark.parametrize("by", ["header", "body"])
def test_a_refusal_is_in_the_language_of_the_request(store: Store, by: str) -> None:  # C-02, C-21
    """Rule 2.9: by `language` in the body, then by `Accept-Language`."""
    settings = {"device_limit": "1", "device_limit_policy": "reject", "login_rate_limit": "1/15m"}
    language = {"language": "fr"} if by == "body" else {}
    headers = [JSON] if by == "body" else [JSON, ("Accept-Language", "fr")]
    with mounted(store, mount, **settings) as world:
        user = someone()
        pair = sign_in(world, user)
        body = of(username=user, **language)
        assert post(world, LOGIN, WRONG, body).status == 401
        answers = [
            refused(world, LOGIN, body, headers),
            post(world, LOGIN, handed(Pair(token(user), opaque())), of(**language), headers),
        ]
        log_out(world, pair.access)
        answers.append(refused(world, REFRESH, of(refresh=pair.refresh, **language), headers))
        assert [json.loads(answer.body)["detail"] for answer in answers] == [
            CATALOGUES["fr"][text]
            for text in (
                "Too many requests, try again later",
                TABLE["session_limit_exceeded"][1],
                TABLE["access_token_blacklisted"][1],
            )
        ]


@pytest.mark.parametrize("policy", ["evict_idle", "evict_oldest"])
def test_the_fourth_login_puts_one_out(store: Store, policy: str) -> None:  # C-12, D-05, D-07
    with mounted(store, mount, device_limit_policy=policy) as world:
        user = someone()
        first, second, third = (sign_in(world, user) for _ in range(3))
        world.passed("/", first.access)
        fourth = sign_in(world, user)
        gone, stays = (second, first) if policy == "evict_idle" else (first, second)
        assert_own_response(world.refused("/", gone.access), 401, error_body("session_revoked_or_invalid", "evicted"))
        for pair in (stays, third, fourth):
            world.passed("/", pair.access)
        assert world.store.live(user) == 3


def test_a_renewal_needs_no_room(strict: World) -> None:  # C-02, C-21
    user = someone()
    pairs = [sign_in(strict, user) for _ in range(3)]
    for pair in pairs:
        new = Pair(token(user), opaque())
        assert renew(strict, new, of(refresh=pair.refresh)).status == 200
        strict.passed("/", new.access)
    assert strict.store.live(user) == 3
    # One that nothing links does: it is a device of its own.
    unlinked = Pair(token(user), opaque())
    answer = renew(strict, unlinked, of(refresh=opaque()))
    assert_own_response(answer, 403, error_body("session_limit_exceeded"))
    assert unlinked.access not in str(answer)


# Refresh


WAYS: dict[str, Callable[[Pair], tuple[bytes, Headers]]] = {
    "json": lambda pair: (of(refresh_token=pair.refresh), [JSON]),
    "form": lambda pair: (urlencode({"grant_type": "x", "refresh_token": pair.refresh}).encode(), [FORM]),
    "data": lambda pair: (of(data={"refreshToken": pair.refresh}), [JSON]),
    "cookie": lambda pair: (b"", [("Cookie", f"a=b; refresh_token={pair.refresh}")]),
    "bearer": lambda pair: (b"", [bearer(pair.access)]),
    "access cookie": lambda pair: (b"", [cookie(pair.access)]),
    "both": lambda pair: (of(refresh=pair.refresh), [JSON, bearer(pair.access)]),
}


@kinds
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_refresh_is_the_same_session(
    world: World, make: Callable[[str, str], str], way: Callable[[Pair], tuple[bytes, Headers]]
) -> None:  # C-02, C-10
    user, sid = someone(), opaque()
    pair = sign_in(world, user, make, sid=sid, headers=[CHROME])
    before = session(world, pair.access)
    assert before["login_method"] == "password"
    for _ in range(2):
        seen = world.store.last_activity(user)
        new = Pair(make(user, sid), opaque())
        body, headers = way(pair)
        answer = renew(world, new, body, [*headers, SAFARI])
        assert (answer.status, json.loads(answer.body)["access_token"]) == (200, new.access)
        assert world.store.last_activity(user) > seen
        for bearing in (new.access, pair.access):
            assert session(world, bearing) == before
        assert world.store.live(user) == 1
        pair = new


MALFORMED = ["", "Bearer", "Bearer ", "Bearer undefined", "Bearer null", "Bearer  x", "Bearer a b", "Basic", "\xff"]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_authorization_is_no_reason_to_refuse_a_refresh(world: World, value: str) -> None:  # C-02, rule 5.5
    user = someone()
    pair = sign_in(world, user)
    before = session(world, pair.access)
    renewed = Pair(token(user), opaque())
    assert renew(world, renewed, of(refresh_token=pair.refresh), (JSON, ("Authorization", value))).status == 200
    assert session(world, renewed.access) == before
    # The refresh token of a session that has ended is refused all the same.
    log_out(world, renewed.access)
    answer = refused(world, REFRESH, of(refresh_token=renewed.refresh), (JSON, ("Authorization", value)))
    assert answer.status == 401


@pytest.mark.parametrize("value", ["Bearer  {}", "Bearer\t{}", 'Bearer "{}"', "Bearer {} x"])
def test_a_malformed_authorization_hides_no_session_that_has_ended(world: World, value: str) -> None:  # rule 5.5
    user = someone()
    pair = sign_in(world, user)
    log_out(world, pair.access)
    sent = ("Authorization", value.replace("{}", pair.access))
    assert refused(world, REFRESH, of(refresh_token=opaque()), (JSON, sent)).status == 401


@pytest.mark.parametrize("kind", ["sid", "jti"])
def test_an_expired_bearer_links_too(world: World, kind: str) -> None:  # C-02
    user, name = someone(), opaque()
    past = {"iat": int(time.time()) - 900, "exp": int(time.time()) - 60}
    post(world, LOGIN, handed(Pair(token(user, **{kind: name}), opaque())))
    number = current(world, token(user, **{kind: name}))
    expired, new = token(user, **{kind: name}, **past), token(user)
    assert world.refused("/", expired).body == error_body("token_expired")
    assert renew(world, Pair(new, opaque()), b"", [bearer(expired)]).status == 200
    assert current(world, new) == number
    # One of somebody else's making counts for nothing.
    other = token(user)
    forged = forge.token(forge.OTHER_SECRET, claims={"sub": user, kind: name, **past})
    assert renew(world, Pair(other, opaque()), b"", [bearer(forged)]).status == 200
    assert current(world, other) != number


def test_an_expired_bearer_that_only_its_content_names_links_too(store: Store) -> None:  # C-02
    with mounted(store, mount, jwt_leeway="0s") as world:
        user = someone()
        pair = Pair(token(user, jti=..., n=opaque(), exp=time.time() + 2.9), opaque())
        assert post(world, LOGIN, handed(pair)).status == 200
        number = current(world, pair.access)
        time.sleep(2.95)
        assert world.refused("/", pair.access).body == error_body("token_expired")
        new = Pair(by_payload(user, ""), opaque())
        assert renew(world, new, b"", [bearer(pair.access)]).status == 200
        assert current(world, new.access) == number


def test_tokens_in_cookies_are_renewed_in_cookies(world: World) -> None:  # C-02
    user = someone()

    def jar(pair: Pair) -> Response:
        answer = Response(status_code=204)
        answer.set_cookie("access_token", pair.access, httponly=True)
        answer.set_cookie("refresh_token", pair.refresh, path=REFRESH)
        return answer

    pair = Pair(by_payload(user, ""), opaque())
    assert post(world, LOGIN, jar(pair)).status == 204
    before = session(world, pair.access)
    new = Pair(by_payload(user, ""), opaque())
    answer = post(world, REFRESH, jar(new), b"", [("Cookie", f"refresh_token={pair.refresh}")])
    assert len(answer.get_all("set-cookie")) == 2
    assert session(world, new.access) == before
    log_out(world, new.access)
    answer = refused(world, REFRESH, b"", [("Cookie", f"refresh_token={new.refresh}")])
    assert_own_response(answer, 401, LOGGED_OUT)
    # No cookie is cleared: the client is told, and decides.
    assert answer.get_all("set-cookie") == []


def test_a_refresh_token_that_is_not_rotated_stays_known(world: World) -> None:  # C-02
    user = someone()
    pair = sign_in(world, user)
    number = current(world, pair.access)
    for _ in range(3):
        new = token(user)
        assert post(world, REFRESH, JSONResponse({"access": new}), of(refresh=pair.refresh)).status == 200
        assert current(world, new) == number
    log_out(world, new)
    assert_own_response(refused(world, REFRESH, of(refresh=pair.refresh)), 401, LOGGED_OUT)


def test_an_unknown_refresh_token_becomes_known_by_its_bearer(world: World) -> None:  # C-02, rule 5.5
    user = someone()
    adopted, refresh = token(user), opaque()
    number = current(world, adopted)
    first = token(user)
    answer = post(world, REFRESH, JSONResponse({"access": first}), of(refresh=refresh), token=adopted)
    assert (answer.status, current(world, first)) == (200, number)
    second = Pair(token(user), opaque())
    assert renew(world, second, of(refresh=refresh)).status == 200
    assert session(world, second.access)["login_method"] == "token"
    assert current(world, second.access) == number
    log_out(world, second.access)
    for known in (refresh, second.refresh):
        assert_own_response(refused(world, REFRESH, of(refresh=known)), 401, LOGGED_OUT)


def test_a_refresh_that_nothing_links_opens_a_session(world: World) -> None:
    user = someone()
    new = Pair(token(user), opaque())
    assert renew(world, new, of(refresh=opaque())).status == 200
    assert world.store.live(user) == 1
    assert session(world, new.access)["login_method"] == "refresh"
    # Its refresh token is known from then on.
    newer = Pair(token(user), opaque())
    assert renew(world, newer, of(refresh=new.refresh)).status == 200
    assert current(world, newer.access) == current(world, new.access)


def test_many_refreshes_with_one_token_are_one_session(world: World) -> None:  # S05, S08
    user = someone()
    pair = sign_in(world, user)
    number = current(world, pair.access)
    new = [Pair(token(user), opaque()) for _ in range(50)]
    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda each: renew(world, each, of(refresh=pair.refresh)), new))
    assert {answer.status for answer in answers} == {200}
    assert world.store.live(user) == 1
    for each in (*new, pair):
        assert world.passed("/", each.access).get_all("x-session-id") == [str(number)]
    # Whichever of them is held when the session ends, it renews nothing.
    log_out(world, new[7].access)
    for each in (pair, new[0], new[49]):
        assert_own_response(refused(world, REFRESH, of(refresh=each.refresh)), 401, LOGGED_OUT)


def evicted(world: World, pair: Pair, user: str) -> None:
    for _ in range(3):
        sign_in(world, user)


def revoked(world: World, pair: Pair, user: str) -> None:
    number = current(world, pair.access)
    assert world.fetch(f"/sessions/{number}", pair.access, method="DELETE").status == 200


def revoked_by_admin(world: World, pair: Pair, user: str) -> None:
    number = current(world, pair.access)
    assert world.fetch(f"/sessions/user/{user}/{number}", admin(), method="DELETE").status == 200


def deactivated(world: World, pair: Pair, user: str) -> None:
    number = current(world, pair.access)
    assert world.fetch(f"/api/sessions/{number}/deactivate", pair.access, method="PATCH").status == 200


End = Callable[[World, Pair, str], None]
ENDS: list[tuple[str, str, End]] = [
    ("logged_out", "access_token_blacklisted", lambda world, pair, _: log_out(world, pair.access)),
    ("revoked_by_user", "session_revoked_or_invalid", revoked),
    ("revoked_by_user", "session_revoked_or_invalid", lambda world, pair, _: end_all(world, pair.access)),
    ("revoked_by_admin", "session_revoked_or_invalid", revoked_by_admin),
    ("deactivated", "session_revoked_or_invalid", deactivated),
    ("evicted", "session_revoked_or_invalid", evicted),
]


def assert_over(world: World, pair: Pair, reason: str, code: str) -> None:
    """Neither renews, nor does anything that carries both; and no activity moves."""
    for body, headers in (way(pair) for way in WAYS.values()):
        answer = refused(world, REFRESH, body, headers)
        assert_own_response(answer, 401, error_body(code, reason))
        assert answer.get_all("www-authenticate") == [
            f'Bearer error="invalid_token", error_description="{TABLE[code][1]}"'
        ]


@kinds
@pytest.mark.parametrize(("reason", "code", "end"), ENDS, ids=["logout", "one", "all", "admin", "off", "evicted"])
def test_an_ended_session_cannot_be_renewed(
    world: World, reason: str, code: str, end: End, make: Callable[[str, str], str]
) -> None:  # C-11, C-13, C-23, E-07, S10
    user, sid = someone(), opaque()
    pair = sign_in(world, user, make, sid=sid)
    # Renewed once: the older tokens are refused as well.
    new = Pair(make(user, sid), opaque())
    assert renew(world, new, of(refresh=pair.refresh)).status == 200
    end(world, new, user)
    live = world.store.live(user)
    for each in (new, pair):
        assert_over(world, each, reason, code)
    assert world.store.live(user) == live


@pytest.mark.parametrize(
    ("reason", "code", "settings"),
    [
        ("idle", "session_inactivity_timeout", {"idle_timeout": "200ms"}),
        ("expired", "session_expired", {"session_ttl": "300ms"}),
    ],
)
def test_a_session_that_is_over_by_itself_cannot_be_renewed(
    store: Store, reason: str, code: str, settings: dict[str, str]
) -> None:  # B-12, C-20, S10
    with mounted(store, mount, **settings) as world:
        pair = sign_in(world, someone())
        time.sleep(0.35)
        assert_over(world, pair, reason, code)


def test_a_failed_refresh_moves_no_activity(world: World) -> None:  # S10
    user = someone()
    pair = sign_in(world, user)
    seen = world.store.last_activity(user)
    for answer in (
        JSONResponse({"detail": "no"}, status_code=401),
        JSONResponse({"token": token(user)}, status_code=500),
        JSONResponse({"detail": "later"}),
        PlainTextResponse("later"),
    ):
        for body, headers in (way(pair) for way in WAYS.values()):
            assert post(world, REFRESH, answer, body, headers).status == answer.status_code
    assert world.store.last_activity(user) == seen
    # Refused ones as little.
    assert refused(world, REFRESH, of(refresh=pair.refresh), [JSON, bearer(token(someone()))]).status == 401
    assert world.store.last_activity(user) == seen


def test_either_of_two_tokens_refuses_the_renewal(world: World) -> None:  # C-13, S10, rule 5.5
    user = someone()
    ended, live = sign_in(world, user), sign_in(world, user)
    log_out(world, ended.access)
    for refresh, access in ((ended.refresh, live.access), (live.refresh, ended.access)):
        body = of(refresh=refresh)
        for headers in ([bearer(access)], [cookie(access)]):
            assert_own_response(refused(world, REFRESH, body, [JSON, *headers]), 401, LOGGED_OUT)
    assert renew(world, Pair(token(user), opaque()), of(refresh=live.refresh)).status == 200


def test_a_refresh_token_that_a_login_hands_out_again_is_that_logins(world: World) -> None:  # C-02
    """Some backends keep one for each user."""
    user, refresh = someone(), opaque()
    first, second = token(user), token(user)
    assert post(world, LOGIN, handed(Pair(first, refresh))).status == 200
    log_out(world, first)
    assert_own_response(refused(world, REFRESH, of(refresh=refresh)), 401, LOGGED_OUT)
    assert post(world, LOGIN, handed(Pair(second, refresh))).status == 200
    new = token(user)
    assert post(world, REFRESH, JSONResponse({"access": new}), of(refresh=refresh)).status == 200
    assert current(world, new) == current(world, second)
    assert world.refused("/", first).body == LOGGED_OUT


def test_tokens_of_two_users_renew_nothing(world: World) -> None:  # S09
    user, other = someone(), someone()
    mine, theirs = sign_in(world, user), sign_in(world, other)
    invalid = error_body("token_invalid")
    body = of(refresh_token=mine.refresh)
    for headers in ([bearer(theirs.access)], [cookie(theirs.access)]):
        assert_own_response(refused(world, REFRESH, body, [JSON, *headers]), 401, invalid)
    jar = ("Cookie", f"refresh_token={theirs.refresh}")
    assert_own_response(refused(world, REFRESH, b"", [bearer(mine.access), jar]), 401, invalid)
    for each in (mine, theirs):
        world.passed("/", each.access)


def test_an_answer_for_somebody_else_is_no_session_of_the_one_who_asked(world: World) -> None:  # S09
    user, other = someone(), someone()
    mine = sign_in(world, user)
    answered = Pair(token(other), opaque())
    assert renew(world, answered, of(refresh=mine.refresh)).status == 200
    assert (world.store.live(user), world.store.live(other)) == (1, 1)
    assert current(world, answered.access) != current(world, mine.access)


# How a refresh token could be hidden from the gate while the application finds it: each is some backend's way to read.

BOUNDARY = ("Content-Type", "multipart/form-data; boundary=xx")


def part(value: str, *more: str, name: str = "refresh_token") -> str:
    lines = [f'Content-Disposition: form-data; name="{name}"', *more, "", value]
    return "--xx\r\n" + "\r\n".join(lines) + "\r\n"


def parts(*each: str) -> bytes:
    return ("".join(each) + "--xx--\r\n").encode()


HIDINGS: dict[str, Callable[[str], tuple[bytes, Headers]]] = {
    # Other forms of one body.
    "multipart": lambda refresh: (parts(part("x", name="a"), part(refresh)), [BOUNDARY]),
    "gzip": lambda refresh: (gzip.compress(of(refresh=refresh)), [JSON, ("Content-Encoding", "gzip")]),
    "br": lambda refresh: (brotli.compress(of(refresh=refresh)), [JSON, ("Content-Encoding", "br")]),
    "no content type": lambda refresh: (of(refreshToken=refresh), []),
    "JSON as text": lambda refresh: (of(refresh=refresh), [TEXT]),
    "a form without content type": lambda refresh: (urlencode({"refresh": refresh}).encode(), []),
    "a BOM": lambda refresh: (b"\xef\xbb\xbf" + of(refresh=refresh), [JSON]),
    "escapes": lambda refresh: (b'{"\\u0072efresh": "%s"}' % refresh.encode(), [JSON]),
    "gzip in two members": lambda refresh: (
        gzip.compress(b" ") + gzip.compress(of(refresh=refresh)),
        [JSON, ("Content-Encoding", "gzip")],
    ),
    # Django, Flask and FastAPI do not ask for a coding; this is JSON, and by chance six bytes in "deflate".
    "JSON that inflates": lambda refresh: (
        b'{"Z9o_3 ":1,"refresh":"%s"}' % refresh.encode(),
        [JSON, ("Content-Encoding", "deflate")],
    ),
    # `json.loads` of Python, so Flask and FastAPI, read these too.
    "UTF-16": lambda refresh: (of(refresh=refresh).decode().encode("utf-16"), [JSON]),
    "UTF-16 without BOM": lambda refresh: (of(refresh=refresh).decode().encode("utf-16-le"), [JSON]),
    "UTF-32": lambda refresh: (of(refresh=refresh).decode().encode("utf-32"), [JSON]),
    # Go, `request.json()` and `get_json(force=True)` do not ask what a body says it is.
    "JSON as a form": lambda refresh: (of(refresh=refresh), [FORM]),
    "JSON as multipart": lambda refresh: (of(refresh=refresh), [BOUNDARY]),
    "a form as JSON": lambda refresh: (urlencode({"refresh": refresh}).encode(), [JSON]),
    # Go and ASP.NET do not ask for the case of a name.
    "upper case": lambda refresh: (of(REFRESH_TOKEN=refresh), [JSON]),
    "mixed case": lambda refresh: (of(RefreshToken=refresh), [JSON]),
    # PHP, which makes no difference between `.`, space and `_` in names.
    "a dot": lambda refresh: (urlencode({"refresh.token": refresh}).encode(), [FORM]),
    # Go's `Decoder` and Jackson stop where the JSON ends; Go and JavaScript replace what is no UTF-8.
    "something behind it": lambda refresh: (of(refresh=refresh) + b" .", [JSON]),
    "a byte that is no UTF-8": lambda refresh: (b'{"x":"\xff","refresh":"%s"}' % refresh.encode(), [JSON]),
    # Depth that JavaScript and Go take, and Python does not.
    "depth": lambda refresh: (b'{"refresh":"%s","x":%s%s}' % (refresh.encode(), b"[" * 9000, b"]" * 9000), [JSON]),
    # Backends that look at each part's content only.
    "a part in base64, as it says": lambda refresh: (
        parts(part(base64.b64encode(refresh.encode()).decode(), "Content-Transfer-Encoding: base64")),
        [BOUNDARY],
    ),
    "a part in base64, which it is not": lambda refresh: (
        parts(part(refresh, "Content-Transfer-Encoding: base64")),
        [BOUNDARY],
    ),
    "a part of several": lambda refresh: (
        parts(part(refresh, "Content-Type: multipart/mixed; boundary=yy")),
        [BOUNDARY],
    ),
    "a part that is a mail": lambda refresh: (parts(part(refresh, "Content-Type: message/rfc822")), [BOUNDARY]),
    # Beside another one: backends disagree which of two counts.
    "a decoy in a form, first": lambda refresh: (b"refresh_token=x&refresh_token=" + refresh.encode(), [FORM]),
    "a decoy in a form, last": lambda refresh: (b"refresh_token=%s&refresh_token=x" % refresh.encode(), [FORM]),
    "a decoy in a part, first": lambda refresh: (parts(part("x"), part(refresh)), [BOUNDARY]),
    "a decoy of another name": lambda refresh: (of(refresh_token="x", refresh=refresh), [JSON]),
    "a decoy under data": lambda refresh: (of(data={"refresh_token": "x"}, refresh=refresh), [JSON]),
    "under data, behind a decoy": lambda refresh: (of(refresh_token="x", data={"refresh_token": refresh}), [JSON]),
    "a decoy of the same name, last": lambda refresh: (
        b'{"refresh":"%s","refresh":"x"}' % refresh.encode(),
        [JSON],
    ),
    "a decoy of the same name, first": lambda refresh: (
        b'{"refresh":"x","refresh":"%s"}' % refresh.encode(),
        [JSON],
    ),
    "XML": lambda refresh: (f"<a><refresh>{refresh}</refresh></a>".encode(), [XML]),
    "an attribute": lambda refresh: (f'<a refreshToken="{refresh}"/>'.encode(), [XML]),
    "decimal entities": lambda refresh: (f"<a><r>{''.join(f'&#{ord(c)};' for c in refresh)}</r></a>".encode(), [XML]),
    "hexadecimal entities": lambda refresh: (
        f"<a><r>{''.join(f'&#x{ord(c):x};' for c in refresh)}</r></a>".encode(),
        [XML],
    ),
    "one entity": lambda refresh: (f"<a><r>&#x{ord(refresh[0]):X};{refresh[1:]}</r></a>".encode(), [XML]),
    "an entity of its own": lambda refresh: (
        f'<!DOCTYPE a [<!ENTITY t "{refresh[:20]}">]><a><r>&t;{refresh[20:]}</r></a>'.encode(),
        [XML],
    ),
    "CDATA in the middle": lambda refresh: (
        f"<a><r>{refresh[:9]}<![CDATA[{refresh[9:]}]]></r></a>".encode(),
        [XML],
    ),
    "a comment in the middle": lambda refresh: (f"<a><r>{refresh[:9]}<!-- -->{refresh[9:]}</r></a>".encode(), [XML]),
    "XML in UTF-16": lambda refresh: (f"<a><r>{refresh}</r></a>".encode("utf-16"), [XML]),
    "entities in a form": lambda refresh: (
        urlencode({"x": "".join(f"&#{ord(c)};" for c in refresh)}).encode(),
        [FORM],
    ),
    "UTF-7": lambda refresh: (
        f'{{"refresh":"+{base64.b64encode(refresh.encode("utf-16-be")).decode().rstrip("=")}-"}}'.encode(),
        [("Content-Type", "application/json; charset=utf-7")],
    ),
    "an unknown character set": lambda refresh: (of(refresh=refresh), [("Content-Type", "text/json; charset=x")]),
    "percent-encoded twice": lambda refresh: (
        ("x=" + "".join(f"%25{ord(c):02x}" for c in refresh)).encode(),
        [FORM],
    ),
    "base64 of the other alphabet": lambda refresh: (
        of(x=base64.urlsafe_b64encode(b"?>~~ " + refresh.encode()).decode()),
        [JSON],
    ),
    "every character escaped": lambda refresh: (
        b'{"x":"%s"}' % "".join(f"\\u{ord(c):04x}" for c in refresh).encode(),
        [JSON],
    ),
    "a fault and escapes": lambda refresh: (
        b'{"x":"%s",}' % "".join(f"\\u{ord(c):04x}" for c in refresh).encode(),
        [JSON],
    ),
    "lines": lambda refresh: (of(x=refresh[:9] + "\n" + refresh[9:]), [JSON]),
    "in the query, twice encoded": lambda refresh: (b"", [("X-Q", "".join(f"%25{ord(c):02x}" for c in refresh))]),
    "in a cookie, behind a body": lambda refresh: (of(refresh="x"), [JSON, ("Cookie", f"refresh_token={refresh}")]),
    "in a body, behind a cookie": lambda refresh: (of(refresh=refresh), [JSON, ("Cookie", "refresh_token=x")]),
    "in the second of two cookies": lambda refresh: (
        b"",
        [("Cookie", f"refresh_token=x; refresh_token={refresh}")],
    ),
}


@pytest.mark.parametrize("hide", HIDINGS.values(), ids=HIDINGS)
def test_the_refresh_token_of_an_ended_session_cannot_be_hidden(
    world: World, hide: Callable[[str], tuple[bytes, Headers]]
) -> None:  # C-13, E-07, S10
    pair = sign_in(world, someone())
    log_out(world, pair.access)
    answer = refused(world, REFRESH, *hide(pair.refresh))
    # What cannot be read for certain may be refused for that.
    assert answer.status in {400, 401, 413}, answer
    if answer.status == 401:
        assert answer.body in {LOGGED_OUT, error_body("token_invalid")}


BEARERS: dict[str, Callable[[str], Headers]] = {
    "twice": lambda ended: [bearer(ended), bearer(ended)],
    "behind another": lambda ended: [bearer("x"), bearer(ended)],
    "in front of another": lambda ended: [bearer(ended), bearer("x")],
    "in a cookie, behind a bad one": lambda ended: [bearer("x"), cookie(ended)],
    "in the second of two cookies": lambda ended: [("Cookie", f"access_token=x; access_token={ended}")],
    "in a cookie, behind a scheme": lambda ended: [("Authorization", "Basic eDp5"), cookie(ended)],
}


@pytest.mark.parametrize("hide", BEARERS.values(), ids=BEARERS)
def test_the_bearer_of_an_ended_session_cannot_be_hidden(world: World, hide: Callable[[str], Headers]) -> None:
    # C-13, E-07, S10, T22: of backends that renew by the bearer alone
    user = someone()
    pair = sign_in(world, user)
    log_out(world, pair.access)
    answer = refused(world, REFRESH, b"", hide(pair.access))
    assert (answer.status, answer.body in {LOGGED_OUT, error_body("token_invalid")}) == (401, True)


def test_the_bearer_decides_and_not_what_stands_beside_it(world: World) -> None:
    """The bearer is the first source that holds a token (rule 5.5), and it is live."""
    user = someone()
    ended, live = sign_in(world, user), sign_in(world, user)
    log_out(world, ended.access)
    headers = [bearer(ended.access), cookie(live.access)]
    assert_own_response(refused(world, REFRESH, b"", headers), 401, LOGGED_OUT)


@pytest.mark.parametrize("name", ["token", "access_token", "accessToken"])
def test_an_access_token_in_the_body_cannot_renew_an_ended_session(world: World, name: str) -> None:  # C-13, S10
    """Simple backends renew `{"token": …}` (rule 5.3)."""
    pair = sign_in(world, someone())
    log_out(world, pair.access)
    assert_own_response(refused(world, REFRESH, of(**{name: pair.access})), 401, LOGGED_OUT)


ODD_TOKENS = {"long": "x" * 8_193, "not ASCII": "t\u00f6ken-" + "y" * 40}
ODD_PLACES: dict[str, Callable[[str], tuple[bytes, Headers]]] = {
    "JSON": lambda odd: (of(refresh_token=odd), [JSON]),
    "JSON of another name": lambda odd: (of(myRefreshToken=odd), [JSON]),
    "an object": lambda odd: (of(tokens={"refresh": odd}), [JSON]),
    "a form": lambda odd: (urlencode({"refresh_token": odd}).encode(), [FORM]),
    "XML": lambda odd: (f"<a><refreshToken>{odd}</refreshToken></a>".encode(), [XML]),
    "multipart": lambda odd: (parts(part(odd)), [BOUNDARY]),
    "a text": lambda odd: (odd.encode(), [TEXT]),
    "a cookie": lambda odd: (b"", [("Cookie", "a=b; refresh_token=" + quote(odd))]),
    "a header": lambda odd: (b"", [("X-Refresh-Token", quote(odd))]),
}


@pytest.mark.parametrize("place", ODD_PLACES.values(), ids=ODD_PLACES)
@pytest.mark.parametrize("odd", ODD_TOKENS.values(), ids=ODD_TOKENS)
def test_a_refresh_token_that_is_too_long_or_not_ascii_is_refused(
    world: World, odd: str, place: Callable[[str], tuple[bytes, Headers]]
) -> None:
    # Rule 5.5: it cannot be looked up, so it must not carry a session past its end
    body, headers = place(odd)
    assert_refused("fastapi", refused(world, REFRESH, body, headers), 413, "body_too_large")


def test_other_texts_of_a_refresh_may_be_in_any_language(world: World) -> None:
    pair = sign_in(world, someone())
    body = of(refresh_token=pair.refresh, device="T\u00e9l\u00e9phone-de-Zo\u00e9-et-de-L\u00e9a", note="x " * 8_000)
    assert renew(world, Pair(token(someone()), opaque()), body).status == 200


def test_a_refresh_token_that_is_not_ascii_is_known_under_every_name(world: World) -> None:  # S10
    pair = Pair(token(someone()), "t\u00f6ken-" + opaque())
    post(world, LOGIN, JSONResponse({"token": pair.access, "refresh_token": pair.refresh}), of(username="x"), [JSON])
    log_out(world, pair.access)
    assert_own_response(refused(world, REFRESH, of(rt=pair.refresh), [JSON]), 401, LOGGED_OUT)


def test_a_body_that_cannot_be_read_renews_nothing(world: World) -> None:  # S10
    pair = sign_in(world, someone())
    bodies: list[tuple[bytes, Headers]] = [
        (of(refresh=pair.refresh, pad="x" * 65_536), [JSON]),
        (gzip.compress(of(refresh=pair.refresh, pad="x" * 65_536)), [JSON, ("Content-Encoding", "gzip")]),
        (of(refresh=pair.refresh), [JSON, ("Content-Encoding", "zstd")]),
        (of(refresh=pair.refresh), [JSON, ("Content-Encoding", "gzip, gzip")]),
        (gzip.compress(of(refresh=pair.refresh))[:-12], [JSON, ("Content-Encoding", "gzip")]),
    ]
    for body, headers in bodies:
        assert_refused("fastapi", refused(world, REFRESH, body, headers), 413, "body_too_large")
    # A logout of that size is the application's.
    assert post(world, LOGOUT, PlainTextResponse("ok"), bodies[0][0]).status == 200


@pytest.mark.parametrize(
    ("reason", "code", "end"),
    [each for each in ENDS if each[0] != "evicted"],
    ids=["logout", "one", "all", "admin", "off"],
)
def test_a_session_that_ends_while_the_application_answers_gets_no_tokens(
    world: World, reason: str, code: str, end: End
) -> None:  # C-13, S04, S14
    user = someone()
    pair, new = sign_in(world, user), Pair(token(user), opaque())
    asked, answer = threading.Event(), threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        while not answer.is_set():  # noqa: ASYNC110 - set in another thread
            await asyncio.sleep(0.005)
        await handed(new)(scope, receive, send)

    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(post, world, REFRESH, slow, of(refresh=pair.refresh))
        assert asked.wait(HANG_SECONDS)
        end(world, pair, user)
        answer.set()
        withheld = under_way.result(HANG_SECONDS)
    assert_own_response(withheld, 401, error_body(code, reason))
    assert new.access not in str(withheld)
    assert new.refresh not in str(withheld)
    assert world.store.live(user) == 0


# Logout

OUT: dict[str, Callable[[Pair], tuple[bytes, Headers]]] = WAYS | {
    "access token in the body": lambda pair: (of(access_token=pair.access, language="en"), [JSON]),
    "token in a form": lambda pair: (urlencode({"token": pair.access}).encode(), [FORM]),
}
SAME_SITE = ("Sec-Fetch-Site", "same-origin")


@kinds
@pytest.mark.parametrize("way", OUT.values(), ids=OUT)
def test_a_logout_ends_the_session_before_the_application_hears_of_it(
    world: World, make: Callable[[str, str], str], way: Callable[[Pair], tuple[bytes, Headers]]
) -> None:  # C-03, C-13, C-23, C-38
    user = someone()
    pair, other = sign_in(world, user, make), sign_in(world, user, make)
    body, headers = way(pair)
    live: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        live.append(world.store.live(user))
        await PlainTextResponse("bye", status_code=202)(scope, receive, send)

    answer = post(world, LOGOUT, app, body, [*headers, SAME_SITE])
    assert (answer.status, answer.body, live) == (202, b"bye", [1])
    assert_own_response(world.refused("/", pair.access), 401, LOGGED_OUT)
    assert_own_response(refused(world, REFRESH, of(refresh=pair.refresh)), 401, LOGGED_OUT)
    assert world.passed("/", other.access)


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 404, 500, 503])
def test_whatever_the_application_says_of_a_logout_it_says_to_the_client(world: World, status: int) -> None:  # C-03
    pair = sign_in(world, someone())
    content = None if status == 204 else b'{"token":"x"}'
    response = Response(content, status_code=status, headers={"x-mine": "1", "set-cookie": "access_token="})
    answer = post(world, LOGOUT, response, of(refresh=pair.refresh))
    assert (answer.status, answer.body) == (status, content or b"")
    assert (answer.get_all("x-mine"), answer.get_all("set-cookie")) == (["1"], ["access_token="])
    assert_own_response(world.refused("/", pair.access), 401, LOGGED_OUT)


def test_an_application_that_fails_has_been_logged_out_of(world: World) -> None:  # C-03
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    pair = sign_in(world, someone())
    assert post(world, LOGOUT, app, token=pair.access).status == 500
    assert_own_response(world.refused("/", pair.access), 401, LOGGED_OUT)


@pytest.mark.parametrize("kind", ["sid", "jti"])
@pytest.mark.parametrize("carried", ["header", "body"])
def test_an_expired_token_logs_out_too(world: World, kind: str, carried: str) -> None:  # C-03, C-38
    user, name = someone(), opaque()
    live = token(user, **{kind: name})
    post(world, LOGIN, handed(Pair(live, opaque())))
    expired = token(user, **{kind: name}, iat=int(time.time()) - 900, exp=int(time.time()) - 60)
    body, headers = (b"", [bearer(expired)]) if carried == "header" else (of(access_token=expired), [JSON])
    assert post(world, LOGOUT, PlainTextResponse("ok"), body, headers).status == 200
    assert world.store.live(user) == 0
    assert_own_response(world.refused("/", live), 401, LOGGED_OUT)


def test_the_token_from_before_a_refresh_logs_out_too(world: World) -> None:  # C-38
    user = someone()
    pair, new = sign_in(world, user), Pair(token(user), opaque())
    renew(world, new, of(refresh=pair.refresh))
    # In the body alone, without an Authorization header.
    assert post(world, LOGOUT, PlainTextResponse("ok"), of(access_token=pair.access)).status == 200
    for each in (pair, new):
        assert_own_response(world.refused("/", each.access), 401, LOGGED_OUT)


def test_a_logout_with_a_token_that_was_never_seen_keeps_it_from_being_adopted(world: World) -> None:  # C-23
    user = someone()
    for options in ({"token": token(user)}, {"body": of(access_token=token(user))}):
        bearing = options.get("token") or json.loads(options["body"])["access_token"]
        assert post(world, LOGOUT, PlainTextResponse("ok"), **options).status == 200
        assert_own_response(world.refused("/", bearing), 401, LOGGED_OUT)
    assert world.store.live(user) == 0


def test_a_logout_with_tokens_of_two_users_ends_nothing(world: World) -> None:  # S27
    mine, theirs = sign_in(world, someone()), sign_in(world, someone())
    invalid = error_body("token_invalid")
    for body in (of(access_token=theirs.access), of(refresh_token=theirs.refresh), of(token=theirs.access)):
        for headers in ([bearer(mine.access)], [cookie(mine.access), SAME_SITE]):
            assert_own_response(refused(world, LOGOUT, body, [JSON, *headers]), 401, invalid)
    assert_own_response(refused(world, LOGOUT, of(access_token=mine.access, refresh=theirs.refresh)), 401, invalid)
    for each in (mine, theirs):
        world.passed("/", each.access)


def test_a_logout_with_two_sessions_of_one_user_ends_both(world: World) -> None:  # S27, rule 5.6
    user = someone()
    first, second, third = (sign_in(world, user) for _ in range(3))
    body = of(access_token=second.access, refresh_token=third.refresh)
    assert post(world, LOGOUT, PlainTextResponse("ok"), body, token=first.access).status == 200
    assert world.store.live(user) == 0
    for pair in (first, second, third):
        assert_own_response(world.refused("/", pair.access), 401, LOGGED_OUT)


def test_a_logout_without_a_usable_token_is_only_forwarded(world: World) -> None:  # C-03
    user = someone()
    pair = sign_in(world, user)
    foreign = forge.token(forge.OTHER_SECRET, sub=user)
    attempts: list[tuple[bytes, Headers]] = [
        (b"", []),
        (b"{", [JSON]),
        (of(access_token=foreign), [JSON]),
        (of(access_token=pair.access + "="), [JSON]),
        (of(refresh_token=opaque()), [JSON]),
        (of(refresh_token=pair.refresh[:-1]), [JSON]),
        (of(refresh_token=pair.refresh.upper()), [JSON]),  # T25
        (b"", [bearer(foreign)]),
        (b"", [bearer("x")]),
        (b"", [("Authorization", "Basic eDp5")]),
    ]
    for body, headers in attempts:
        answer = post(world, LOGOUT, PlainTextResponse("mine", status_code=401), body, headers)
        assert (answer.status, answer.body) == (401, b"mine")
    assert world.store.live(user) == 1
    world.passed("/", pair.access)


@pytest.mark.parametrize(
    "headers",
    [[], [("Origin", "https://evil.example")], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]],
    ids=["nothing", "origin", "null", "fetch"],
)
def test_a_logout_ends_the_session_whatever_its_origin(world: World, headers: Headers) -> None:  # S21, rule 3.17
    # Whether to take it is the application's business, and it says 200: no session may live on behind that.
    for name in ("access_token", "refresh_token"):
        pair = sign_in(world, someone())
        jar = f"a=b; {name}={pair.access if name == 'access_token' else pair.refresh}"
        answer = post(world, LOGOUT, PlainTextResponse("mine"), b"", [("Cookie", jar), *headers])
        assert (answer.status, answer.body) == (200, b"mine")
        assert world.reached[-1].get_all("cookie") == [jar]
        assert world.refused("/", pair.access).body == LOGGED_OUT
        assert refused(world, REFRESH, of(refresh=pair.refresh)).body == LOGGED_OUT
    # A header is sent by a script that holds the token, from anywhere.
    pair = sign_in(world, someone())
    assert post(world, LOGOUT, PlainTextResponse("mine"), b"", [bearer(pair.access), *headers]).status == 200
    assert world.refused("/", pair.access).body == LOGGED_OUT


# Failed logins

WRONG = JSONResponse({"detail": "Incorrect username or password"}, status_code=401)


def fail(world: World, body: bytes, headers: Headers = (JSON,), answer: Response = WRONG) -> None:
    """A login that the application refuses, and was asked."""
    before = len(world.reached)
    assert post(world, LOGIN, answer, body, headers).body == answer.body
    assert len(world.reached) == before + 1


def throttled(world: World, body: bytes, headers: Headers = (JSON,)) -> int:
    """A login that is refused before the application is asked; how many seconds to wait."""
    answer = refused(world, LOGIN, body, headers)
    assert (answer.status, answer.body) == (429, THROTTLED)
    assert answer.get_all("content-type") == ["application/json; charset=utf-8"]
    assert answer.get_all("cache-control") == ["no-store"]
    assert answer.get_all("www-authenticate") == answer.get_all("set-cookie") == []
    (seconds,) = answer.get_all("retry-after")
    return int(seconds)


def named(name: str, password: str = "x") -> bytes:
    return of(username=name, password=password)


def from_address(address: str) -> tuple[str, str]:
    return ("X-Forwarded-For", address)


def new_address() -> str:
    """Of a network of its own: a /64 counts as one address."""
    number = int(someone())
    return "2001:" + ":".join(f"{number >> shift & 0xFFFF:x}" for shift in (32, 16, 0)) + "::1"


@pytest.mark.slow
def test_after_ten_failures_of_a_name_the_next_waits_twice_as_long_each_time(limited: World) -> None:  # S22, A-24

    def trial() -> None:
        body = named("n" + someone())
        for _ in range(10):
            fail(limited, body)
        for seconds in (1, 2):
            assert throttled(limited, body) == seconds
            assert throttled(limited, body) == seconds
            time.sleep(seconds + 0.05)
            fail(limited, body)
        assert throttled(limited, body) == 4
        # The right password waits too: whether it was right, nobody learns (S23).
        assert throttled(limited, body.replace(b'"x"', b'"right"')) in {3, 4}

    unless_slow(trial, moment=4)


def test_in_whatever_way_a_name_is_written_it_is_one_name(limited: World) -> None:  # S22
    unless_slow(partial(assert_one_name, limited), moment=1)


def assert_one_name(limited: World) -> None:
    name = f"Zoë.{someone()}@example.com"
    wide = name.replace("e", "\uff45")
    ways: list[tuple[bytes, Headers]] = [
        (of(username=name), [JSON]),
        (of(username=name.upper()), [JSON]),
        (of(username=f"  {name.lower()}\t\n"), [JSON]),
        (of(email=name), [JSON]),
        (of(email=name.title(), username=None), [JSON]),
        (of(email=name, username=" "), [JSON]),
        (urlencode({"username": name}).encode(), [FORM]),
        (urlencode({"email": f" {name.upper()}"}).encode(), [FORM]),
        (of(username=wide), [JSON]),
        (parts(part(name, name="username")), [BOUNDARY]),
    ]
    for body, headers in ways:
        fail(limited, body, headers)
    for body, headers in ways:
        assert throttled(limited, body, headers) == 1
    # Other names are other people's.
    fail(limited, named(name + "x"))
    sign_in(limited, someone())


NAMES: dict[str, Callable[[str], tuple[bytes, Headers]]] = {
    "no content type": lambda name: (named(name), []),
    "text": lambda name: (named(name), [TEXT]),
    "gzip": lambda name: (gzip.compress(named(name)), [JSON, ("Content-Encoding", "gzip")]),
    "a BOM": lambda name: (b"\xef\xbb\xbf" + named(name), [JSON]),
    "escapes": lambda name: (b'{"user\\u006eame": "%s"}' % name.encode(), [JSON]),
    "UTF-16": lambda name: (named(name).decode().encode("utf-16"), [JSON]),
    "JSON as a form": lambda name: (named(name), [FORM]),
    "a form as JSON": lambda name: (urlencode({"username": name}).encode(), [JSON]),
    "upper case": lambda name: (of(UserName=name), [JSON]),
    "something behind it": lambda name: (named(name) + b" .", [JSON]),
    "a byte that is no UTF-8": lambda name: (b'{"username":"%s","password":"\xff"}' % name.encode(), [JSON]),
    "a coding that it has not": lambda name: (named(name), [JSON, ("Content-Encoding", "gzip")]),
    "JSON that inflates": lambda name: (
        b'{"Z9o_3 ":1,"username":"%s"}' % name.encode(),
        [JSON, ("Content-Encoding", "deflate")],
    ),
    "a large body": lambda name: (of(username=name, pad="x" * 65_536), [JSON]),
    "a body that inflates": lambda name: (
        gzip.compress(of(username=name, pad="x" * 65_536)),
        [JSON, ("Content-Encoding", "gzip")],
    ),
    "a list": lambda name: (of(username=[name]), [JSON]),
    "a scope": lambda name: (urlencode({"user[email]": name, "user[password]": "x"}).encode(), [FORM]),
    "brackets": lambda name: (urlencode({"username[]": name}).encode(), [FORM]),
    "JSON around it": lambda name: (of(user={"email": name}), [JSON]),
    "XML": lambda name: (f"<l><username>&#110;{name[1:]}</username></l>".encode(), [("Content-Type", "text/xml")]),
    "GraphQL": lambda name: (
        of(query="mutation ($x: String!) { login(username: $x) { token } }", variables={"x": name}),
        [JSON],
    ),
    "another decoy each time": lambda name: (of(login=name, email=opaque()), [JSON]),
    "seventeen decoys": lambda name: (of(username=[*(opaque() for _ in range(17)), name]), [JSON]),
    "an unknown character set": lambda name: (named(name), [("Content-Type", "application/json; charset=x")]),
    "a decoy in a form, first": lambda name: (f"username={opaque()}&username={name}".encode(), [FORM]),
    "a decoy in a form, last": lambda name: (f"username={name}&username={opaque()}".encode(), [FORM]),
}


@pytest.mark.parametrize("hide", NAMES.values(), ids=NAMES)
def test_a_name_cannot_be_hidden_from_the_limit(limited: World, hide: Callable[[str], tuple[bytes, Headers]]) -> None:
    # S22: 1,000 tries for somebody who knows how bodies are read
    name = "n" + someone()
    statuses = [post(limited, LOGIN, WRONG, *hide(name)).status for _ in range(12)]
    # A login that cannot be read may be refused for that.
    assert set(statuses[10:]) <= {400, 413, 429}, statuses


def test_a_name_in_the_query_or_as_a_number_is_the_same_name(limited: World) -> None:  # S22, rule 5.10
    number = someone()
    path = f"{LOGIN}?username={number}"
    for _ in range(5):
        assert post(limited, path, WRONG, b"", []).status == 401
        fail(limited, of(account=int(number)))
    assert refused(limited, path, b"", []).body == THROTTLED
    assert throttled(limited, of(phone=[int(number)])) == 1


def test_a_success_resets_only_the_name_that_stands_alone(limited: World) -> None:  # S22, rule 5.10
    victim, own = "n" + someone(), someone()
    for _ in range(9):
        fail(limited, named(victim))
    # An attacker signs in to an account of their own, and names the victim beside it.
    pair = Pair(token(own), opaque())
    post(limited, LOGIN, JSONResponse({"token": pair.access}), of(username=own, email=victim, password="x"), [JSON])
    fail(limited, named(victim))
    assert throttled(limited, named(victim)) == 1


def test_a_64_is_one_client_at_a_login_too(proxied: World) -> None:  # S22, rule 5.11
    network = new_address().removesuffix("::1")
    for number in range(100):
        fail(proxied, named(f"n{number}-{someone()}"), [JSON, from_address(f"{network}::{number:x}")])
    assert throttled(proxied, named("n" + someone()), [JSON, from_address(f"{network}:1:2:3:4")]) == 1


def test_the_names_and_the_statuses_of_a_failed_login_are_settings(store: Store) -> None:  # rule 5.10
    chosen = {"login_name_fields": "userId", "login_failure_status": "200,422", "login_rate_limit": "10/15m"}
    with mounted(store, mount, **chosen) as world:
        name = "n" + someone()
        bad, unprocessable = JSONResponse({"ok": False}), JSONResponse({}, status_code=422)
        for _ in range(5):
            fail(world, of(user_id=name), answer=bad)
            fail(world, of(user_id=name), answer=unprocessable)
            fail(world, of(username=name), answer=bad)
            fail(world, of(user_id="x" + name), answer=WRONG)
        assert throttled(world, of(USERID=name)) == 1
        fail(world, of(user_id="x" + name), answer=WRONG)
        # A response that signs in is no failure.
        user = someone()
        for _ in range(15):
            answer = post(world, LOGIN, JSONResponse({"token": token(user)}), of(userId=user), [JSON])
            assert answer.status == 200


def test_a_success_is_a_new_beginning(limited: World) -> None:  # S22
    user = someone()
    for _ in range(9):
        fail(limited, named(user))
    sign_in(limited, user)
    for _ in range(10):
        fail(limited, named(user))
    assert throttled(limited, named(user)) == 1


def test_what_counts_is_what_the_application_refuses(limited: World) -> None:  # S22
    def status(code: int) -> Response:
        return JSONResponse({"detail": "no"}, status_code=code)

    name = "n" + someone()
    for code in (400, 404, 422, 429, 500, 503, 200, 302):
        for _ in range(2):
            fail(limited, named(name), answer=status(code))
    for _ in range(5):
        fail(limited, named(name), answer=status(403))
        fail(limited, named(name), answer=status(401))
    assert throttled(limited, named(name)) == 1


def test_refused_logins_tell_nothing_of_whether_there_is_such_a_user(limited: World) -> None:  # S23
    known, unknown = someone(), "n" + someone()
    sign_in(limited, known)

    def told(answer: ClientResponse) -> tuple[Any, ...]:
        passing = {"date", "x-request-id"}
        return answer.status, answer.body, [pair for pair in answer.headers if pair[0].lower() not in passing]

    for name in (known, unknown):
        for _ in range(10):
            fail(limited, named(name))
    answers = [refused(limited, LOGIN, named(name)) for name in (known, unknown)]
    assert told(answers[0]) == told(answers[1])
    assert answers[0].status == 429


def test_without_a_limit_there_is_none(world: World) -> None:
    for _ in range(30):
        fail(world, named("alice"))
    assert world.store.client.keys("*login:name:*alice*") == []


def test_a_client_does_not_get_further_by_another_forwarded_address(limited: World) -> None:  # S22, I01
    body = named("n" + someone())
    for _ in range(10):
        fail(limited, body, [JSON, from_address(new_address())])
    assert throttled(limited, body, [JSON, from_address(new_address())]) == 1
    # And the peer, which may be a proxy that nobody told us of, is not held liable.
    for _ in range(120):
        fail(limited, of(password="x"), [JSON])


def test_an_address_may_fail_with_a_hundred_names(proxied: World) -> None:  # S22
    address = from_address(new_address())
    for number in range(100):
        fail(proxied, named(f"n{number}-{someone()}"), [JSON, address])
    assert throttled(proxied, named("n" + someone()), [JSON, address]) == 1
    assert throttled(proxied, b"", [address]) == 1
    # From the right of the list, whatever the client wrote before it.
    chain = from_address(f"{new_address()}, {address[1]}")
    assert throttled(proxied, named("n" + someone()), [JSON, chain]) == 1
    fail(proxied, named("n" + someone()), [JSON, from_address(new_address())])


def test_a_name_may_fail_ten_times_from_an_address_and_a_hundred_times_from_all(proxied: World) -> None:  # S22
    body = named("n" + someone())
    for _ in range(10):
        address = from_address(new_address())
        for _ in range(10):
            fail(proxied, body, [JSON, address])
    assert throttled(proxied, body, [JSON, from_address(new_address())]) == 1
    fail(proxied, named("n" + someone()), [JSON, from_address(new_address())])


def test_two_gates_share_one_limit(limited: World, store: Store) -> None:  # S22
    with mounted(store, mount) as other:
        body = named("n" + someone())
        for _ in range(5):
            fail(limited, body)
            fail(other, body)
        assert throttled(limited, body) == throttled(other, body) == 1

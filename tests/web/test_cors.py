"""Other sites: who may read Gatekeeper's own answers, and what a cookie alone may do (S20, S21, U08, W01)."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from gatekeeper.build import build
from gatekeeper.dialects.base import Operation
from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware
from tests.contracts.dialect import JSON
from tests.middleware.host import around, environ_for, mounted, starlette_app
from tests.servers import ClientResponse, serve_asgi
from tests.system.sidecar import Store, World, bearer, eventually, someone, token
from tests.waiting import HANG_SECONDS
from tests.web.shapes import ENDS, OPERATIONS, READS, UNSAFE, admin, assert_refused, named, target

FRONT = "https://front.example"
SETTINGS = {"cors_origins": f"{FRONT},http://localhost:3000", "rate_limit": "off", "public_paths": "/public/*"}
EVIL = [
    *("https://evil.example", "null", "https://front.example.evil", "https://evil-front.example", "*", ""),
    *("https://evil.front.example", "http://front.example", "https://front.example:8443", "https://front.example/"),
    *("HTTPS://FRONT.EXAMPLE", "https://Front.example", "https://front.example.", "https://frontxexample"),
    *("https://front.example, https://evil.example", "https://user@front.example", "front.example", "http://localhost"),
]
ALLOW = ("access-control-allow-origin", "access-control-allow-credentials")


@pytest.fixture(scope="module")
def world(store: Store) -> Iterator[World]:
    with mounted(store, around, **SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def closed(store: Store) -> Iterator[World]:
    """The default: no other origin."""
    with mounted(store, rate_limit="off") as made:
        yield made


def cookie(token: str) -> tuple[str, str]:
    return ("Cookie", f"access_token={token}")


def origin(value: str) -> tuple[str, str]:
    return ("Origin", value)


def cors(answer: ClientResponse) -> dict[str, list[str]]:
    names = {name.lower() for name, _ in answer.headers}
    return {name: answer.get_all(name) for name in names if name.startswith("access-control-") or name == "vary"}


READABLE = {ALLOW[0]: [FRONT], ALLOW[1]: ["true"], "vary": ["Origin"]}


# Who may read


def own_answers(world: World, headers: list[tuple[str, str]]) -> Iterator[ClientResponse]:
    """Every kind of answer that Gatekeeper makes itself, on forwarded paths too."""
    revoked = token(someone())
    world.fetch("/sessions/logout", revoked, method="DELETE")
    for path in READS.values():
        yield world.fetch(path, admin(), headers=headers)
        yield world.fetch(path, headers=headers)
        yield world.fetch(path, revoked, headers=headers)
    for method, path in ENDS.values():
        yield world.fetch(path, admin(), method=method, headers=headers)
        yield world.fetch(path, admin(), method=method, headers=headers, body=b"x")
    yield world.fetch("/sessions/7", token(someone()), method="DELETE", headers=headers)
    yield world.fetch("/admin/sessions/active", token(someone()), headers=headers)
    yield world.fetch("/_gatekeeper/openapi.json", headers=headers)
    yield world.fetch("/_gatekeeper/nothing", headers=headers)
    # Refused on the way to the application.
    yield world.fetch("/protected", headers=headers)
    yield world.fetch("/protected", revoked, headers=headers)
    yield world.fetch("/protected", method="POST", headers=headers)
    yield world.fetch("/API/sessions", headers=headers)
    yield world.fetch("/%zz", headers=headers)
    yield world.fetch("/protected", method="TRACE", headers=headers)
    yield world.fetch("/protected", headers=[*headers, bearer(token(someone())), bearer(token(someone()))])


def test_a_listed_origin_may_read_every_own_answer(world: World) -> None:
    for listed in (FRONT, "http://localhost:3000"):
        for answer in own_answers(world, [origin(listed)]):
            assert cors(answer) == READABLE | {ALLOW[0]: [listed]}, answer
            assert answer.get_all("x-request-id")


@pytest.mark.parametrize("evil", EVIL)
def test_another_origin_may_read_none(world: World, evil: str) -> None:
    # U08: and never `*`; what is kept for one origin must not be given to another
    answers = (
        own_answers(world, [origin(evil)]) if evil == EVIL[0] else [world.fetch("/sessions/me", headers=[origin(evil)])]
    )
    for answer in answers:
        assert cors(answer) == {"vary": ["Origin"]}, answer


def test_two_origins_are_none(world: World) -> None:
    for second in (FRONT, "https://evil.example"):
        answer = world.fetch("/sessions/me", token(someone()), headers=[origin(FRONT), origin(second)])
        assert cors(answer) == {"vary": ["Origin"]}


def test_without_an_origin_nothing_is_said(world: World) -> None:
    for answer in own_answers(world, []):
        assert cors(answer) == {"vary": ["Origin"]}


@pytest.mark.parametrize("value", [FRONT, "https://evil.example", "null", None])
def test_by_default_nothing_is_said_to_anybody(closed: World, value: str | None) -> None:
    for answer in own_answers(closed, [] if value is None else [origin(value)]):
        assert cors(answer) == {}


def test_too_many_requests_can_be_read_too(store: Store) -> None:
    with mounted(store, around, **SETTINGS | {"rate_limit": "1/24h"}) as world:
        bearing = token(someone())
        answers = [world.fetch("/sessions/me", bearing, headers=[origin(FRONT)]) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert [cors(answer) for answer in answers] == [READABLE] * 2


def test_a_store_that_is_away_can_be_read_too(store: Store) -> None:
    with mounted(store, around, **SETTINGS, redis_url=f"unix://{store.path}.away") as world:
        for path in ("/sessions/me", "/protected"):
            answer = world.fetch(path, token(someone()), headers=[origin(FRONT)])
            assert (answer.status, cors(answer)) == (503, READABLE)


def test_the_answers_of_the_application_are_left_alone(world: World) -> None:
    # Rule 3.13: nothing is added to a backend's answer but `X-Request-Id`
    for path, bearing in (("/protected", token(someone())), ("/public/x", None)):
        answer = world.fetch(path, bearing, headers=[origin(FRONT)])
        assert (answer.status, cors(answer)) == (200, {})


# Preflights


def preflight(world: World, path: str, method: str, *, of: str = FRONT, **more: str) -> ClientResponse:
    headers = [origin(of), ("Access-Control-Request-Method", method)]
    headers += [(name.replace("_", "-"), value) for name, value in more.items()]
    return world.fetch(path, method="OPTIONS", headers=headers)


@pytest.mark.parametrize(("dialect", "operation"), OPERATIONS, ids=named)
def test_a_preflight_for_an_own_operation_is_answered_here(world: World, dialect: str, operation: Operation) -> None:
    # U08: without a token, for a preflight never has one
    before = len(world.reached)
    asked = "authorization,content-type,accept-language"
    for path in (target(operation), target(operation).removesuffix("/"), target(operation).removesuffix("/") + "/"):
        answer = preflight(world, path, operation.method, Access_Control_Request_Headers=asked)
        assert (answer.status, answer.body) == (204, b""), (dialect, answer)
        (methods,) = answer.get_all("access-control-allow-methods")
        assert operation.method in methods.split(", ")
        assert cors(answer) == READABLE | {
            "access-control-allow-methods": [methods],
            "access-control-allow-headers": [asked],
            "access-control-max-age": ["600"],
        }
        assert answer.get_all("cache-control") == ["no-store"]
        assert answer.get_all("content-length") == []
    assert world.reached[before:] == []


def test_a_preflight_names_the_methods_that_are_ours(world: World) -> None:
    for path, methods in (
        ("/api/sessions", "DELETE, GET, HEAD"),
        ("/api/sessions/7", "DELETE"),
        ("/api/sessions/7/deactivate", "PATCH"),
        ("/admin/sessions/cleanup", "POST"),
        ("/_gatekeeper/openapi.json", "GET, HEAD"),
    ):
        for method in methods.split(", "):
            answer = preflight(world, path, method)
            assert (answer.status, answer.get_all("access-control-allow-methods")) == (204, [methods])


@pytest.mark.parametrize("evil", EVIL)
def test_a_preflight_of_another_origin_is_refused(world: World, evil: str) -> None:
    # U08
    before = len(world.reached)
    answer = preflight(world, "/api/sessions", "DELETE", of=evil, Access_Control_Request_Headers="authorization")
    assert_refused("express", answer, 403, "origin_not_allowed")
    assert cors(answer) == {"vary": ["Origin"]}
    assert world.reached[before:] == []


@pytest.mark.parametrize(
    ("path", "method"),
    [("/protected", "PUT"), ("/api/sessions", "POST"), ("/api/sessions", "get"), ("/sessions", "GET")],
)
def test_a_preflight_for_anything_else_is_the_applications_and_bare(world: World, path: str, method: str) -> None:
    before = len(world.reached)
    sent = [
        origin(FRONT),
        ("Access-Control-Request-Method", method),
        bearer(token(someone())),
        cookie(token(someone())),
        ("X-User-Id", "1"),
    ]
    answer = world.fetch(path, method="OPTIONS", headers=sent, body=b"body")
    assert (answer.status, cors(answer)) == (200, {})
    (request,) = world.reached[before:]
    names = {name for name, _ in request.headers}
    assert names >= {"origin", "access-control-request-method"}
    assert names.isdisjoint({"authorization", "cookie", "x-user-id", "content-length", "transfer-encoding"})


def test_without_origins_every_preflight_is_the_applications(closed: World) -> None:
    for path in ("/api/sessions", "/protected"):
        before = len(closed.reached)
        assert preflight(closed, path, "GET").status == 200
        (request,) = closed.reached[before:]
        assert request.method == "OPTIONS"
    assert preflight(closed, "/_gatekeeper/openapi.json", "GET").status == 404


def test_another_spelling_of_an_own_path_is_no_own_path_for_a_preflight(world: World) -> None:
    # P05, P08: the request itself will be refused
    for path in ("//api/sessions", "/API/sessions"):
        answer = preflight(world, path, "GET")
        assert (answer.status, cors(answer)) == (200, {})
        assert world.fetch(path, token(someone()), headers=[origin(FRONT)]).status == 400


def test_options_that_is_no_preflight_is_a_request_as_any_other(world: World) -> None:
    assert world.refused("/api/sessions", method="OPTIONS", headers=[origin(FRONT)]).status == 401
    assert world.passed("/api/sessions", token(someone()), method="OPTIONS", headers=[origin(FRONT)])


def test_a_preflight_that_is_answered_here_is_counted_under_its_path(store: Store) -> None:
    # Rule 8.3: the route is a template, and only what is forwarded is `upstream`
    engine = build(load(environ_for(store, **SETTINGS)), mode="middleware")
    requests = engine.telemetry.metrics.registry

    def counted(route: str, code: str) -> float | None:
        labels = {"route": route, "method": "OPTIONS", "code": code}
        return requests.get_sample_value("gatekeeper_http_requests_total", labels)

    with serve_asgi(GatekeeperMiddleware(starlette_app([]), engine=engine)) as url:
        world = World(url, list, store)
        preflight(world, "/api/sessions/7", "DELETE")
        preflight(world, "/api/sessions/7", "DELETE", of="https://evil.example")
        preflight(world, "/protected", "PUT")
        eventually(lambda: counted("/api/sessions/{id}", "204") == counted("upstream", "200") == 1)
        assert counted("/api/sessions/{id}", "403") == 1


# A cookie alone (rule 3.17)

# (headers, with CORS_ORIGINS may it?, without?)
TABLE: list[tuple[list[tuple[str, str]], bool, bool]] = [
    ([], False, False),
    ([("Sec-Fetch-Site", "same-origin")], True, True),
    ([("Sec-Fetch-Site", "none")], True, True),
    ([("Sec-Fetch-Site", "same-site")], False, False),
    ([("Sec-Fetch-Site", "cross-site")], False, False),
    ([("Sec-Fetch-Site", "Same-Origin")], False, False),
    ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")], False, False),
    ([origin("{own}")], True, True),
    ([origin("{own}"), ("Sec-Fetch-Site", "cross-site")], True, True),
    ([origin("{own}.evil.example")], False, False),
    ([origin("{own}"), origin("https://evil.example")], False, False),
    ([origin(FRONT), ("Sec-Fetch-Site", "cross-site")], True, False),
    ([origin("http://localhost:3000"), ("Sec-Fetch-Site", "same-site")], True, False),
    ([origin("https://evil.example")], False, False),
    ([origin("https://evil.example"), ("Sec-Fetch-Site", "cross-site")], False, False),
    ([origin("null")], False, False),
    ([origin("null"), ("Sec-Fetch-Site", "same-origin")], True, True),
    ([("Referer", "{own}/")], False, False),
    ([("X-Requested-With", "XMLHttpRequest")], False, False),
]


@pytest.mark.parametrize(("dialect", "operation"), UNSAFE, ids=named)
def test_a_cookie_alone_changes_something_only_for_this_site(
    world: World, closed: World, dialect: str, operation: Operation
) -> None:
    # S21: every operation that changes something, an administrator's too
    for headers, listed, unlisted in TABLE:
        for made, may in ((world, listed), (closed, unlisted)):
            user = someone()
            bearing = admin(user)
            (mine,) = made.session_ids(bearing)
            if operation.path.endswith("/report"):
                # Nobody reports their own.
                mine = next(each for each in made.session_ids(admin(user)) if each != mine)
            live = made.store.live(user)
            body = json.dumps(dict.fromkeys(operation.accepts, "x")).encode() if operation.accepts else b""
            sent = [cookie(bearing), *((name, value.replace("{own}", made.url)) for name, value in headers)]
            if body:
                sent.append(JSON)
            answer = made.fetch(target(operation, user, mine), method=operation.method, headers=sent, body=body)
            if may:
                assert answer.status == 200, (headers, answer)
            else:
                assert_refused(dialect, answer, 403, "origin_not_allowed")
                assert made.store.live(user) == live


@pytest.mark.parametrize("dialect", READS)
def test_a_cookie_reads_from_anywhere_but_nobody_else_sees_the_answer(world: World, dialect: str) -> None:
    evil = [origin("https://evil.example"), ("Sec-Fetch-Site", "cross-site")]
    answer = world.fetch(READS[dialect], headers=[cookie(admin()), *evil])
    assert (answer.status, cors(answer)) == (200, {"vary": ["Origin"]})


@pytest.mark.parametrize("dialect", ENDS)
def test_a_bearer_header_is_a_scripts_own_doing(world: World, dialect: str) -> None:
    # A token in a header was put there by a page that holds it, whichever that is
    method, path = ENDS[dialect]
    answer = world.fetch(path, admin(), method=method, headers=[origin("https://evil.example"), cookie("x")])
    assert answer.status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("dialect", ENDS)
def test_a_form_of_another_site_does_nothing(world: World, dialect: str, kind: str) -> None:
    # S20: and not even one of this site, for a form is no JSON
    method, path = ENDS[dialect]
    user = someone()
    bearing = admin(user)
    world.passed("/", bearing)
    form = [cookie(bearing), ("Content-Type", kind)]
    body = b'{"language":"fr"}'
    for site, status, code in (
        ("cross-site", 403, "origin_not_allowed"),
        ("same-origin", 415, "unsupported_media_type"),
    ):
        sent = [*form, ("Sec-Fetch-Site", site)]
        assert_refused(dialect, world.refused(path, method=method, headers=sent, body=body), status, code)
    assert world.store.live(user) == 1


def test_behind_a_trusted_proxy_that_ends_tls_the_origin_is_https(store: Store) -> None:
    host = ("Host", "app.example")
    tls = [host, origin("https://app.example"), ("X-Forwarded-Proto", "https")]
    with mounted(store, trusted_proxies="127.0.0.0/8") as trusting, mounted(store) as distrusting:
        for world, status in ((trusting, 200), (distrusting, 403)):
            answer = world.fetch("/sessions/all", method="DELETE", headers=[cookie(token(someone())), *tls])
            assert answer.status == status
        plain = [host, origin("http://app.example"), ("X-Forwarded-Proto", "https")]
        assert (
            trusting.fetch("/sessions/all", method="DELETE", headers=[cookie(token(someone())), *plain]).status == 403
        )


# WebSockets


@contextmanager
def accepting(store: Store, **settings: str) -> Iterator[tuple[str, list[Any]]]:
    """An application that accepts every WebSocket, and what came to it."""
    came: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        assert scope["type"] == "websocket"
        came.append(scope)
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})

    with serve_asgi(GatekeeperMiddleware(app, load(environ_for(store, **SETTINGS | settings)))) as url:
        yield url, came


@pytest.fixture(scope="module")
def sockets(store: Store) -> Iterator[tuple[str, list[Any]]]:
    with accepting(store) as made:
        yield made


def handshake(url: str, headers: list[tuple[str, str]], *, host: str | None = None) -> bytes:
    """The head of the answer to a handshake, and the body of a refusal."""
    parts = urlsplit(url)
    lines = ["GET /ws HTTP/1.1", f"Host: {host or parts.netloc}", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}"]
    lines += [f"{name}: {value}" for name, value in headers]
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=HANG_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer or (b" 403 " in answer and not answer.endswith(b"}")):
            answer += connection.recv(4096)
        if b" 101 " in answer:
            # An empty close frame, masked (RFC 6455 section 5.5.1): the server is not left waiting for one.
            connection.sendall(b"\x88\x80\x00\x00\x00\x00")
            # It has closed too, and may have done so before it read this.
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    return answer


@pytest.mark.parametrize("origins", [[], *([each] for each in EVIL), ["{own}.evil.example"]])
def test_a_websocket_of_another_origin_is_refused_before_it_is_one(
    sockets: tuple[str, list[Any]], origins: list[str]
) -> None:
    # W01: missing, null, longer, upper-case; two the server itself refuses
    url, came = sockets
    before = len(came)
    sent = [cookie(token(someone())), *(origin(each.replace("{own}", url)) for each in origins)]
    answer = handshake(url, sent)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b'{"detail":"This origin is not allowed","code":"origin_not_allowed"}')
    assert came[before:] == []


@pytest.mark.parametrize("given", ["{own}", FRONT, "http://localhost:3000"])
def test_a_websocket_of_this_or_a_listed_origin_is_opened(sockets: tuple[str, list[Any]], given: str) -> None:
    # W01, CORS_ORIGINS
    url, came = sockets
    user = someone()
    answer = handshake(url, [cookie(token(user)), origin(given.replace("{own}", url))])
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert came[-1]["gatekeeper"].user == user


def test_a_websocket_with_a_token_in_a_header_is_opened_from_anywhere(sockets: tuple[str, list[Any]]) -> None:
    url, _ = sockets
    assert handshake(url, [bearer(token(someone())), origin("https://evil.example")]).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("told", ["https", "wss"])
def test_a_websocket_behind_a_trusted_proxy_that_ends_tls_is_of_the_https_origin(store: Store, told: str) -> None:
    # Traefik says `wss`, nginx and HAProxy `https`
    host = "app.example"
    with accepting(store, trusted_proxies="127.0.0.0/8") as (url, _):
        for scheme, status in (("https", b"101"), ("http", b"403"), ("wss", b"403")):
            sent = [cookie(token(someone())), origin(f"{scheme}://{host}"), ("X-Forwarded-Proto", told)]
            assert handshake(url, sent, host=host).startswith(b"HTTP/1.1 " + status)

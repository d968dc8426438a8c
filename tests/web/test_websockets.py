"""A WebSocket is judged before it is accepted: mounted, an admitted one reaches the application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from tests.contracts.responses import NO_TOKEN, error_body
from tests.middleware.host import environ_for
from tests.servers import fetch, serve_asgi
from tests.system.sidecar import Store, bearer, someone, token
from tests.web.handshakes import handshake, message, opened

SOURCES = "header,cookie:access_token,query:token,subprotocol"


async def tell(websocket: WebSocket) -> None:
    """Accepts, says what it was given, and waits for the end."""
    session = current_session(websocket)
    chosen = next((name for name in websocket.scope["subprotocols"] if name == "chat"), None)
    await websocket.accept(subprotocol=chosen)
    await websocket.send_json(
        {
            "user": session.user if session else None,
            "query": websocket.scope["query_string"].decode(),
            "subprotocols": websocket.scope["subprotocols"],
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in websocket.scope["headers"]],
        }
    )
    await websocket.receive()


async def get(_: Request) -> Response:
    return PlainTextResponse("ok")


def application(store: Store, **settings: str) -> Any:
    app = Starlette(routes=[WebSocketRoute("/ws", tell), WebSocketRoute("/public/ws", tell), Route("/public/ws", get)])
    environ = environ_for(store, public_paths="/public/*", token_sources=SOURCES, **settings)
    return GatekeeperMiddleware(app, load(environ))


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with serve_asgi(application(store), http="httptools") as running:
        yield running


def told(url: str, target: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """What the application behind was given."""
    with opened(url, target, headers) as (answer, connection):
        assert answer.status == 101, answer
        assert len(answer.get_all("x-request-id")) == 1
        found: dict[str, Any] = json.loads(message(connection))
        found["chosen"] = answer.get_all("sec-websocket-protocol")
        return found


def test_an_admitted_websocket_reaches_the_application(url: str) -> None:
    user = someone()
    headers = [bearer(token(user)), ("X-User-Id", "1"), ("X_User_Id", "1"), ("Sec-WebSocket-Protocol", "chat, other")]
    found = told(url, "/ws?a=1", headers)
    assert (found["user"], found["query"]) == (user, "a=1")
    assert (found["subprotocols"], found["chosen"]) == (["chat", "other"], ["chat"])
    assert [value for name, value in found["headers"] if name.replace("_", "-") == "x-user-id"] == [user]


def test_a_refused_websocket_gets_the_http_answer(url: str) -> None:
    revoked = token(someone())
    assert fetch(url, "DELETE", "/sessions/logout", [bearer(revoked)]).status == 200
    for headers, body in (
        ([], NO_TOKEN),
        ([bearer("x")], error_body("token_invalid")),
        ([bearer(revoked)], error_body("access_token_blacklisted", "logged_out")),
    ):
        answer = handshake(url, "/ws", headers)
        assert (answer.status, answer.body) == (401, body)
        assert answer.get_all("cache-control") == ["no-store"]
        assert len(answer.get_all("www-authenticate")) == len(answer.get_all("x-request-id")) == 1


def test_a_server_that_has_no_http_answers_for_websockets_refuses_with_403(store: Store) -> None:
    app = application(store)

    async def without_extension(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "extensions": {}}, receive, send)

    with serve_asgi(without_extension, http="httptools") as url:
        assert handshake(url, "/ws").status == 403
        assert handshake(url, "/ws", [bearer(token(someone()))]).status == 101


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (["{own}"], True),
        (["{OWN}"], True),
        ([], False),
        (["null"], False),
        (["https://evil.example"], False),
        (["{own}.evil.example"], False),
        (["https://{host}"], False),
        ([""], False),
    ],
)
def test_a_cookie_opens_a_websocket_for_its_own_site_alone(
    url: str, origin: list[str], *, allowed: bool
) -> None:  # W01
    bearing, host = token(someone()), url.removeprefix("http://")
    origins = [text.replace("{own}", url).replace("{OWN}", url.upper()).replace("{host}", host) for text in origin]
    headers = [("Cookie", f"access_token={bearing}"), *(("Origin", text) for text in origins)]
    answer = handshake(url, "/ws", headers)
    if allowed:
        assert answer.status == 101
    else:
        assert (answer.status, answer.body) == (403, error_body("origin_not_allowed"))
    # A bearer header is no cookie: no browser sends it by itself.
    assert handshake(url, "/ws", [bearer(bearing), *headers[1:]]).status == 101


def assert_only_in_authorization(bearing: str, found: dict[str, Any]) -> None:
    assert [value for name, value in found["headers"] if name == "authorization"] == [f"Bearer {bearing}"]
    rest = {**found, "headers": [pair for pair in found["headers"] if pair[0] != "authorization"]}
    assert bearing not in json.dumps(rest)


def test_a_token_in_the_query_is_for_the_gate_alone(url: str) -> None:  # W02
    user = someone()
    bearing = token(user)
    found = told(url, f"/ws?a=1&token={bearing}&b=%20", [("Origin", "https://app.example")])
    assert (found["user"], found["query"]) == (user, "a=1&b=%20")
    assert_only_in_authorization(bearing, found)


def test_a_token_among_the_subprotocols_is_for_the_gate_alone(url: str) -> None:  # W02
    user = someone()
    bearing = token(user)
    for offered, left, chosen in (
        (f"bearer, {bearing}, chat", ["chat"], ["chat"]),
        (f"chat, Bearer, {bearing}", ["chat"], ["chat"]),
        (f"bearer, {bearing}", [], []),
    ):
        found = told(url, "/ws", [("Sec-WebSocket-Protocol", offered)])
        assert (found["user"], found["subprotocols"], found["chosen"]) == (user, left, chosen)
        assert_only_in_authorization(bearing, found)


def test_a_token_can_be_kept_from_the_application(store: Store) -> None:  # W02
    with serve_asgi(application(store, forward_authorization="false"), http="httptools") as url:
        bearing = token(someone())
        for target, headers in (
            (f"/ws?token={bearing}", []),
            ("/ws", [("Sec-WebSocket-Protocol", f"bearer, {bearing}")]),
        ):
            assert bearing not in json.dumps(told(url, target, headers))


def test_query_and_subprotocol_tokens_are_for_websockets_only(url: str) -> None:  # T22
    bearing = token(someone())
    assert fetch(url, "GET", f"/ws?token={bearing}").status == 401
    assert fetch(url, "GET", "/ws", [("Sec-WebSocket-Protocol", f"bearer, {bearing}")]).status == 401


def test_where_they_are_no_sources_they_are_no_tokens(store: Store) -> None:  # W02
    app = GatekeeperMiddleware(Starlette(routes=[WebSocketRoute("/ws", tell)]), load(environ_for(store)))
    with serve_asgi(app, http="httptools") as url:
        bearing = token(someone())
        assert handshake(url, f"/ws?token={bearing}").status == 401
        assert handshake(url, "/ws", [("Sec-WebSocket-Protocol", f"bearer, {bearing}")]).status == 401


def test_on_a_public_path_a_websocket_may_be_anonymous(url: str) -> None:
    user = someone()
    assert told(url, "/public/ws", [])["user"] is None
    assert told(url, "/public/ws", [bearer(token(user))])["user"] == user
    for headers in (
        [bearer("x")],
        [("Cookie", f"access_token={token(user)}"), ("Origin", "https://evil.example")],
        [("Sec-WebSocket-Protocol", "bearer, x, chat")],
    ):
        found = told(url, "/public/ws?token=x", headers)
        assert (found["user"], found["query"]) == (None, "")
        names = {name for name, _ in found["headers"]}
        assert names.isdisjoint({"authorization", "cookie", "x-user-id"})
        assert "bearer" not in json.dumps(found)


def test_a_websocket_moves_the_activity(url: str, store: Store) -> None:  # E-06
    user = someone()
    bearing = token(user)
    told(url, "/ws", [bearer(bearing)])
    seen = store.last_activity(user)
    told(url, "/ws", [bearer(bearing)])
    assert store.last_activity(user) > seen


def test_a_websocket_to_an_own_path_is_no_way_around(url: str) -> None:
    assert handshake(url, "/api/sessions").status == 401
    assert handshake(url, "//api/sessions").status == 400
    answer = handshake(url, "/sessions/me", [bearer(token(someone()))])
    assert (answer.status, json.loads(answer.body)[0]["is_active"]) == (200, True)

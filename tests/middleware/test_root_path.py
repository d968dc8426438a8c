"""Below a `root_path`: every rule about a path is about what is left behind it, whichever way the prefix came about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware
from tests.contracts.dialect import JSON
from tests.middleware.host import environ_for, in_starlette, mounted, starlette_app
from tests.servers import ClientResponse, serve_asgi
from tests.system.sidecar import Reached, Store, World, someone, token

SETTINGS = {"public_paths": "/public/*,/health", "rate_limit": "off"}
Way = Callable[[list[Reached], dict[str, str]], Any]


def gate(reached: list[Reached], environ: dict[str, str]) -> Any:
    return GatekeeperMiddleware(starlette_app(reached), load(environ))


def living(outer: Any, inner: Any) -> Any:
    """`outer`, with the lifespan of `inner`: a mount passes none on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (inner if scope["type"] == "lifespan" else outer)(scope, receive, send)

    return app


def below(prefix: str) -> Way:
    def mount(reached: list[Reached], environ: dict[str, str]) -> Any:
        inner = gate(reached, environ)
        return living(Starlette(routes=[Mount(prefix, app=inner)]), inner)

    return mount


def nested(reached: list[Reached], environ: dict[str, str]) -> Any:
    inner = gate(reached, environ)
    outer = Starlette(routes=[Mount("/api", app=Starlette(routes=[Mount("/{tenant}", app=inner)]))])
    return living(outer, inner)


def sub_application(reached: list[Reached], environ: dict[str, str]) -> Any:
    inner, outer = in_starlette(reached, environ), fastapi.FastAPI(openapi_url=None)
    outer.mount("/v1", inner)
    return living(outer, inner)


def announced(reached: list[Reached], environ: dict[str, str]) -> Any:
    """As FastAPI's own `root_path` does it: it says where a proxy has the application, and changes no path."""
    app = gate(reached, environ)

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/v1"}, receive, send)

    return telling


def without_raw_path(reached: list[Reached], environ: dict[str, str]) -> Any:
    app = below("/v1")(reached, environ)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        scope.pop("raw_path", None)
        await app(scope, receive, send)

    return server


def with_shortened_path(reached: list[Reached], environ: dict[str, str]) -> Any:
    """A mount as older frameworks do it: `path` loses the prefix, `raw_path` keeps it."""
    app = gate(reached, environ)

    async def mount(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["path"], scope["root_path"] = scope["path"].removeprefix("/v1"), "/v1"
        await app(scope, receive, send)

    return mount


class Case(NamedTuple):
    """An application, the prefix that clients write, and settings of its server."""

    app: Way
    prefix: str
    server: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "no prefix": Case(gate, ""),
    "mount": Case(below("/v1"), "/v1"),
    "deep mount": Case(below("/v1/of/it"), "/v1/of/it"),
    "nested mounts with a parameter": Case(nested, "/api/acme"),
    "mount with a space": Case(below("/v 1"), "/v%201"),
    "mount, spelled otherwise": Case(below("/v1"), "/%761"),
    "mount with an umlaut": Case(below("/büro"), "/b%c3%bcro"),
    "fastapi mount": Case(sub_application, "/v1"),
    "no raw path": Case(without_raw_path, "/v1"),
    "shortened path": Case(with_shortened_path, "/v1"),
    # A proxy in front takes `/v1` away, and uvicorn puts it back into the scope.
    "uvicorn": Case(gate, "", {"root_path": "/v1"}),
    "uvicorn, trailing slash": Case(gate, "", {"root_path": "/v1/"}),
    "uvicorn and mount": Case(below("/a"), "/a", {"root_path": "/v1"}),
    "told root_path, proxy that strips": Case(announced, ""),
    "told root_path, proxy that does not": Case(announced, "/v1"),
}


class Below(World):
    """What clients see who write a prefix before every path."""

    def __init__(self, prefix: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._prefix = prefix

    def fetch(self, target: str, *arguments: Any, **options: Any) -> ClientResponse:
        return super().fetch(self._prefix + target, *arguments, **options)


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def world(case: Case, store: Store) -> Iterator[World]:
    reached: list[Reached] = []
    with serve_asgi(case.app(reached, environ_for(store, **SETTINGS)), http="httptools", **case.server) as url:
        yield Below(case.prefix, url, lambda: list(reached), store)


def test_public_paths_are_public(world: World) -> None:
    for target in ("/health", "/public/a/b", "/public/caf%C3%A9?x=1"):
        assert world.passed(target).get_all("x-user-id") == []


def test_everything_else_is_protected(world: World) -> None:
    user = someone()
    bearing = token(user)
    assert world.passed("/things", bearing).get_all("x-user-id") == [user]
    for target in ("/things", "/", "/healthy", "/publicity", "/public/..%2fthings", "/public/%2e%2e/things"):
        assert world.refused(target).status == 401, target


def test_own_paths_are_gatekeepers_own(world: World) -> None:
    bearing = token(someone())
    before = len(world.reached)
    (row,) = json.loads(world.fetch("/sessions/me", bearing).body)
    assert json.loads(world.fetch("/api/users/me/sessions", bearing).body)[0]["id"] == row["id"]
    assert world.fetch("/_gatekeeper/nothing").status == 404
    assert world.refused("/SESSIONS/me", bearing).status == 400
    assert world.refused("//sessions/me", bearing).status == 400
    assert world.fetch(f"/sessions/{row['id']}", bearing, method="DELETE").status == 200
    assert world.refused("/things", bearing).status == 401
    assert world.reached[before:] == []


def test_login_and_logout_paths_are_what_they_are_called(world: World) -> None:
    user = someone()
    bearing = token(user)
    # No verdict: without a token it is the application's to answer.
    assert world.passed("/auth/login", method="POST", headers=[JSON], body=b"{}").method == "POST"
    world.passed("/things", bearing)
    assert world.passed("/auth/logout", bearing, method="POST")
    assert world.refused("/things", bearing).status == 401


def test_openapi_says_where_the_paths_are(world: World, case: Case) -> None:
    described = json.loads(world.fetch("/_gatekeeper/openapi.json").body)
    (server,) = described["servers"]
    told = case.server.get("root_path", "").rstrip("/") + case.prefix.replace("%76", "v").replace("%c3%bc", "%C3%BC")
    assert server["url"] == (told or ("/v1" if case.app is announced else "/"))
    assert "/sessions/me" in described["paths"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        # Not below the mount, though it begins with its name: cut at a segment boundary.
        ("/v1health", 404),
        ("/v1public/x", 404),
        # Starlette decodes before it looks for the mount, and so for the route behind it.
        ("/v1%2Fhealth", 400),
        ("/v1%2fsessions/me", 400),
        ("/v1//health", 401),
        ("/v1/", 401),
        ("/v1/../v1/health", 401),
        ("/v1/v1/health", 401),
    ],
)
def test_a_prefix_is_cut_once_and_where_a_segment_ends(store: Store, target: str, status: int) -> None:
    with mounted(store, below("/v1"), **SETTINGS) as world:
        assert world.fetch(target).status == status


@pytest.mark.parametrize("target", ["/v1health", "/v1.public/x", "/V1/health", "/x/v1/health", "/v1;a/health"])
def test_what_only_resembles_the_prefix_is_judged_whole(store: Store, target: str) -> None:
    with mounted(store, announced, **SETTINGS) as world:
        assert world.refused(target).status == 401

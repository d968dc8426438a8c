"""Gatekeeper inside of applications: the ways to mount it, each on a real socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fastapi
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gatekeeper.app import create_app
from gatekeeper.build import build
from gatekeeper.serve.listeners import limits
from gatekeeper.server import http_protocol
from gatekeeper.settings import Settings, load
from gatekeeper.web.server_errors import ServerErrors
from gatekeeper_middleware import GatekeeperMiddleware
from tests.servers import serve_asgi
from tests.system.sidecar import Backend, Reached, Store, World, environment

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Mount = Callable[[list[Reached], dict[str, str]], Any]


def environ_for(store: Store, **settings: str) -> dict[str, str]:
    return environment(**({"redis_url": store.url} | settings))


def _record(reached: list[Reached], request: Request) -> None:
    scope = request.scope
    target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    if scope["query_string"]:
        target += "?" + scope["query_string"].decode("latin-1")
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    reached.append(Reached(scope["method"], target, headers))


def starlette_app(reached: list[Reached]) -> Starlette:
    """Answers everything with two bytes, and keeps what it was asked."""

    async def everything(request: Request) -> Response:
        _record(reached, request)
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/{path:path}", everything, methods=METHODS)])


def fastapi_app(reached: list[Reached]) -> fastapi.FastAPI:
    app = fastapi.FastAPI(openapi_url=None)

    @app.api_route("/{path:path}", methods=METHODS)
    @app.head("/{path:path}")
    async def everything(request: Request) -> Response:
        _record(reached, request)
        return PlainTextResponse("ok")

    return app


def in_starlette(reached: list[Reached], environ: dict[str, str]) -> Any:
    app = starlette_app(reached)
    app.add_middleware(GatekeeperMiddleware, settings=load(environ))
    return app


def in_fastapi(reached: list[Reached], environ: dict[str, str]) -> Any:
    app = fastapi_app(reached)
    app.add_middleware(GatekeeperMiddleware, settings=load(environ))
    return app


def around(reached: list[Reached], environ: dict[str, str]) -> Any:
    return GatekeeperMiddleware(starlette_app(reached), load(environ))


@contextmanager
def mounted(store: Store, mount: Mount = around, **settings: str) -> Iterator[World]:
    """An application with the gate inside of it."""
    reached: list[Reached] = []
    with serve_asgi(mount(reached, environ_for(store, **settings)), http="httptools") as url:
        yield World(url, lambda: list(reached), store)


@contextmanager
def sidecar_app(store: Store, backend: Backend, **settings: str) -> Iterator[World]:
    """The application of the sidecar without its process: cheap, for settings that one test wants."""
    chosen = load(environ_for(store, **({"upstream_url": backend.url} | settings)), require_upstream=True)
    with serve_sidecar(chosen) as url:
        yield World(url, lambda: backend.reached, store)


@contextmanager
def serve_sidecar(settings: Settings) -> Iterator[str]:
    """The application of the sidecar behind its front door, without its process; yields its base URL."""
    engine = build(settings, mode="sidecar")
    app, fast_path = create_app(settings, engine)
    server_errors = ServerErrors(engine.rules, engine.responder, engine.telemetry)
    with serve_asgi(
        app,
        http=http_protocol(limits(settings), server_errors, fast_path=fast_path),
    ) as url:
        yield url

"""Rules that hold only for the middleware: the session in the application, the lifespan, and modules not imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi
import httpx
import pytest
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gatekeeper.settings import load
from gatekeeper_middleware import CurrentSession, GatekeeperMiddleware, current_session
from tests.contracts.responses import NO_TOKEN, RETRY_SOON
from tests.middleware.host import around, environ_for, mounted
from tests.servers import fetch, serve_asgi
from tests.system.sidecar import Store, bearer, embedded_pid, eventually, samples, someone, token


def shown(session: CurrentSession | None) -> dict[str, Any] | None:
    if session is None:
        return None
    return {
        "user": session.user,
        "session_id": session.session_id,
        "roles": list(session.roles),
        "is_admin": session.is_admin,
        "tenant": session.claims.claims.get("tenant"),
    }


async def who(request: Request) -> Response:
    return JSONResponse(shown(current_session(request)))


# At module level, where FastAPI finds it by its annotation.
def session_of(request: fastapi.Request) -> CurrentSession | None:
    return current_session(request)


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is served without a lifespan; one that comes late closes what was opened."""
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None:
        """Nobody listens."""

    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client
    finally:
        await app({"type": "lifespan"}, receive, send)


async def test_the_application_sees_the_session(store: Store) -> None:
    app = Starlette(routes=[Route("/who", who), Route("/public/who", who)])
    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store, public_paths="/public/*")))
    user = someone()
    headers = [bearer(token(user, roles=["a", "admin"], tenant=5))]
    async with client_of(app) as client:
        found = (await client.get("/who", headers=headers)).json()
        assert found.pop("session_id") > 0
        assert found == {"user": user, "roles": ["a", "admin"], "is_admin": True, "tenant": 5}
        # On a public path: no session without a token, and one with a token.
        assert (await client.get("/public/who")).json() is None
        assert (await client.get("/public/who", headers=[bearer("x")])).json() is None
        assert (await client.get("/public/who", headers=headers)).json()["user"] == user
        assert (await client.get("/who")).content == NO_TOKEN


async def test_fastapi_takes_it_as_a_dependency(store: Store) -> None:
    app = fastapi.FastAPI()

    @app.get("/me")
    async def me(session: Annotated[Any, fastapi.Depends(session_of)]) -> Any:
        return {"user": session.user}

    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store)))
    user = someone()
    async with client_of(app) as client:
        assert (await client.get("/me", headers=[bearer(token(user))])).json() == {"user": user}


def test_without_the_gate_in_front_there_is_no_session_to_ask_for() -> None:
    with pytest.raises(RuntimeError, match="GatekeeperMiddleware does not stand in front"):
        current_session({"type": "http", "headers": []})


async def test_a_server_without_lifespan_and_without_raw_path_works(store: Store) -> None:
    """`httpx.ASGITransport` sends no lifespan; a server may leave `raw_path` out (ASGI specification)."""
    reached: list[Any] = []
    app = around(reached, environ_for(store))
    bearing = token(someone())
    async with client_of(app) as client:
        assert (await client.get("/x", headers=[bearer(bearing)])).status_code == 200
        assert (await client.get("/api/sessions", headers=[bearer(bearing)])).status_code == 200

    async def without_raw_path(scope: Any, receive: Any, send: Any) -> None:
        await app({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

    async with client_of(without_raw_path) as client:
        assert (await client.get("/sessions/me", headers=[bearer(bearing)])).status_code == 200
        assert (await client.get("/API/sessions", headers=[bearer(bearing)])).status_code == 400


def test_the_lifespan_starts_and_ends_the_engine_and_the_applications_own(tmp_path: Path, store: Store) -> None:
    """With the embedded store: it runs while the application does, and not a moment longer."""
    data_dir, seen = tmp_path / "data", []

    async def lifespan_app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                seen.append((kind, embedded_pid(data_dir) is not None))
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        await PlainTextResponse("ok")(scope, receive, send)

    environ = environ_for(store, data_dir=str(data_dir))
    del environ["GATEKEEPER_REDIS_URL"]
    app = GatekeeperMiddleware(lifespan_app, load(environ))
    with serve_asgi(app, http="httptools") as url:
        assert fetch(url, "GET", "/", [bearer(token(someone()))]).status == 200
        assert embedded_pid(data_dir) is not None
        assert "started" in repr(app)
    # The store is there before the application starts and until it has ended.
    assert seen == [("lifespan.startup", True), ("lifespan.shutdown", True)]
    eventually(lambda: embedded_pid(data_dir) is None)


def test_lifespan_state_reaches_the_requests(store: Store) -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "mine"}

    async def state(request: Request) -> Response:
        return PlainTextResponse(request.state.pool)

    app = Starlette(routes=[Route("/", state)], lifespan=lifespan)
    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store)))
    with serve_asgi(app, http="httptools") as url:
        assert fetch(url, "GET", "/", [bearer(token(someone()))]).body == b"mine"


def test_the_applications_errors_are_the_applications(store: Store) -> None:
    async def broken(_: Request) -> Response:
        raise ZeroDivisionError

    async def handled(_: Request, __: Exception) -> Response:
        return PlainTextResponse("mine", status_code=500)

    app = Starlette(routes=[Route("/", broken)], exception_handlers={ZeroDivisionError: handled})
    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store)))
    with serve_asgi(app, http="httptools") as url:
        answer = fetch(url, "GET", "/", [bearer(token(someone()))])
    assert (answer.status, answer.body, len(answer.get_all("x-request-id"))) == (500, b"mine", 1)


def test_upstream_url_is_not_needed_and_the_mode_is_told(store: Store) -> None:
    app = around([], environ_for(store))
    with serve_asgi(app, http="httptools") as url:
        assert fetch(url, "GET", "/", [bearer(token(someone()))]).status == 200
    found = samples(generate_latest(app._engine.telemetry.metrics.registry).decode())
    labels = frozenset({("result", "allow"), ("reason", "none"), ("mode", "middleware")})
    assert found["gatekeeper_decisions_total", labels] == 1


def test_two_gates_in_one_process_keep_apart(store: Store) -> None:
    with mounted(store, key_prefix="a:") as one, mounted(store, key_prefix="b:", dialects="none") as other:
        bearing = token(someone())
        one.fetch("/sessions/logout", bearing, method="DELETE")
        assert one.refused("/", bearing).status == 401
        other.passed("/", bearing)
        assert other.passed("/sessions/me", bearing).target == "/sessions/me"


async def test_a_store_that_cannot_be_started_is_no_fault_of_the_client(tmp_path: Path, store: Store) -> None:
    """Without a lifespan, the first request finds out: 503 as for any store that is away, and public paths go on."""
    data_dir = tmp_path / "data"
    environ = environ_for(store, data_dir=str(data_dir), public_paths="/public")
    del environ["GATEKEEPER_REDIS_URL"]
    app = around([], environ)
    data_dir.write_text("not a directory")
    async with client_of(app) as client:
        answer = await client.get("/", headers=[bearer(token(someone()))])
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] in RETRY_SOON
        assert (await client.get("/public")).status_code == 200
        # The next request tries again.
        data_dir.unlink()
        assert (await client.get("/", headers=[bearer(token(someone()))])).status_code == 200


def test_importing_it_loads_no_server_and_no_proxy() -> None:
    program = "import sys, gatekeeper_middleware; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {".".join(name.split(".")[:2]) for name in done.stdout.split()}
    assert "gatekeeper.auth" in loaded
    assert loaded.isdisjoint({"uvicorn", "uvloop", "httptools", "h11", "typer"})
    assert loaded.isdisjoint({"gatekeeper.forward", "gatekeeper.app", "gatekeeper.serve", "gatekeeper.cli"})

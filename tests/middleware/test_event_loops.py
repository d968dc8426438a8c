"""Another event loop than the first one's: test clients, `asyncio.run` again, loops of single tests, two threads."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from tests.middleware.host import around, environ_for, in_starlette
from tests.system.sidecar import Backend, Store, bearer, eventually, someone, token
from tests.tokens import forge

with warnings.catch_warnings():
    # It prefers another HTTP client than ours.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

SECONDS = 30.0


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app")


async def ask(app: Any, bearing: str, target: str = "/", method: str = "GET") -> int:
    async with client_of(app) as client, asyncio.timeout(SECONDS):
        return (await client.request(method, target, headers=[bearer(bearing)])).status_code


def by_runs(app: Any) -> Callable[..., int]:
    return lambda *arguments: asyncio.run(ask(app, *arguments))


def by_test_client(app: Any) -> Callable[..., int]:
    """Starlette's client without `with`: an event loop for each request."""
    client = TestClient(app)
    return lambda bearing, target="/", method="GET": (
        client.request(method, target, headers=dict([bearer(bearing)])).status_code
    )


def by_test_client_with_lifespan(app: Any) -> Callable[..., int]:
    def request(bearing: str, target: str = "/", method: str = "GET") -> int:
        with TestClient(app) as client:
            status: int = client.request(method, target, headers=dict([bearer(bearing)])).status_code
            return status

    return request


tidy = pytest.mark.parametrize("way", [by_runs, by_test_client, by_test_client_with_lifespan])


def story(request: Callable[..., int]) -> None:
    """A session begins, lives and ends, whichever loop each request has."""
    bearing = token(someone())
    assert [request(bearing) for _ in range(3)] == [200] * 3
    assert request(bearing, "/sessions/me") == 200
    assert request(bearing, "/sessions/logout", "DELETE") == 200
    assert [request(bearing) for _ in range(2)] == [401] * 2


@tidy
@pytest.mark.parametrize("mount", [around, in_starlette])
def test_each_request_may_have_a_loop_of_its_own(
    store: Store, way: Callable[[Any], Callable[..., int]], mount: Any
) -> None:  # rule 9.1
    story(way(mount([], environ_for(store))))


@tidy
def test_a_loop_that_ends_leaves_nothing_open(store: Store, way: Callable[[Any], Callable[..., int]]) -> None:
    request, bearing = way(around([], environ_for(store))), token(someone())

    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert request(bearing) == 200
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        assert request(bearing) == 200
    eventually(lambda: descriptors() <= before and threading.active_count() <= threads)


@tidy
def test_the_embedded_store_keeps_sessions_between_loops(
    store: Store, tmp_path: Path, way: Callable[[Any], Callable[..., int]]
) -> None:
    environ = environ_for(store, data_dir=str(tmp_path / "data"))
    del environ["GATEKEEPER_REDIS_URL"]
    story(way(around([], environ)))


def test_keys_are_fetched_anew(store: Store) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    body = json.dumps({"keys": [forge.jwk(key, kid="a", use="sig")]}).encode()
    with Backend(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)) as server:
        request = by_runs(around([], environ_for(store, jwks_url=f"{server.url}/jwks.json")))
        now = int(time.time())
        claims = {"sub": someone(), "jti": uuid.uuid4().hex, "iat": now, "exp": now + 600}
        bearing = forge.signed_by(key, {"alg": "EdDSA", "kid": "a"}, claims)
        assert [request(bearing) for _ in range(3)] == [200] * 3


def test_two_loops_at_the_same_time_each_have_their_own(store: Store) -> None:
    app, user, turns = around([], environ_for(store)), someone(), threading.Barrier(2, timeout=SECONDS)
    found: list[list[int]] = []

    def live() -> None:
        async def alternate() -> list[int]:
            statuses = []
            for _ in range(10):
                await asyncio.to_thread(turns.wait)
                statuses.append(await ask(app, bearing))
            return statuses

        found.append(asyncio.run(alternate()))

    bearing = token(user)
    threads = [threading.Thread(target=live) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [[200] * 10] * 2
    assert store.live(user) == 1


def test_a_request_that_its_loop_left_behind_keeps_no_other_waiting(store: Store) -> None:
    asked = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            asked.set()
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app, bearing = GatekeeperMiddleware(application, load(environ_for(store))), token(someone())

    async def leave() -> None:
        task = asyncio.create_task(ask(app, bearing, "/slow"))
        await asyncio.to_thread(asked.wait, SECONDS)
        del task

    asyncio.run(leave())
    assert by_runs(app)(bearing) == 200


def test_websockets_in_loops_of_their_own(store: Store) -> None:
    async def tell(websocket: WebSocket) -> None:
        session = current_session(websocket)
        assert session is not None
        await websocket.accept()
        await websocket.send_text(session.user)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", tell)])
    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store)))
    client, user = TestClient(app), someone()
    for _ in range(3):
        with client.websocket_connect("/ws", headers=dict([bearer(token(user))])) as websocket:
            assert websocket.receive_text() == user


def by_hand(app: Any, scope: dict[str, Any]) -> list[Any]:
    """Run an application without asyncio, as the loop of another library does."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"} if scope["type"] == "lifespan" else {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    running = app(scope, receive, send)
    with pytest.raises(StopIteration):
        running.send(None)
    return sent


def test_a_loop_that_is_not_asyncios_is_refused_with_one_line(store: Store) -> None:
    app = around([], environ_for(store))
    (failed,) = by_hand(app, {"type": "lifespan"})
    assert failed["type"] == "lifespan.startup.failed"
    assert "asyncio" in failed["message"]
    assert "\n" not in failed["message"]
    start, _ = by_hand(app, {"type": "http", "method": "GET", "path": "/", "headers": []})
    assert start["status"] == 503
    # It is the loop that is refused, and not the application.
    assert by_runs(app)(token(someone())) == 200

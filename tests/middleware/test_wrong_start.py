"""An application that cannot be protected does not start: the server says why, in the words of `gatekeeper check`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.middleware.host import environ_for
from tests.servers import ClientResponse, fetch, process
from tests.system.sidecar import Store, bearer, someone, token
from tests.tokens import forge

APPLICATION = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from gatekeeper_middleware import GatekeeperMiddleware

async def hello(request):
    return PlainTextResponse("ok")

async def accept(websocket):
    await websocket.accept()

def application():
    return Starlette(routes=[Route("/", hello), WebSocketRoute("/ws", accept)])

async def plain(scope, receive, send):
    # Knows no lifespan, and fails at one, as Django does.
    assert scope["type"] == "http"
    await PlainTextResponse("ok")(scope, receive, send)

added = application()
added.add_middleware(GatekeeperMiddleware)
wrapped = GatekeeperMiddleware(application())
around_plain = GatekeeperMiddleware(plain)
"""
WRONG: dict[str, dict[str, str]] = {
    "a key that is too short": {"GATEKEEPER_JWT_SECRET": "short", "GATEKEEPER_IDLE_TIMEOUT": "soon"},
    "a name that is unknown": {"GATEKEEPER_JWT_SECRETT": forge.SECRET, "GATEKEEPER_IDLE_TIMEOUT": "soon"},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "hosted.py").write_text(APPLICATION)
    return tmp_path


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", f"hosted:{name}", "--port", "0", *options]


def environment(directory: Path, environ: dict[str, str]) -> dict[str, str]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}
    return {**usual, "PYTHONPATH": str(directory), **environ}


def checked(environ: dict[str, str], directory: Path) -> list[str]:
    """The lines of `gatekeeper check` that name a setting of ours."""
    done = subprocess.run(
        [Path(sys.executable).parent / "gatekeeper", "check"],
        env=environment(directory, environ | {"GATEKEEPER_UPSTREAM_URL": "http://127.0.0.1:1"}),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return [line.strip() for line in (done.stdout + done.stderr).splitlines() if "IDLE_TIMEOUT" in line]


@pytest.mark.parametrize(
    ("name", "lifespan", "wrong"),
    [
        ("added", "auto", WRONG["a key that is too short"]),
        ("wrapped", "auto", WRONG["a name that is unknown"]),
        ("around_plain", "auto", WRONG["a key that is too short"]),
        ("added", "on", WRONG["a name that is unknown"]),
    ],
)
def test_wrong_settings_fail_the_start(directory: Path, name: str, lifespan: str, wrong: dict[str, str]) -> None:
    done = subprocess.run(
        command(name, "--lifespan", lifespan),
        env=environment(directory, wrong),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Application startup failed" in said
    assert "Traceback" not in said
    (line,) = checked(wrong, directory)
    assert line in said
    assert all(variable in said for variable in wrong)


@pytest.fixture(params=["added", "around_plain"])
def off(request: pytest.FixtureRequest, directory: Path) -> Iterator[str]:
    """Wrong settings under a server without lifespan."""
    environ = environment(directory, WRONG["a key that is too short"])
    with process(command(request.param, "--lifespan", "off"), environ, listening=r"(http://127\.0\.0\.1:\d+)") as url:
        yield url


def test_without_a_lifespan_every_request_is_503(off: str) -> None:
    for method, target in (("GET", "/"), ("POST", "/x"), ("GET", "/sessions/me"), ("HEAD", "/")):
        answer: ClientResponse = fetch(off, method, target, [bearer(token(someone()))], None)
        assert (answer.status, answer.get_all("cache-control")) == (503, ["no-store"])
        assert answer.get_all("retry-after")
        # What is wrong is nobody's business but the operator's.
        assert b"JWT" not in answer.body


def test_a_websocket_is_refused_too(off: str) -> None:
    upgrade = [
        *(("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    assert fetch(off, "GET", "/ws", upgrade, None).status in {403, 503}


@pytest.mark.parametrize("name", ["added", "wrapped"])
def test_an_embedded_store_that_does_not_start_fails_the_start(store: Store, directory: Path, name: str) -> None:
    environ = environ_for(store, data_dir=str(directory / "hosted.py"))
    del environ["GATEKEEPER_REDIS_URL"]
    done = subprocess.run(
        command(name),
        env=environment(directory, environ),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "GATEKEEPER_DATA_DIR" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("away", [{"jwks_url": "http://127.0.0.1:1/jwks.json"}, {"redis_url": "redis://127.0.0.1:1"}])
def test_what_is_only_away_is_no_reason_not_to_start(store: Store, directory: Path, away: dict[str, str]) -> None:
    environ = environ_for(store, **away)
    with process(command("added"), environment(directory, environ), listening=r"(http://127\.0\.0\.1:\d+)") as url:
        rsa = {"alg": "RS256" if "jwks_url" in away else "HS256", "kid": "a"}
        bearing = forge.hs(rsa, {"sub": "1"}) if "jwks_url" in away else token(someone())
        assert fetch(url, "GET", "/", [bearer(bearing)], None).status == 503

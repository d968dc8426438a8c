"""The TypeScript client that the specification of the dialect `fastapi` prints, in Node, against a sidecar that issues
the tokens: its text is unchanged, its types are stripped."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.machine import need
from tests.servers import serve_asgi
from tests.system.sidecar import Sidecar, Store, sidecar
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parent.parent / "clients"
USER, PASSWORD = "testuser", "testpass"
ACCESS_SECONDS = 3
Step = dict[str, Any]


async def check(request: Request) -> JSONResponse:
    """Who knows passwords, and nothing of tokens."""
    if await request.json() == {"username": USER, "password": PASSWORD}:
        return JSONResponse({"id": 74, "roles": ["user"]})
    return JSONResponse({"detail": "wrong"}, 401)


async def protected(request: Request) -> JSONResponse:
    return JSONResponse({"user": request.headers.get("x-user-id"), "roles": request.headers.get("x-user-roles")})


@pytest.fixture(scope="module")
def gate(store: Store) -> Iterator[Sidecar]:
    routes = [Route("/internal/check", check, methods=["POST"]), Route("/api/v1/protected", protected)]
    settings = {
        "tokens": "issue",
        "login_check_url": "/internal/check",
        "access_token_ttl": f"{ACCESS_SECONDS}s",
        "jwt_leeway": "0s",
        "key_prefix": "client:",
    }
    with serve_asgi(Starlette(routes=routes)) as backend, sidecar(backend, redis_url=store.url, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def steps(gate: Sidecar, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """What the client did and got, by step."""
    node, esbuild = need("node"), need("esbuild")
    script = tmp_path_factory.mktemp("client") / "session-manager.js"
    with (CLIENTS / "session-manager.ts").open("rb") as types, script.open("wb") as stripped:
        subprocess.run([esbuild, "--loader=ts"], stdin=types, stdout=stripped, check=True, timeout=START_SECONDS)
    # An answer of 401 at the last moment of a token is no proof: it is over when the second after it has begun.
    wait = str(ACCESS_SECONDS + 1)
    command = [node, str(CLIENTS / "drive.mjs"), str(script), gate.url, USER, PASSWORD, wait]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return {step.pop("step"): step for step in map(json.loads, run.stdout.splitlines())}


def shape(step: Step) -> list[tuple[str, str, int]]:
    return [(request["method"], request["path"], request["status"]) for request in step["requests"]]


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def test_the_client_is_told_that_the_password_is_wrong(steps: dict[str, Step]) -> None:  # C-25
    step = steps["wrong password"]
    assert (step["error"], step["stored"]) == ("Login failed", {})
    (request,) = step["requests"]
    assert request["status"] == 401
    assert request["answer"] == {"detail": "Incorrect username or password", "code": "invalid_credentials"}


def test_the_client_signs_in(steps: dict[str, Step]) -> None:  # C-01, C-25
    step = steps["login"]
    assert shape(step) == [("POST", "/api/v1/auth/login", 200)]
    answer = step["requests"][0]["answer"]
    assert list(answer) == ["access_token", "refresh_token", "token_type", "expires_in"]
    assert (answer["token_type"], answer["expires_in"]) == ("bearer", ACCESS_SECONDS)
    assert step["stored"] == {name: answer[name] for name in ("access_token", "refresh_token")}
    access = claims(answer["access_token"])
    assert (access["sub"], access["exp"] - access["iat"]) == ("74", ACCESS_SECONDS)


def test_the_client_is_known_to_the_backend(steps: dict[str, Step]) -> None:  # C-01, C-25
    step = steps["request"]
    assert shape(step) == [("GET", "/api/v1/protected", 200)]
    assert step["answer"] == {"user": "74", "roles": "user"}
    assert step["stored"] == steps["login"]["stored"]


def test_the_client_renews_an_expired_token_and_asks_again(steps: dict[str, Step]) -> None:  # C-02, C-25
    step, before = steps["request after expiry"], steps["login"]["stored"]
    assert shape(step) == [
        ("GET", "/api/v1/protected", 401),
        ("POST", "/api/v1/auth/refresh", 200),
        ("GET", "/api/v1/protected", 200),
    ]
    refused, renewed, again = step["requests"]
    assert refused["answer"]["code"] == "token_expired"
    assert renewed["sent"] == {"refresh_token": before["refresh_token"], "language": "en"}
    assert step["stored"] == {name: renewed["answer"][name] for name in ("access_token", "refresh_token")}
    assert not set(step["stored"].values()) & set(before.values())
    assert again["bearer"] == step["stored"]["access_token"]
    assert (step["status"], step["answer"]) == (200, {"user": "74", "roles": "user"})
    # The same session: it was renewed, not opened.
    assert claims(again["bearer"])["sid"] == claims(before["access_token"])["sid"]


def test_the_client_signs_out(steps: dict[str, Step]) -> None:  # C-03, C-25
    step, before = steps["logout"], steps["request after expiry"]["stored"]
    assert shape(step) == [("POST", "/api/v1/auth/logout", 200)]
    (request,) = step["requests"]
    assert request["sent"] == {"access_token": before["access_token"], "language": "en"}
    assert request["bearer"] == before["access_token"]
    assert request["answer"] == {"message": "Logged out successfully"}
    assert step["stored"] == {}


def test_the_last_token_of_the_client_is_refused(steps: dict[str, Step]) -> None:  # C-03, C-13, C-25
    step = steps["last token"]
    assert (step["status"], step["answer"]["code"]) == (401, "access_token_blacklisted")
    assert step["answer"]["reason"] == "logged_out"
    assert steps["request without login"]["error"] == "No access token available"
    assert steps["request without login"]["requests"] == []

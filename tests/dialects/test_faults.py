"""A bug of ours: 500, told to the operator with a traceback and to the client with a request id only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from gatekeeper.build import build
from gatekeeper.build.web import web_parts
from gatekeeper.sessions.manager import Manager
from gatekeeper.settings import load
from gatekeeper_middleware import GatekeeperMiddleware
from tests.contracts.dialect import PATHS, admin
from tests.middleware.host import environ_for, starlette_app
from tests.servers import serve_asgi
from tests.system.sidecar import Store, World

DETAIL = "Internal error; the request id finds it in the log"


class BrokenManager:
    """Stands where the manager stands and has a bug."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("a bug with a secret in it")


@pytest.fixture(scope="module")
def broken(store: Store) -> Iterator[World]:
    settings = load(environ_for(store))
    engine = build(settings, mode="middleware")
    broken = msgspec.structs.replace(engine.pipeline._sign_in, manager=cast(Manager, BrokenManager()))
    sources = engine.rules.sources
    web = web_parts(settings, broken, sources, engine.telemetry, signing=None, issued=None, backchannel=None)
    engine = engine._replace(pipeline=web.pipeline, rules=web.rules, responder=web.responder)
    with serve_asgi(GatekeeperMiddleware(starlette_app([]), engine=engine)) as url:
        yield World(url, list, store)


@pytest.mark.parametrize("dialect", PATHS)
def test_a_bug_is_500_and_stands_in_the_log_with_the_request_id(
    broken: World, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="gatekeeper"):
        answer = broken.fetch(PATHS[dialect], admin(), headers=[("X-Request-Id", "r-1")])
    assert answer.status == 500
    assert answer.get_all("x-request-id") == ["r-1"]
    assert b"secret" not in answer.body
    assert DETAIL in answer.body.decode()
    (record,) = [each for each in caplog.records if each.exc_info]
    assert record.__dict__["request_id"] == "r-1"


@pytest.mark.parametrize("dialect", PATHS)
def test_a_bug_is_worded_in_the_dialect_that_was_asked(broken: World, dialect: str) -> None:  # B-05
    body = json.loads(broken.fetch(PATHS[dialect], admin()).body)
    expected: dict[str, Any] = {"detail": DETAIL, "code": "internal_error"}
    if dialect == "django":
        expected = {"success": False, "error": {"code": "INTERNAL_ERROR", "message": DETAIL}}
    elif dialect == "express":
        expected = {
            "success": False,
            "message": "Internal Server Error",
            "error": {"code": "INTERNAL_ERROR", "details": DETAIL},
            "timestamp": body["timestamp"],
            "requestId": body["requestId"],
        }
    assert body == expected

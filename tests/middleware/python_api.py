"""Engines, and clients of applications in this process, for the tests of the Python API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gatekeeper.build import build
from gatekeeper.settings import load
from gatekeeper.web.engine import Engine
from gatekeeper_middleware.faults import AuthenticationError
from tests.middleware.host import environ_for
from tests.system.sidecar import Store

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
# Gatekeeper issues tokens, the application signs people in.
ISSUES = {"tokens": "issue", "login_paths": "none", "refresh_paths": "none", "logout_paths": "none"}


@asynccontextmanager
async def running(store: Store, **settings: str) -> AsyncIterator[Engine]:
    engine = build(load(environ_for(store, **settings)), mode="middleware")
    try:
        await engine.runtime.start()
        yield engine
    finally:
        await engine.runtime.aclose()


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=("203.0.113.9", 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://app.example", headers={"user-agent": CHROME})


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def detail(answer: httpx.Response) -> Any:
    return answer.json()["detail"]


async def refused(call: Any) -> AuthenticationError:
    """Return the error that a call of a service raises."""
    with pytest.raises(AuthenticationError) as caught:
        await call
    return caught.value

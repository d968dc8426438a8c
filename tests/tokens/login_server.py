"""A server for login checks whose response a test chooses, and helpers that run a check against it."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.tokens.login_check import CheckedUser, LoginCheck
from tests.servers import RecordingBackend, Script
from tests.waiting import HANG_SECONDS

PASSWORD = "correct-horse-Zoë"
CREDENTIALS = {"username": "zoë", "password": PASSWORD}


def http(body: bytes | Any, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """Make a response; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def check_at(url: str, **options: Any) -> LoginCheck:
    chosen: dict[str, Any] = {
        "timeout_seconds": HANG_SECONDS,
        "connect_timeout_seconds": HANG_SECONDS,
        "user_pointer": "/id",
        "claims": ["roles"],
    }
    return LoginCheck(url, **(chosen | options))


@asynccontextmanager
async def asking(answer: bytes | Script, **options: Any) -> AsyncIterator[tuple[LoginCheck, RecordingBackend]]:
    async with RecordingBackend(answer) as backend:
        check = check_at(backend.url + "/auth/check?v=1", **options)
        try:
            yield check, backend
        finally:
            await check.aclose()


async def answer_to(answer: bytes | Script, **options: Any) -> CheckedUser | None:
    async with asking(answer, **options) as (check, backend):
        found = await check.check(CREDENTIALS)
        assert len(backend.requests) == 1
        return found


async def trouble(answer: bytes | Script, **options: Any) -> UpstreamUnavailable | UpstreamTimeout:
    """Return the exception of a check that sent exactly one request; it contains neither password nor response."""
    async with asking(answer, **options) as (check, backend):
        with pytest.raises((UpstreamUnavailable, UpstreamTimeout)) as caught:
            await check.check(CREDENTIALS)
        await asyncio.sleep(0.02)
        assert len(backend.requests) == backend.connections == 1
    told = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in told
    assert "horse" not in told
    assert "LEAK" not in told
    error = caught.value
    assert isinstance(error, UpstreamUnavailable | UpstreamTimeout)
    return error

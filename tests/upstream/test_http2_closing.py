"""A connection to the backend that is about to close."""

from __future__ import annotations

import asyncio

from gatekeeper.upstream.http2 import Http2Connection
from tests.upstream.http2_backend import Asked, ScriptedBackend
from tests.waiting import HANG_SECONDS


async def _nothing(_: Asked) -> None:
    """No request comes."""


async def test_a_connection_takes_no_request_from_the_moment_it_closes() -> None:
    """It would never be sent, and only a safe one may be sent again."""
    async with ScriptedBackend(_nothing).listening(None) as url, asyncio.timeout(HANG_SECONDS):
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Http2Connection(timeout_seconds=HANG_SECONDS, age_seconds=300, on_lost=lambda _: None),
            "localhost",
            int(url.rpartition(":")[2]),
        )
        await connection.ready
        assert connection.has_room
        connection.transport.close()
        assert not connection.has_room

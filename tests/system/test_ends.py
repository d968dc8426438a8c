"""The end of a session reaches every open stream of it, through every sidecar of the store, and no other stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack

import pytest

from tests.proxy.sockets import TEXT, Closed
from tests.servers import afetch
from tests.system.sidecar import Backend, Sidecar, Store, bearer, eventually, sidecar, someone, token
from tests.system.streaming import Streams, requested, websocket

LAST_EVENT = b"\n\nevent: session-ended\ndata: %s\n\n"


@pytest.fixture(scope="module")
def streams() -> Streams:
    return Streams()


@pytest.fixture(scope="module")
def streaming(streams: Streams) -> Iterator[Backend]:
    with Backend(streams) as running:
        yield running


@pytest.fixture(scope="module")
def gates(store: Store, streaming: Backend) -> Iterator[tuple[Sidecar, Sidecar]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(sidecar(streaming.url, redis_url=store.url)) for _ in range(2))
        yield one, other


async def delete(url: str, path: str, bearing: str) -> tuple[int, bytes]:
    answer = await afetch(url, "DELETE", path, [bearer(bearing)])
    return answer.status, answer.body


async def session_of(url: str, bearing: str) -> int:
    answer = await afetch(url, "GET", "/sessions/me", [bearer(bearing)])
    return int(json.loads(answer.body)[0]["id"])


async def test_one_delete_ends_50_websockets_and_50_event_streams_at_two_sidecars(
    gates: tuple[Sidecar, Sidecar], streams: Streams
) -> None:  # X12, W09, T30
    user, other = token(someone()), token(someone())
    session = await session_of(gates[0].url, user)
    streams.closed.clear()
    async with AsyncExitStack() as stack:

        async def each(bearing: str, count: int) -> tuple[list, list]:
            urls = [gates[number % 2].url for number in range(count)]
            talks = [await stack.enter_async_context(websocket(url, bearing)) for url in urls]
            events = [await stack.enter_async_context(requested(url, "/events", bearing)) for url in urls]
            return talks, events

        talks, events = await each(user, 50)
        others = await each(other, 4)
        assert (await delete(gates[0].url, f"/sessions/{session}", user))[0] == 200
        ended_at = time.monotonic()
        for talk in talks:
            closed, at = await talk.end()
            assert closed == Closed(4401, "revoked_by_user")
            assert at - ended_at < 1
        for stream in events:
            found = await stream.end()
            assert found.whole
            assert found.body.endswith(LAST_EVENT % b"revoked_by_user")
            assert found.at - ended_at < 1
        assert all(stream.is_open for kind in others for stream in kind)
        for talk in others[0]:
            await talk.peer.put(TEXT, b"still here")
    # The backend is told that its client has gone, and why.
    eventually(lambda: streams.closed.count(Closed(1001, "revoked_by_user")) == 50)
    eventually(lambda: all(gate.metric("gatekeeper_websockets_open") == 0 for gate in gates))

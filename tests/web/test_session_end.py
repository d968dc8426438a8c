"""Open streams of an application with the gate inside: they end with their session, and the application is told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gatekeeper.settings import load
from gatekeeper.web import session_end as streams
from gatekeeper_middleware import GatekeeperMiddleware, current_session
from gatekeeper_middleware.services import SessionService
from tests.forward.sockets import TEXT, Closed
from tests.middleware.host import environ_for
from tests.servers import afetch, serve_asgi
from tests.system.sidecar import Store, World, bearer, eventually, someone, token
from tests.system.streaming import requested, websocket
from tests.waiting import until

LAST_EVENT = b"\n\nevent: session-ended\ndata: %s\n\n"


class Host:
    """What the application saw of the ends of its clients."""

    def __init__(self, store: Store) -> None:
        self.seen: list[Any] = []
        self.asked_for_late, self.ended = threading.Event(), threading.Event()
        routes = [
            Route("/events", self.events),
            Route("/download", self.download),
            Route("/stubborn", self.stubborn),
            Route("/farewell", self.farewell),
            Route("/task", self.task),
            Route("/late", self.late),
            WebSocketRoute("/ws", self.echo),
            WebSocketRoute("/ws/push", self.push),
            WebSocketRoute("/ws/sleep", self.sleep),
        ]
        self.app = Starlette(routes=routes)
        self.app.add_middleware(self.noting)
        self.app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store)))

    def noting(self, app: Any) -> Any:
        """Notes when the application has left a request for a stream. Its headers can be read once only, as those of
        some frameworks: ASGI promises an iterable."""

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            async def once(message: Any) -> None:
                if "headers" in message:
                    message = {**message, "headers": iter(message["headers"])}
                await send(message)

            try:
                await app(scope, receive, once)
            finally:
                if scope["type"] == "http" and scope["path"] in {"/events", "/download", "/stubborn"}:
                    self.seen.append("left")

        return noted

    async def events(self, _: Request) -> Response:
        return StreamingResponse(self._parts(b"data: hel", 100_000), media_type="text/event-stream")

    async def download(self, _: Request) -> Response:
        return StreamingResponse(self._parts(b"1,2,3\n", 100_000), media_type="text/csv")

    async def _parts(self, part: bytes, count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield part
            await asyncio.sleep(0.02)

    async def stubborn(self, _: Request) -> Response:
        """Swallows the cancellation, and goes on for as long as it can send."""

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(500):
                yield b"x"
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)

        return StreamingResponse(parts())

    async def farewell(self, request: Request) -> Response:
        """Ends its own session, and then has a lot to say."""
        session = current_session(request)
        assert session is not None
        service = SessionService(request.scope["gatekeeper.engine"], request)
        assert await service.delete_session(session.session_id, session.user)
        return StreamingResponse(self._parts(b"bye ", 100))

    async def late(self, _: Request) -> Response:
        """Events that begin when the session has long ended, all of them at once."""
        self.asked_for_late.set()
        await asyncio.to_thread(self.ended.wait)

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"data: secret\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def task(self, _: Request) -> Response:
        """Answers, and then works on."""

        async def work() -> None:
            await asyncio.sleep(1.5)
            self.seen.append("done")

        return PlainTextResponse("ok", background=BackgroundTask(work))

    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnect as gone:
            self.seen.append((gone.code, gone.reason))

    async def push(self, socket: WebSocket) -> None:
        """Only sends."""
        await socket.accept()
        try:
            while True:
                await socket.send_text("tick")
                await asyncio.sleep(0.02)
        except WebSocketDisconnect as gone:
            self.seen.append(gone.code)

    async def sleep(self, socket: WebSocket) -> None:
        """Neither sends nor receives."""
        await socket.accept()
        try:
            await asyncio.sleep(60)
        finally:
            self.seen.append("woken")


@pytest.fixture(scope="module")
def host(store: Store) -> Host:
    return Host(store)


@pytest.fixture(scope="module")
def world(host: Host, store: Store) -> Iterator[World]:
    with serve_asgi(host.app, http="httptools") as url:
        yield World(url, list, store)


@pytest.fixture(autouse=True)
def nothing_seen(host: Host) -> None:
    host.seen.clear()


async def signed_in(world: World) -> tuple[str, int]:
    bearing = token(someone())
    answer = await afetch(world.url, "GET", "/sessions/me", [bearer(bearing)])
    return bearing, int(json.loads(answer.body)[0]["id"])


async def end(world: World, bearing: str, session: int) -> None:
    assert (await afetch(world.url, "DELETE", f"/sessions/{session}", [bearer(bearing)])).status == 200


async def test_a_websocket_is_closed_and_its_application_told(world: World, host: Host) -> None:  # X12, W09
    bearing, session = await signed_in(world)
    async with websocket(world.url, bearing) as talk:
        await talk.peer.put(TEXT, b"hello")
        await end(world, bearing, session)
        assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
    eventually(lambda: host.seen == [(4401, "revoked_by_user")])


@pytest.mark.parametrize(("path", "seen"), [("/ws/push", 1006), ("/ws/sleep", "woken")])
async def test_a_websocket_whose_application_does_not_listen_is_closed_and_left_all_the_same(
    world: World, host: Host, monkeypatch: pytest.MonkeyPatch, path: str, seen: Any
) -> None:  # W09
    monkeypatch.setattr(streams, "_LEAVING_SECONDS", 0.5)
    bearing, session = await signed_in(world)
    async with websocket(world.url, bearing, path) as talk:
        await end(world, bearing, session)
        assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
    eventually(lambda: host.seen == [seen])


async def test_events_end_with_an_event_and_a_download_without_an_end(world: World, host: Host) -> None:  # X12
    bearing, session = await signed_in(world)
    async with (
        requested(world.url, "/events", bearing) as events,
        requested(world.url, "/download", bearing) as download,
    ):
        await end(world, bearing, session)
        ended = await events.end()
        assert ended.whole
        # In the middle of one: a blank line ends that first.
        assert ended.body.endswith(b"data: hel" + LAST_EVENT % b"revoked_by_user")
        assert not (await download.end()).whole
    eventually(lambda: host.seen == ["left", "left"])


async def test_an_application_that_will_not_be_cancelled_reaches_the_client_no_more(world: World, host: Host) -> None:
    bearing, session = await signed_in(world)
    async with requested(world.url, "/stubborn", bearing) as client:
        await end(world, bearing, session)
        assert not (await client.end()).whole
    eventually(lambda: host.seen == ["left"])


async def test_the_answer_to_the_request_that_ends_its_own_session_is_whole(world: World) -> None:
    bearing, _ = await signed_in(world)
    async with requested(world.url, "/farewell", bearing) as client:
        ended = await client.end()
    assert (ended.whole, ended.body) == (True, b"bye " * 100)
    assert (await afetch(world.url, "GET", "/download", [bearer(bearing)])).status == 401


async def test_what_an_application_does_after_its_answer_is_left_alone(world: World, host: Host) -> None:
    bearing, session = await signed_in(world)
    async with requested(world.url, "/task", bearing) as client:
        assert (await client.end()).whole
        await end(world, bearing, session)
        eventually(lambda: host.seen == ["done"])


async def test_events_that_begin_after_the_end_are_only_the_last_one(world: World, host: Host) -> None:
    bearing, session = await signed_in(world)
    late = asyncio.create_task(afetch(world.url, "GET", "/late", [bearer(bearing)]))
    try:
        await until(host.asked_for_late.is_set)
        await end(world, bearing, session)
        # So long that the end is known here.
        await asyncio.sleep(0.5)
    finally:
        host.ended.set()
    answer = await late
    assert (answer.status, answer.body) == (200, LAST_EVENT % b"revoked_by_user")


async def test_an_upload_is_activity(store: Store) -> None:  # E-06
    """A session that would be idle, but for what its client is sending."""

    async def size(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    def slowly() -> Iterator[bytes]:
        for _ in range(10):
            time.sleep(0.3)
            yield b"x"

    app = Starlette(routes=[Route("/", size, methods=["GET", "POST"])])
    app.add_middleware(GatekeeperMiddleware, settings=load(environ_for(store, idle_timeout="2s")))
    with serve_asgi(app) as url:
        bearing = token(someone())
        answer = await afetch(url, "POST", "/", [bearer(bearing)], slowly())
        assert (answer.status, answer.body) == (200, b"10")
        assert (await afetch(url, "GET", "/", [bearer(bearing)])).status == 200
        await asyncio.sleep(2.2)
        assert (await afetch(url, "GET", "/", [bearer(bearing)])).status == 401

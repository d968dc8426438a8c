"""The end of a session reaches every open stream of it, through every sidecar of the store, and no other stream."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import pytest

from tests.conftest import store_process
from tests.forward.sockets import BINARY, DROPPED, PING, TEXT, Closed, frame
from tests.machine import need
from tests.servers import afetch
from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    bearer,
    eventually,
    external_store,
    sidecar,
    someone,
    token,
)
from tests.system.streaming import Client, Socket, Streams, requested, websocket
from tests.tokens import forge
from tests.waiting import until

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

        async def each(bearing: str, count: int) -> tuple[list[Socket], list[Client]]:
            urls = [gates[number % 2].url for number in range(count)]
            talks = [await stack.enter_async_context(websocket(url, bearing)) for url in urls]
            events = [await stack.enter_async_context(requested(url, "/events", bearing)) for url in urls]
            return talks, events

        talks, events = await each(user, 50)
        others = await each(other, 4)
        assert (await delete(gates[0].url, f"/sessions/{session}", user))[0] == 200
        ended_at, ends = time.monotonic(), []
        for talk in talks:
            closed, at = await talk.end()
            assert closed == Closed(4401, "revoked_by_user")
            ends.append(at)
        for stream in events:
            found = await stream.end()
            assert found.whole
            assert found.body.endswith(LAST_EVENT % b"revoked_by_user")
            ends.append(found.at)
        # The first of them without delay; a slow machine may need its time for all of them.
        assert min(ends) < ended_at + 1
        assert all(talk.is_open for talk in others[0])
        assert all(stream.is_open for stream in others[1])
        for talk in others[0]:
            await talk.peer.put(TEXT, b"still here")
    # The backend is told that its client has gone, and why.
    eventually(lambda: streams.closed.count(Closed(1001, "revoked_by_user")) == 50)
    eventually(lambda: all(gate.metric("gatekeeper_websockets_open") == 0 for gate in gates))


# Rule 3.25
@pytest.mark.parametrize(
    ("target", "end"), [("/ws/fragments", Closed(4401, "revoked_by_user")), ("/ws/frame", DROPPED)]
)
async def test_a_close_frame_stands_between_frames_and_one_that_hangs_is_cut(
    gates: tuple[Sidecar, Sidecar], streams: Streams, target: str, end: Closed
) -> None:  # X12, W09
    bearing = token(someone())
    session = await session_of(gates[0].url, bearing)
    streams.closed.clear()
    async with websocket(gates[1].url, bearing, target) as talk:
        assert (await delete(gates[0].url, f"/sessions/{session}", bearing))[0] == 200
        assert (await talk.end())[0] == end
    eventually(lambda: streams.closed == [Closed(1001, "revoked_by_user")])


async def test_a_client_that_hangs_in_a_frame_is_closed_and_its_backend_cut(
    gates: tuple[Sidecar, Sidecar], streams: Streams
) -> None:  # X12, W09
    bearing = token(someone())
    session = await session_of(gates[0].url, bearing)
    streams.closed.clear()
    async with websocket(gates[1].url, bearing) as talk:
        await talk.peer.send(frame(BINARY, b"abc", masked=True, length=1000))
        assert (await delete(gates[0].url, f"/sessions/{session}", bearing))[0] == 200
        assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
        eventually(lambda: streams.closed == [DROPPED])


async def test_a_download_is_cut_so_that_the_client_can_tell(gates: tuple[Sidecar, Sidecar], streams: Streams) -> None:
    # X12
    bearing = token(someone())
    session = await session_of(gates[0].url, bearing)
    streams.given_up = 0
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                requested(gates[1].url, path, bearing, headers=[("X-Request-Id", path[1:])])
            )
            for path in ("/download", "/chunked")
        ]
        await delete(gates[0].url, f"/sessions/{session}", bearing)
        for client in found:
            ended = await client.end()
            assert (client.status, ended.whole) == (200, False)
            assert ended.body
    # The backend is left too, and the log says that it was let in.
    eventually(lambda: streams.given_up == 2)
    for path in ("download", "chunked"):
        line = gates[1].access_of(path)
        assert (line["status"], line["decision"], line["reason"]) == (200, "allow", "none")
        assert line["bytes_out"] > 0


async def test_what_ends_its_own_session_is_answered_whole(gates: tuple[Sidecar, Sidecar]) -> None:
    for method, path in [
        ("DELETE", "/sessions/{id}"),
        ("DELETE", "/sessions/logout"),
        ("DELETE", "/api/sessions"),
        ("PATCH", "/api/sessions/{id}/deactivate"),
        # Observed: ended first, then answered by the backend.
        ("POST", "/auth/logout"),
    ]:
        bearing = token(someone())
        session = await session_of(gates[0].url, bearing)
        async with requested(gates[0].url, path.format(id=session), bearing, method=method) as client:
            ended = await client.end()
        assert (client.status, ended.whole) == (200, True), path
        assert (await afetch(gates[1].url, "GET", "/", [bearer(bearing)])).status == 401


async def test_an_answer_that_has_not_begun_is_waited_for_and_whole(
    gates: tuple[Sidecar, Sidecar], streams: Streams
) -> None:
    """It may be that of the request whose doing ended the session, by way of the backend."""
    bearing = token(someone())
    session = await session_of(gates[0].url, bearing)
    answer = asyncio.create_task(afetch(gates[0].url, "GET", "/later", [bearer(bearing)]))
    try:
        await until(streams.asked_for_later.is_set)
        await delete(gates[1].url, f"/sessions/{session}", bearing)
        # Longer than a stream would live on.
        await asyncio.sleep(1.5)
        assert not answer.done()
    finally:
        streams.later.set()
    assert (await answer).body == b"whole"


ENDS = {
    "a logout": ("DELETE", "/sessions/logout", "logged_out"),
    "a deactivation": ("PATCH", "/api/sessions/{id}/deactivate", "deactivated"),
    "the end of all": ("DELETE", "/api/sessions", "revoked_by_user"),
    "an administrator": ("DELETE", "/sessions/user/{user}/{id}", "revoked_by_admin"),
    "an administrator's end of all": ("DELETE", "/sessions/user/{user}", "revoked_by_admin"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_every_end_says_its_reason(gates: tuple[Sidecar, Sidecar], end: str) -> None:  # T30, W09
    method, path, reason = ENDS[end]
    user = someone()
    bearing = token(user)
    actor = token(someone(), roles=["admin"]) if "administrator" in end else bearing
    session = await session_of(gates[0].url, bearing)
    async with (
        websocket(gates[1].url, bearing) as talk,
        requested(gates[1].url, "/quiet", bearing) as stream,
    ):
        answer = await afetch(gates[0].url, method, path.format(id=session, user=user), [bearer(actor)])
        assert answer.status == 200
        assert (await talk.end())[0] == Closed(4401, reason)
        assert (await stream.end()).body.endswith(LAST_EVENT % reason.encode())


async def test_the_fourth_device_cuts_the_streams_of_the_first(gates: tuple[Sidecar, Sidecar]) -> None:  # D-07
    user = someone()
    tokens = [token(user) for _ in range(4)]
    async with websocket(gates[0].url, tokens[0]) as first, websocket(gates[1].url, tokens[1]) as second:
        for bearing in tokens[2:]:
            assert (await afetch(gates[1].url, "GET", "/", [bearer(bearing)])).status == 200
        assert (await first.end())[0] == Closed(4401, "evicted")
        assert second.is_open


async def test_the_end_of_all_others_spares_the_caller(gates: tuple[Sidecar, Sidecar]) -> None:
    user = someone()
    tokens = [token(user) for _ in range(3)]
    async with AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(websocket(gates[1].url, each)) for each in tokens]
        own = await stack.enter_async_context(requested(gates[0].url, "/quiet", tokens[1]))
        assert (await delete(gates[0].url, "/sessions/all?exclude_current=true", tokens[1]))[0] == 200
        for talk in (talks[0], talks[2]):
            assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
        # Longer than until the next look at the sessions.
        await asyncio.sleep(4)
        assert talks[1].is_open
        assert own.is_open


async def test_a_stream_without_a_session_is_nobodys_to_cut(store: Store, streaming: Backend) -> None:
    with sidecar(streaming.url, redis_url=store.url, public_paths="/quiet,/events") as gate:
        bearing = token(someone())
        session = await session_of(gate.url, bearing)
        async with (
            requested(gate.url, "/quiet", "not a token") as nobody,
            requested(gate.url, "/events", bearing) as somebody,
        ):
            await delete(gate.url, f"/sessions/{session}", bearing)
            # On a public path, with a good token: that of a session.
            assert (await somebody.end()).whole
            await asyncio.sleep(1)
            assert nobody.is_open


# What goes missing


async def test_an_announcement_that_is_lost_is_made_good(store: Store, streaming: Backend) -> None:  # R22
    """The store lets this sidecar hear nothing at all: what is left is to ask."""
    command: Any = store.client.execute_command
    command("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-subscribe", "&*")
    deaf = store.url.replace("unix://", "unix://deaf:pw@")
    with sidecar(streaming.url, redis_url=deaf) as gate:
        bearing, other = token(someone()), token(someone())
        session = await session_of(gate.url, bearing)
        async with (
            websocket(gate.url, bearing) as talk,
            requested(gate.url, "/events", bearing) as events,
            requested(gate.url, "/download", bearing) as download,
            websocket(gate.url, other) as untouched,
        ):
            await delete(gate.url, f"/sessions/{session}", bearing)
            assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
            assert (await events.end()).body.endswith(LAST_EVENT % b"revoked_by_user")
            assert not (await download.end()).whole
            assert untouched.is_open
        await asyncio.to_thread(
            eventually, lambda: any("revocation channel lost" in line["event"] for line in gate.log)
        )
    command("ACL", "DELUSER", "deaf")


async def test_a_subscription_that_is_killed_is_made_again_and_nothing_is_missed(
    gates: tuple[Sidecar, Sidecar], store: Store
) -> None:  # R22
    for _ in range(3):
        bearing = token(someone())
        session = await session_of(gates[0].url, bearing)
        async with websocket(gates[0].url, bearing) as talk, websocket(gates[1].url, bearing) as other:
            store.client.client_kill_filter(_type="pubsub")
            await delete(gates[1].url, f"/sessions/{session}", bearing)
            for each in (talk, other):
                assert (await each.end())[0] == Closed(4401, "revoked_by_user")
    assert all(line["level"] != "error" for gate in gates for line in gate.log)


async def test_a_sidecar_that_was_frozen_learns_what_it_slept_through(gates: tuple[Sidecar, Sidecar]) -> None:  # R22
    bearing = token(someone())
    session = await session_of(gates[0].url, bearing)
    async with websocket(gates[0].url, bearing) as talk:
        gates[0].process.send_signal(signal.SIGSTOP)
        try:
            await delete(gates[1].url, f"/sessions/{session}", bearing)
            await asyncio.sleep(2)
            assert talk.is_open
        finally:
            gates[0].process.send_signal(signal.SIGCONT)
        assert (await talk.end())[0] == Closed(4401, "revoked_by_user")


async def test_a_store_that_restarts_is_asked_about_everything(streaming: Backend) -> None:  # R22
    with external_store() as own, sidecar(streaming.url, redis_url=own.url) as gate:
        bearing = token(someone())
        async with websocket(gate.url, bearing) as talk:
            own.kill()
            await asyncio.sleep(0.5)
            # Whether a session has ended cannot be found out, and streams are left alone.
            assert talk.is_open
            own.start()
            # It kept nothing: all that it knew of is over.
            assert (await talk.end())[0] == Closed(4401, "revoked_by_admin")


# Time


async def test_silence_ends_streams_and_moving_bytes_keep_them(store: Store, streaming: Backend) -> None:  # W09, E-06
    with sidecar(streaming.url, redis_url=store.url, idle_timeout="3s") as gate:
        silent, pinging, talking, loading = (token(someone()) for _ in range(4))
        async with (
            websocket(gate.url, silent) as quiet,
            websocket(gate.url, pinging) as alive,
            requested(gate.url, "/quiet", silent) as events,
            websocket(gate.url, talking) as talk,
            requested(gate.url, "/chunked", loading) as download,
        ):
            began = time.monotonic()
            for _ in range(12):
                await talk.peer.put(TEXT, b"hello")
                with suppress(ConnectionError):
                    await alive.peer.put(PING, b"hello")
                await asyncio.sleep(0.5)
            assert talk.is_open
            # Libraries ping by themselves, whether anybody is there or not.
            assert (await alive.end())[0] == Closed(4401, "idle")
            assert download.is_open
            closed, at = await quiet.end()
            assert closed == Closed(4401, "idle")
            assert at - began > 1
            assert (await events.end()).body.endswith(LAST_EVENT % b"idle")
            # And when it falls silent, the other ends too.
            assert (await talk.end())[0] == Closed(4401, "idle")
        assert (await afetch(gate.url, "GET", "/", [bearer(talking)])).status == 401


async def test_the_absolute_life_ends_streams_whatever_moves(store: Store, streaming: Backend) -> None:  # W09
    with sidecar(streaming.url, redis_url=store.url, session_ttl="2s") as gate:
        bearing = token(someone())
        async with (
            requested(gate.url, "/chunked", bearing) as download,
            websocket(gate.url, bearing) as talk,
        ):
            began = time.monotonic()
            closed, at = await talk.end()
            assert closed == Closed(4401, "expired")
            assert at - began > 1
            assert not (await download.end()).whole


# The provider, and Redis


@pytest.mark.slow
async def test_a_back_channel_logout_cuts(store: Store, streaming: Backend) -> None:  # T30
    issuer = "https://id.example.com/"
    with sidecar(streaming.url, redis_url=store.url, backchannel_issuer=issuer, jwt_audience="app") as gate:
        user, sid, now = someone(), uuid.uuid4().hex, int(time.time())
        bearing = token(user, sid=sid, aud="app")
        events: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
        claims = {"iss": issuer, "aud": "app", "iat": now, "exp": now + 120, "jti": uuid.uuid4().hex, "events": events}
        word = forge.hs({"alg": "HS256", "typ": "logout+jwt"}, claims | {"sub": user, "sid": sid})
        async with websocket(gate.url, bearing) as talk, requested(gate.url, "/events", bearing) as stream:
            headers = [("Content-Type", "application/x-www-form-urlencoded")]
            body = f"logout_token={word}".encode()
            answer = await afetch(gate.url, "POST", "/_gatekeeper/backchannel-logout", headers, body)
            assert answer.status == 200, answer
            assert (await talk.end())[0] == Closed(4401, "logged_out")
            assert (await stream.end()).whole


async def test_it_is_the_same_on_redis(streaming: Backend) -> None:
    with store_process(need("redis-server")) as (url, _), sidecar(streaming.url, redis_url=url) as gate:
        bearing = token(someone())
        session = await session_of(gate.url, bearing)
        async with websocket(gate.url, bearing) as talk, requested(gate.url, "/events", bearing) as stream:
            await delete(gate.url, f"/sessions/{session}", bearing)
            assert (await talk.end())[0] == Closed(4401, "revoked_by_user")
            assert (await stream.end()).body.endswith(LAST_EVENT % b"revoked_by_user")


async def test_every_worker_hears_of_an_end(store: Store, streaming: Backend) -> None:
    with sidecar(streaming.url, redis_url=store.url, workers="2") as gate:
        bearing = token(someone())
        # Until the first of them is up.
        assert (await afetch(gate.url, "GET", "/", [bearer(bearing)])).status == 200
        async with AsyncExitStack() as stack:
            talks = [await stack.enter_async_context(websocket(gate.url, bearing)) for _ in range(8)]
            await delete(gate.url, "/sessions/logout", bearing)
            for talk in talks:
                assert (await talk.end())[0] == Closed(4401, "logged_out")

"""WebSockets through the proxy, both ends by hand. What the two libraries between them do with broken frames is in
`test_websocket_frames.py`."""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.forward import relay
from gatekeeper.http.websocket_frames import MAX_MESSAGE_BYTES
from tests.forward.sockets import (
    BINARY,
    CLOSE,
    CONT,
    DROPPED,
    PING,
    TEXT,
    Closed,
    Peer,
    accepting,
    close_payload,
    echo,
    frame,
    opened,
    tunnel,
    upgraded,
)
from tests.servers import RawConnection, RawRequest
from tests.upstream.test_upstream import self_signed
from tests.waiting import HANG_SECONDS

# The handshake


async def test_the_backend_gets_the_handshake_as_the_client_sent_it() -> None:
    target = "/a/../b%2e;p=1//%E2%82%AC?q=%20&&a=b+c&d"
    sent = [
        ("Origin", "https://app.example"),
        ("Authorization", "Bearer x"),
        ("Cookie", "a=1"),
        ("Cookie", "b=2"),
        ("X-User-Id", "7"),
        ("X-Named", "away"),
        ("Keep-Alive", "timeout=5"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Sec-WebSocket-Protocol", "chat, v2.chat"),
        ("Sec-WebSocket-Protocol", "other"),
        ("Sec-WebSocket-Extensions", "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits"),
        ("Connection", "Upgrade, X-Named, X-User-Id, Sec-WebSocket-Version"),
    ]
    async with tunnel(upgraded(echo)) as made, opened(made.url, target, sent) as client:
        assert client.status == 101
        request = made.backend.requests[0]
        assert request.target == target.encode()
        assert request.get_all(b"host") == [made.url.removeprefix("http://").encode()]
        for name, values in (
            (b"origin", [b"https://app.example"]),
            (b"authorization", [b"Bearer x"]),
            (b"cookie", [b"a=1", b"b=2"]),
            (b"x-user-id", [b"7"]),
            (b"x-named", []),
            (b"keep-alive", []),
            (b"connection", [b"Upgrade"]),
            (b"upgrade", [b"websocket"]),
            (b"sec-websocket-version", [b"13"]),
            (b"sec-websocket-protocol", [b"chat, v2.chat", b"other"]),
            (b"sec-websocket-extensions", [b"permessage-deflate; client_max_window_bits"]),
            (b"x-forwarded-for", [b"127.0.0.1"]),
            (b"x-real-ip", [b"127.0.0.1"]),
            (b"x-forwarded-proto", [b"http"]),
            (b"x-forwarded-port", [made.url.rsplit(":", 1)[1].encode()]),
        ):
            assert request.get_all(name) == values, name
        assert len(request.get_all(b"sec-websocket-key")) == 1
        assert made.guarded.scopes[-1]["state"]["upstream_seconds"] == made.upstream_seconds[0]


async def test_every_handshake_has_a_key_of_its_own() -> None:
    async with tunnel(upgraded(echo)) as made:
        for _ in range(2):
            async with opened(made.url):
                pass
        assert len({request.get_all(b"sec-websocket-key")[0] for request in made.backend.requests}) == 2


async def test_the_client_gets_what_the_backend_accepted_with() -> None:
    more = ["Set-Cookie: a=1", "Set-Cookie: b=2", "X-Kept: \xe9", "X-Named: 1", "Connection: X-Named"]
    more += ["Sec-WebSocket-Protocol: v2.chat", "Content-Length: 0", "Keep-Alive: timeout=5", "Date: now", "Server: s"]
    offered = [
        ("Sec-WebSocket-Protocol", "chat, v2.chat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ]
    async with tunnel(upgraded(echo, *more)) as made, opened(made.url, headers=offered) as client:
        assert client.status == 101
        assert client.get_all("set-cookie") == ["a=1", "b=2"]
        assert client.get_all("sec-websocket-protocol") == ["v2.chat"]
        assert client.get_all("x-kept") == ["\xe9"]
        assert (client.get_all("date"), client.get_all("server")) == (["now"], ["s"])
        assert len(client.get_all("sec-websocket-accept")) == len(client.get_all("upgrade")) == 1
        for name in ("sec-websocket-extensions", "x-named", "content-length", "keep-alive"):
            assert client.get_all(name) == [], name


async def test_where_the_backend_chooses_no_subprotocol_none_is_chosen() -> None:
    offered = [("Sec-WebSocket-Protocol", "chat")]
    async with tunnel(upgraded(echo)) as made, opened(made.url, headers=offered) as client:
        assert (client.status, client.get_all("sec-websocket-protocol")) == (101, [])


async def test_the_client_is_accepted_only_when_the_backend_has_accepted() -> None:
    decided = asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        await decided.wait()
        # The first message comes in one piece with the answer, and a frame is cut in two.
        await connection.write(accepting(request) + frame(TEXT, b"first") + frame(TEXT, b"second")[:3])
        await connection.write(frame(TEXT, b"second")[3:])
        await connection.gone()
        connection.close()

    async with tunnel(script) as made, asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        opening = group.create_task(stack.enter_async_context(opened(made.url)))
        await asyncio.sleep(0.2)
        assert not opening.done()
        decided.set()
        client = (await opening).peer
        assert [await client.get(), await client.get()] == ["first", "second"]


# W03
@pytest.mark.parametrize(
    ("answer", "status", "kept"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nX-Why: no\r\nContent-Length: 2\r\n\r\nno", 403, ("x-why", ["no"])),
        (b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno", 401,
         ("www-authenticate", ["Basic", "Bearer"])),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nno", 302,
         ("location", ["/x"])),
        # F19
        (b"HTTP/1.1 426 Upgrade\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno", 426,
         ("upgrade", [])),
        (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nn\r\n1\r\no\r\n0\r\n\r\n", 503,
         ("transfer-encoding", [])),
        (b"HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\nno", 404, ("content-type", ["text/html"])),
        (b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", 500, ("content-length", ["2"])),
    ],
)  # fmt: skip
async def test_a_backend_that_refuses_is_quoted(answer: bytes, status: int, kept: tuple[str, list[str]]) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(answer)
        connection.close()

    async with tunnel(script) as made:
        async with opened(made.url) as client:
            assert (client.status, client.body) == (status, b"no")
            assert client.get_all(kept[0]) == kept[1]
        assert made.error_kinds == []
        assert len(made.upstream_seconds) == 1


_UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
_ACCEPT = b"Sec-WebSocket-Accept: {accept}\r\n"


# W03, F19
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nno", "protocol"),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nno", "protocol"),
        (_UPGRADE + b"\r\n", "protocol"),
        (_UPGRADE + b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n", "protocol"),
        (_UPGRADE + _ACCEPT + _ACCEPT + b"\r\n", "protocol"),
        (_UPGRADE + _ACCEPT + b"Sec-WebSocket-Protocol: unoffered\r\n\r\n", "protocol"),
        (_UPGRADE + _ACCEPT + b"Sec-WebSocket-Protocol: chat, b\r\n\r\n", "protocol"),
        (_UPGRADE + _ACCEPT + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "protocol"),
        (_UPGRADE + _ACCEPT + b"X-Bad: a\x01b\r\n\r\n", "protocol"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n" + _ACCEPT + b"\r\n", "protocol"),
        (b"HTTP/1.1 101 Up\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + _ACCEPT + b"\r\n", "protocol"),
        (b"HTTP/1.1 403 Forbidden\r\nX-Bad: a\x01b\r\n\r\n", "protocol"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000, "protocol"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno", "protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "protocol"),
        (b"HTTP/1.1 101 Switching", "reset"),
        (b"", "reset"),
    ],
)
async def test_an_answer_that_is_none_is_a_bad_gateway(answer: bytes, kind: str) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        accept = accepting(request).partition(b"Accept: ")[2].partition(b"\r\n")[0]
        await connection.write(answer.replace(b"{accept}", accept))
        connection.close()

    async with tunnel(script) as made:
        async with opened(made.url, headers=[("Sec-WebSocket-Protocol", "chat")]) as client:
            assert client.status == 502
        assert made.error_kinds == [kind]
        assert isinstance(made.guarded.errors[0], UpstreamUnavailable)


async def test_a_backend_that_cannot_be_reached_is_a_bad_gateway() -> None:
    async with tunnel(b"", url="http://127.0.0.1:1") as made, opened(made.url) as client:
        assert client.status == 502
        assert made.error_kinds == ["connect"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101", b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n"])
async def test_a_backend_that_is_silent_is_a_gateway_timeout(answer: bytes) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(answer)
        async with asyncio.timeout(HANG_SECONDS):
            await connection.gone()

    async with tunnel(script, timeout_seconds=0.2) as made, opened(made.url) as client:
        assert client.status == 504
        assert made.error_kinds == ["timeout"]
        assert isinstance(made.guarded.errors[0], UpstreamTimeout)


async def test_a_connection_that_takes_too_long_is_a_gateway_timeout() -> None:
    # TLS to a server that speaks none and waits.
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.gone()

    async with tunnel(script) as waiting:
        url = waiting.backend.url.replace("http:", "https:")
        async with tunnel(b"", url=url, connect_timeout_seconds=0.2) as made, opened(made.url) as client:
            assert client.status == 504


# X07
async def test_a_client_that_leaves_during_the_handshake_takes_the_backend_s_along() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        asked.set()
        await connection.gone()
        left.set()

    async def come_and_go(url: str) -> None:
        async with opened(url):
            pass

    async with tunnel(script) as made:
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(come_and_go(made.url))
            await asked.wait()
            opening.cancel()
            async with asyncio.timeout(HANG_SECONDS):
                await left.wait()
        await made.ended(1)
        assert made.guarded.errors == []


async def test_it_runs_over_unix_sockets_and_tls(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    for listening, settings in (
        ({"path": tmp_path / "socket"}, {}),
        ({"tls": context}, {"ca_file": str(certificate)}),
    ):
        async with tunnel(upgraded(echo), listening=listening, **settings) as made, opened(made.url) as client:
            await client.peer.put(TEXT, b"a" * 300_000)
            assert await client.peer.get() == "a" * 300_000
            assert await client.peer.close(4000, "x") == (4000, "x")
    # An authority that the client does not trust.
    async with tunnel(upgraded(echo), listening={"tls": context}) as made, opened(made.url) as client:
        assert (client.status, made.error_kinds) == (502, ["connect"])


# Messages


async def test_messages_pass_whole_in_order_and_as_what_they_are() -> None:
    async with tunnel(upgraded(echo)) as made, opened(made.url) as client:
        peer = client.peer
        for size in (0, 1, 125, 126, 127, 65535, 65536, 1_000_000):
            await peer.put(BINARY, b"\xff" * size)
            assert await peer.get() == b"\xff" * size
            await peer.put(TEXT, ("é" * (size // 2)).encode())
            assert await peer.get() == "é" * (size // 2)
        for number in range(500):
            await peer.put(TEXT, b"%d" % number)
        assert [await peer.get() for _ in range(500)] == [str(number) for number in range(500)]


async def test_a_message_in_many_frames_arrives_as_one() -> None:
    parts = "a€b𝄞".encode()

    async def say(peer: Peer) -> None:
        # Pings between the parts, and the parts within a character (RFC 6455 section 5.4).
        for place in range(len(parts)):
            await peer.put(TEXT if place == 0 else CONT, parts[place : place + 1], fin=False)
            await peer.put(PING, b"%d" % place)
        await peer.put(CONT)

    async def script(peer: Peer) -> None:
        assert await peer.get() == parts.decode()
        await say(peer)
        await peer.put(BINARY, b"x", fin=False)
        await peer.put(CONT, b"y")
        await peer.end()
        assert peer.pongs == [b"%d" % place for place in range(len(parts))]

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        peer = client.peer
        await say(peer)
        assert await peer.get() == parts.decode()
        assert await peer.get() == b"xy"
        # Pings pass as they are, and are answered by the other end.
        assert peer.pongs == [b"%d" % place for place in range(len(parts))]
        assert peer.pings == peer.pongs
        await peer.close()


# W05
@pytest.mark.slow
async def test_a_hundred_thousand_fragments_of_one_byte_are_one_message() -> None:
    fragments = frame(TEXT, b"a", fin=False) + frame(CONT, b"a", fin=False) * 99_998 + frame(CONT, b"a")

    async def script(peer: Peer) -> None:
        assert await peer.get() == "a" * 100_000
        await peer.send(fragments)
        await peer.end()

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        # The mask of zeros is as good as any.
        await client.peer.send(b"\x01\x81\0\0\0\0a" + b"\x00\x81\0\0\0\0a" * 99_998 + b"\x80\x81\0\0\0\0a")
        assert await client.peer.get() == "a" * 100_000
        await client.peer.close()


# W05
async def test_messages_up_to_the_limit_pass() -> None:
    data = b"x" * MAX_MESSAGE_BYTES
    async with tunnel(upgraded(echo)) as made, opened(made.url) as client:
        await client.peer.put(BINARY, data)
        assert await client.peer.get() == data


# W05
@pytest.mark.parametrize("fragmented", [False, True])
async def test_a_client_s_message_over_the_limit_is_its_end(*, fragmented: bool) -> None:
    ends: list[Any] = []

    async def script(peer: Peer) -> None:
        ends.append(await peer.end())

    async with tunnel(upgraded(script)) as made:
        async with opened(made.url) as client:
            if fragmented:
                await client.peer.put(BINARY, b"x" * MAX_MESSAGE_BYTES, fin=False)
                await client.peer.put(CONT, b"x")
            else:
                # What it claims is enough.
                await client.peer.put(BINARY, b"", length=MAX_MESSAGE_BYTES + 1)
            assert (await client.peer.end()).code == 1009
        await made.ended(1)
        assert ends[0].code == 1009
        assert made.error_kinds == []


# W05
@pytest.mark.parametrize("fragmented", [False, True])
async def test_a_backend_s_message_over_the_limit_is_its_end(*, fragmented: bool) -> None:
    ends: list[Any] = []

    async def script(peer: Peer) -> None:
        if fragmented:
            await peer.put(BINARY, b"x" * MAX_MESSAGE_BYTES, fin=False)
            await peer.put(CONT, b"x")
        else:
            await peer.put(BINARY, b"", length=MAX_MESSAGE_BYTES + 1)
        ends.append(await peer.end())

    async with tunnel(upgraded(script)) as made:
        async with opened(made.url) as client:
            assert await client.peer.end() == (1011, "the backend sent a message that is too big")
        await made.ended(1)
        assert ends[0].code == 1009
        assert made.error_kinds == ["protocol"]


# The end

# To wsproto 1014 is unknown and therefore an error.
CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4401, 4999]


@pytest.mark.parametrize("code", [*CODES, None])
async def test_close_codes_and_reasons_pass_both_ways(code: int | None) -> None:
    reason = "" if code is None else "é" * 61
    ends: list[Any] = []

    async def closing(peer: Peer) -> None:
        ends.append(await peer.close(code, reason))

    async def waiting(peer: Peer) -> None:
        ends.append(await peer.end())
        await peer.put(CLOSE, close_payload(code, reason))

    async with tunnel(upgraded(closing)) as made:
        async with opened(made.url) as client:
            assert await client.peer.end() == (code, reason)
            await client.peer.put(CLOSE, close_payload(code, reason))
            await client.peer.gone()
        await made.ended(1)
    async with tunnel(upgraded(waiting)) as made:
        async with opened(made.url) as client:
            assert await client.peer.close(code, reason) == (code, reason)
            await client.peer.gone()
        await made.ended(1)
    assert ends == [(code, reason), (code, reason)]


async def test_what_was_said_before_the_close_arrives_before_the_close() -> None:
    async def script(peer: Peer) -> None:
        assert [await peer.get() for _ in range(3)] == ["0", "1", Closed(4001)]
        await peer.put(CLOSE, close_payload(4001))

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        frames = [frame(TEXT, b"%d" % number, masked=True) for number in range(2)]
        await client.peer.send(b"".join([*frames, frame(CLOSE, close_payload(4001), masked=True)]))
        assert await client.peer.end() == (4001, "")
        await made.ended(1)

    async def backward(peer: Peer) -> None:
        await peer.send(frame(TEXT, b"0") + frame(TEXT, b"1") + frame(CLOSE, close_payload(4001)))
        await peer.end()

    async with tunnel(upgraded(backward)) as made, opened(made.url) as client:
        assert [await client.peer.get() for _ in range(3)] == ["0", "1", Closed(4001)]


# W07
@pytest.mark.parametrize("how", ["fin", "reset", "in a frame"])
async def test_a_backend_that_dies_is_an_internal_error_within_a_second(how: str) -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(accepting(request) + frame(TEXT, b"a"))
        await connection.read(1)
        if how == "in a frame":
            await connection.write(frame(TEXT, b"abc")[:3])
        if how == "reset":
            connection.reset()
        else:
            connection.close()

    async with tunnel(script) as made, opened(made.url) as client:
        assert await client.peer.get() == "a"
        await client.peer.put(TEXT, b"die")
        async with asyncio.timeout(HANG_SECONDS):
            # A close frame has no place in the middle of another one.
            lost = Closed(1011, "the connection to the backend was lost")
            assert await client.peer.end() == (DROPPED if how == "in a frame" else lost)
            with suppress(ConnectionError):
                await client.peer.put(CLOSE, close_payload(1011))
            await client.peer.gone()
            await made.ended(1)
        assert made.error_kinds == ["reset"]


# W07
@pytest.mark.parametrize("busy", [False, True])
async def test_a_client_that_dies_takes_the_backend_s_connection_along(*, busy: bool) -> None:
    ends: list[Any] = []
    seen: list[Any] = []
    over = asyncio.Event()

    async def talk(peer: Peer) -> None:
        while busy:
            await peer.put(BINARY, b"x" * 10_000)

    async def script(peer: Peer) -> None:
        talking = asyncio.create_task(talk(peer))
        while not isinstance(got := await peer.get(), Closed):
            seen.append(got)
        ends.append(got)
        over.set()
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)

    async with tunnel(upgraded(script)) as made:
        async with opened(made.url) as client:
            await client.peer.put(TEXT, b"last words")
            await asyncio.sleep(0.1)
            client.peer.hang_up()
            async with asyncio.timeout(HANG_SECONDS):
                await over.wait()
                await made.ended(1)
        # Broken off for the one is broken off for the other: no close frame is made up.
        assert (ends, seen) == ([DROPPED], ["last words"])
        assert made.error_kinds == []


async def test_a_backend_that_never_answers_a_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_CLOSE_SECONDS", 0.3)
    seen: list[Any] = []
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        seen.append(await peer.end())
        # It speaks on instead, which it may.
        for _ in range(20):
            await peer.put(BINARY, b"x" * 1000)
        await peer.gone()
        left.set()

    async with tunnel(upgraded(script)) as made:
        async with opened(made.url) as client:
            await client.peer.put(CLOSE, close_payload(4000, "bye"))
            assert [await client.peer.get() for _ in range(20)] == [b"x" * 1000] * 20
            # The client gets its own code for an answer.
            assert await client.peer.end() == (4000, "bye")
            await client.peer.gone()
        await left.wait()
        await made.ended(1)
        assert seen == [(4000, "bye")]
        assert made.error_kinds == []


async def test_a_client_that_never_answers_a_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_CLOSE_SECONDS", 0.3)
    ends: list[Any] = []
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        ends.append(await peer.close(4000))
        over.set()

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        assert await client.peer.end() == (4000, "")
        await client.peer.gone()
        await over.wait()
        assert ends == [DROPPED]


async def test_a_slow_backend_gets_all_that_came_before_the_client_s_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_CLOSE_SECONDS", 0.3)
    ends: list[Any] = []

    async def script(peer: Peer) -> None:
        # Longer than a backend has for its half of the closing handshake.
        await asyncio.sleep(1)
        ends.append(len(await peer.get()))
        ends.append(seen := await peer.end())
        await peer.put(CLOSE, close_payload(seen.code, seen.reason))

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        await client.peer.put(BINARY, b"x" * MAX_MESSAGE_BYTES)
        assert await client.peer.close(4000, "bye") == (4000, "bye")
        await made.ended(1)
        assert ends == [MAX_MESSAGE_BYTES, (4000, "bye")]


async def test_a_server_that_ends_says_so_to_both() -> None:  # W09
    ends: list[Any] = []

    async def script(peer: Peer) -> None:
        ends.append(await peer.end())
        await peer.put(CLOSE, close_payload(1001))

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        await client.peer.put(TEXT, b"a")
        stopping = asyncio.create_task(made.stop())
        assert await client.peer.end() == (1012, "")
        await stopping
        assert ends == [(1001, "")]


async def test_a_server_that_ends_waits_for_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_CLOSE_SECONDS", 600.0)

    async def script(peer: Peer) -> None:
        await peer.end()
        await peer.gone()

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        stopping = asyncio.create_task(made.stop())
        assert (await client.peer.end()).code == 1012
        await stopping


async def test_an_open_websocket_may_be_idle_longer_than_a_backend_may_be_silent() -> None:
    async with tunnel(upgraded(echo), timeout_seconds=1) as made, opened(made.url) as client:
        await asyncio.sleep(1.5)
        await client.peer.put(TEXT, b"a")
        assert await client.peer.get() == "a"


# Load


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


async def _stalled(sent: Callable[[], int]) -> None:
    """Returns when nothing has moved for half a second."""
    last = -1
    while sent() != last:
        last = sent()
        await asyncio.sleep(0.5)


# W08
async def test_a_client_that_does_not_read_stops_the_backend() -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        message = frame(BINARY, b"x" * 100_000)
        for _ in range(1000):
            await peer.send(message)
            sent += len(message)
        await peer.end()

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        await _stalled(lambda: sent)
        # The kernel's buffers on both legs, and less than a megabyte of ours.
        assert sent < 30e6
        before = rss_mb()
        received = 0
        while received < 100_000_000:
            message = await client.peer.get()
            assert isinstance(message, bytes)
            received += len(message)
        assert received == 100_000_000
        assert rss_mb() - before < 40
        await client.peer.close()


# W08
async def test_a_backend_that_does_not_read_stops_the_client() -> None:
    read = asyncio.Event()
    received = sent = 0

    async def script(peer: Peer) -> None:
        nonlocal received
        await read.wait()
        while not isinstance(seen := await peer.get(), Closed):
            received += len(seen)
        await peer.put(CLOSE, close_payload(seen.code))

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:

        async def talk() -> None:
            nonlocal sent
            message = frame(BINARY, b"x" * 100_000, masked=True)
            for _ in range(1000):
                await client.peer.send(message)
                sent += len(message)

        talking = asyncio.create_task(talk())
        await _stalled(lambda: sent)
        assert sent < 30e6
        before = rss_mb()
        read.set()
        await talking
        assert await client.peer.close(1000) == (1000, "")
        await made.ended(1)
        assert received == 100_000_000
        assert rss_mb() - before < 40


async def test_a_client_that_dies_while_it_is_not_read_from_is_noticed() -> None:
    gone = asyncio.Event()

    async def script(connection: RawConnection, request: RawRequest) -> None:
        await connection.write(accepting(request))
        await asyncio.sleep(0.7)
        await connection.gone()
        gone.set()
        connection.close()

    async with tunnel(script) as made:
        async with opened(made.url) as client:
            # More than all buffers up to the backend hold.
            for _ in range(3):
                client.peer.writer.write(frame(BINARY, b"x" * 10_000_000, masked=True))
            await asyncio.sleep(0.5)
            client.peer.hang_up()
        async with asyncio.timeout(HANG_SECONDS):
            await gone.wait()
            await made.ended(1)


async def test_a_slow_client_gets_all_that_came_before_the_backend_s_close() -> None:
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        for _ in range(200):
            peer.writer.write(frame(BINARY, b"x" * 100_000))
        await peer.put(CLOSE, close_payload(4000))
        await peer.end()
        over.set()

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        await asyncio.sleep(0.5)
        count = 0
        while isinstance(seen := await client.peer.get(), bytes):
            count += 1
        assert (count, seen) == (200, (4000, ""))
        await over.wait()


# W05
async def test_pings_pass_however_many() -> None:
    async def script(peer: Peer) -> None:
        for number in range(10_000):
            peer.writer.write(frame(PING, b"%d" % number))
        await peer.send(frame(TEXT, b"done"))
        await peer.end()
        assert peer.pongs == [b"%d" % number for number in range(10_000)]

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        peer = client.peer
        for number in range(10_000):
            peer.writer.write(frame(PING, b"%d" % number, masked=True))
        await peer.put(TEXT, b"x")
        assert await peer.get() == "done"
        await peer.close()
        assert peer.pongs == [b"%d" % number for number in range(10_000)]


# W05
@pytest.mark.parametrize("down", [False, True])
async def test_pings_that_nobody_reads_stop_who_sends_them(*, down: bool) -> None:
    sent = 0
    flood = frame(PING, b"x" * 125, masked=not down) * 10_000

    async def drown(peer: Peer) -> None:
        nonlocal sent
        with suppress(ConnectionError):
            while True:
                await peer.send(flood)
                sent += len(flood)

    async def script(peer: Peer) -> None:
        if down:
            await drown(peer)
        else:
            await asyncio.sleep(HANG_SECONDS)

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        drowning = None if down else asyncio.create_task(drown(client.peer))
        await _stalled(lambda: sent)
        assert sent < 60e6
        client.peer.hang_up(reset=True)
        async with asyncio.timeout(HANG_SECONDS):
            await made.ended(1)
        if drowning is not None:
            await drowning


async def test_both_sides_talking_at_once_with_pings_between_never_stand_still() -> None:
    async def answer(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(message)

    async with serve(answer, "127.0.0.1", 0, compression=None, ping_interval=0.01, max_size=None) as backend:
        url = f"http://127.0.0.1:{next(iter(backend.sockets)).getsockname()[1]}"
        async with (
            tunnel(b"", url=url) as made,
            connect(made.url.replace("http", "ws", 1), compression=None, max_size=None) as client,
        ):

            async def talk() -> None:
                for _ in range(200):
                    await client.send(b"x" * 100_000)

            async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
                group.create_task(talk())
                for _ in range(200):
                    assert len(await client.recv()) == 100_000


# RFC 7692
async def test_both_ends_may_agree_on_compression() -> None:
    async def answer(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(message)

    async with serve(answer, "127.0.0.1", 0, compression="deflate") as backend:
        url = f"http://127.0.0.1:{next(iter(backend.sockets)).getsockname()[1]}"
        async with tunnel(b"", url=url) as made, connect(made.url.replace("http", "ws", 1)) as client:
            assert client.response is not None
            assert client.response.headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate")
            for text in ("a" * 100_000, "b", "", "a" * 100_000):
                await client.send(text)
                assert await client.recv() == text
        async with tunnel(b"", url=url) as made, opened(made.url) as plain:
            assert plain.get_all("sec-websocket-extensions") == []
            await plain.peer.put(TEXT, b"a", rsv=4)
            assert (await plain.peer.end()).code == 1002


@pytest.mark.slow
async def test_a_thousand_websockets_at_once() -> None:
    async def talk(peer: Peer, number: int) -> None:
        for turn in range(10):
            await peer.put(TEXT, b"%d %d" % (number, turn))
            assert await peer.get() == f"{number} {turn}"
        assert await peer.close(4000) == (4000, "")

    async with tunnel(upgraded(echo)) as made, AsyncExitStack() as stack:
        peers = [(await stack.enter_async_context(opened(made.url))).peer for _ in range(1000)]
        async with asyncio.TaskGroup() as group:
            for number, peer in enumerate(peers):
                group.create_task(talk(peer, number))
        await made.ended(1000)

"""Frames that break RFC 6455, and those that only look so: through the proxy as without it.

The same echo application is asked twice, bare under uvicorn's own protocols and behind the proxy; the client sees the
same, and so does the application. Then the other side: a backend that breaks the rules.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.upstream.http1_client import Http1Upstream
from tests.forward.sockets import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Closed,
    Peer,
    accepting,
    close_payload,
    frame,
    opened,
    peer_of,
    tunnel,
    upgraded,
)
from tests.servers import RawConnection, RawRequest, afetch, raw_client, serve_asgi
from tests.waiting import HANG_SECONDS


class Echo:
    """Sends back what it gets; `ends` holds how each WebSocket ended, by its query."""

    def __init__(self) -> None:
        self.ends: dict[bytes, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            # A client that has broken the rules in the meantime takes nothing more.
            with suppress(OSError, RuntimeError):
                await send({**message, "type": "websocket.send"})
        self.ends[scope["query_string"]] = (message["code"], message.get("reason"))


class Twice(NamedTuple):
    """The application at two URLs."""

    direct: str
    proxied: str
    echo: Echo


@pytest.fixture(scope="module")
def twice() -> Iterator[Twice]:
    echo = Echo()
    with serve_asgi(echo, http="httptools", ws="wsproto") as direct:
        proxy = Proxy(Http1Upstream(direct), trusted_proxies=TrustedProxies([]))
        with serve_asgi(proxy) as proxied:
            yield Twice(direct, proxied, echo)


_numbers = itertools.count()


async def seen(twice: Twice, url: str, sent: bytes, *, messages: int = 0) -> tuple[list[Any], Any]:
    """Return the messages that the client gets, and the close that the application gets. The client closes after so
    many messages."""
    query = b"%d" % next(_numbers)
    found: list[Any] = []
    async with opened(url, f"/?{query.decode()}") as client:
        assert client.status == 101
        await client.peer.send(sent)
        for _ in range(messages):
            found.append(await client.peer.get())
        if messages:
            await client.peer.send(_OVER)
        while not found or not isinstance(found[-1], Closed):
            found.append(await client.peer.get())
        found.append(client.peer.pongs)
    async with asyncio.timeout(HANG_SECONDS):
        while query not in twice.echo.ends:  # noqa: ASYNC110 - it ends in another thread
            await asyncio.sleep(0.005)
    return found, twice.echo.ends[query]


def masked(opcode: int, data: bytes = b"", **how: Any) -> bytes:
    return frame(opcode, data, masked=True, **how)


_OVER = masked(CLOSE, close_payload(1000))

VALID: dict[str, tuple[bytes, list[Any]]] = {
    "empty text": (masked(TEXT), ["", 1000]),
    "empty binary": (masked(BINARY), [b"", 1000]),
    "empty fragments": (
        masked(TEXT, fin=False) + masked(CONT, fin=False) + masked(CONT, b"a", fin=False) + masked(CONT),
        ["a", 1000],
    ),
    "ping between fragments": (masked(TEXT, b"a", fin=False) + masked(PING, b"p") + masked(CONT, b"b"), ["ab", 1000]),
    "pong between fragments": (masked(TEXT, b"a", fin=False) + masked(PONG, b"p") + masked(CONT, b"b"), ["ab", 1000]),
    "a pong that nobody asked for": (masked(PONG, b"p") + masked(TEXT, b"a"), ["a", 1000]),
    "the largest ping": (masked(PING, b"p" * 125) + masked(TEXT, b"a"), ["a", 1000]),
    "a character in two frames": (masked(TEXT, b"\xe2", fin=False) + masked(CONT, b"\x82\xac"), ["€", 1000]),
    "binary that is no UTF-8": (masked(BINARY, b"\xff\xfe"), [b"\xff\xfe", 1000]),
    "a close within a message": (masked(TEXT, b"a", fin=False) + _OVER, [1000]),
    "text after the close": (_OVER + masked(TEXT, b"a"), [1000]),
}

# W06
INVALID = {
    "not masked": (frame(TEXT, b"a"), 1002),
    "rsv1": (masked(TEXT, b"a", rsv=4), 1002),
    "rsv2": (masked(TEXT, b"a", rsv=2), 1002),
    "rsv3": (masked(BINARY, b"a", rsv=1), 1002),
    "rsv in a ping": (masked(PING, b"a", rsv=4), 1002),
    "rsv in a close": (masked(CLOSE, close_payload(1000), rsv=4), 1002),
    **{f"opcode {number}": (masked(number, b"a"), 1002) for number in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "ping in fragments": (masked(PING, b"a", fin=False), 1002),
    "close in fragments": (masked(CLOSE, close_payload(1000), fin=False), 1002),
    "ping of 126 bytes": (masked(PING, b"a" * 126), 1002),
    "pong of 126 bytes": (masked(PONG, b"a" * 126), 1002),
    "close of 126 bytes": (masked(CLOSE, close_payload(1000, "a" * 124)), 1002),
    "a length in more bytes than it needs": (b"\x82\xfe\x00\x01\0\0\0\0x", 1002),
    "a length in eight bytes for two": (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", 1002),
    "a length of 64 bits": (b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", 1002),
    "a continuation of nothing": (masked(CONT, b"a"), 1002),
    "a new message within one": (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
    "a close of one byte": (masked(CLOSE, b"\x03"), 1002),
    "a reason that is no UTF-8": (masked(CLOSE, close_payload(1000) + b"\xff"), 1007),
    **{
        f"close code {code}": (masked(CLOSE, close_payload(code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("name", VALID)
async def test_what_looks_odd_and_is_right_passes(twice: Twice, name: str) -> None:
    sent, expected = VALID[name]
    messages = len(expected) - 1
    proxied = await seen(twice, twice.proxied, sent, messages=messages)
    assert [item.code if isinstance(item, Closed) else item for item in proxied[0][:-1]] == expected
    assert proxied == await seen(twice, twice.direct, sent, messages=messages)


# W06
@pytest.mark.parametrize("name", INVALID)
async def test_what_breaks_the_rules_ends_both_sides_alike(twice: Twice, name: str) -> None:
    sent, code = INVALID[name]
    # Whether the echo of what came before is still in time is chance.
    found, told = await seen(twice, twice.proxied, masked(TEXT, b"before") + sent)
    assert (found[-2].code, told[0]) == (code, code)


_ASKED = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


# W10
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", 400),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", 200),
        (b"GET / HTTP/1.1\r\n" + _ASKED + b"Sec-WebSocket-Version: 13\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + _ASKED + _KEY, 400),
        (b"POST / HTTP/1.1\r\n" + _ASKED + b"Sec-WebSocket-Version: 13\r\n" + _KEY, 400),
        # F19
        (b"GET / HTTP/1.1\r\n" + _ASKED + b"Sec-WebSocket-Version: 777\r\n" + _KEY, 426),
    ],
)
async def test_a_handshake_that_is_none_opens_no_tunnel(twice: Twice, lines: bytes, status: int) -> None:
    async with raw_client(twice.proxied) as client:
        await client.send(lines + b"Host: a\r\n\r\n")
        assert int((await client.until(b"\r\n")).split()[1]) == status
    assert (await afetch(twice.proxied)).status == 200


BROKEN_BY_THE_BACKEND = {
    "masked": (frame(TEXT, b"a", masked=True), 1002),
    "rsv1": (frame(TEXT, b"a", rsv=4), 1002),
    "opcode": (frame(3, b"a"), 1002),
    "ping in fragments": (frame(PING, b"a", fin=False), 1002),
    "ping of 126 bytes": (frame(PING, b"a" * 126), 1002),
    "a continuation of nothing": (frame(CONT, b"a"), 1002),
    "a new message within one": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a length in more bytes than it needs": (b"\x82\x7e\x00\x01x", 1002),
    "a reason that is no UTF-8": (frame(CLOSE, close_payload(1000) + b"\xff"), 1007),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{
        f"close code {code}": (frame(CLOSE, close_payload(code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
    },
}


# W06
@pytest.mark.parametrize("name", BROKEN_BY_THE_BACKEND)
async def test_a_backend_that_breaks_the_rules_is_told_and_the_client_is_not_blamed(name: str) -> None:
    sent, code = BROKEN_BY_THE_BACKEND[name]
    ends: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.send(frame(TEXT, b"before") + sent)
        ends.append(await peer.end())

    async with tunnel(upgraded(script)) as made, opened(made.url) as client:
        assert await client.peer.get() == "before"
        assert await client.peer.get() == (1011, "the backend broke the protocol")
        await client.peer.put(CLOSE, close_payload(1011))
        await made.ended(1)
        assert made.error_kinds == ["protocol"]
        assert ends[0].code == code


_NO_UTF8 = {
    "one frame": [(TEXT, b"a\xff", True)],
    "a surrogate": [(TEXT, b"\xed\xa0\x80", True)],
    "half a character": [(TEXT, b"\xe2\x82", True)],
    "two frames": [(TEXT, b"\xe2", False), (CONT, b"a", True)],
}


# Rule 3.25
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("name", _NO_UTF8)
async def test_text_that_is_no_utf8_passes_and_whoever_reads_it_says_so(name: str, *, down: bool) -> None:
    ends: list[Any] = []

    async def send(peer: Peer) -> None:
        for opcode, data, fin in _NO_UTF8[name]:
            await peer.put(opcode, data, fin=fin)
        ends.append(await peer.end())
        await peer.put(CLOSE, close_payload(ends[0].code))

    async def read(peer: Peer) -> None:
        ends.append(await peer.end())
        await peer.put(CLOSE, close_payload(1007))
        await peer.gone()

    async with tunnel(upgraded(send if down else read)) as made:
        async with opened(made.url) as client:
            await (read if down else send)(client.peer)
            await client.peer.gone()
        await made.ended(1)
        assert [end.code for end in ends] == [1007, 1007]
        assert made.error_kinds == []


# A client that speaks before it is answered breaks RFC 6455 section 4.1, and harms nobody.
async def test_a_client_that_speaks_too_early_is_heard_once_it_is_accepted() -> None:
    async def script(connection: RawConnection, request: RawRequest) -> None:
        await asyncio.sleep(0.2)
        await connection.write(accepting(request))
        peer = peer_of(connection)
        assert [await peer.get(), await peer.get()] == ["a", "b"]
        await peer.close(4000)
        connection.close()

    async with tunnel(script) as made, raw_client(made.url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + _ASKED + b"Sec-WebSocket-Version: 13\r\n" + _KEY + b"\r\n")
        await asyncio.sleep(0.1)
        await client.send(masked(TEXT, b"a") + masked(TEXT, b"b"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await client.reader.readexactly(4) == b"\x88\x02\x0f\xa0"

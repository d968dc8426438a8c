"""The case of header names, which means nothing to RFC 9110 section 5.1 and much to SOAP stacks and devices: names are
written as they were read, both ways, whichever way a request takes (rule 3.22)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import RawConnection, RawRequest, raw_client
from tests.system.sidecar import Backend, Sidecar, Store, sidecar, someone, token

HEADERS = [b"SOAPAction", b"X-DEVICE-ID", b"x-lower", b"X-Mixed", b"x-MIXED", b"USER-AGENT", b"X_Score"]
ANSWER = b"ETag: 1\r\nX-DEVICE: 2\r\nx-lower: 3\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nX-UPnP-Name: 4\r\n"
OURS = {b"X-User-Id", b"X-Session-Id", b"X-User-Roles", b"X-Request-Id", b"X-Forwarded-For", b"X-Forwarded-Proto"}


class Echo:
    """A backend that keeps the raw names of what it got and answers with names of every case."""

    def __init__(self) -> None:
        self.names: list[bytes] = []

    async def __call__(self, connection: RawConnection, request: RawRequest) -> None:
        self.names = [line.partition(b":")[0] for line in request.head.split(b"\r\n")[1:] if line]
        if request.target == b"/chunked":
            framing, body = b"Transfer-Encoding: chunked\r\n", b"2\r\nok\r\n0\r\nX-Trailing-MD5: 1\r\n\r\n"
        elif request.target == b"/ws":
            await connection.write(b"HTTP/1.1 403 No\r\n" + ANSWER + b"Content-Length: 2\r\n\r\nok")
            return
        else:
            framing, body = b"Content-Length: 2\r\n", b"ok"
        await connection.write(b"HTTP/1.1 200 OK\r\n" + ANSWER + framing + b"\r\n" + body)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def front(store: Store, echo: Echo) -> Iterator[Sidecar]:
    with Backend(echo) as backend, sidecar(backend.url, redis_url=store.url) as one:
        yield one


async def exchanged(front: Sidecar, mine: str, target: str, *lines: bytes, method: str = "GET") -> bytes:
    """The raw answer to a request with names of every case."""
    head = b"".join(name + b": %d\r\n" % number for number, name in enumerate(HEADERS))
    head += b"".join(line + b"\r\n" for line in lines)
    start = f"{method} {target} HTTP/1.1\r\nHOST: a\r\nAUTHORIZATION: Bearer {mine}\r\n".encode()
    async with raw_client(front.url) as client:
        await client.half_close(start + head + (b"\r\nabc" if method == "POST" else b"\r\n"))
        return await client.rest()


@pytest.mark.parametrize(
    ("target", "method", "lines"),
    [
        ("/plain", "GET", []),
        ("/plain", "POST", [b"CONTENT-Length: 3"]),
        ("/chunked", "GET", [b"Te: trailers", b"Connection: Te"]),
        ("/plain", "GET", [b"x-user-id: evil", b"x-forwarded-for: 1.2.3.4", b"x-request-id: mine"]),
    ],
)
async def test_names_are_written_as_they_were_read(
    front: Sidecar, echo: Echo, target: str, method: str, lines: list[bytes]
) -> None:
    mine = token(someone(), roles=["a"])
    # The first time by the application, the second time by the direct way.
    for _ in range(2):
        answer = await exchanged(front, mine, target, *lines, method=method)
        for name in [b"HOST", b"AUTHORIZATION", *HEADERS, *OURS]:
            assert name in echo.names, (name, echo.names)
        assert [name for name in echo.names if name in HEADERS] == HEADERS
        assert len({name.lower() for name in echo.names if name.lower() != b"x-mixed"}) + 2 == len(echo.names)
        assert ANSWER in answer
        assert b"\r\nX-Request-Id: " in answer
        if method == "POST":
            assert b"CONTENT-Length" in echo.names


async def test_the_names_of_a_handshake_too(front: Sidecar, echo: Echo) -> None:
    lines = [b"UPGRADE: websocket", b"Connection: Upgrade", b"SEC-WebSocket-Version: 13"]
    lines += [b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"SEC-WebSocket-Protocol: chat"]
    answer = await exchanged(front, token(someone()), "/ws", *lines)
    assert answer.startswith(b"HTTP/1.1 403 ")
    for name in [b"HOST", b"AUTHORIZATION", b"SEC-WebSocket-Protocol", b"X-User-Id", b"X-Request-Id", *HEADERS]:
        assert name in echo.names, (name, echo.names)


async def test_ours_in_refusals(front: Sidecar) -> None:
    for data in (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /x HTTP/1.1\r\n\r\n"):
        async with raw_client(front.url) as client:
            await client.half_close(data)
            assert b"\r\nX-Request-Id: " in await client.rest()

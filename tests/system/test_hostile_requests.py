"""Requests by their bytes, through a running sidecar to a backend that keeps what it gets (attacks.md 1.B to 1.D, 1.I).

Every request has a good token, so that what is refused is refused for its bytes.
"""

from __future__ import annotations

import json

import pytest

from tests.server.house import answer
from tests.servers import RawConnection, RawRequest, raw_client
from tests.system.sidecar import Backend, Sidecar, Store, bearer, sidecar, someone, token

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def good(user: str | None = None, **claims: object) -> bytes:
    return ": ".join(bearer(token(user or someone(), **claims))).encode()


def get(target: bytes = b"/x", *lines: bytes, host: bytes | None = b"a", method: bytes = b"GET") -> bytes:
    hosts = [] if host is None else [b"Host: " + host]
    head = (method + b" " + target + b" HTTP/1.1", *hosts, good(), *lines, b"")
    return b"".join(line + b"\r\n" for line in head)


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return get(b"/x", *lines, method=b"POST") + body


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


async def exchange(url: str, data: bytes) -> tuple[int, bytes]:
    """Status and body of the first answer."""
    async with raw_client(url) as client:
        await client.send(data)
        status, _, body = await answer(client)
        return status, body


async def passed(gate: Sidecar, backend: Backend, data: bytes) -> RawRequest:
    """What the backend got of a request that is admitted."""
    reached = len(backend.raw)
    assert (await exchange(gate.url, data))[0] == 200
    (request,) = backend.raw[reached:]
    return request


CLOSED = [
    # H11
    *(get(host=host) for host in (None, b"", b"a/public?", b"a#", b"a@evil", b"a, b", b"a b", b"a:99999", b"a\x00")),
    get(b"/x", b"Host: b"),
    # H13
    *(
        get(b"/x", line)
        for line in (
            *(
                b"X: a\x00b",
                b"X: a\rb",
                b"X: a\nb",
                b"X: a\x1bb",
                b"X: a\r\n b",
                b"X : a",
                b"X",
                b": a",
                b"X\xc3\xa9: a",
            ),
            b" X: a",
        )
    ),
    # H02
    get(b"/x", b"X-User-Id\x85: admin"),
    # P09, P11, P14, P15
    *(get(target) for target in (b"/x#/public", b"/x\x00", b"http://evil/x", b"https://evil/x", b"http://u@evil/x")),
    *(get(target) for target in (b"ftp://evil/x", b"@evil.com/x", b"admin", b"evil:80", b"*", b" / ")),
    # P16
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    get(method=b"get"),
    get(method=b'G"'),
    # F01 to F05
    post(b"Content-Length: 4", CHUNKED, body=END),
    post(CHUNKED, b"Content-Length: 4", body=END),
    *(post(b"Content-Length: 1", b"Content-Length: " + second, body=b"ab") for second in (b"1", b"2")),
    *(
        post(b"Content-Length: " + value, body=b"a")
        for value in (b"1, 1", b"1, 2", b"+1", b"-1", b"0x1", b"1_0", b"1 0", b"", b"\xd9\xa1", b"1" * 23, b"010")
    ),
    *(
        post(b"Transfer-Encoding: " + value, body=END)
        for value in (
            *(b",chunked", b"xchunked", b"identity", b"chunked, identity", b"gzip, chunked", b"chunked;foo"),
            *(b"\x0bchunked", b"\r\n chunked", b"chunked\r\nTransfer-Encoding: chunked"),
        )
    ),
    post(b"Transfer-Encoding : chunked", body=END),
    post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=END),
    # F06
    post(CHUNKED, body=END).replace(b"HTTP/1.1", b"HTTP/1.0"),
    # F07, F08
    *(
        post(CHUNKED, body=body + END)
        for body in (
            *(
                b"0x3\r\nabc\r\n",
                b"0_3\r\nabc\r\n",
                b"+3\r\nabc\r\n",
                b"-3\r\nabc\r\n",
                b"  3\r\nabc\r\n",
                b"\r\nabc\r\n",
            ),
            *(
                b"0" * 16 + b"3\r\nabc\r\n",
                b"3\nabc\r\n",
                b"3\r\nabc\n",
                b"3\r\nabcXX",
                b"3;\n\r\nabc\r\n",
                b"3;\rx\r\nabc\r\n",
            ),
            *(b"3;" + b"x" * 70_000 + b"\r\nabc\r\n", b"1;0123456789abcdef\r\nx\r\n" * 10_000),
        )
    ),
    # F10, F11
    get().replace(b"\r\n", b"\n"),
    get().replace(b"\r\n", b"\r"),
    b"\r\n\rX" + get(),
    b"GET /x\r\n",
    *(get().replace(b"HTTP/1.1", version) for version in (b"HTTP/2.0", b"HTTP/1.32", b"HTTP/1.1 ", b"HTTP/1.1\t")),
    get().replace(b"GET /x", b"GET  /x"),
    get().replace(b"GET /x", b"GET\t/x"),
    b"\r\n" * 1000 + get(),
]


@pytest.mark.parametrize("number", range(len(CLOSED)))
async def test_malformed_bytes_are_400_and_end_the_connection(gate: Sidecar, backend: Backend, number: int) -> None:
    # H02, H11, H13, P09, P11, P14, P15, P16, F01, F02, F03, F04, F05, F06, F07, F08, F10, F11
    data = CLOSED[number]
    async with raw_client(gate.url) as client:
        await client.send(data + SMUGGLED)
        status, headers, body = await answer(client)
        assert (status, json.loads(body)["code"], headers["connection"]) == (400, "bad_request", ["close"]), data[:300]
        assert await client.rest() == b""
    assert not any(request.target == b"/smuggled" for request in backend.raw)
    # One that is found out in the middle of its body was under way, and never became whole.
    assert not any(b"abc" in request.body for request in backend.raw if request.target == b"/x")


@pytest.mark.parametrize(
    ("method", "status"), [(b"TRACE", 405), (b"CONNECT", 405), (b"TRACK", 200), (b"QUERY", 200), (b"PROPFIND", 200)]
)
async def test_methods(gate: Sidecar, backend: Backend, method: bytes, status: int) -> None:
    # P16: TRACE is never echoed, and a method that nobody knows is the backend's.
    reached = len(backend.raw)
    got, body = await exchange(gate.url, get(method=method))
    assert (got, b"Host" in body) == (status, False)
    assert [request.method for request in backend.raw[reached:]] == ([method] if status == 200 else [])


@pytest.mark.parametrize(
    "target",
    [
        # P20: what would end a line stays encoded.
        b"/%0d%0aX-User-Id:%20evil",
        b"/x?next=%0d%0aX-User-Id:%20evil",
        # P06, P07, P10, P13
        b"/public/%252e%252e/x",
        b"/x;y=1/z",
        b"/x?/public/",
        b"/%ef%bc%8e%ef%bc%8e/x",
    ],
)
async def test_a_target_that_may_pass_passes_byte_for_byte(gate: Sidecar, backend: Backend, target: bytes) -> None:
    request = await passed(gate, backend, get(target))
    assert request.target == target
    assert request.get_all(b"x-user-id") != [b"evil"]


@pytest.mark.parametrize("target", [b"/%", b"/%zz", b"/%e", b"/%u002e", b"/x%00", b"/%c0%ae%c0%ae/x"])
async def test_a_path_that_nobody_may_read_is_400(gate: Sidecar, backend: Backend, target: bytes) -> None:
    # P11, P12
    reached = len(backend.raw)
    assert (await exchange(gate.url, get(target)))[0] == 400
    assert len(backend.raw) == reached


@pytest.mark.parametrize("host", [b"A.B.Example.COM", b"a.", b"a:80", b"[::1]:8000"])
async def test_a_host_is_passed_as_it_came_and_decides_nothing(gate: Sidecar, backend: Backend, host: bytes) -> None:
    # H12
    request = await passed(gate, backend, get(host=host))
    assert request.get_all(b"host") == [host]


async def test_roles_are_the_tokens_however_often_a_client_names_others(gate: Sidecar, backend: Backend) -> None:
    # H14
    lines = (b"X-User-Roles: user, admin", b"X-User-Roles: admin", b"x_user_roles: admin")
    request = await passed(gate, backend, get(b"/x", *lines))
    assert request.get_all(b"x-user-roles") == [b""]
    assert request.get_all(b"x_user_roles") == []
    assert (await exchange(gate.url, get(b"/admin/sessions/active", *lines)))[0] == 403


BAD_LINES = [b"X: a\x00b", b"X: a\x01b", b"X: a\rb", b"X: a\x7fb", b"X\x00: a", b"X y: a", b"X : a", b"X: a\r\n b"]


async def _answer_badly(connection: RawConnection, request: RawRequest) -> None:
    line = BAD_LINES[int(request.target[1:])]
    await connection.write(b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 2\r\n\r\nok")


async def test_an_answer_with_a_bad_header_is_never_split(store: Store) -> None:
    # H18: refused, or without what is wrong with it.
    with Backend(_answer_badly) as bad, sidecar(bad.url, redis_url=store.url) as front:
        for number in range(len(BAD_LINES)):
            async with raw_client(front.url) as client:
                await client.send(get(b"/%d" % number, b"Connection: close"))
                told = await client.rest()
            head = told.partition(b"\r\n\r\n")[0]
            assert head.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 200 "))
            assert not any(byte in head.replace(b"\r\n", b"") for byte in b"\x00\x01\r\n\x7f")
            assert all(b": " in field and not field.startswith((b" ", b"\t")) for field in head.split(b"\r\n")[1:])


async def test_ranges_of_own_pages_cost_nothing(gate: Sidecar) -> None:
    # H20
    ranges = b"Range: bytes=" + b",".join([b"0-0"] * 1_000)
    for path in (b"/sessions/me", b"/_gatekeeper/openapi.json"):
        status, body = await exchange(gate.url, get(path, ranges))
        assert (status, body[:1]) in {(200, b"["), (200, b"{")}


async def test_a_body_is_never_the_next_request(gate: Sidecar, backend: Backend) -> None:
    # F09, F12, F13, F14
    expects = b"Expect: 100-continue"
    for method in (b"GET", b"DELETE", b"OPTIONS", b"POST"):
        length = b"Content-Length: %d" % len(SMUGGLED)
        request = await passed(gate, backend, get(b"/x", length, method=method) + SMUGGLED)
        assert request.body == SMUGGLED
        refused = get(b"/x", length, expects, method=method).replace(
            b"Authorization: Bearer ", b"Authorization: Bearer x"
        )
        async with raw_client(gate.url) as client:
            await client.send(refused)
            # At once, and without a 100.
            status, headers, _ = await answer(client)
            assert (status, headers["connection"]) == (401, ["close"])
            client.writer.write(SMUGGLED)
            assert await client.rest() == b""
    megabyte = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + SMUGGLED * 28_571
    async with raw_client(gate.url) as client:
        client.writer.write(megabyte + get(b"/after"))
        assert (await answer(client))[0] == 401
        assert b"HTTP/1.1 404" not in await client.rest()
    assert not any(request.target == b"/smuggled" for request in backend.raw)


async def test_a_request_that_breaks_off_never_becomes_whole(gate: Sidecar, backend: Backend) -> None:
    # F23
    body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    reached = len(backend.raw)
    for cut in range(len(body)):
        async with raw_client(gate.url) as client:
            await client.send(get(b"/cut", CHUNKED, method=b"POST") + body[:cut])
            client.writer.transport.abort()
    assert (await exchange(gate.url, get(b"/whole")))[0] == 200
    assert all(not request.body.endswith(b"0\r\n\r\n") for request in backend.raw[reached:])


async def test_an_upgrade_that_is_no_websocket_never_happens(gate: Sidecar, backend: Backend) -> None:
    # F18
    asked = (b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings")
    request = await passed(gate, backend, get(b"/x", *asked))
    assert not {b"upgrade", b"http2-settings", b"connection"} & {
        name for name, value in request.headers if (name, value) != (b"connection", b"keep-alive")
    }

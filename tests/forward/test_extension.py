"""What passes under a server that offers more than ASGI has: the target's own bytes, reasons, interim answers and
trailers. Under one that offers nothing, none of it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import HeaderList
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.web.respond import ResponseSender
from tests.forward.chain import CHUNKED
from tests.servers import OK, RecordingBackend, Script

OWN = frozenset({b"x-user-id", b"x-request-id"})


async def forwarded(
    backend: RecordingBackend,
    *,
    target: bytes = b"/",
    query: bytes | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: Sequence[dict[str, Any]] = (),
    offered: bool = True,
    version: str = "1.1",
    method: str = "GET",
) -> list[dict[str, Any]]:
    """The messages that a server gets for this request."""
    path, _, rest = target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "http_version": version,
        "raw_path": path,
        "query_string": rest if query is None else query,
        "headers": [(b"host", b"a"), *headers],
        "extensions": {"gatekeeper.http": {"target": target}, "http.response.trailers": {}} if offered else {},
    }
    told: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": b"", "more_body": False, **message} for message in body]

    async def receive() -> Any:
        if incoming:
            return incoming.pop(0)
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        told.append(message)

    upstream = Http1Upstream(backend.url)
    try:
        await Proxy(upstream, trusted_proxies=TrustedProxies([]), own_headers=OWN)(scope, receive, send)
    finally:
        await upstream.aclose()
    return told


async def answers_to(answer: bytes | Script, **how: Any) -> list[dict[str, Any]]:
    async with RecordingBackend(answer) as backend:
        return await forwarded(backend, **how)


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


# X23
@pytest.mark.parametrize("target", [b"/x?", b"/x", b"/x??", b"/%zz?a=%", b"*"])
async def test_the_target_is_the_clients_own(target: bytes) -> None:
    async with RecordingBackend() as backend:
        await forwarded(backend, target=target, method="OPTIONS")
        assert backend.requests[0].target == target


async def test_a_query_that_was_changed_stays_changed() -> None:
    async with RecordingBackend() as backend:
        await forwarded(backend, target=b"/x?token=secret&a=1", query=b"a=1")
        await forwarded(backend, target=b"/x?token=secret", query=b"")
        assert [request.target for request in backend.requests] == [b"/x?a=1", b"/x"]


# X17
@pytest.mark.parametrize(("line", "reason"), [(b"200 Fine, th\xe9n", b"Fine, th\xe9n"), (b"299", b""), (b"404 ", b"")])
async def test_the_reason_is_the_backends(line: bytes, reason: bytes) -> None:
    answer = b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % line

    assert (await answers_to(answer))[0]["reason"] == reason
    assert "reason" not in (await answers_to(answer, offered=False))[0]


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\nX-Request-Id: theirs\r\n\r\n"


# X03
async def test_interim_answers_reach_a_client_that_can_take_them() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS + b"HTTP/1.1 102 Processing\r\n\r\n" + OK
    messages = await answers_to(answer)

    assert messages[:2] == [
        {"type": "gatekeeper.http.informational", "status": 103, "headers": [(b"Link", b"</a>")]},
        {"type": "gatekeeper.http.informational", "status": 102, "headers": []},
    ]
    assert messages[2]["type"] == "http.response.start"
    for how in ({"offered": False}, {"version": "1.0"}):
        assert (await answers_to(answer, **how))[0]["type"] == "http.response.start"


TRAILED = CHUNKED + (
    b"2\r\nok\r\n0\r\nX-Sum: 1\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\nX-Request-Id: 1\r\nTrailer: x\r\n\r\n"
)
WANTED = [(b"te", b"gzip, Trailers")]


# X13, H06
async def test_trailers_reach_a_client_that_wants_them_and_no_other() -> None:
    async with RecordingBackend(TRAILED) as backend:
        messages = await forwarded(backend, headers=WANTED)
        assert messages[0]["trailers"] is True
        assert messages[-2:] == [
            {"type": "http.response.body", "body": b"", "more_body": False},
            {"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")], "more_trailers": False},
        ]
        assert backend.requests[0].get_all(b"te") == [b"trailers"]
        for how in ({}, {"headers": WANTED, "offered": False}):
            messages = await forwarded(backend, **how)  # type: ignore[arg-type]
            assert "trailers" not in messages[0]
            assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
            assert backend.requests[-1].get_all(b"te") == []


# X13, X01, X02
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", OK),
        ("HEAD", CHUNKED),
        ("GET", b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
async def test_no_trailers_are_promised_where_none_can_come(method: str, answer: bytes) -> None:
    messages = await answers_to(answer, headers=WANTED, method=method)

    assert "trailers" not in messages[0]
    assert messages[-1]["type"] == "http.response.body"


# H07, H02, rule 3.12
async def test_trailers_of_a_request_pass_but_for_what_could_be_read_as_gatekeepers() -> None:
    trailers: HeaderList = [
        (b"x-sum", b"1"),
        (b"x-user-id", b"admin"),
        (b"X_User.Id", b"admin"),
        (b"x-gatekeeper-degraded", b"1"),
        (b"x-request-id", b"1"),
        (b"authorization", b"Bearer x"),
        (b"proxy-authorization", b"Basic x"),
        (b"cookie", b"a=b"),
        (b"host", b"evil"),
        (b"content-length", b"3"),
        (b"content_length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"trailer", b"x"),
        (b"connection", b"close"),
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"x-original-url", b"/admin"),
        (b"x\xe9", b"1"),
        (b"x-sum", b"2"),
    ]
    body: list[dict[str, Any]] = [{"body": b"abc", "more_body": True}, {"trailers": trailers}]
    received = await _raw(method="POST", headers=[(b"transfer-encoding", b"chunked")], body=body)
    assert received.endswith(b"3\r\nabc\r\n0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n")


async def test_trailers_after_a_body_with_a_length_are_dropped() -> None:
    body = [{"body": b"abc", "more_body": True}, {"trailers": [(b"x-sum", b"1")]}]
    received = await _raw(method="POST", headers=[(b"content-length", b"3")], body=body)
    assert received.endswith(b"\r\n\r\nabc")


async def _raw(**how: Any) -> bytes:
    """All that a backend gets of a request."""
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not received.endswith((b"\r\n\r\nabc", b"2\r\n\r\n")):
            received.extend(await reader.read(65536))
        await asyncio.sleep(0.05)
        writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    backend = RecordingBackend()
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    messages = await forwarded(backend, **how)
    server.close()
    await server.wait_closed()
    assert messages[0]["status"] == 200
    return bytes(received)


async def test_the_middlewares_send_lets_all_of_it_through() -> None:
    class Exchange:
        request_id = "ours"
        status = 0
        bytes_out = 0

    passed: list[Any] = []

    async def send(message: Any) -> None:
        passed.append(message)

    messages = await answers_to(HINTS + TRAILED, headers=WANTED)
    reply = ResponseSender(send, Exchange())  # type: ignore[arg-type]
    for message in messages:
        await reply(message)

    assert kinds(passed) == kinds(messages)
    assert passed[0] == messages[0]
    assert passed[1] == {**messages[1], "headers": [*messages[1]["headers"], (b"x-request-id", b"ours")]}
    assert passed[-1] == messages[-1]

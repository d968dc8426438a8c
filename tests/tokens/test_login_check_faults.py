"""The login check fails on every unclear response: no login, and no second request."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.errors import UpstreamTimeout, UpstreamUnavailable
from gatekeeper.tokens.login_check import CheckedUser
from tests.servers import RawConnection, RawRequest, RecordingBackend, Script
from tests.tokens.login_server import CREDENTIALS, answer_to, check_at, http, trouble


@pytest.mark.parametrize(
    ("answer", "pointer"),
    [
        ({}, "/id"),
        ({"id": None}, "/id"),
        ({"id": ""}, "/id"),
        ({"id": " 7"}, "/id"),
        ({"id": "a\nb"}, "/id"),
        ({"id": "x" * 513}, "/id"),
        ({"id": True}, "/id"),
        ({"id": 7.0}, "/id"),
        ({"id": [7]}, "/id"),
        ({"id": {"id": 7}}, "/id"),
        ([7], "/id"),
        ([7], "/-"),
        ([7], "/1"),
        ([7], "/00"),
        ([7], "/-1"),
        ([7], "/+0"),
        ([7], "/٠"),
        ([7], "/" + "9" * 5000),
        ({"id": "abc"}, "/id/0"),
        (7.5, ""),
        (None, ""),
    ],
)
async def test_an_answer_without_a_usable_user_is_trouble(answer: Any, pointer: str) -> None:
    error = await trouble(http(answer), user_pointer=pointer)
    assert isinstance(error, UpstreamUnavailable)
    assert (error.kind, "has no usable user" in str(error)) == ("protocol", True)


async def test_claims_too_large_for_a_token_are_trouble() -> None:
    assert await answer_to(http({"id": 1, "roles": "x" * 4000}))
    error = await trouble(http({"id": 1, "roles": "x" * 5000}))
    assert "claims of over 4096 bytes" in str(error)


@pytest.mark.parametrize(
    "status",
    [
        "300 Multiple Choices",
        "304 Not Modified",
        "400 Bad Request",
        "402 Payment Required",
        "404 Not Found",
        "422 X",
        "429 X",
        "500 Oops",
        "503 X",
        "599 X",
    ],
)
async def test_another_status_is_trouble(status: str) -> None:  # J7
    body = b"" if status.startswith("304") else b'{"id": "74", "x": "LEAK"}'
    error = await trouble(http(body, status, length=len(body)))
    assert isinstance(error, UpstreamUnavailable)
    assert (error.kind, f"status {status[:3]}" in str(error)) == ("protocol", True)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 X", "308 X"])
async def test_a_redirect_is_not_followed(status: str) -> None:  # J7
    async with RecordingBackend(http({"id": "evil"})) as elsewhere:
        error = await trouble(http({"id": "74"}, status, f"Location: {elsewhere.url}/"))
        await asyncio.sleep(0.05)
        assert isinstance(error, UpstreamUnavailable)
        assert (error.kind, elsewhere.connections) == ("protocol", 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><p>LEAK",
        b"id=74",
        b'{"id": "74"',
        b'{"id": "74"} LEAK',
        b'{"id": "74", "id": "75"}',
        b'{"id": "\xff"}',
        b'\xef\xbb\xbf{"id": "74"}',
        b'{"id": "74", "x": NaN}',
        b'{"id": "\\ud800"}',
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"id": "74", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ],
)
async def test_a_body_that_is_no_strict_json_is_trouble(body: bytes) -> None:  # J7
    error = await trouble(http(body, "200 OK", "Content-Type: application/json"))
    assert isinstance(error, UpstreamUnavailable)
    assert (error.kind, "is not strict JSON" in str(error)) == ("protocol", True)


async def test_an_answer_without_a_body_is_trouble() -> None:
    assert isinstance(await trouble(b"HTTP/1.1 204 No Content\r\n\r\n"), UpstreamUnavailable)


async def test_a_compressed_answer_is_trouble() -> None:
    for encoding in ("gzip", "br", "identity, gzip"):
        error = await trouble(http({"id": "74"}, "200 OK", f"Content-Encoding: {encoding}"))
        assert "compressed" in str(error)
    assert await answer_to(http({"id": "74"}, "200 OK", "Content-Encoding: Identity"))


async def test_an_answer_over_64_kib_is_cut() -> None:  # D08
    start, end = b'{"id": "74", "x": "', b'"}'
    exact = start + b"x" * (65_536 - len(start) - len(end)) + end
    assert await answer_to(http(exact)) == CheckedUser("74", {})
    assert "is over 65536 bytes" in str(await trouble(http(exact + b" ")))
    sent = 0

    async def ten_megabytes(connection: RawConnection, _request: RawRequest) -> None:
        nonlocal sent
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(160):
            await connection.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            sent += 1
        await connection.write(b"0\r\n\r\n")

    assert "is over 65536 bytes" in str(await trouble(ten_megabytes))
    assert sent < 160, "the connection was not closed at the bound"


async def silent(connection: RawConnection, _request: RawRequest) -> None:
    await connection.gone()


async def dripping(connection: RawConnection, _request: RawRequest) -> None:
    # Each byte comes in time for a time-out of silence.
    for byte in http({"id": "74", "x": "x" * 1000}):
        await connection.write(bytes([byte]))
        await asyncio.sleep(0.02)


async def silent_body(connection: RawConnection, _request: RawRequest) -> None:
    await connection.write(http(b'{"id": "7', length=500))
    await connection.gone()


@pytest.mark.parametrize("script", [silent, dripping, silent_body])
async def test_one_deadline_bounds_the_whole_call(script: Script) -> None:  # J7
    began = time.monotonic()
    error = await trouble(script, timeout_seconds=0.3)
    assert isinstance(error, UpstreamTimeout)
    assert time.monotonic() - began > 0.25
    assert "within 0.3 s" in str(error)


async def hang_up(connection: RawConnection, _request: RawRequest) -> None:
    connection.close()


async def reset(connection: RawConnection, _request: RawRequest) -> None:
    connection.reset()


async def half_a_head(connection: RawConnection, _request: RawRequest) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    connection.close()


async def half_a_body(connection: RawConnection, _request: RawRequest) -> None:
    await connection.write(http(b'{"id": "74"}', length=500))
    connection.close()


@pytest.mark.parametrize("script", [hang_up, reset, half_a_head, half_a_body])
async def test_a_connection_that_ends_early_is_trouble_and_not_tried_again(script: Script) -> None:  # J7
    error = await trouble(script)
    assert isinstance(error, UpstreamUnavailable)
    assert error.kind == "reset"


@pytest.mark.parametrize(
    "garbage",
    [
        b"LEAK\r\n\r\n",
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nLEAK!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nLEAK\r\n",
    ],
)
async def test_an_answer_that_is_no_http_is_trouble(garbage: bytes) -> None:
    error = await trouble(garbage)
    assert isinstance(error, UpstreamUnavailable)
    assert error.kind == "protocol"


async def test_nobody_listening_is_trouble_of_the_connection(tmp_path: Path) -> None:
    async with RecordingBackend() as backend:
        pass
    for check in (check_at(backend.url), check_at("http://backend/", uds=str(tmp_path / "none.sock"))):
        with pytest.raises(UpstreamUnavailable) as caught:
            await check.check(CREDENTIALS)
        assert caught.value.kind == "connect"
        await check.aclose()

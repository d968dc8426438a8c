"""curl, with every option that changes how a message is framed: directly and through the sidecar the backend is sent
the same and curl prints the same, but for what Gatekeeper adds (rule 3.13)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers import RawConnection, RawRequest
from tests.system.sidecar import Backend, Sidecar, Store, sidecar, someone, token
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")

ADDED = {
    *(b"x-request-id", b"x-user-id", b"x-session-id", b"x-user-roles", b"x-real-ip"),
    *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port"),
}
# Of one connection (RFC 9110 section 7.6.1), or how its messages are delimited.
OF_A_HOP = {b"connection", b"te", b"upgrade", b"http2-settings", b"transfer-encoding", b"content-length"}
ZIPPED = bytes.fromhex("1f8b08000000000000134b4c4a060 0c2412435 03000000".replace(" ", ""))


async def answering(connection: RawConnection, request: RawRequest) -> None:
    """In the framing that the path says, with the end that HTTP/1.1 or 1.0 has."""
    path = request.target.partition(b"?")[0]
    ranged = request.get_all(b"range")
    if request.get_all(b"expect") and not request.body:
        await connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if path == b"/chunked":
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    elif path == b"/gzip":
        answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(ZIPPED) + ZIPPED
    elif path == b"/close":
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"
    elif path == b"/moved":
        answer = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
    elif path == b"/none":
        answer = b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"
    elif ranged == [b"bytes=2-5"]:
        answer = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-5/11\r\nContent-Length: 4\r\n\r\nllo "
    else:
        answer = b"HTTP/1.1 200 Fine\r\nETag: x\r\nContent-Length: 11\r\n\r\nhello world"
    if request.method == b"HEAD":
        answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    await connection.write(answer)
    if path == b"/close":
        connection.close()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(answering) as running:
        yield running


@pytest.fixture(scope="module")
def gate(store: Store, backend: Backend) -> Iterator[Sidecar]:
    with sidecar(backend.url, redis_url=store.url) as running:
        yield running


class Reached(NamedTuple):
    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Run(NamedTuple):
    """What curl printed, with its exit code, and what the backend was sent."""

    code: int
    status_lines: list[bytes]
    headers: list[bytes]
    body: bytes
    connects: bytes
    reached: list[Reached]


def content(request: RawRequest) -> bytes:
    """Of a body, whatever its framing."""
    if b"chunked" not in request.get_all(b"transfer-encoding"):
        return request.body
    joined, rest = b"", request.body
    while size := int(rest.partition(b"\r\n")[0], 16):
        rest = rest.partition(b"\r\n")[2]
        joined, rest = joined + rest[:size], rest[size + 2 :]
    return joined


def curl(url: str, backend: Backend, bearer: str, arguments: list[str], directory: Path) -> Run:
    before = len(backend.raw)
    (directory / "file").write_bytes(b"x" * 2_000_000)
    (directory / "small").write_bytes(b"content")
    command = ["curl", "-sS", "-m", "90", "-D", "head", "-w", "%{stderr}%{num_connects} ", "-H", "Host: api.example"]
    command += ["-H", f"Authorization: Bearer {bearer}", *(part.replace("{url}", url) for part in arguments)]
    done = subprocess.run(command, cwd=directory, capture_output=True, timeout=START_SECONDS, check=False)
    lines = (directory / "head").read_bytes().split(b"\r\n")
    headers = [line.partition(b":")[0].lower() + b":" + line.partition(b":")[2] for line in lines if b": " in line]
    dropped = (*OF_A_HOP, b"date", b"x-request-id")
    reached = [
        Reached(
            request.head.partition(b"\r\n")[0],
            [pair for pair in request.headers if pair[0] not in ADDED | OF_A_HOP],
            re.sub(rb"-{20,}[0-9a-zA-Z]+", b"<boundary>", content(request)),
        )
        for request in backend.raw[before:]
    ]
    return Run(
        done.returncode,
        # Whether 100 comes before the client gives up waiting for it is a matter of time.
        [line for line in lines if line.startswith(b"HTTP/") and b" 100 " not in line],
        [line for line in headers if line.partition(b":")[0] not in dropped],
        done.stdout,
        done.stderr,
        [each._replace(headers=[(k, v.partition(b"boundary=")[0]) for k, v in each.headers]) for each in reached],
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "{url}/",
        "--http1.0 {url}/",
        "--http1.0 {url}/close",
        "--http1.1 {url}/chunked",
        "--http2 {url}/",
        "--http2 -T small {url}/",
        "-I {url}/",
        "-I {url}/chunked",
        "-I {url}/none",
        "{url}/none",
        "{url}/close",
        "{url}/ {url}/chunked {url}/none {url}/",
        "-H Transfer-Encoding:chunked -T small {url}/",
        "-H Transfer-Encoding:chunked -T file {url}/",
        "-H Transfer-Encoding:chunked --data-binary @file {url}/",
        "-T small {url}/",
        "-T file {url}/",
        "-H Expect: -T file {url}/",
        "-H Expect:100-continue -T small {url}/",
        "-H Expect:100-continue -H Transfer-Encoding:chunked -T small {url}/",
        "--http1.0 -T small {url}/",
        "-F a=b -F c=@small {url}/",
        "-F a=b -F c=@file {url}/",
        "-F a=b -H Transfer-Encoding:chunked {url}/",
        "-d a=b&c=d {url}/",
        "--data-binary @file {url}/",
        "-d  {url}/",
        "-G -d a=b --data-urlencode c=ü& {url}/",
        "--compressed {url}/gzip",
        "{url}/gzip",
        "--tr-encoding {url}/chunked",
        "--raw {url}/chunked",
        "--raw {url}/",
        "--ignore-content-length {url}/close",
        "-r 2-5 {url}/",
        "-r 0-0,5- {url}/",
        "-C 5 {url}/",
        "-X DELETE {url}/",
        "-X DELETE -d body {url}/",
        "-X GET -d body {url}/",
        "-X PROPFIND -H Depth:1 -d <a/> {url}/",
        "-X OPTIONS {url}/",
        "-X POST {url}/",
        "--request-target * -X OPTIONS {url}/",
        "--path-as-is {url}/a/../b/./c//d",
        "{url}/a%20b?c=%2F&d",
        "{url}/?",
        "-L -d body {url}/moved",
        "-L {url}/moved",
        "-H Connection:close {url}/",
        "-H TE:trailers {url}/chunked",
        "-H X-Empty; -H X: {url}/",
        "--no-keepalive {url}/ {url}/",
        "-z 2030-01-01 {url}/",
        "-b a=b -e http://r.example/ -A agent {url}/",
    ],
)
def test_curl_sees_and_is_seen_the_same(gate: Sidecar, backend: Backend, tmp_path: Path, arguments: str) -> None:
    bearer = token(someone())
    words = arguments.split(" ")
    direct = curl(backend.url, backend, bearer, words, tmp_path)
    # Once as a token that is new, and once more.
    for _ in range(2):
        through = curl(gate.url, backend, bearer, words, tmp_path)
        # A connection is HTTP/1.1 on this side, whatever it is on the other, and closes when this side says so.
        one_point_one = [each._replace(line=each.line.replace(b"HTTP/1.0", b"HTTP/1.1")) for each in direct.reached]
        assert through.reached == one_point_one
        assert through.body == direct.body or words[0] in {"-I", "--raw"}
        assert (through.code, through.status_lines, through.headers) == direct[:3]
        if "/close" not in arguments and "1.0" not in arguments:
            assert through.connects == direct.connects

"""What the front answers itself, and who words it."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from typing import TypeAlias

import msgspec

from gatekeeper.http.headers import HeaderList
from gatekeeper.http.types import Scope
from gatekeeper.server.exchange import status_line


class RejectedRequest(msgspec.Struct, frozen=True):
    """A request that the front answers itself; the connection ends with it.

    `status` is 400, 405, 408, 413, 414, 426 or 431, and 500 for an application that failed without an answer; `detail`
    says what is wrong, in English. `method` and `target` are empty where the request line was not whole; `headers` are
    those of its lines that were well-formed, names lower-case: to word the answer by, never to decide by. `scope` is
    the application's where it has this request too; it is told that its client left, and logs it by itself.
    """

    status: int
    detail: str
    method: str
    target: bytes
    headers: HeaderList
    client: tuple[str, int] | None
    scope: Scope | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The words of an answer: what is not framing. `Content-Length`, `Connection`, a missing `Date` and the headers
    that a status needs (`Allow`, `Sec-WebSocket-Version`) are added to it."""

    headers: HeaderList
    body: bytes


RenderError: TypeAlias = Callable[[RejectedRequest], ErrorResponse]
"""Words a refusal. Called once for each, so it may count and log; it must not block."""


def serialize_error(status: int, headers: HeaderList, body: bytes, *, head_only: bool) -> bytes:
    """A whole answer, the last of its connection."""
    if all(name.lower() != b"date" for name, _ in headers):
        # RFC 9110 section 6.6.1: whoever makes an answer and has a clock dates it.
        headers = [*headers, (b"date", formatdate(usegmt=True).encode())]
    lines = [b"%b: %b\r\n" % header for header in headers]
    framing = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return b"".join((status_line(status), *lines, framing, b"" if head_only else body))

"""The body of a request for one of Gatekeeper's own operations: empty, or a small JSON object or form."""

from __future__ import annotations

from collections import deque
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from gatekeeper.errors import Reason
from gatekeeper.http.headers import Headers, get
from gatekeeper.http.types import Message, Receive
from gatekeeper.models import Problem

_MOST_BYTES: Final = 64 * 1024
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Replay:
    """A body of which a part was read: a `Receive` that gives all of it. `content` is what was read."""

    def __init__(self, receive: Receive, taken: deque[Message], content: bytes) -> None:
        self._receive = receive
        self._taken = taken
        self.content = content

    async def __call__(self) -> Message:
        return self._taken.popleft() if self._taken else await self._receive()


async def read_beginning(receive: Receive, most_bytes: int) -> Replay:
    """Read a body, or the beginning of one over the bound."""
    taken: deque[Message] = deque()
    content = bytearray()
    more = True
    while more and len(content) <= most_bytes:
        message = await receive()
        taken.append(message)
        content += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return Replay(receive, taken, bytes(content))


async def read_object(receive: Receive, headers: Headers) -> dict[str, Any] | Problem:
    """Read the members of a JSON object; empty for an empty body. The body is bounded before it is read, and never
    inflated."""
    content = await _read(receive, headers, kind=b"application/json")
    if isinstance(content, Problem) or not content:
        return content or {}
    try:
        return _decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Problem(reason=Reason.BAD_REQUEST, detail=_NOT_JSON)


async def read_form(receive: Receive, headers: Headers) -> dict[str, list[str]] | Problem:
    """Read the fields of a form, each with all its values (RFC 6749 appendix B); empty for an empty body."""
    content = await _read(receive, headers, kind=b"application/x-www-form-urlencoded")
    if isinstance(content, Problem):
        not_a_form = content.reason is Reason.UNSUPPORTED_MEDIA_TYPE
        return Problem(reason=content.reason, detail=_NOT_A_FORM, headers=content.headers) if not_a_form else content
    try:
        return parse_qs(content.decode("ascii"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return Problem(reason=Reason.BAD_REQUEST, detail=_NOT_A_FORM)


async def _read(receive: Receive, headers: Headers, *, kind: bytes) -> bytes | Problem:
    length = get(headers, b"content-length")
    if get(headers, b"transfer-encoding") is None and length in {None, b"0"}:
        return b""
    if length is not None and length.isdigit() and int(length[:20]) > _MOST_BYTES:
        return Problem(reason=Reason.BODY_TOO_LARGE)
    content = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return Problem(reason=Reason.BAD_REQUEST, detail=_NOT_JSON)
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > _MOST_BYTES:
            return Problem(reason=Reason.BODY_TOO_LARGE)
    if not content:
        return b""
    declared = (get(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    wanted = [] if declared == kind else [(b"accept", kind)]
    if get(headers, b"content-encoding") not in {None, b"identity"}:
        # Only where the coding is a reason (RFC 9110 section 12.5.3).
        wanted.append((b"accept-encoding", b"identity"))
    return Problem(reason=Reason.UNSUPPORTED_MEDIA_TYPE, headers=tuple(wanted)) if wanted else bytes(content)


_NOT_JSON: Final = "The body must be a JSON object"
_NOT_A_FORM: Final = "The body must be application/x-www-form-urlencoded, not compressed"

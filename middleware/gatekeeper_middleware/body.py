"""The body of a request for one of Gatekeeper's own operations: nothing, or a small JSON object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from gatekeeper.dialects.base import Problem
from gatekeeper.errors import Reason
from gatekeeper.headers import Headers, get

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MOST_BYTES: Final = 64 * 1024
_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def read_object(receive: Receive, headers: Headers) -> dict[str, Any] | Problem:
    """The members of the body; empty where there is none. Bounded before it is read, never inflated."""
    length = get(headers, b"content-length")
    if get(headers, b"transfer-encoding") is None and length in {None, b"0"}:
        return {}
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
        return {}
    kind = (get(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" or get(headers, b"content-encoding") not in {None, b"identity"}:
        return Problem(reason=Reason.UNSUPPORTED_MEDIA_TYPE)
    try:
        return _decode(bytes(content))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Problem(reason=Reason.BAD_REQUEST, detail=_NOT_JSON)


_NOT_JSON: Final = "The body must be a JSON object"

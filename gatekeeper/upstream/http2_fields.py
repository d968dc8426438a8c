"""The fields of requests and responses over HTTP/2."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from gatekeeper.http import grammar
from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.response_parser import MAX_FIELDS, MAX_HEAD_BYTES, ResponseHead

_LENGTH = re.compile(grammar.DECIMAL)
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# RFC 9113 section 8.2.2; of `te`, `trailers` may stay. `Host` becomes `:authority`.
_LEFT_OUT: Final = _OF_A_CONNECTION | {b"host", b"te"}


def fields_of(head: bytes, scheme: bytes) -> HeaderList:
    """Return the fields of a request whose head was written for HTTP/1.1, pseudo-header fields first."""
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.split(b" ")
    authority = b""
    fields = []
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"host":
            authority = value
        elif name not in _LEFT_OUT:
            fields.append((name, value))
        elif name == b"te" and value.lower() == b"trailers":
            fields.append((b"te", b"trailers"))
    pseudo = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", target)]
    return pseudo + fields


def head_of(fields: HeaderList, *, is_all: bool) -> ResponseHead | None:
    """Return the head of a response, None if HTTP/2 does not allow it. `is_all`: nothing follows."""
    (name, status), *rest = fields or [(b"", b"")]
    lengths = [value for field, value in rest if field == b"content-length"]
    is_sound = (
        name == b":status"
        and _STATUS.fullmatch(status) is not None
        and status != b"101"
        and is_valid(rest)
        and len(lengths) <= 1
        and all(_LENGTH.fullmatch(length) for length in lengths)
    )
    if not is_sound:
        return None
    length = int(lengths[0]) if lengths else None
    return ResponseHead(
        int(status), _reason(int(status)), rest, length, not (lengths or is_all), keeps_alive=True, is_shared=False
    )


def is_valid(headers: HeaderList) -> bool:
    """Tell whether HTTP/2 allows these fields in a response (RFC 9113 section 8.2) and their number is within the
    limit."""
    # As HTTP/1 has it, line ends included.
    size_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    return (
        size_bytes <= MAX_HEAD_BYTES
        and len(headers) <= MAX_FIELDS
        and all(
            is_token(name) and name == name.lower() and name not in _OF_A_CONNECTION and is_field_value(value)
            for name, value in headers
        )
    )


def _reason(status: int) -> bytes:
    """Return the registered phrase: HTTP/2 has no reason phrases."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""

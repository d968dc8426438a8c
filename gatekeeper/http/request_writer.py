"""Serializer for requests to the backend (RFC 9112). Pure.

The framing is always Gatekeeper's own: one `Content-Length` in plain decimal digits or `Transfer-Encoding: chunked`,
never both, and chunks of its own size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from gatekeeper.errors import GatekeeperError, Reason
from gatekeeper.http import grammar
from gatekeeper.http.grammar import is_field_value, is_token
from gatekeeper.http.headers import Headers

LAST_CHUNK: Final = b"0\r\n\r\n"

_LENGTH: Final = re.compile(grammar.DECIMAL)
_TARGET: Final = re.compile(grammar.VISIBLE)
_INTERPRETED: Final = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})


class RequestNotForwardable(GatekeeperError):
    """A request that the server accepted and HTTP/1.1 does not allow to send: the client's fault, not the backend's.
    The message is for the client and quotes no part of the request."""

    reason = Reason.BAD_REQUEST

    def __init__(self) -> None:
        super().__init__("The request has a header or a body that HTTP does not allow")


class SerializedHead(NamedTuple):
    """The head of a request in bytes. `length` is that of the body: None for chunks, 0 without a body. `expects` is
    true if the body waits for `100 Continue`."""

    head: bytes
    length: int | None
    expects: bool


def serialize_head(
    method: str,
    target: bytes,
    headers: Headers,
    *,
    authority: bytes,
    has_body: bool,
    names: Sequence[bytes] | None = None,
) -> SerializedHead:
    """Serialize the head of a request. `authority` is the `Host` where there is none: HTTP/1.0 clients may omit it,
    HTTP/1.1 requests may not (RFC 9112 section 3.2). `names` are those of
    `headers` as they are written. Raises RequestNotForwardable."""
    lines = [b"", b"", b""]
    length: int | None = None
    has_host = expects = False
    for (name, value), written in zip(headers, names or [name for name, _ in headers], strict=True):
        if name in _INTERPRETED:
            if name == b"host":
                has_host = True
            elif name == b"expect":
                expects = has_body and value.lower() == b"100-continue"
            else:
                length = _length(name, value, length)
                value = b"%d" % length
        lines += (written, b": ", value, b"\r\n")
    if not has_host:
        lines[2] = b"Host: %b\r\n" % authority
    if has_body and length is None:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    elif not has_body and length:
        raise RequestNotForwardable
    _check(method, target, headers)
    lines[0] = b"%b %b" % (method.encode("ascii"), target)
    lines[1] = b" HTTP/1.1\r\n"
    lines.append(b"\r\n")
    return SerializedHead(b"".join(lines), length if has_body else 0, expects)


def chunk(data: bytes) -> bytes:
    """Return one chunk; `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Headers) -> bytes:
    """Return the end of a chunked body with its trailers. Raises RequestNotForwardable."""
    if not trailers:
        return LAST_CHUNK
    _check_fields(trailers)
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in trailers) + b"\r\n"


def _length(name: bytes, value: bytes, before: int | None) -> int:
    if name != b"content-length" or before is not None or not _LENGTH.fullmatch(value):
        raise RequestNotForwardable
    return int(value)


def _check(method: str, target: bytes, headers: Headers) -> None:
    # After CONNECT the connection is a tunnel (RFC 9110 section 9.3.6).
    if not method.isascii() or not is_token(method.encode()) or method == "CONNECT" or not _TARGET.fullmatch(target):
        raise RequestNotForwardable
    _check_fields(headers)


def _check_fields(headers: Headers) -> None:
    names = [name for name, _ in headers]
    # All names joined, then all values joined: one check each instead of one a field.
    if b"" in names or not is_token(b"".join(names) or b"-"):
        raise RequestNotForwardable
    if not is_field_value(b"".join([value for _, value in headers])):
        raise RequestNotForwardable

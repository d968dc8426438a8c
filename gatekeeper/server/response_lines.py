"""The lines of a response's head, and of what goes before and after it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from gatekeeper.http.grammar import is_field_value, is_token


class Framing(Enum):
    """The way in which the end of a response is marked (RFC 9112 section 6.3)."""

    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "close"
    NONE = "no body"


# Read often, and slow as attributes of an Enum.
LENGTH, CHUNKED, CLOSE, NO_BODY = Framing

OF_THE_CONNECTION: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})


def status_line(status: int, reason: bytes | None = None) -> bytes:
    """Return the first line of a response, with `reason`, else with the registered phrase or none."""
    if reason is None:
        try:
            reason = HTTPStatus(status).phrase.encode()
        except ValueError:
            reason = b""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


@lru_cache(maxsize=128)
def first_line(status: int, reason: bytes | None) -> bytes:
    """Return the status line for values of an application. Raises RuntimeError for invalid ones."""
    if not HTTPStatus.OK <= status < 600:
        raise RuntimeError(f"The status of a response must be 200 to 599, not {status}.")
    if reason is not None and not is_field_value(reason):
        raise RuntimeError("Invalid reason phrase in a response.")
    return status_line(status, reason)


def response_head_lines(status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return status line and header lines of a response whose head was parsed strictly, for
    `Exchange.send_full_response`."""
    return b"".join((first_line(status, reason), *[b"%b: %b\r\n" % pair for pair in headers]))


def section_lines(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """Yield the lines of interim responses and trailers, without fields about the connection."""
    for name, value in headers:
        if not is_token(name) or not is_field_value(value):
            raise RuntimeError("Invalid header name or value in a response.")
        if name.lower() not in OF_THE_CONNECTION:
            yield b"%b: %b\r\n" % (name, value)

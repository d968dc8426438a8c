"""Parsers for the bodies of requests. Pure; a malformed body raises `RequestRejected`."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, Protocol

from gatekeeper.http.grammar import FIELD_VALUE
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.request_head import (
    HEADERS_TOO_LARGE,
    TOO_MANY_HEADERS,
    Limits,
    RequestHead,
    RequestRejected,
    check_unfinished,
    parse_trailer,
)

# RFC 9112 section 7.1. No whitespace after the size, which recipients read differently; 16 digits are 64 bits.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;%b)?" % FIELD_VALUE)
_SIZE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,16}|[0-9A-Fa-f]{1,16}(?:;%b)?\r?" % FIELD_VALUE)
# As Go's net/http: lines of 4 KiB, and 16 KiB of framing beyond that of chunks of a decent size (CVE-2023-39326).
_MAX_SIZE_LINE_BYTES: Final = 4096
_MAX_EXCESS_BYTES: Final = 16 * 1024
_DECENT_OVERHEAD_BYTES: Final = 16

BODY_TOO_LARGE: Final = "The body is too large"
_BAD_CHUNK: Final = "A chunk of the body is malformed"


class Body(Protocol):
    """A body that is being received. `complete` is true once all of it was read; `remaining_bytes` are known to follow;
    `trailers` are those read so far."""

    trailers: HeaderList

    @property
    def complete(self) -> bool: ...

    @property
    def remaining_bytes(self) -> int: ...

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of `data` that belongs to the body, without framing, and the bytes that follow the body.
        Raises `RequestRejected`."""


class SizedBody:
    """A body with `Content-Length`."""

    __slots__ = ("remaining_bytes", "trailers")

    def __init__(self, length: int) -> None:
        self.remaining_bytes = length
        self.trailers: HeaderList = []

    @property
    def complete(self) -> bool:
        return not self.remaining_bytes

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        remaining = self.remaining_bytes
        if len(data) <= remaining:
            self.remaining_bytes = remaining - len(data)
            return data, b""
        self.remaining_bytes = 0
        return data[:remaining], data[remaining:]


class _Next(Enum):
    SIZE = "size"
    DATA_END = "data end"
    TRAILER = "trailer"
    NOTHING = "nothing"


# Looked up for every chunk, and costly as attributes of an Enum.
_SIZE, _DATA_END, _TRAILER, _NOTHING = _Next


class ChunkedBody:
    """A chunked body. Extensions are bounded and dropped. Trailers count with the headers of their request towards both
    limits and are kept apart from them, because they arrive after the decision (RFC 9110 section 6.5.1)."""

    __slots__ = (
        "_excess",
        "_fields",
        "_held",
        "_limits",
        "_next",
        "_section_bytes",
        "_total",
        "remaining_bytes",
        "trailers",
    )

    def __init__(self, head: RequestHead, limits: Limits) -> None:
        self._limits = limits
        self._section_bytes = head.size_bytes
        self._fields = len(head.headers)
        self._next = _SIZE
        self._held = b""
        self._excess = 0
        self._total = 0
        self.remaining_bytes = 0  # of the chunk being read
        self.trailers: HeaderList = []

    @property
    def complete(self) -> bool:
        return self._next is _NOTHING

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._held:
            data = self._held + data
        at = 0
        parts: list[bytes] = []
        while (step := self._step(data, at, parts)) is not None:
            at = step
        rest = data[at:]
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self.complete:
            self._held = b""
            return body, rest
        self._held = rest
        return body, b""

    def _step(self, data: bytes, at: int, parts: list[bytes]) -> int | None:
        """Read one element at `at`. Return the place after it, or None if more data is needed."""
        if self._next is _NOTHING:
            return None
        if self.remaining_bytes:
            piece = data[at : at + self.remaining_bytes]
            if not piece:
                return None
            parts.append(piece)
            self.remaining_bytes -= len(piece)
            return at + len(piece)
        if self._next is _DATA_END:
            return self._end_data(data, at)
        end = data.find(b"\r\n", at)
        if end < 0:
            self._check_part(data[at:])
            return None
        if self._next is _SIZE:
            self._begin_chunk(data[at:end])
        else:
            self._take_trailer(data[at:end])
        return end + 2

    def _end_data(self, data: bytes, at: int) -> int | None:
        mark = data[at : at + 2]
        if mark == b"\r\n":
            self._next = _SIZE
            return at + 2
        if mark in {b"", b"\r"}:
            return None
        raise RequestRejected(400, _BAD_CHUNK)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > _MAX_SIZE_LINE_BYTES:
            raise RequestRejected(400, _BAD_CHUNK)
        size = int(match[1], 16)
        if size == 0:
            self._next = _TRAILER
            return
        self._excess = max(0, self._excess + len(line) + 2 - _DECENT_OVERHEAD_BYTES - 2 * size)
        if self._excess > _MAX_EXCESS_BYTES:
            raise RequestRejected(400, "The body is more framing than content")
        self._total += size
        if self._limits.max_body_bytes is not None and self._total > self._limits.max_body_bytes:
            raise RequestRejected(413, BODY_TOO_LARGE)
        self.remaining_bytes = size
        self._next = _DATA_END

    def _take_trailer(self, line: bytes) -> None:
        self._section_bytes += len(line) + 2
        if self._section_bytes > self._limits.max_header_bytes:
            raise RequestRejected(431, HEADERS_TOO_LARGE)
        if not line:
            self._next = _NOTHING
            return
        self.trailers.append(parse_trailer(line))
        self._fields += 1
        if self._fields > self._limits.max_headers:
            raise RequestRejected(431, TOO_MANY_HEADERS)

    def _check_part(self, line: bytes) -> None:
        """Check a line whose end has not arrived: raise if it cannot become valid."""
        if self._next is _TRAILER:
            check_unfinished(line)
            if self._section_bytes + len(line) > self._limits.max_header_bytes:
                raise RequestRejected(431, HEADERS_TOO_LARGE)
        elif len(line) > _MAX_SIZE_LINE_BYTES or not _SIZE_SO_FAR.fullmatch(line):
            raise RequestRejected(400, _BAD_CHUNK)

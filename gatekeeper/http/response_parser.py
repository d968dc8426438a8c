"""A strict parser for the responses of a backend (RFC 9112). Pure: no socket, no clock.

The bytes after one response belong to the next, which may be another client's. Therefore every byte has one reading,
and everything that could have two is an error: two lengths, a length beside `Transfer-Encoding`, a line that ends in a
bare CR or LF, folding, control characters, a space before the colon.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol, TypeVar, cast

import msgspec

from gatekeeper.http import grammar
from gatekeeper.http.grammar import FIELD_VALUE, is_field_value, is_token
from gatekeeper.http.headers import HeaderList

MAX_HEAD_BYTES: Final = 64 * 1024
"""The size limit of one head, and of the trailers."""
MAX_FIELDS: Final = 200
MAX_INFORMATIONAL: Final = 1000
"""The most interim responses (1xx) before the final one. More is a flood; a backend that works for an hour may well
send some hundreds."""

_MAX_SIZE_LINE_BYTES: Final = 4096

# The space after the status belongs there even without a reason (RFC 9112 section 4), and is often left out.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (" + FIELD_VALUE + rb"))?+")
_HEAD_START: Final = b"HTTP/1."
_NO_OPTIONS: Final[frozenset[bytes]] = frozenset()
_LENGTH = re.compile(grammar.CANONICAL_DECIMAL)
# Blanks that some backends pad a size with, only right before the line end.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;" + FIELD_VALUE + rb")?[\t ]*")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:.*[,; \t])?timeout[ \t]*=[ \t]*\"?([0-9]{1,6})\"?(?:[,; \t].*)?", re.IGNORECASE)
# A request must not cross with the close of the connection that it is sent on (RFC 9112 section 9.3.1).
_KEEP_ALIVE_MARGIN_SECONDS: Final = 0.5

_FRAMING: Final = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})
_BODILESS: Final = frozenset({204, 304})

# A backend repeats most lines, and under load entire heads, whose date is the same for a second. Results are cached, a
# few megabytes at most. A full cache is emptied: what is still in use soon returns.
_MAX_SHARED: Final = 512
_MAX_SHARED_BYTES: Final = 1024
_status_lines: Final[dict[bytes, tuple[bytes, int, bytes]]] = {}
# Each line with its field, and whether that concerns the framing.
_fields: Final[dict[bytes, tuple[tuple[bytes, bytes], bool]]] = {}
_heads: Final[dict[bytes, ResponseHead]] = {}
_T = TypeVar("_T")


class BadResponse(Exception):
    """Bytes that are not a response, or that could be read in two ways. The text quotes none of them."""


class ResponseHead(msgspec.Struct, frozen=True, eq=False):
    """The head of a response. `headers` are as received; `reason` may be empty; `length` is the
    value of `Content-Length`, None without one; `keeps_alive` is true if the connection may serve another request, and
    `idle_seconds` is how long it may be kept for that by the backend's word, None without one.

    One object stands for all responses whose heads have the same bytes, so nothing in it may be changed. It is compared
    by identity and can be the key of a cache, but only where `is_shared` is true: a head that is too large to be
    remembered is a new object for every response.
    """

    status: int
    reason: bytes
    headers: HeaderList
    length: int | None
    is_chunked: bool
    keeps_alive: bool
    is_shared: bool
    idle_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<Head {self.status}>"

    @property
    def is_bodiless(self) -> bool:
        """Tell whether no body follows, whatever the request and the head say (RFC 9112 section 6.3)."""
        return self.status in _BODILESS


class ParserCallbacks(Protocol):
    """The receiver of what a `ResponseParser` reads. Each method may call `ResponseParser.stop`. `on_end` and
    `on_full_response` are the last call for a response."""

    def on_informational(self, head: ResponseHead) -> None: ...

    def on_head(self, head: ResponseHead) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self, trailers: HeaderList) -> None: ...

    def on_full_response(self, head: ResponseHead, body: bytes) -> None:
        """Called instead of all others for a response that arrived in one piece, as most do: with a `Content-Length`,
        or in chunks without trailers. `body` is not empty."""


def parse_head(block: bytes) -> ResponseHead:
    """Parse `block`, a head with its empty line. Raises BadResponse."""
    return _heads.get(block) or _cache(_heads, block, _parse_head(block))


def _parse_head(block: bytes) -> ResponseHead:
    lines = block.split(b"\r\n")
    minor, status, reason = _status_lines.get(lines[0]) or _cache(_status_lines, lines[0], _parse_status(lines[0]))
    fields = _parse_fields(lines[1:-2])
    is_shared = len(block) <= _MAX_SHARED_BYTES
    framing = _framing if is_shared else _framing.__wrapped__
    length, is_chunked, keeps_alive, idle_seconds = framing(minor, tuple([each[0] for each in fields if each[1]]))
    headers = [each[0] for each in fields]
    return ResponseHead(status, reason, headers, length, is_chunked, keeps_alive, is_shared, idle_seconds)


def _parse_status(line: bytes) -> tuple[bytes, int, bytes]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadResponse("a malformed head")
    return match[1], int(match[2]), match[3] or b""


@lru_cache(maxsize=_MAX_SHARED)
def _framing(minor: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> tuple[int | None, bool, bool, float | None]:
    """Return what the framing fields of a head say together: the length, whether the body is chunked, whether the
    connection goes on and for how long. Raises BadResponse."""
    length, is_chunked, options, idle_seconds = None, False, _NO_OPTIONS, None
    for spelled, value in fields:
        name = spelled.lower()
        if name == b"connection":
            options |= _options(value)
        elif name == b"keep-alive":
            idle_seconds = keep_alive_seconds(value)
        elif name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise BadResponse("a bad or repeated Content-Length")
            length = int(value)
        else:
            if is_chunked or value.lower() != b"chunked":
                raise BadResponse("a Transfer-Encoding other than chunked")
            is_chunked = True
    if is_chunked and (length is not None or minor == b"0"):
        raise BadResponse("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
    return length, is_chunked, b"close" not in options and (minor == b"1" or b"keep-alive" in options), idle_seconds


def keep_alive_seconds(value: bytes) -> float | None:
    """Return how long a connection may be idle by the backend's `Keep-Alive` (`timeout=5, max=100`), less a margin.

    None if the header does not say."""
    found = _KEEP_ALIVE_TIMEOUT.fullmatch(value)
    return None if found is None else max(0.0, int(found[1]) - _KEEP_ALIVE_MARGIN_SECONDS)


@lru_cache(maxsize=64)
def _options(value: bytes) -> frozenset[bytes]:
    return frozenset(option.strip(b" \t") for option in value.lower().split(b","))


def _parse_fields(lines: list[bytes]) -> list[tuple[tuple[bytes, bytes], bool]]:
    """Return the fields, each with whether it concerns the framing. Raises BadResponse."""
    if len(lines) > MAX_FIELDS:
        raise BadResponse("too many fields")
    return [_fields.get(line) or _cache(_fields, line, _parse_field(line)) for line in lines]


def _parse_field(line: bytes) -> tuple[tuple[bytes, bytes], bool]:
    if not is_field_value(line):
        raise BadResponse("a control character, or a line that ends wrongly")
    name, colon, value = line.partition(b":")
    if not colon:
        raise BadResponse("a line that is no field")
    if not is_token(name):
        raise BadResponse("a field whose name is none")
    return (name, value.strip(b" \t")), name.lower() in _FRAMING


def _cache(memory: dict[bytes, _T], text: bytes, parsed: _T) -> _T:
    """Cache `parsed` as the result for `text`, and return it."""
    if len(text) <= _MAX_SHARED_BYTES:
        if len(memory) >= _MAX_SHARED:
            memory.clear()
        memory[text] = parsed
    return parsed


class ResponseParser:
    """Parses the responses of one connection one after another: call `begin`, then `feed` until `on_end`.

    However the bytes are split, the callbacks are the same, and body data is passed on in as few parts as were fed. At
    `on_end`, `reusable` tells whether the connection may serve another request, and `idle_seconds` how long it may be
    kept for that, None without the backend's word.
    """

    __slots__ = (
        "_callbacks",
        "_count",
        "_held",
        "_is_fresh",
        "_left",
        "_parts",
        "_state",
        "_to_head_request",
        "idle_seconds",
        "reusable",
    )

    def __init__(self, callbacks: ParserCallbacks) -> None:
        self._callbacks = callbacks
        self._state: Callable[[bytes, int], int] | None = None
        self._held = b""
        self._parts: list[bytes] = []
        self._left = 0
        self._count = 0
        self._to_head_request = False
        self._is_fresh = False
        self.reusable = True
        self.idle_seconds: float | None = None

    def begin(self, *, to_head_request: bool) -> None:
        """Expect a response next. One to HEAD has no body, whatever its head says (RFC 9112 section 6.3)."""
        self._to_head_request = to_head_request
        self._count = 0
        self._is_fresh = not to_head_request
        self._state = self._read_head

    def stop(self) -> None:
        """Make no more calls, and let go of the receiver."""
        self._state = None
        self._parts.clear()
        # Without the cycle, a lost connection does not wait for the collector.
        self._callbacks = cast("ParserCallbacks", None)

    def feed(self, data: bytes) -> None:
        """Parse `data` and call the callbacks. Raises BadResponse, after which the parser must not be used."""
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        if self._is_fresh:
            self._is_fresh = False
            at = self._read_full_response(data)
        try:
            while self._state is not None and at < len(data):
                proceeded = self._state(data, at)
                if proceeded < 0:
                    self._held = data[at:]
                    break
                at = proceeded
        finally:
            if self._parts:
                self._flush()

    def feed_eof(self) -> bool:
        """Handle the end of the connection. Return False if it cut a response short."""
        if self._state == self._read_until_close:
            self.reusable = False
            self._state = None
            self._callbacks.on_end([])
            return True
        return self._state is None

    def _read_full_response(self, data: bytes) -> int:
        """Read a full response at once. Return where to continue: after the head if there is more or less than one
        response, at 0 if the head is not complete."""
        end = data.find(b"\r\n\r\n") + 4
        if not 4 <= end <= MAX_HEAD_BYTES:
            return 0
        head = parse_head(data[:end])
        body = None
        if head.is_chunked:
            body = _full_chunks(data, end)
        elif head.length == len(data) - end:
            body = data[end:]
        if not body or head.status < 200 or head.status in _BODILESS:
            return self._begin_response(head, data, end)
        self._state = None
        self.reusable, self.idle_seconds = head.keeps_alive, head.idle_seconds
        self._callbacks.on_full_response(head, body)
        return len(data)

    def _read_head(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if not _HEAD_START.startswith(data[at : at + len(_HEAD_START)]):
                raise BadResponse("no HTTP")
            return _more(data, at, MAX_HEAD_BYTES + 1)
        end += 4
        if end - at > MAX_HEAD_BYTES:
            raise BadResponse("a head that is too long")
        return self._begin_response(parse_head(data[at:end]), data, end)

    def _begin_response(self, head: ResponseHead, data: bytes, end: int) -> int:
        if head.status < 200:
            self._inform(head)
            return end
        self.reusable, self.idle_seconds = head.keeps_alive, head.idle_seconds
        self._callbacks.on_head(head)
        if self._state is None:
            return end
        if self._to_head_request or head.is_bodiless or head.length == 0:
            return self._finish(data, end, [])
        if head.is_chunked:
            self._state = self._read_size
        elif head.length is not None:
            self._left = head.length
            self._state = self._read_length
        else:
            self._state = self._read_until_close
        return end

    def _inform(self, head: ResponseHead) -> None:
        self._count += 1
        if head.status == 101 or self._count > MAX_INFORMATIONAL:
            raise BadResponse("an upgrade that was not requested, or endless interim responses")
        self._callbacks.on_informational(head)

    def _read_length(self, data: bytes, at: int) -> int:
        end = self._take(data, at)
        return end if self._left else self._finish(data, end, [])

    def _read_until_close(self, data: bytes, at: int) -> int:
        self._parts.append(data[at:])
        return len(data)

    def _read_size(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + _MAX_SIZE_LINE_BYTES)
        if end < 0:
            return _more(data, at, _MAX_SIZE_LINE_BYTES)
        match = _SIZE.fullmatch(data, at, end)
        if match is None:
            raise BadResponse("a bad chunk size")
        self._left = int(match[1], 16)
        self._state = self._read_chunk if self._left else self._read_trailers
        return end + 2

    def _read_chunk(self, data: bytes, at: int) -> int:
        end = self._take(data, at)
        if not self._left:
            self._state = self._read_chunk_end
        return end

    def _read_chunk_end(self, data: bytes, at: int) -> int:
        if not b"\r\n".startswith(data[at : at + 2]):
            raise BadResponse("a chunk longer than its size")
        if len(data) - at < 2:
            return -1
        self._state = self._read_size
        return at + 2

    def _read_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            return self._finish(data, at + 2, [])
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return _more(data, at, MAX_HEAD_BYTES + 1)
        end += 4
        if end - at > MAX_HEAD_BYTES:
            raise BadResponse("trailers that are too long")
        return self._finish(data, end, [each[0] for each in _parse_fields(data[at : end - 4].split(b"\r\n"))])

    def _take(self, data: bytes, at: int) -> int:
        part = data[at : at + self._left] if at or len(data) > self._left else data
        self._left -= len(part)
        self._parts.append(part)
        return at + len(part)

    def _finish(self, data: bytes, at: int, trailers: HeaderList) -> int:
        if at < len(data):
            # No request asked for the bytes that follow, and no client may get them (CVE-2026-71324).
            self.reusable = False
        if self._parts:
            self._flush()
            if self._state is None:
                return len(data)
        self._state = None
        self._callbacks.on_end(trailers)
        return len(data)

    def _flush(self) -> None:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._state is not None:
            self._callbacks.on_data(data)


def _more(data: bytes, at: int, end_bytes: int) -> int:
    """Return -1: the element at `at` is incomplete. Raise BadResponse if more data cannot make it valid."""
    if len(data) - at >= end_bytes:
        raise BadResponse("a head, trailers or a chunk size too long")
    if data.count(b"\n", at) != data.count(b"\r\n", at):
        # A backend that ends lines so would wait for the next request, and the parser for the end of the head.
        raise BadResponse("a bare LF")
    return -1


def _full_chunks(data: bytes, at: int) -> bytes | None:
    """Return the body in chunks that begins at `at` and is the rest of `data`, without trailers. None for any other, on
    which nothing is decided here."""
    if not data.endswith(b"\r\n0\r\n\r\n"):
        return None
    parts: list[bytes] = []
    while True:
        end = data.find(b"\r\n", at, at + _MAX_SIZE_LINE_BYTES)
        match = _SIZE.fullmatch(data, at, end) if end > 0 else None
        if match is None:
            return None
        at = end + 2
        size = int(match[1], 16)
        if not size:
            return b"".join(parts) if at + 2 == len(data) else None
        parts.append(data[at : at + size])
        at += size + 2
        if data[at - 2 : at] != b"\r\n":
            return None

"""A strict parser for the heads of requests. Pure: it turns bytes into a value, or raises.

A head is parsed once, and every decision uses that result: no second parser behind this one can see another header,
another length or another end (RFC 9112 section 11.2, request smuggling). A head that two recipients could read
differently is rejected, never repaired.

The texts of errors are constants without any part of the request, so that they can be translated.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final

import msgspec

from gatekeeper.http.grammar import CANONICAL_DECIMAL, FIELD_VALUE, FIELD_VALUE_CHAR, METHOD, TOKEN, TOKEN_BYTES
from gatekeeper.http.headers import HeaderList
from gatekeeper.http.methods import ALLOWED_METHODS

# Visible ASCII without "#", which no request target has (RFC 9112 section 3.2).
_TARGET: Final = rb"[\x21\x22\x24-\x7e]+"
_REQUEST_LINE: Final = re.compile(rb"(%s) (%s) HTTP/1\.([01])\r\n" % (METHOD, _TARGET))
_LIKE_A_REQUEST_LINE: Final = re.compile(rb"(%s) ([^ ]+) HTTP/([0-9.]+)\r\n" % METHOD)
# One full line: its value cannot hold a line end. Possessive, so that no run of spaces is tried in two ways.
_FIELD: Final = re.compile(rb"^(%s+):[\t ]*+(%s)\r\n" % (TOKEN, FIELD_VALUE), re.MULTILINE)
_OTHER_CONTROL: Final = rb"[^\r\n" + FIELD_VALUE_CHAR.removeprefix(b"[")
# Faults that no further byte can mend: a control byte, a bare LF, a CR without LF.
_STRAY: Final = re.compile(_OTHER_CONTROL + rb"|(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH: Final = re.compile(CANONICAL_DECIMAL)
# RFC 3986 section 3.2.2 without sub-delimiters: no name in use has any, and some recipients split at a comma.
_HOST: Final = re.compile(rb"(?:(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")
# The common form, matched first.
_PLAIN_HOST: Final = re.compile(rb"[A-Za-z0-9._-]+(?::(?:[0-9]{1,4}|[1-5][0-9]{4}))?")

_INTERPRETED: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
# Names that lenient backends (CGI, PHP) read as those of framing headers.
_ALMOST_FRAMING: Final = frozenset(
    name.replace(b"-", bytes((mark,)))
    for name in (b"content-length", b"transfer-encoding")
    for mark in TOKEN_BYTES
    if mark != ord("-") and not bytes((mark,)).isalnum()
)
_EXAMINED: Final = _INTERPRETED | _ALMOST_FRAMING

# A few megabytes, enough for most of the sections that a process gets within a minute.
_MAX_SHARED_SECTIONS: Final = 2048
_MAX_SHARED_BYTES: Final = 2048


HEADERS_TOO_LARGE: Final = "The headers are too large"
TOO_MANY_HEADERS: Final = "There are too many headers"
TARGET_TOO_LONG: Final = "The request target is too long"
PROXY_PROTOCOL: Final = "The PROXY protocol is not spoken here, only HTTP"
TLS: Final = "TLS is not spoken here, only HTTP"
# The first of its two empty lines may have been skipped.
_PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
CONTROL_BYTE: Final = "A line ends wrongly or holds a control byte"


class Limits(msgspec.Struct, frozen=True):
    """Limits of one client connection. Sizes are in bytes, times in seconds; `max_body_bytes` None means no limit.

    `write_timeout` is for clients that stop reading a response (slow read), as nginx's `send_timeout`.
    """

    max_header_bytes: int = 64 * 1024
    max_headers: int = 100
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    keepalive_timeout: float = 75.0
    keepalive_max_age: float = 3600.0
    write_timeout: float = 60.0
    max_connections: int = 10_000
    max_body_bytes: int | None = None


class RequestRejected(Exception):
    """A request that is not passed on. Its connection ends with the response, to which `headers` are added."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)


class HeaderSection(msgspec.Struct, frozen=True, eq=False):
    """A valid header section.

    `headers` keep the order and the repetition of the request, with lower-case names; `spelled` are the same with the
    names as they were read. `length` is that of the body,
    None for a chunked one. `upgrade` is the value of `Upgrade` in lower-case, None without one.

    Clients send the same headers again and again: one object stands for all requests whose section has the same bytes,
    so nothing in it may be changed. It is compared by identity and can be the key of a cache, but only where
    `is_shared` is true: a section that is too large to be remembered is a new object for every request.
    """

    headers: HeaderList
    length: int | None
    keep_alive: bool
    expects_continue: bool
    upgrade: bytes | None
    connection: frozenset[bytes]
    is_shared: bool
    spelled: HeaderList


class RequestHead(msgspec.Struct, frozen=True):
    """A valid request head. `size_bytes` is its size on arrival."""

    method: str
    target: bytes
    version: str
    size_bytes: int
    section: HeaderSection

    @property
    def headers(self) -> HeaderList:
        return self.section.headers

    @property
    def length(self) -> int | None:
        return self.section.length

    @property
    def keep_alive(self) -> bool:
        return self.section.keep_alive

    @property
    def expects_continue(self) -> bool:
        return self.section.expects_continue

    @property
    def upgrade(self) -> bytes | None:
        return self.section.upgrade

    @property
    def connection(self) -> frozenset[bytes]:
        return self.section.connection


_NOTHING: Final[frozenset[bytes]] = frozenset()


def parse_head(raw: bytes, limits: Limits) -> RequestHead:
    """Parse `raw`, a head from the request line to the empty line. Raises `RequestRejected`."""
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _bad_request_line(raw)
    method, target, minor = line.groups()
    _check_target(method, target)
    section, modern = raw[line.end() :], minor == b"1"
    parse = _parse_shared_section if len(section) <= _MAX_SHARED_BYTES else _parse_section
    parsed = parse(section, modern, limits.max_headers)
    return RequestHead(method.decode(), target, "1.1" if modern else "1.0", len(raw), parsed)


def _parse_section(section: bytes, modern: bool, max_headers: int) -> HeaderSection:
    fields = _FIELD.findall(section)
    if len(fields) != section.count(b"\n") - 1:
        raise RequestRejected(400, CONTROL_BYTE if _STRAY.search(section) else "A header line is malformed")
    if len(fields) > max_headers:
        raise RequestRejected(431, TOO_MANY_HEADERS)
    if b" \r\n" in section or b"\t\r\n" in section:
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    headers = [(name.lower(), value) for name, value in fields]
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _EXAMINED:
            values.setdefault(name, []).append(value)
    _check_host(values.get(b"host"), required=modern)
    length = _body_length(values, modern=modern)
    connection = frozenset(_members(values[b"connection"])) if b"connection" in values else _NOTHING
    return HeaderSection(
        headers=headers,
        length=length,
        # RFC 9112 section 9.3.
        keep_alive=b"close" not in connection and (modern or b"keep-alive" in connection),
        # RFC 9110 section 10.1.1: never 100 to HTTP/1.0, nor where there is no body to wait for.
        expects_continue=modern
        and length != 0
        and b"expect" in values
        and b"100-continue" in _members(values[b"expect"]),
        upgrade=b",".join(_members(values[b"upgrade"])) if b"upgrade" in values else None,
        connection=connection,
        is_shared=len(section) <= _MAX_SHARED_BYTES,
        spelled=fields,
    )


_parse_shared_section = lru_cache(maxsize=_MAX_SHARED_SECTIONS)(_parse_section)


def salvage(raw: bytes, limits: Limits) -> tuple[str, bytes, HeaderList]:
    """Return method, target and headers of a faulty or incomplete head, as far as its lines are well-formed. They serve
    to word the response and the log, never for a decision."""
    line = _REQUEST_LINE.match(raw)
    fields = islice(_FIELD.finditer(raw, line.end() if line else 0), limits.max_headers)
    headers = [(field[1].lower(), field[2].rstrip(b" \t")) for field in fields]
    return (line[1].decode(), line[2], headers) if line else ("", b"", headers)


def protocol_instead(raw: bytes) -> str | None:
    """Return what was sent in the place of HTTP, in a sentence, where a faulty head shows that."""
    if raw.startswith((_PROXY_V2, _PROXY_V2[2:])) or (raw.startswith(b"PROXY ") and not _REQUEST_LINE.match(raw)):
        return PROXY_PROTOCOL
    return TLS if raw.startswith(b"\x16\x03") else None


def parse_trailer(line: bytes) -> tuple[bytes, bytes]:
    """Return name and value of a trailer line without its CRLF. Raises `RequestRejected`."""
    field = _FIELD.fullmatch(line + b"\r\n")
    if field is None:
        raise RequestRejected(400, "A trailer is malformed")
    return field[1], field[2].rstrip(b" \t")


def check_unfinished(data: bytes | bytearray, start: int = 0) -> None:
    """Raise `RequestRejected` if `data` has a fault that no further byte can mend: a control byte or a wrong line
    end."""
    if _STRAY.search(data, start):
        raise RequestRejected(400, CONTROL_BYTE)


def _bad_request_line(raw: bytes) -> RequestRejected:
    """Return the error for a head that does not begin with a request line."""
    line = _LIKE_A_REQUEST_LINE.match(raw)
    if line is None:
        return RequestRejected(400, "The request line is malformed")
    if line[3] not in {b"1.1", b"1.0"}:
        return RequestRejected(400, "The protocol must be HTTP/1.1 or HTTP/1.0")
    return RequestRejected(400, "The request target holds a character that must be percent-encoded")


def _check_target(method: bytes, target: bytes) -> None:
    if method in {b"TRACE", b"CONNECT"}:
        raise RequestRejected(405, "This method is not allowed", [(b"allow", ALLOWED_METHODS)])
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise RequestRejected(400, "The request target must be a path that begins with /")


def _check_host(hosts: list[bytes] | None, *, required: bool) -> None:
    """Check for one valid `Host` (RFC 9112 section 3.2), which HTTP/1.0 may omit."""
    if hosts is None:
        if required:
            raise RequestRejected(400, "The Host header is missing")
        return
    if len(hosts) != 1 or not (_PLAIN_HOST.fullmatch(hosts[0]) or _is_host(hosts[0])):
        raise RequestRejected(400, "There must be one Host header that names a host")


def _is_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match[2] or 0) > 65_535:
        return False
    if match[1] is None:
        return True
    try:
        ipaddress.IPv6Address(match[1].decode())
    except ValueError:
        return False
    return True


def _body_length(values: Mapping[bytes, list[bytes]], *, modern: bool) -> int | None:
    """Return the length of the body in bytes, None for a chunked one (RFC 9112 section 6.3). What the RFC merely
    tolerates is rejected."""
    if not _ALMOST_FRAMING.isdisjoint(values):
        raise RequestRejected(400, "A header could be read as one that says how long the body is")
    lengths, codings = values.get(b"content-length"), values.get(b"transfer-encoding")
    if codings is None:
        if lengths is None:
            return 0
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
            raise RequestRejected(400, "Content-Length must be one decimal number")
        return int(lengths[0])
    if lengths is not None:
        raise RequestRejected(400, "Content-Length and Transfer-Encoding exclude each other")
    if not modern:
        raise RequestRejected(400, "HTTP/1.0 has no Transfer-Encoding")
    if len(codings) != 1 or codings[0].lower() != b"chunked":
        raise RequestRejected(400, "Transfer-Encoding must be chunked and nothing else")
    return None


def _members(values: Sequence[bytes]) -> list[bytes]:
    """Return the members of a list header (RFC 9110 section 5.6.1) in lower-case."""
    return [member for value in values for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


class HeadReader:
    """Cuts heads out of the bytes of a connection, however they are split. It holds at most `max_header_bytes`.

    A fault is reported with the first byte that shows it: there is no waiting for the rest of a head with a bare LF, or
    of one without a valid request line.
    """

    __slots__ = ("_blank_skipped", "_limit", "_line_read", "_scanned", "buffer")

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.max_header_bytes
        self._begin()

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the head, once it is complete, and the bytes that follow it; None until then.

        Raises `RequestRejected`; `buffer` then holds the bytes read so far.
        """
        if not self.buffer and not data.startswith((b"\r", b"\n")):
            # The common case: a full head in one piece.
            end = data.find(b"\r\n\r\n") + 4
            if 4 <= end <= self._limit:
                return (data, b"") if end == len(data) else (data[:end], data[end:])
        self.buffer += data
        self._skip_empty_line()
        end = self.buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) + 4
        if end == 3:
            self._check_part()
            return None
        if end > self._limit:
            raise self._too_large()
        raw, rest = bytes(self.buffer[:end]), bytes(self.buffer[end:])
        self._begin()
        return raw, rest

    def _begin(self) -> None:
        self.buffer = bytearray()
        self._scanned = 0
        self._line_read = False
        self._blank_skipped = False

    def _skip_empty_line(self) -> None:
        """Skip one empty line before a request, which old clients send after a body (RFC 9112 section 2.2)."""
        if not self._blank_skipped and self.buffer.startswith(b"\r\n"):
            del self.buffer[:2]
            self._blank_skipped = True
            self._scanned = 0
        if self._blank_skipped and self.buffer.startswith(b"\r\n"):
            raise RequestRejected(400, "There is more than one empty line before the request")

    def _check_part(self) -> None:
        # The last byte again: the next byte decides about a CR.
        check_unfinished(self.buffer, max(0, self._scanned - 1))
        self._scanned = len(self.buffer)
        if not self._line_read and b"\n" in self.buffer:
            if _REQUEST_LINE.match(self.buffer) is None:
                raise _bad_request_line(bytes(self.buffer))
            self._line_read = True
        if len(self.buffer) >= self._limit:
            raise self._too_large()

    def _too_large(self) -> RequestRejected:
        line_end = self.buffer.find(b"\n") + 1
        # RFC 9110 section 15.5.15: not even the request line fits.
        if line_end == 0 or line_end > self._limit:
            return RequestRejected(414, TARGET_TOO_LONG)
        return RequestRejected(431, HEADERS_TOO_LARGE)

"""Checks of a WebSocket handshake (RFC 6455 section 4.2.1). Pure.

They come before everything else: a handshake that fails gets an HTTP response, its connection closes, and no tunnel
begins.
"""

from __future__ import annotations

import re
from typing import Final

from websockets.exceptions import InvalidHeader
from websockets.headers import parse_extension

from gatekeeper.http.grammar import TOKEN
from gatekeeper.http.request_head import (
    HEADERS_TOO_LARGE,
    TARGET_TOO_LONG,
    TOO_MANY_HEADERS,
    RequestHead,
    RequestRejected,
)

_VERSION: Final = b"13"
# 16 bytes in base64.
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
_TOKENS: Final = re.compile(rb"%(token)s(?:[ \t]*,[ \t]*%(token)s)*" % {b"token": TOKEN})
# The limits of the websockets library, which then takes the connection over; its own errors are not helpful.
_MAX_LINE_BYTES: Final = 8190
_MAX_HEADERS: Final = 128
_MALFORMED: Final = "The WebSocket handshake is malformed"


def asks_for_websocket(head: RequestHead) -> bool:
    """Tell whether `Upgrade` names WebSocket, validly or not."""
    return head.upgrade is not None and b"websocket" in head.upgrade.split(b",")


def check_handshake(head: RequestHead) -> None:
    """Raise `RequestRejected`: 426 for a version other than 13 (RFC 6455 section 4.4), else 400, 414 or 431."""
    versions = _values(head, b"sec-websocket-version")
    if len(versions) == 1 and versions[0] != _VERSION and versions[0].isdigit():
        raise RequestRejected(
            426,
            "The WebSocket version must be 13",
            [(b"sec-websocket-version", _VERSION), (b"upgrade", b"websocket")],
        )
    keys = _values(head, b"sec-websocket-key")
    if (
        versions != [_VERSION]
        or head.version != "1.1"
        or head.method != "GET"
        or head.upgrade != b"websocket"
        or b"upgrade" not in head.connection
        or len(keys) != 1
        or not _KEY.fullmatch(keys[0])
        # uvicorn would wait for the end of a body that its handshake never reads (P0-S19).
        or head.length != 0
        # RFC 6454 section 7.3.
        or len(_values(head, b"origin")) > 1
        or not all(map(_TOKENS.fullmatch, _values(head, b"sec-websocket-protocol")))
        or not all(map(_is_extension_list, _values(head, b"sec-websocket-extensions")))
    ):
        raise RequestRejected(400, _MALFORMED)
    _check_sizes(head)


def serialize_handshake(head: RequestHead) -> bytes:
    """Return the bytes of a checked handshake, with the checked fields only."""
    lines = [b"%b: %b\r\n" % header for header in head.headers]
    return b"".join((b"GET %b HTTP/1.1\r\n" % head.target, *lines, b"\r\n"))


def _values(head: RequestHead, name: bytes) -> list[bytes]:
    return [value for key, value in head.headers if key == name]


def _is_extension_list(value: bytes) -> bool:
    try:
        parse_extension(value.decode("latin-1"))
    except InvalidHeader:
        return False
    return True


def _check_sizes(head: RequestHead) -> None:
    if len(b"GET  HTTP/1.1") + len(head.target) > _MAX_LINE_BYTES:
        raise RequestRejected(414, TARGET_TOO_LONG)
    if any(len(name) + len(value) + 2 > _MAX_LINE_BYTES for name, value in head.headers):
        raise RequestRejected(431, HEADERS_TOO_LARGE)
    if len(head.headers) > _MAX_HEADERS:
        raise RequestRejected(431, TOO_MANY_HEADERS)

"""WebSocket handshakes (RFC 6455 section 4): the rules for both sides. Pure.

The check of a client's comes before everything else: a handshake that fails gets an HTTP response, its connection
closes, and no tunnel begins.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1
from typing import Final

from gatekeeper.http.grammar import TOKEN
from gatekeeper.http.headers import Headers, get_all
from gatekeeper.http.request_head import RequestHead, RequestRejected

KEY: Final = b"sec-websocket-key"
PROTOCOLS: Final = b"sec-websocket-protocol"
EXTENSIONS: Final = b"sec-websocket-extensions"
DEFLATE: Final = b"permessage-deflate"
"""The extension that passes (RFC 7692)."""

_VERSION: Final = b"13"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 16 bytes in base64.
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
_TOKENS: Final = re.compile(rb"%(token)s(?:[ \t]*,[ \t]*%(token)s)*" % {b"token": TOKEN})
# A quoted value is a token too (RFC 6455 section 9.1), so a comma always separates.
_EXTENSION: Final = re.compile(
    rb"[ \t]*(%(token)s)(?:[ \t]*;[ \t]*%(token)s(?:[ \t]*=[ \t]*(?:%(token)s|\"%(token)s\"))?)*[ \t]*"
    % {b"token": TOKEN}
)
_MALFORMED: Final = "The WebSocket handshake is malformed"


class BadHandshake(Exception):
    """A response that accepts no handshake, or not this one. The text quotes none of it."""


def asks_for_websocket(head: RequestHead) -> bool:
    """Tell whether `Upgrade` names WebSocket, validly or not."""
    return head.upgrade is not None and b"websocket" in head.upgrade.split(b",")


def check_handshake(head: RequestHead) -> None:
    """Raise `RequestRejected`: 426 for a version other than 13 (RFC 6455 section 4.4), else 400."""
    versions = get_all(head.headers, b"sec-websocket-version")
    if len(versions) == 1 and versions[0] != _VERSION and versions[0].isdigit():
        raise RequestRejected(
            426,
            "The WebSocket version must be 13",
            [(b"sec-websocket-version", _VERSION), (b"upgrade", b"websocket")],
        )
    keys = get_all(head.headers, KEY)
    if (
        versions != [_VERSION]
        or head.version != "1.1"
        or head.method != "GET"
        or head.upgrade != b"websocket"
        or b"upgrade" not in head.connection
        or len(keys) != 1
        or not _KEY.fullmatch(keys[0])
        # P0-S19
        or head.length != 0
        # RFC 6454 section 7.3.
        or len(get_all(head.headers, b"origin")) > 1
        or not all(map(_TOKENS.fullmatch, get_all(head.headers, PROTOCOLS)))
        or _extensions(head.headers) is None
    ):
        raise RequestRejected(400, _MALFORMED)


def accept_of(key: bytes) -> bytes:
    """Return the value of `Sec-WebSocket-Accept` for a key."""
    return b64encode(sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455 section 4.2.2


def offered_compression(headers: Headers) -> bytes:
    """Return the offers of permessage-deflate as they were made, empty for none. No other extension is passed on:
    what it would make of frames is unknown."""
    offers = _extensions(headers) or []
    return b", ".join(offer for name, offer in offers if name == DEFLATE)


def offered_protocols(headers: Headers) -> list[bytes]:
    """Return the subprotocols that a handshake offers."""
    return [item.strip(b" \t") for value in get_all(headers, PROTOCOLS) for item in value.split(b",")]


def check_response(headers: Headers, *, key: bytes, offered: Headers) -> None:
    """Check a 101 of a backend, with its names in lower-case, to a handshake with this key and these headers (RFC 6455
    section 4.1). Raises BadHandshake."""
    options = {
        option.strip(b" \t").lower() for value in get_all(headers, b"connection") for option in value.split(b",")
    }
    if b"upgrade" not in options or [item.lower() for item in get_all(headers, b"upgrade")] != [b"websocket"]:
        raise BadHandshake("no upgrade to WebSocket")
    if get_all(headers, b"sec-websocket-accept") != [accept_of(key)]:
        raise BadHandshake("another key")
    chosen = get_all(headers, PROTOCOLS)
    if len(chosen) > 1 or not set(chosen) <= set(offered_protocols(offered)):
        raise BadHandshake("a subprotocol that was not offered")
    extensions = _extensions(headers)
    if extensions is None or len(extensions) > 1 or (extensions and not _may_choose(extensions[0][0], offered)):
        raise BadHandshake("an extension that was not offered")


def _may_choose(extension: bytes, offered: Headers) -> bool:
    return extension == DEFLATE and bool(offered_compression(offered))


def _extensions(headers: Headers) -> list[tuple[bytes, bytes]] | None:
    """Return names and texts of the extensions, None if they are malformed."""
    found = []
    for value in get_all(headers, EXTENSIONS):
        for item in value.split(b","):
            if (match := _EXTENSION.fullmatch(item)) is None:
                return None
            found.append((match[1], item.strip(b" \t")))
    return found

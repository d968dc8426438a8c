"""Frames of a WebSocket (RFC 6455 section 5): where they begin and end, and whether they keep the rules. Pure.

Payloads are not looked at, but those of close frames. So text may be no UTF-8, and a message may be compressed.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The largest message, in either direction: all of its frames together, compressed or not."""

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012

_CLOSE: Final = 8
_MASKED: Final = 0x80
_MAX_REASON_BYTES: Final = 123
_UNSENDABLE: Final = frozenset({1004, 1005, 1006})

# What a frame is, by its first byte. Text and binary frames: a message in one frame, or the first of several.
_BAD, _WHOLE, _FIRST, _MORE, _LAST, _CONTROL, _CLOSING = range(7)
_OF_DATA: Final = frozenset({_WHOLE, _FIRST, _MORE, _LAST})


def _kinds(*, compressed: bool) -> bytes:
    """Return the kind for every first byte. RSV1 on the first frame of a message says that it is compressed (RFC 7692
    section 6); no other reserved bit and no reserved opcode has a meaning."""
    kinds = {0x00: _MORE, 0x80: _LAST, 0x88: _CLOSING, 0x89: _CONTROL, 0x8A: _CONTROL}
    for reserved in (0, 0x40) if compressed else (0,):
        for opcode in (1, 2):
            kinds[reserved | opcode] = _FIRST
            kinds[0x80 | reserved | opcode] = _WHOLE
    return bytes(kinds.get(byte, _BAD) for byte in range(256))


_PLAIN: Final = _kinds(compressed=False)
_COMPRESSED: Final = _kinds(compressed=True)


class CloseFrame(NamedTuple):
    """A close frame; `code` is None where it has none."""

    code: int | None
    reason: str = ""


class Violation(NamedTuple):
    """A breach of the rules: the close code for its sender, and why."""

    code: int
    reason: str


class FrameReader:
    """Reads the frames of one side, and tells which bytes may be passed on.

    `masked`: the side must mask its frames, as a client must; else it must not. `compressed`: permessage-deflate was
    agreed on. `left` is how much of the payload of the current frame is still to come, 0 between frames; -1 after the
    end. `moved` is true if the bytes of the last call belong to messages. `end` is how the frames ended, once they
    have: nothing behind it is read.
    """

    __slots__ = (
        "_head_bytes",
        "_held",
        "_is_open",
        "_kind",
        "_kinds",
        "_mask_bit",
        "_message_bytes",
        "end",
        "left",
        "moved",
    )

    def __init__(self, *, masked: bool, compressed: bool) -> None:
        self._kinds = _COMPRESSED if compressed else _PLAIN
        self._mask_bit = _MASKED if masked else 0
        self._head_bytes = 6 if masked else 2
        self._held = b""
        self._kind = _BAD
        self._is_open = False
        self._message_bytes = 0
        self.left = 0
        self.moved = False
        self.end: CloseFrame | Violation | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what may be passed on: all of `data` but a head or a close frame that is not complete, which is held,
        and what follows an end."""
        size = len(data)
        if size > 1 and self.left == 0 and not self._held:
            # Nearly always: one short frame, and all of it.
            length = data[1] ^ self._mask_bit
            if length < 126 and length + self._head_bytes == size:
                kind = self._kinds[data[0]]
                if kind == _WHOLE and not self._is_open:
                    self.moved = True
                    return data
                if kind == _CONTROL:
                    self.moved = False
                    return data
        self.moved = False
        return self._read(data) if self.left >= 0 else b""

    def _read(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        at, size = 0, len(data)
        while at < size:
            if self.left:
                step = min(self.left, size - at)
                self.moved = self.moved or self._kind in _OF_DATA
                self.left -= step
                at += step
                continue
            end = self._read_head(data, at)
            if end < 0:
                # At most the largest close frame.
                self._held = data[at:]
                return data[:at]
            at = end
            if self.end is not None:
                self.left = -1
                break
        return data if at == size else data[:at]

    def _read_head(self, data: bytes, at: int) -> int:
        """Read a head. Return where its payload begins, after a close frame where that ends, `at` for a violation, or
        -1 if there is too little of it."""
        if len(data) - at < 2:
            return -1 if self._kinds[data[at]] != _BAD else self._fail(at, PROTOCOL_ERROR, "unknown opcode or bits")
        kind, length = self._kinds[data[at]], data[at + 1] & 0x7F
        if (fault := self._fault(kind, data[at + 1])) is not None:
            return self._fail(at, PROTOCOL_ERROR, fault)
        end = at + self._head_bytes
        if length > 125:
            extra = 2 if length == 126 else 8
            end += extra
            if len(data) < at + 2 + extra:
                return -1
            length = int.from_bytes(data[at + 2 : at + 2 + extra], "big")
            if length < (126 if extra == 2 else 1 << 16):
                return self._fail(at, PROTOCOL_ERROR, "length in more bytes than it needs")
            if length >> 63:
                return self._fail(at, PROTOCOL_ERROR, "length of more than 63 bits")
        if kind in _OF_DATA and length + (self._message_bytes if self._is_open else 0) > MAX_MESSAGE_BYTES:
            return self._fail(at, TOO_BIG, "message too big")
        if len(data) < end:
            return -1
        if kind == _CLOSING:
            return self._read_close(data, at, end, length)
        self._take(kind, length)
        return end

    def _fault(self, kind: int, second: int) -> str | None:
        """Return what is wrong with the first two bytes, None if nothing is."""
        if kind == _BAD:
            return "unknown opcode or bits"
        if second & _MASKED != self._mask_bit:
            return "frame without a mask" if self._mask_bit else "frame with a mask"
        if kind in {_CONTROL, _CLOSING}:
            return "control frame too long" if second & 0x7F > 125 else None
        if self._is_open == (kind in {_WHOLE, _FIRST}):
            return "new message within one" if self._is_open else "continuation of no message"
        return None

    def _take(self, kind: int, length: int) -> None:
        """Begin the payload of a frame."""
        self._kind, self.left = kind, length
        if kind in _OF_DATA:
            self.moved = True
            self._message_bytes = length + (self._message_bytes if self._is_open else 0)
            self._is_open = kind in {_FIRST, _MORE}

    def _read_close(self, data: bytes, at: int, start: int, length: int) -> int:
        end = start + length
        if len(data) < end:
            return -1
        payload = data[start:end]
        if self._mask_bit:
            key = data[start - 4 : start] * (length // 4 + 1)
            payload = bytes(map(int.__xor__, payload, key))
        found = parse_close(payload)
        if isinstance(found, Violation):
            return self._fail(at, *found)
        self.end = found
        return end

    def _fail(self, at: int, code: int, reason: str) -> int:
        self.end = Violation(code, reason)
        return at


def parse_close(payload: bytes) -> CloseFrame | Violation:
    """Read the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4)."""
    if not payload:
        return CloseFrame(None)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (1000 <= code < 1015 or 3000 <= code < 5000) or code in _UNSENDABLE:
        return Violation(PROTOCOL_ERROR, "invalid close code")
    try:
        return CloseFrame(code, payload[2:].decode())
    except UnicodeDecodeError:
        return Violation(INVALID_DATA, "close reason that is no UTF-8")


def serialize_close(close: CloseFrame | Violation, *, masked: bool) -> bytes:
    """Return a close frame. A reason that is too long is cut."""
    payload = b""
    if close.code is not None:
        reason = close.reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore").encode()
        payload = close.code.to_bytes(2, "big") + reason
    if not masked:
        return bytes((0x80 | _CLOSE, len(payload))) + payload
    # RFC 6455 section 5.3: a mask that cannot be predicted.
    key = os.urandom(4)
    hidden = bytes(map(int.__xor__, payload, key * (len(payload) // 4 + 1)))
    return bytes((0x80 | _CLOSE, _MASKED | len(payload))) + key + hidden


def serialize_pong(*, masked: bool) -> bytes:
    """Return an empty pong."""
    return b"\x8a\x80" + os.urandom(4) if masked else b"\x8a\x00"

"""Reading frames: what passes, however it is cut, and what ends a side. Most rules are shown through the proxy, in
`tests/forward/test_websocket_frames.py` and `tests/system/test_websocket_frames.py`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from gatekeeper.http.websocket_frames import (
    MAX_MESSAGE_BYTES,
    CloseFrame,
    FrameReader,
    Violation,
    parse_close,
    serialize_close,
)
from tests.forward.sockets import BINARY, CLOSE, CONT, PING, PONG, TEXT, close_payload, frame


def fed(parts: Iterable[bytes], **how: Any) -> tuple[bytes, FrameReader]:
    reader = FrameReader(**{"masked": True, "compressed": False, **how})
    return b"".join([reader.feed(part) for part in parts]), reader


def masked(opcode: int, data: bytes = b"", **how: Any) -> bytes:
    return frame(opcode, data, masked=True, **how)


def test_any_cut_of_any_frames_passes_the_same_bytes() -> None:
    chance = random.Random(7)
    for _ in range(500):
        parts = []
        for _ in range(chance.randrange(1, 5)):
            size = chance.choice([0, 1, 125, 126, 300, 65536])
            parts.append(masked(chance.choice([TEXT, BINARY]), chance.randbytes(size), fin=False))
            parts.append(masked(chance.choice([PING, PONG]), chance.randbytes(chance.randrange(126))))
            parts.append(masked(CONT, chance.randbytes(size)))
        stream = b"".join([*parts, masked(CLOSE, close_payload(4000, "bye"))])
        cuts = sorted(chance.randrange(len(stream)) for _ in range(chance.randrange(20)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        passed, reader = fed(pieces)
        assert passed == stream
        assert reader.end == CloseFrame(4000, "bye")


def test_nothing_of_a_head_passes_before_it_is_complete_and_nothing_of_a_close_frame() -> None:
    for held in (masked(BINARY, b"x" * 70_000)[:13], masked(CLOSE, close_payload(1000, "bye"))[:-1]):
        before = masked(TEXT, b"a")
        passed, reader = fed([before, *[bytes([byte]) for byte in held]])
        assert passed == before
        assert (reader.left, reader.end) == (0, None)


def test_what_follows_an_end_does_not_pass() -> None:
    closing = masked(CLOSE, close_payload(1000))
    assert fed([closing + masked(TEXT, b"a"), masked(TEXT, b"b")])[0] == closing
    passed, reader = fed([masked(TEXT, b"a") + frame(TEXT, b"b"), masked(TEXT, b"c")])
    assert len(passed) == 7
    assert reader.end == Violation(1002, "frame without a mask")


def test_only_messages_are_movement() -> None:
    reader = FrameReader(masked=True, compressed=False)
    moved = []
    for data in (
        masked(TEXT, b"a"),
        masked(PING, b"a"),
        masked(BINARY, b"x" * 300, fin=False)[:100],
        b"x" * 10,
    ):
        reader.feed(data)
        moved.append(reader.moved)
    assert moved == [True, False, True, True]
    assert FrameReader(masked=True, compressed=False).moved is False


# RFC 7692 section 6
@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([masked(TEXT, b"a", rsv=4)], None),
        ([masked(BINARY, b"a", rsv=4, fin=False), masked(PING), masked(CONT, b"a")], None),
        ([masked(BINARY, b"a", fin=False), masked(CONT, b"a", rsv=4)], 1002),
        ([masked(PING, b"a", rsv=4)], 1002),
        ([masked(CLOSE, rsv=4)], 1002),
        ([masked(TEXT, b"a", rsv=6)], 1002),
        ([masked(TEXT, b"a", rsv=2)], 1002),
    ],
)
def test_rsv1_marks_the_first_frame_of_a_message_where_compression_was_agreed_on(
    frames: list[bytes], code: int | None
) -> None:
    reader = fed(frames, compressed=True)[1]
    assert (reader.end.code if reader.end else None) == code


# W05
def test_the_limit_counts_all_frames_of_a_message_once() -> None:
    half = MAX_MESSAGE_BYTES // 2
    first, second = masked(BINARY, length=half, fin=False), masked(CONT, length=half)
    # Byte by byte: a head that is read in pieces counts once.
    for more, end in ((0, None), (1, Violation(1009, "message too big"))):
        reader = FrameReader(masked=True, compressed=False)
        for _ in range(2):
            for byte in first:
                reader.feed(bytes([byte]))
            reader.feed(b"x" * half)
            for byte in second if not more else masked(CONT, length=half + more):
                reader.feed(bytes([byte]))
            if end is None:
                reader.feed(b"x" * half)
        assert reader.end == end


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_close_frame_of_ours_is_one(*, is_masked: bool) -> None:
    for close in (CloseFrame(None), CloseFrame(4401, "revoked_by_user"), CloseFrame(1011, "é" * 200)):
        reader = FrameReader(masked=is_masked, compressed=False)
        data = serialize_close(close, masked=is_masked)
        assert reader.feed(data) == data
        assert reader.end == CloseFrame(close.code, close.reason[:61])


def test_close_codes() -> None:
    valid = [code for code in range(65536) if isinstance(parse_close(code.to_bytes(2, "big")), CloseFrame)]
    assert valid == [1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)]

"""JSON that two parsers could read differently is refused."""

from __future__ import annotations

import pytest

from gatekeeper.tokens import strict_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            b'{"a": [1, 2.5, -3, 1e3, true, null, "\\u00e9\\ud83d\\ude00"]}',
            {"a": [1, 2.5, -3, 1000.0, True, None, "é😀"]},
        ),
        (b' \n\t"x" ', "x"),
        (b"18446744073709551615", 2**64 - 1),
        ('"é😀"'.encode(), "é😀"),
    ],
)
def test_json_is_read(text: bytes, value: object) -> None:
    assert strict_json.loads(text) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{} x",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"x":[{"a":1,"a":2}]}',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"-1e400",
        b"9_9",
        b"01",
        b"+1",
        b"1" * 21,
        b"1" * 5000,
        "١٢".encode(),
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'[["\\udc00\\ud800"]]',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        b"{'a':1}",
        b'{"a":1,}',
        b'"a\nb"',
        b'"\x00"',
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:  # T11, T13
    with pytest.raises(ValueError):
        strict_json.loads(text)


@pytest.mark.parametrize("unit", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded(unit: tuple[bytes, bytes]) -> None:  # T21
    opening, closing = unit
    fits = strict_json.MAX_DEPTH
    assert strict_json.loads(opening * fits + b"1" + closing * fits)
    for depth in (fits + 1, 500, 3000):
        with pytest.raises(ValueError):
            strict_json.loads(opening * depth + b"1" + closing * depth)
    with pytest.raises(ValueError):
        strict_json.loads(opening * 100_000)


def test_breadth_is_not_depth() -> None:
    assert len(strict_json.loads(b"[" + b"{}," * 200 + b"[]]")) == 201

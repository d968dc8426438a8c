"""The alphabets of HTTP, byte by byte as the RFCs list them."""

from __future__ import annotations

import re
import string

import pytest

from gatekeeper.http import grammar

TOKEN = set((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
FIELD_VALUE = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
EVERY_BYTE = [bytes((byte,)) for byte in range(256)]


@pytest.mark.parametrize("byte", EVERY_BYTE)
def test_a_token_has_these_bytes_and_no_others(byte: bytes) -> None:
    expected = byte[0] in TOKEN
    assert grammar.is_token(byte) == expected
    assert (byte in grammar.TOKEN_BYTES) == expected
    assert (re.fullmatch(grammar.TOKEN, b"a" + byte) is not None) == expected
    assert (re.fullmatch(grammar.METHOD, byte) is not None) == (expected and not byte.islower())


@pytest.mark.parametrize("byte", EVERY_BYTE)
def test_a_field_value_has_these_bytes_and_no_others(byte: bytes) -> None:
    expected = byte[0] in FIELD_VALUE
    assert grammar.is_field_value(byte) == expected
    assert (byte in grammar.FIELD_VALUE_BYTES) == expected
    assert (re.fullmatch(grammar.FIELD_VALUE, b"a" + byte) is not None) == expected


def test_a_token_is_not_empty_and_a_field_value_may_be() -> None:
    assert not grammar.is_token(b"")
    assert grammar.is_field_value(b"")

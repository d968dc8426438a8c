"""The alphabets and grammars of HTTP, each written once.

Constants in bytes that end in `_CHAR` or are plain words are fragments for `re`, without anchors. Those that end in
`_BYTES` hold every allowed byte, for `bytes.translate`, which is faster than a regular expression.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN_MARKS: Final = rb"!#$%&'*+\-.^_`|~"

TOKEN_CHAR: Final = b"[" + _TOKEN_MARKS + rb"0-9A-Za-z]"
"""One byte of a token: field names, methods, cookie names (RFC 9110 section 5.6.2, RFC 6265 section 4.1.1)."""

TOKEN: Final = TOKEN_CHAR + b"+"

METHOD: Final = b"[" + _TOKEN_MARKS + rb"0-9A-Z]{1,32}"
"""A method that is forwarded: a token without lower-case letters, for methods are case-sensitive (RFC 9110 section 9.1)
and a backend that takes `get` for GET would not do what was decided about. The longest registered one has 17 letters.
"""

FIELD_VALUE_CHAR: Final = rb"[\t\x20-\x7e\x80-\xff]"
"""One byte of a field value: visible ASCII, space, tab and obs-text (RFC 9110 section 5.5)."""

FIELD_VALUE: Final = FIELD_VALUE_CHAR + b"*+"
"""Possessive, so that no run of bytes is tried in more ways than one."""

VISIBLE: Final = rb"[\x21-\x7e]+"
"""Visible ASCII, of which every request target consists (RFC 9112 section 3.2)."""

DECIMAL: Final = rb"[0-9]{1,18}"
"""A length in bytes. 18 digits are less than 2^63 to every recipient (RFC 9110 section 8.6)."""

CANONICAL_DECIMAL: Final = rb"(?:0|[1-9][0-9]{0,17})"
"""A length without leading zeros, which some recipients read as octal."""


def _bytes_of(char: bytes) -> bytes:
    return b"".join(byte for byte in map(bytes, zip(range(256))) if re.fullmatch(char, byte))


TOKEN_BYTES: Final = _bytes_of(TOKEN_CHAR)
FIELD_VALUE_BYTES: Final = _bytes_of(FIELD_VALUE_CHAR)


def is_token(text: bytes) -> bool:
    """Tell whether this can be a field name at all."""
    return bool(text) and not text.translate(None, TOKEN_BYTES)


def is_field_value(text: bytes) -> bool:
    """Tell whether this holds only bytes that a field value may hold; it may be empty."""
    return not text.translate(None, FIELD_VALUE_BYTES)

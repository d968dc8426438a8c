"""Identifiers that providers choose (`sid`, `jti`): written so that they can be part of a key, a field or a line.

A provider writes what it likes there (`onrtac:5f0e…`, `user@host/7`). Letters, digits and a few marks stay as they are.
Every other character becomes percent-encoded UTF-8, `%` and `:` included: so two ids never have one written form, and
none can look like another one with a part added to it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

MAX_LENGTH: Final = 256
# Beside letters and digits. `_`, `.`, `-` and `~` are never encoded by `quote`.
_KEPT: Final = "+/="
# The separators of U+2028 and U+2029 are no control characters, and are encoded in keys and lines.
_FORM: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")
_WRITTEN_AS_IS: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")
# In the last part of a key that other programs look up, printable ASCII can stay, except `%` itself and what has a
# meaning in keys and patterns.
_KEPT_IN_MIRROR: Final = _KEPT + ":@!$&'(),;|^#<>`\""


def is_identifier(value: object) -> bool:
    """Return true for a text of 1 to 256 characters without control characters and surrogates."""
    return isinstance(value, str) and _FORM.fullmatch(value) is not None


def written(identifier: str) -> str:
    """Return the written form of an id: only letters, digits and `._~+/=-%`."""
    return identifier if _WRITTEN_AS_IS.fullmatch(identifier) else quote(identifier, safe=_KEPT)


def read(text: str) -> str:
    """Return the id with this written form."""
    return unquote(text) if "%" in text else text


def as_given(reference: str) -> str:
    """Return a token reference as people know it: a bare `sid` or `jti` as it stands in the token."""
    return reference if ":" in reference else read(reference)


def mirrored(identifier: str) -> str:
    """Return an id as the last part of a key of the mirror: as it stands where that is harmless."""
    return identifier if _WRITTEN_AS_IS.fullmatch(identifier) else quote(identifier, safe=_KEPT_IN_MIRROR)

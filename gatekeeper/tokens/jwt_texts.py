"""Texts that have the form of a JWT inside of a longer value, such as that of a cookie. Nothing is verified here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

# The first character of a JSON object in base64, or of a space, a tab or a line end before it.
_FIRST: Final = (b"e", b"I", b"C", b"D")
_RUN: Final = re.compile(rb"[A-Za-z0-9_.-]+")


def jwts(value: bytes) -> Iterator[str]:
    """Yield the texts in a value that have the form of a JWT: three parts, joined by dots, the first of them perhaps
    JSON in base64. More parts may stand around them: signed cookies (`s:<jwt>.<signature>`) have a fourth one."""
    if b"%" in value:
        value = unquote_to_bytes(value)
    if value.count(b".") < 2:
        return
    for run in _RUN.findall(value):
        parts = run.split(b".")
        for at, first in enumerate(parts[:-2]):
            if first[:1] in _FIRST and all(three := parts[at : at + 3]):
                yield b".".join(three).decode("ascii")

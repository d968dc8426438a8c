"""Parse JSON strictly, as RFC 7515 and RFC 7493 ask: unique names, one meaning, bounded work.

Python's own parser accepts equal names (the last one counts), `NaN`, UTF-16, integers of 4,000 digits and lone
surrogates. Each of these lets two readers of one token see different claims.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

# Claims of real providers nest four or five deep (Keycloak's `resource_access.<client>.roles`).
MAX_DEPTH = 32
# 2**64 has 20 digits. RFC 7493 section 2.2 promises exactness up to 2**53 only.
MAX_INTEGER_DIGITS = 20


def loads(data: bytes) -> Any:
    """Parse `data` (UTF-8 without BOM).

    Raises `ValueError` for text that two parsers could read differently (duplicate names, `NaN`, numbers out of
    range, lone surrogates; RFC 7515 section 4, RFC 7493 section 2) and for nesting over `MAX_DEPTH`.
    """
    text = data.decode("utf-8")
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH or b"\\u" in data:
        _walk(value)
    return value


def _walk(root: Any) -> None:
    # With a stack of its own, because deep nesting attacks recursion (GHSA-w6j9-cwv2-h6wq).
    pending: list[tuple[Any, int]] = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            # UnicodeEncodeError is a ValueError.
            value.encode("utf-8")
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise ValueError("nested too deep")
            pending.extend((member, depth + 1) for member in value)
            if isinstance(value, dict):
                pending.extend((member, depth + 1) for member in value.values())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError("an integer is too long")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_no_constant
)

"""JSON pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

_POINTER: Final = re.compile(r"(?:/(?:[^~/]|~[01])*)*", re.DOTALL)
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def parsed_pointer(pointer: str) -> tuple[str, ...]:
    """Return the names of a pointer, outermost first. Raises `ValueError`."""
    if _POINTER.fullmatch(pointer) is None:
        raise ValueError(f"the pointer is {pointer!r}; accepted: a JSON pointer such as /id or /data/user/0/name")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def at(document: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """Return the holder of the value at a pointer, and the value; both `None` where there is none."""
    holder, value = None, document
    for name in path:
        holder = value
        if isinstance(holder, dict):
            value = holder.get(name)
        elif isinstance(holder, list) and _INDEX.fullmatch(name) and int(name) < len(holder):
            value = holder[int(name)]
        else:
            return None, None
    return holder, value

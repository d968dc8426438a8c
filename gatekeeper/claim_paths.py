"""Dotted paths to claims. Names of claims may have dots themselves (`https://example.com/roles`), so at each level the
longest member name that fits is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at_path(members: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    if path in members:
        return members[path]
    value: Any = members
    names = path.split(".")
    while names:
        if not isinstance(value, dict):
            return None
        for size in range(len(names), 0, -1):
            name = ".".join(names[:size])
            if name in value:
                value, names = value[name], names[size:]
                break
        else:
            return None
    return value

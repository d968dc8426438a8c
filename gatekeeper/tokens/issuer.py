"""Tokens of our own making."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import jwt


def development_token(secret: bytes, *, algorithm: str, claims: Mapping[str, Any]) -> str:
    """A signed JWT with `claims` (those that are None are left out) and a new `jti`."""
    payload = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({**payload, "jti": uuid.uuid4().hex}, secret, algorithm=algorithm)

"""Reads and writes the index of a user's sessions where the store keeps it (gatekeeper/sessions/scripts/common.lua)."""

from __future__ import annotations

import struct
from typing import Any

import redis
from redis.client import NEVER_DECODE

_ENTRY = struct.Struct(">dd")


def index(client: redis.Redis, tag: str) -> dict[int, float]:
    """The scores of a user's sessions by id; `tag` is the part that the user's keys begin with."""
    # Not decoded, whatever the client does with texts.
    ask: Any = client.execute_command
    stored = ask("HGET", f"{tag}:sessions", "i", **{NEVER_DECODE: True}) or b""
    if stored == b"key":
        rows: Any = client.zrange(f"{tag}:index", 0, -1, withscores=True)
        return {int(session_id): score for session_id, score in rows}
    return {int(session_id): score for session_id, score in _ENTRY.iter_unpack(stored)}


def move(client: redis.Redis, tag: str, session_id: int, by: float) -> None:
    """Adds to the score of one session of a user with few."""
    scores = index(client, tag)
    scores[session_id] += by
    client.hset(f"{tag}:sessions", "i", b"".join(_ENTRY.pack(*row) for row in scores.items()))

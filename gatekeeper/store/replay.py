"""Protection against the replay of one-time tokens: their ids stay in the store until the tokens have expired."""

from __future__ import annotations

import time
from hashlib import sha256

from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import command
from gatekeeper.store.errors import unexpected_reply


class ReplayGuard:
    """The used ids of one kind of token. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: StoreClient, *, key_prefix: str, kind: str, leeway_seconds: float) -> None:
        self._redis = redis
        self._prefix = f"{key_prefix}{kind}:"
        self._leeway_seconds = leeway_seconds

    async def is_used(self, token_id: str) -> bool:
        reply = await self._redis.call(command("EXISTS", self._key(token_id)))
        if reply not in (0, 1):
            raise unexpected_reply()
        return bool(reply)

    async def record_use(self, token_id: str, *, expires_at: float) -> bool:
        """Remember an id until its token has expired (`expires_at`, seconds since 1970) and the leeway is over. Returns
        True for the first use."""
        seconds = max(expires_at - time.time() + self._leeway_seconds, 0.0)
        key = self._key(token_id)
        reply = await self._redis.call(command("SET", key, b"1", "NX", "PX", int(seconds * 1000) + 1000))
        if reply is not None and reply is not True and reply != b"OK":
            raise unexpected_reply()
        return reply is not None

    def _key(self, token_id: str) -> bytes:
        return f"{self._prefix}{sha256(token_id.encode()).hexdigest()}".encode()

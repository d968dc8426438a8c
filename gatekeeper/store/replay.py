"""What may happen once: ids of one-time tokens, remembered in the store until the tokens have expired."""

from __future__ import annotations

import time
from hashlib import sha256

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient


class ReplayGuard:
    """Ids of one kind. Raises `StoreUnavailable`."""

    def __init__(self, scripts: StoreClient, *, key_prefix: str, kind: str, leeway_seconds: float) -> None:
        self._scripts = scripts
        self._prefix = f"{key_prefix}{kind}:"
        self._leeway_seconds = leeway_seconds

    async def is_used(self, token_id: str) -> bool:
        """Whether it has happened."""
        answer = await self._scripts.command("EXISTS", self._key(token_id))
        if answer not in (0, 1):
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        return bool(answer)

    async def record_use(self, token_id: str, *, expires_at: float) -> bool:
        """Remember an id until its token has expired (`expires_at`, seconds since 1970) and the leeway is over. Returns
        True for the first use."""
        seconds = max(expires_at - time.time() + self._leeway_seconds, 0.0)
        key = self._key(token_id)
        answer = await self._scripts.command("SET", key, b"1", "NX", "PX", int(seconds * 1000) + 1000)
        if answer is not None and answer is not True and answer != b"OK":
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        return answer is not None

    def _key(self, token_id: str) -> bytes:
        return f"{self._prefix}{sha256(token_id.encode()).hexdigest()}".encode()

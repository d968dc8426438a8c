"""Rate limits: the generic cell rate algorithm in the store (`scripts/rate.lua`), so that a limit holds across all
processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import msgspec

from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import load_script
from gatekeeper.store.errors import unexpected_reply

RATE: Final = load_script(Path(__file__).parent / "scripts", "rate")
_BURST_SECONDS: Final = 4


class Rate(msgspec.Struct, frozen=True):
    """`number` calls in `seconds`."""

    number: float
    seconds: float

    def times(self, factor: float) -> Rate:
        return Rate(self.number * factor, self.seconds)


class RateLimiter:
    """Counts the calls of each user and each client address against a rate. A burst may hold the calls of four
    seconds."""

    def __init__(
        self, redis: StoreClient, *, key_prefix: str, rate: Rate, burst_seconds: float = _BURST_SECONDS
    ) -> None:
        self._redis = redis
        self._prefix = key_prefix
        self._rate = rate
        self._burst_seconds = burst_seconds

    def __repr__(self) -> str:
        return f"<RateLimiter {self._rate.number:g} in {self._rate.seconds:g} s>"

    async def wait_seconds(self, caller: str, *, factor: float = 1.0) -> int:
        """Count one call of a caller (`user:…`, `address:…`) against `factor` times the rate. Returns 0 where the call
        is within the limit, else the whole seconds until a call will be. Raises `StoreUnavailable`."""
        key = f"{self._prefix}rate:{caller}".encode()
        interval = self._rate.seconds / self._rate.number
        # At a rate below one call per burst, one call still passes, and `factor` calls at `factor` times the rate.
        burst = max(self._burst_seconds, interval)
        arguments = (round(interval / factor * 1_000_000), round(burst * 1_000_000))
        reply = await self._redis.call(RATE.command((key,), arguments))
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] != key:
            raise unexpected_reply()
        return math.ceil(int(reply[1]) / 1_000_000)

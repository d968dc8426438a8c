"""How often a caller may ask: GCRA in the store, so that it holds across all processes (`scripts/rate.lua`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import load_script

RATE: Final = load_script(Path(__file__).parent / "scripts", "rate")
_BURST_SECONDS: Final = 4


class Rate(msgspec.Struct, frozen=True):
    """`number` calls in `seconds`."""

    number: float
    seconds: float

    def times(self, factor: float) -> Rate:
        return Rate(self.number * factor, self.seconds)


class RateLimiter:
    """Counts the calls of users and of client addresses, each against a rate with bursts of four seconds' worth."""

    def __init__(
        self, scripts: StoreClient, *, key_prefix: str, rate: Rate, burst_seconds: float = _BURST_SECONDS
    ) -> None:
        self._scripts = scripts
        self._prefix = key_prefix
        self._rate = rate
        self._burst_seconds = burst_seconds

    def __repr__(self) -> str:
        return f"<RateLimiter {self._rate.number:g} in {self._rate.seconds:g} s>"

    async def wait_seconds(self, who: str, *, factor: float = 1.0) -> int:
        """Counts one call of `who` (`user:…`, `address:…`) against `factor` times the rate: 0, or for how many whole
        seconds there is no point in asking again. Raises `StoreUnavailable`."""
        key = f"{self._prefix}rate:{who}".encode()
        interval = self._rate.seconds / self._rate.number
        # A rate slower than one call a burst still lets one through, and `factor` times the rate that many.
        burst = max(self._burst_seconds, interval)
        arguments = (round(interval / factor * 1_000_000), round(burst * 1_000_000))
        reply = await self._scripts.run(RATE, (key,), arguments)
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] != key:
            raise StoreUnavailable("the session store answered for somebody else", kind="protocol")
        return math.ceil(int(reply[1]) / 1_000_000)

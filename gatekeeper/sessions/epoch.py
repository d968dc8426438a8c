"""Whether the store still has its data: what a Gatekeeper that runs asks it twice a second.

The store holds a random epoch and a count of these questions. Where the epoch is missing, is another one, or has been
asked fewer times than is known here, the store has lost data: ends among them, perhaps. Then tokens issued until that
moment open no sessions any more (`adopt_not_before`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Final

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.connection import Scripts, load_script

EPOCH: Final = load_script("epoch")
BEAT_SECONDS: Final = 0.5

_log = logging.getLogger("gatekeeper")
_LOSSES: Final = {
    b"missing": "it is empty",
    b"older": "it is as it was some time ago, and sessions that ended since may live again",
    b"another": "it is another one",
}


class Epoch:
    """What this process knows of the store's data. `adopt_not_before` is in microseconds on the store's clock, 0 where
    nothing was lost; `id` is empty until the store has answered once. `lies_apart`: the scripts of a user cannot read
    it, as in a Cluster."""

    def __init__(self, scripts: Scripts, *, key_prefix: str) -> None:
        self._scripts = scripts
        self.lies_apart: Final = scripts.is_cluster
        self.key: Final = f"{key_prefix}epoch".encode()
        self.id = ""
        self.adopt_not_before = 0
        self._beats = 0
        self._beating: asyncio.Task[float] | None = None

    def __repr__(self) -> str:
        return f"<Epoch [{self.id or 'unknown'}] {self._beats}>"

    async def beat(self) -> float:
        """Looks, and sees to it that a loss is known to everybody; the store's clock, in seconds since 1970. Who asks
        meanwhile gets the same answer. Raises `StoreUnavailable`."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.get_running_loop().create_task(self._beat())
            self._beating.add_done_callback(_retrieved)
        return await asyncio.shield(self._beating)

    async def _beat(self) -> float:
        arguments = (self.id, self._beats, secrets.token_hex(16))
        reply = await self._scripts.probe(EPOCH, (self.key,), arguments)
        try:
            key, epoch, beats, adopt_not_before, found, now = reply
            name, count, instant, clock = epoch.decode(), int(beats), int(adopt_not_before), int(now) / 1e6
        except (ValueError, TypeError, AttributeError):
            key = None
        if key != self.key:
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
        if self.id and found in _LOSSES:
            _log.warning(
                "the session store has lost data: %s; tokens issued until now open no sessions", _LOSSES[found]
            )
        self.id, self._beats = name, count
        self.adopt_not_before = max(self.adopt_not_before, instant)
        return clock

    async def aclose(self) -> None:
        """Asks no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating], timeout=0.05)
            self._beating = None


def _retrieved(beat: asyncio.Task[float]) -> None:
    """Whoever asked may have gone."""
    if not beat.cancelled():
        beat.exception()

"""The life signs of a worker process, in memory that it shares with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import time
from multiprocessing.context import SpawnContext
from typing import Any, Final

BEAT_SECONDS: Final = 0.5
# Six beats that did not come: a busy processor delays one or two.
LATELY_SECONDS: Final = 3.0
DEAD_SECONDS: Final = 10.0
# A worker beats for the first time when its imports are done, which a busy processor may delay.
START_SECONDS: Final = 60.0


def _nothing() -> None:
    """Do nothing: the default callback."""


class Pulse:
    """Written by the event loop of a worker, so that a blocked loop is noticed too, and read by its parent. Both read
    the monotonic clock of the host; a parent that was frozen finds in it what it has missed."""

    def __init__(self, context: SpawnContext) -> None:
        # The last beat, and the time since when it serves; 0 for never.
        self._shared: Any = context.RawArray(ctypes.c_double, 2)
        self.on_beat = _nothing

    def __repr__(self) -> str:
        return f"<Pulse [{'serves' if self.serves_since else 'starts'}, beat {self.age_seconds():.1f} s ago]>"

    async def keep(self) -> None:
        """Beat until cancelled, and call `on_beat` each time."""
        while True:
            self._shared[0] = time.monotonic()
            self.on_beat()
            await asyncio.sleep(BEAT_SECONDS)

    def serve(self) -> None:
        """Tell that connections are accepted from now on."""
        self._shared[1] = self._shared[0] = time.monotonic()

    @property
    def last_beat(self) -> float:
        """The time of the last beat; 0 before the first."""
        return float(self._shared[0])

    @property
    def serves_since(self) -> float:
        """The time since when the worker serves; 0 before."""
        return float(self._shared[1])

    def age_seconds(self) -> float:
        """Return the time since the last beat."""
        return time.monotonic() - self.last_beat

"""How long a client is waited for: until something comes from it, and until it takes what it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def _nothing() -> None:
    """What a cancelled deadline calls."""


class Deadline:
    """A moment that moves with every request and hardly ever comes. Calls `expired` once the moment that was last set
    is there. Setting costs no timer: the one that runs looks, when it fires, whether the moment has moved."""

    __slots__ = ("_at", "_expired", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """From now."""
        at = self._at = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)

    def clear(self) -> None:
        """Nothing is waited for. The timer stays, for it will be of use again."""
        self._at = None

    def cancel(self) -> None:
        """For good: lets go of `expired` too, which is a method of whoever holds this."""
        self._at = None
        self._expired = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._look)
        else:
            self._at = None
            self._expired()


class StallTimer:
    """Whether a client has taken nothing of what was written to it for `seconds`."""

    __slots__ = ("_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.WriteTransport, stalled: Callable[[], None]) -> None:
        """Calls `stalled` when it has; looks until all is taken, or `cancel`."""
        if self._timer is None:
            self._look(transport, stalled, None)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, transport: asyncio.WriteTransport, stalled: Callable[[], None], before: int | None) -> None:
        self._timer = None
        waiting = transport.get_write_buffer_size()
        if waiting and waiting == before:
            stalled()
        elif waiting:
            self._timer = self._loop.call_later(self._seconds, self._look, transport, stalled, waiting)

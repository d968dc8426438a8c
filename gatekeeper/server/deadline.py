"""Timers for slow clients: for one that sends nothing, and for one that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def _nothing() -> None:
    """Do nothing: the callback of a cancelled deadline."""


class Deadline:
    """A deadline that moves with every request and rarely passes. Calls `expired` when it does. Moving it costs no
    timer: the running one checks, when it fires, whether the deadline has moved."""

    __slots__ = ("_at", "_expired", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self.set_at(self._loop.time() + seconds)

    def set_at(self, at: float) -> None:
        """Set the deadline to an instant of the event loop's clock."""
        self._at = at
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)

    def clear(self) -> None:
        """Remove the deadline. The timer is kept for the next one."""
        self._at = None

    def cancel(self) -> None:
        """Stop for good, and release `expired`, which is a method of the owner."""
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
    """Detects a client that has read nothing of the response for `seconds`."""

    __slots__ = ("_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.WriteTransport, stalled: Callable[[], None]) -> None:
        """Call `stalled` when that happens. Watches until everything is read, or until `cancel`."""
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

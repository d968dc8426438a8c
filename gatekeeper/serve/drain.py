"""Shutdown of one process, in this order: not ready, stop accepting, finish what is in flight, exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final, Self

from gatekeeper.server.listener import Listener
from gatekeeper.settings import Settings
from gatekeeper.telemetry.health import Health

_log = logging.getLogger("gatekeeper")

_PARENT_CHECK_SECONDS: Final = 0.5


class Drain:
    """Shuts `server` down at SIGTERM or SIGINT; a worker also when its parent process is gone.

    `/readyz` turns 503 at once, and every response says `Connection: close`. Requests are accepted for another
    `SHUTDOWN_DELAY`; requests in flight then have `SHUTDOWN_GRACE` to finish. A second signal ends the process without
    waiting. The ops port is served to the last.
    """

    def __init__(self, settings: Settings, health: Health, server: Listener, parent: int | None) -> None:
        self._delay_seconds = settings.shutdown_delay
        self._health = health
        self._server = server
        self._parent = parent
        # Ctrl-C reaches the whole process group; a worker waits for SIGTERM from its parent.
        self._signals = (signal.SIGTERM,) if parent else (signal.SIGTERM, signal.SIGINT)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self.begin)
        if self._parent is not None:
            self._tasks.append(asyncio.create_task(self._watch_parent()))
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.remove_signal_handler(number)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self) -> None:
        """Begin to drain; if that has begun already, exit now."""
        if self._health.draining:
            self._server.should_exit = self._server.force_exit = True
            return
        _log.info("server shutting down")
        self._health.draining = True
        self._server.announce_close()
        self._tasks.append(asyncio.create_task(self._stop_accepting()))

    async def _stop_accepting(self) -> None:
        await asyncio.sleep(self._delay_seconds)
        self._server.should_exit = True

    async def _watch_parent(self) -> None:
        while os.getppid() == self._parent:  # noqa: ASYNC110 - no event reports the death of a parent
            await asyncio.sleep(_PARENT_CHECK_SECONDS)
        if not self._health.draining:
            self.begin()

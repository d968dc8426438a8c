"""The parent of several worker processes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from gatekeeper.app import create_ops
from gatekeeper.build import build_sidecar, check_keys
from gatekeeper.errors import ConfigError
from gatekeeper.serve.crew import Crew, RunWorker
from gatekeeper.serve.listeners import serving
from gatekeeper.serve.reload import Reread, on_hangup
from gatekeeper.serve.start import announce
from gatekeeper.settings import Settings
from gatekeeper.telemetry.health import Health
from gatekeeper.telemetry.multiprocess import of_workers

_log = logging.getLogger("gatekeeper")

_CHECK_SECONDS: Final = 0.1
# The parent is bound to these for as long as it lives.
_OF_THE_PARENT: Final = frozenset({"listen", "ops_listen", "workers", "data_dir", "log_format", "log_level"})


class Workers:
    """Worker processes that accept from the socket `public`, and the ops port that reports about all of them."""

    def __init__(
        self, settings: Settings, public: socket.socket, run_worker: RunWorker, *, metrics_folder: Path, reread: Reread
    ) -> None:
        self._settings = settings
        self._public = public
        self._reread = reread
        self._metrics_folder = metrics_folder
        self._crew = Crew(settings, public, run_worker, metrics_folder=metrics_folder)
        # This engine handles no requests: it keeps the embedded store running and reports readiness for all workers.
        self._engine = build_sidecar(settings)
        self._health = Health(self._faults, self._crew.death)
        self._replacing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Workers {self._crew!r}>"

    async def run(self, ops: socket.socket | None) -> int:
        """Run the workers until the drain is over, and return the exit code. Raises `EmbeddedStoreFailed`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        on_hangup(self._hung_up, self._drain)
        try:
            await self._engine.runtime.start()
            async with serving(create_ops(self._health, of_workers(self._metrics_folder)), self._settings, ops):
                await self._supervise(ops)
        finally:
            await self._engine.runtime.aclose()
        return self._crew.exit_code

    async def _faults(self) -> list[str]:
        found = self._crew.faults()
        return [*found, *await self._engine.readiness.faults()]

    def _drain(self) -> None:
        """Pass a signal on to all workers. The first one begins the drain."""
        if not self._health.draining:
            self._health.draining = True
            # As long as any process has the socket open, the kernel accepts connections that no worker would serve.
            asyncio.get_running_loop().call_later(self._settings.shutdown_delay, self._public.close)
        self._crew.terminate()

    async def _supervise(self, ops: socket.socket | None) -> None:
        announced = False
        while self._crew or not self._health.draining:
            self._crew.look()
            if not announced and self._crew.serves:
                announced = True
                announce(self._settings, self._engine.claimed, self._public, ops)
            await asyncio.sleep(_CHECK_SECONDS)
        if self._replacing is not None:
            await self._replacing

    def _hung_up(self) -> None:
        """Read the settings again and replace the workers, unless that is under way."""
        if self._health.draining or (self._replacing is not None and not self._replacing.done()):
            return
        self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        settings = self._reread(self._settings, kept=_OF_THE_PARENT, check=check_keys)
        if settings is None:
            return
        await self._renew_engine(settings)
        if await self._crew.replace(settings):
            self._settings = settings
            _log.info("configuration reloaded: every worker is replaced")

    async def _renew_engine(self, settings: Settings) -> None:
        if settings.redis_url is None:
            # The store that this process keeps running stays as it is.
            with suppress(ConfigError):
                await self._engine.reload(settings)
            return
        engine, before = build_sidecar(settings), self._engine
        await engine.runtime.start()
        self._engine = engine
        await before.runtime.aclose()

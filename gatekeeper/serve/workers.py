"""The parent of several worker processes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from gatekeeper.app import create_ops
from gatekeeper.build import build_sidecar
from gatekeeper.serve.listeners import serving
from gatekeeper.serve.start import announce
from gatekeeper.settings import Settings
from gatekeeper.telemetry.health import Health, of_workers

_log = logging.getLogger("gatekeeper")

_CHECK_SECONDS: Final = 0.1


class Workers:
    """Worker processes that accept from the socket `public`. One that exits before the drain is replaced.

    Each worker process calls `run_worker` with the socket and the process id of the parent.
    """

    def __init__(
        self, settings: Settings, public: socket.socket, run_worker: Callable[[socket.socket, int], None]
    ) -> None:
        self._settings = settings
        self._public = public
        self._run_worker = run_worker
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []

    def __repr__(self) -> str:
        return f"<Workers [{sum(process.is_alive() for process in self._processes)} alive]>"

    async def run(self, ops: socket.socket | None, metrics_folder: Path) -> int:
        """Run the workers until the drain is over, and return the exit code. The workers write their metrics into
        `metrics_folder`. Raises `EmbeddedStoreFailed`."""
        # This engine handles no requests: it keeps the embedded store running and reports readiness for all workers.
        engine = build_sidecar(self._settings)
        health = Health(engine.readiness.faults)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, health)
        try:
            await engine.runtime.start()
            announce(self._settings, engine.claimed, self._public, ops)
            async with serving(create_ops(health, of_workers(metrics_folder)), self._settings, ops):
                codes = await self._supervise(health)
        finally:
            await engine.runtime.aclose()
        # A worker that gets SIGTERM before it handles signals is killed by it; it had accepted no connection.
        return 0 if all(code in {0, -signal.SIGTERM} for code in codes) else 1

    def _drain(self, health: Health) -> None:
        """Pass a signal on to all workers. The first one begins the drain."""
        if not health.draining:
            health.draining = True
            # As long as any process has the socket open, the kernel accepts connections that no worker would serve.
            asyncio.get_running_loop().call_later(self._settings.shutdown_delay, self._public.close)
        for process in self._processes:
            if process.is_alive():
                process.terminate()

    async def _supervise(self, health: Health) -> list[int | None]:
        """Start the workers, replace those that exit, and return the exit codes when all have exited after a drain."""
        self._processes = [self._start() for _ in range(self._settings.workers) if not health.draining]
        while any(process.is_alive() for process in self._processes) or not health.draining:
            for position, process in enumerate(self._processes):
                if process.is_alive() or health.draining:
                    continue
                _log.error("worker restarted: the process exited", extra={"exit_code": process.exitcode})
                mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                self._processes[position] = self._start()
            await asyncio.sleep(_CHECK_SECONDS)
        return [process.exitcode for process in self._processes]

    def _start(self) -> BaseProcess:
        process = self._context.Process(
            target=self._run_worker, args=(self._public, os.getpid()), name="gatekeeper-worker"
        )
        process.start()
        return process

"""Worker processes: started, watched, started again when they exit, and replaced one by one."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from gatekeeper.serve.pulse import DEAD_SECONDS, LATELY_SECONDS, START_SECONDS, Pulse
from gatekeeper.settings import Settings
from gatekeeper.telemetry.multiprocess import retire

_log = logging.getLogger("gatekeeper")

_CHECK_SECONDS: Final = 0.1
# A worker that served for less fails again, as far as one can tell.
_STABLE_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 15.0
# A new worker that does not serve by then never will.
_REPLACE_SECONDS: Final = 120.0
# What a worker may take after its drain is over, and after a second signal.
_EXIT_SECONDS: Final = 5.0

RunWorker = Callable[[Settings, socket.socket, Pulse, int], None]


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pulse: Pulse
    # On trial while it replaces another one; leaving since it has its signal to end.
    on_trial: bool = False
    leaving: bool = False
    killed_at: float = field(default=float("inf"))
    silent: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid or 0


class Crew:
    """`settings.workers` processes that accept from `public`. One that exits is started again, at once if it served
    for a while, else after a pause that grows.

    Each calls `run_worker` with the settings, the socket, its pulse and the process id of the parent.
    """

    def __init__(
        self, settings: Settings, public: socket.socket, run_worker: RunWorker, *, metrics_folder: Path
    ) -> None:
        self._settings = settings
        self._number = settings.workers
        self._public = public
        self._run_worker = run_worker
        self._metrics_folder = metrics_folder
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._draining = False
        self._failures = 0
        self._next_start_at = 0.0
        self._last_beat = 0.0
        self._has_served = False
        self._looked_at = self._dead_at = time.monotonic()
        self._dead_at += START_SECONDS
        self.exit_code = 0

    def __repr__(self) -> str:
        return f"<Crew [{len(self._workers)} of {self._number}]>"

    def __len__(self) -> int:
        return len(self._workers)

    # Health

    @property
    def serves(self) -> bool:
        """True once any worker accepts connections."""
        return any(worker.pulse.serves_since for worker in self._workers)

    def faults(self) -> list[str]:
        """Return why no worker serves, empty where one does and has beaten lately."""
        serving = [worker.pulse.age_seconds() for worker in self._workers if worker.pulse.serves_since]
        if not serving:
            return ["no worker serves" if self._has_served else "no worker serves yet"]
        if min(serving) > LATELY_SECONDS:
            return [f"no worker has responded for {min(serving):.0f} s"]
        return []

    def death(self) -> str | None:
        """Return the fault if no worker has beaten for ten seconds."""
        self._listen()
        if (now := time.monotonic()) > self._dead_at:
            return f"no worker has responded for {now - self._dead_at + DEAD_SECONDS:.0f} s"
        return None

    def _listen(self) -> None:
        last = max((worker.pulse.last_beat for worker in self._workers), default=0.0)
        if last > self._last_beat:
            self._last_beat = last
            self._dead_at = last + DEAD_SECONDS

    # Life

    def look(self) -> None:
        """Take note of what has happened since the last call: call this several times a second."""
        now = time.monotonic()
        if now - self._looked_at > LATELY_SECONDS:
            # This process stood still, and with it maybe the whole machine: the workers get their time anew.
            self._dead_at = max(self._dead_at, now + DEAD_SECONDS)
        self._looked_at = now
        self._listen()
        self._has_served = self._has_served or self.serves
        for worker in list(self._workers):
            if not worker.process.is_alive():
                self._gone(worker)
            else:
                self._watch(worker, now)
        members = sum(not worker.on_trial and not worker.leaving for worker in self._workers)
        if not self._draining and members < self._number and now >= self._next_start_at:
            self._start()

    def _watch(self, worker: _Worker, now: float) -> None:
        if now > worker.killed_at:
            _log.error("worker killed: it did not end in time")
            worker.process.kill()
        silent = worker.pulse.last_beat > 0 and worker.pulse.age_seconds() > DEAD_SECONDS
        if silent != worker.silent:
            worker.silent = silent
            if silent:
                _log.warning("worker does not respond: no beat for %.0f s", DEAD_SECONDS)
            else:
                _log.info("worker responds again")

    def _gone(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        retire(self._metrics_folder, worker.pid)
        code = worker.process.exitcode
        if self._draining:
            # A worker that gets SIGTERM before it handles signals is killed by it; it had accepted no connection.
            self.exit_code = self.exit_code or int(code not in {0, -signal.SIGTERM})
        elif not worker.leaving and not worker.on_trial:
            self._failed(worker, code)

    def _failed(self, worker: _Worker, code: int | None) -> None:
        now = time.monotonic()
        since = worker.pulse.serves_since
        stable = since and now - since > _STABLE_SECONDS
        self._failures = 0 if stable else self._failures + 1
        pause = 0.0
        if self._failures > 1:
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (self._failures - 2), _LONGEST_PAUSE_SECONDS)
        self._next_start_at = now + pause
        when = f"again in {pause:g} s" if pause else "again"
        why = "the process exited" if since else "the process exited before it served"
        _log.error("worker started %s: %s", when, why, extra={"exit_code": code})

    def _start(self, *, on_trial: bool = False) -> _Worker:
        pulse = Pulse(self._context)
        process = self._context.Process(
            target=self._run_worker, args=(self._settings, self._public, pulse, os.getpid()), name="gatekeeper-worker"
        )
        with _signals_held_back():
            process.start()
        worker = _Worker(process, pulse, on_trial)
        self._workers.append(worker)
        return worker

    # The end

    def terminate(self) -> None:
        """Let every worker drain; called again, end at once."""
        again, self._draining = self._draining, True
        for worker in self._workers:
            # One that is being replaced drains already: a second signal would cut it short.
            if again or not worker.leaving:
                self._terminate(worker, _EXIT_SECONDS if again else self._drain_seconds())

    def _terminate(self, worker: _Worker, seconds: float) -> None:
        worker.leaving = True
        worker.killed_at = time.monotonic() + seconds
        if worker.process.is_alive():
            worker.process.terminate()

    def _drain_seconds(self) -> float:
        return self._settings.shutdown_delay + self._settings.shutdown_grace + _EXIT_SECONDS

    # One by one

    async def replace(self, settings: Settings) -> bool:
        """Replace every worker by one with `settings`: the next one begins when a new one serves. Return False, and
        keep the others with their settings, where a new one does not."""
        before, self._settings = self._settings, settings
        for old in [worker for worker in self._workers if not worker.leaving]:
            new = self._start(on_trial=True)
            if not await self._serves(new):
                if not self._draining:
                    _log.error(
                        "configuration not reloaded, the old one stays in use: a new worker did not serve",
                        extra={"exit_code": new.process.exitcode},
                    )
                    self._terminate(new, 0)
                self._settings = before
                return False
            new.on_trial = False
            self._terminate(old if old in self._workers else new, self._drain_seconds())
        return True

    async def _serves(self, worker: _Worker) -> bool:
        deadline = time.monotonic() + _REPLACE_SECONDS
        while time.monotonic() < deadline and worker in self._workers and not self._draining:
            if worker.pulse.serves_since:
                return True
            await asyncio.sleep(_CHECK_SECONDS)
        return False


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keep signals for the whole process group from a new process until it ignores them: they are for its parent."""
    signals = {signal.SIGHUP, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

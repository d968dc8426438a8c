"""`gatekeeper serve` with a clock in its event loop: how late the loop comes to what is due.

`python -m bench.lag FILE`, settings from the environment. On SIGUSR1 it writes into FILE what it has seen since the
last time: one line of JSON, in microseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from bench.constant_rate import ticking
from gatekeeper.serve import process
from gatekeeper.serve.listeners import bind
from gatekeeper.settings import Settings, load

_TICK_SECONDS: Final = 0.001


class Clock:
    """Ticks by a timer of the kernel; a tick that the loop is late for counts with all that it has missed."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._due_at = 0.0
        self._descriptor = -1

    def start(self) -> None:
        self._descriptor = ticking(_TICK_SECONDS)
        self._due_at = time.perf_counter() + _TICK_SECONDS
        asyncio.get_running_loop().add_reader(self._descriptor, self._tick)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _tick(self) -> None:
        now = time.perf_counter()
        for _ in range(int.from_bytes(os.read(self._descriptor, 8), sys.byteorder)):
            self._late.append(max(0.0, now - self._due_at))
            self._due_at += _TICK_SECONDS

    def tell(self, path: Path) -> None:
        """Writes what was seen, and forgets it."""
        late, self._late = sorted(self._late), []
        found = {
            "ticks": len(late),
            "p50_us": late[len(late) // 2] * 1e6,
            "p99_us": late[len(late) * 99 // 100] * 1e6,
            "max_us": late[-1] * 1e6,
        }
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(path)


async def serve(settings: Settings, path: Path) -> int:
    clock = Clock()
    clock.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, clock.tell, path)
    return await process.serve(settings, bind(settings.listen), None)


def main(path: str) -> int:
    settings = load()
    process.configure_logs(settings)
    return uvloop.run(serve(settings, Path(path)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""A wall clock that tests move: libfaketime, preloaded into the one process that is to be wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis

from tests.machine import lacks
from tests.waiting import eventually

# Where Debian and Ubuntu, Fedora, and Homebrew put it.
_CLOSE_SECONDS = 10.0
_PLACES = ("/usr/lib/*-linux-gnu/faketime", "/usr/lib64/faketime", "/usr/lib/faketime", "/opt/homebrew/lib/faketime")


def _library() -> str:
    for pattern in _PLACES:
        for folder in sorted(Path("/").glob(pattern.removeprefix("/"))):
            found = folder / "libfaketime.so.1"
            if found.exists():
                return str(found)
    return lacks("libfaketime is not installed")


class ShiftedClock:
    """The clock of a process that starts with `environment`. `shift` moves it, as an operator or a broken time server
    does; the monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.shift(0)
        self.environment = {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def shift(self, seconds: float) -> None:
        """Makes the clock differ from this process's by that much, ahead where it is positive."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        new.replace(self._file)

    def shift_store(self, store: redis.Redis, seconds: float) -> None:
        """Shifts the clock of a store, and waits until its scripts see that: it reads the clock once a turn."""
        self.shift(seconds)
        eventually(lambda: abs(_time_of(store) - time.time() - seconds) < _CLOSE_SECONDS)


def _time_of(store: redis.Redis) -> float:
    found: Any = store.eval("return redis.call('TIME')[1]", 0)
    return float(found)

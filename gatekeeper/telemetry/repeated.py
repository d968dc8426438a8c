"""Warnings of what may happen at every request: they must say why, and must not fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_SECONDS_BETWEEN: Final = 10.0
# More than the errors of a network have texts; one that brings texts of its own must not cost memory.
_MOST_REASONS: Final = 32


class RepeatedWarning:
    """Calls `warn` for each reason at once, and then at most every ten seconds, with how often it was the reason since
    the call before."""

    def __init__(self, warn: Callable[[str, int], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._warn = warn
        self._clock = clock
        # By reason: when the next line may be written, and how often it was the reason since the last one.
        self._seen: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<RepeatedWarning of {len(self._seen)} reasons>"

    def __call__(self, why: str) -> None:
        now = self._clock()
        due_at, times = self._seen.get(why, (0.0, 0))
        if now < due_at:
            self._seen[why] = due_at, times + 1
            return
        if why not in self._seen and len(self._seen) >= _MOST_REASONS:
            self._seen = {reason: seen for reason, seen in self._seen.items() if now < seen[0]}
            if len(self._seen) >= _MOST_REASONS:
                return
        self._seen[why] = now + _SECONDS_BETWEEN, 0
        self._warn(why, times + 1)
